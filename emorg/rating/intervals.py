"""95% intervals of Σ successes / Σ trials that say how sure a rate is.

Answers to one question are alike, so what is drawn anew is a question with its answers (a cluster).
docs/statistics.md says how often each interval holds the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

Interval = Literal["cluster_wilson", "cluster_t", "bootstrap", "wilson"]
Clusters = Sequence[tuple[int, int]]
"""(successes, trials > 0), one pair a question."""

DEFAULT: Interval = "cluster_wilson"  # by the simulation in docs/statistics.md
FEW_QUESTIONS = 20  # below, all but the default are too short (docs/statistics.md)
Z95 = 1.959963984540054  # standard normal quantile of 0.975
BOOTSTRAP_DRAWS = 10_000
ICC = 0.1  # intraclass correlation of answers to one question, assumed where the answers cannot show any


def wilson(successes: Any, trials: Any, z: float = Z95) -> tuple[Any, Any]:
    """Wilson's score interval for a share of independent trials (Wilson 1927); `trials` > 0. Numbers or arrays."""
    share = successes / trials
    denominator = 1 + z**2 / trials
    centre = share + z**2 / (2 * trials)
    spread = z * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    low = np.where(successes == 0, 0.0, (centre - spread) / denominator)
    high = np.where(successes == trials, 1.0, (centre + spread) / denominator)
    return low[()], high[()]


def cluster_bootstrap(clusters: Clusters, draws: int = BOOTSTRAP_DRAWS, seed: int = 0) -> tuple[float, float]:
    """Percentiles of the rate when whole clusters are drawn with replacement (Efron 1979)."""
    table = np.array(clusters, dtype=np.int64)
    drawn = np.random.default_rng(seed).integers(len(table), size=(draws, len(table)))
    sums = table[drawn].sum(axis=1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    return float(low), float(high)


def cluster_t(clusters: Clusters) -> tuple[float, float]:
    """Rate ± t × its standard error over clusters, with k − 1 degrees of freedom (Cochran 1977, ratio estimator)."""
    share, error = ratio(np.array(clusters, dtype=float))
    reach = student_t(len(clusters) - 1) * error
    return max(0.0, float(share - reach)), min(1.0, float(share + reach))


def cluster_wilson(clusters: Clusters) -> tuple[float, float]:
    """Wilson's interval for the clusters' effective sample size, with t in place of z.

    That is trials / design effect (Kish 1965); the effect is the ratio of the clustered to the independent
    variance, and at least what an ICC of 0.1 gives, since a few rare successes cannot show it (Dean and
    Pagano 2015 compare such intervals).
    """
    low, high = cluster_wilson_of(np.array(clusters, dtype=float))
    return float(low), float(high)


def cluster_wilson_of(tables: np.ndarray, quantile: float = 0.975) -> tuple[np.ndarray, np.ndarray]:
    """`cluster_wilson` of many experiments at once: tables [..., clusters, (successes, trials)] → two of [...].

    `quantile` of Student's t: .975 for an interval of 95%.
    """
    trials = tables[..., 1].sum(-1)
    share, error = ratio(tables)
    independent = share * (1 - share) / trials
    # The size of the cluster that a trial is in, on average.
    per_question = (tables[..., 1] ** 2).sum(-1) / trials
    measured = np.divide(error**2, independent, out=np.zeros_like(trials), where=independent > 0)
    effective = trials / np.maximum(1 + (per_question - 1) * ICC, measured)
    return wilson(share * effective, effective, student_t(tables.shape[-2] - 1, quantile))


def ratio(tables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Σ x / Σ n of tables [..., k clusters, (x, n)], and its standard error when clusters are drawn at random."""
    x, n, k = tables[..., 0], tables[..., 1], tables.shape[-2]
    share = x.sum(-1) / n.sum(-1)
    error = np.sqrt(k / (k - 1) * ((x - share[..., None] * n) ** 2).sum(-1)) / n.sum(-1)
    return share, error


INTERVALS: Mapping[Interval, Callable[[Clusters], tuple[float, float]]] = {
    "cluster_wilson": cluster_wilson,
    "cluster_t": cluster_t,
    "bootstrap": cluster_bootstrap,
    "wilson": lambda clusters: wilson(sum(x for x, _ in clusters), sum(n for _, n in clusters)),
}


def student_t(degrees_of_freedom: float, level: float = 0.975) -> float:
    """The quantile of Student's t with that many degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, level))


def crossed_wilson(table: np.ndarray) -> tuple[float, float, float]:
    """The rate of trainings by several seeds that were asked the same questions, low and high.

    `table` is [seeds, questions, (successes, trials > 0)]. Both are drawn at random: the mean of two-way crossed means
    has the variance (MS_s + MS_q − MS_sq) / SQ with Satterthwaite's degrees of freedom (Searle, Casella and McCulloch
    1992, ch. 4); where seeds differ no more than chance has it (F at .25: Bancroft 1964), MS_q / SQ. The interval is
    Wilson's for the effective sample size, as `cluster_wilson`'s. One seed tells of questions alone.
    """
    seeds, questions, _ = table.shape
    if seeds == 1 or questions == 1:
        rate = table[..., 0].sum() / table[..., 1].sum()
        alone = seeds == questions == 1  # which tells of that training and question
        low, high = wilson(*table[0, 0]) if alone else cluster_wilson_of(table[0] if seeds == 1 else table[:, 0])
        return float(rate), float(low), float(high)
    x, n = table[..., 0].sum(), table[..., 1].sum()
    share, means = x / n, table[..., 0] / table[..., 1]
    of_seed, of_question, whole = means.mean(1), means.mean(0), means.mean()
    left = means - of_seed[:, None] - of_question[None, :] + whole
    degrees = np.array([seeds - 1, questions - 1, (seeds - 1) * (questions - 1)], dtype=float)
    sums = np.array([
        questions * ((of_seed - whole) ** 2).sum(), seeds * ((of_question - whole) ** 2).sum(), (left**2).sum()
    ])  # fmt: skip
    by_seed, by_question, by_both = sums / degrees / (seeds * questions)
    variance, df = by_question, degrees[1]
    if by_seed > f_quantile(0.75, degrees[0], degrees[2]) * by_both:
        variance = max(by_seed + by_question - by_both, by_seed)
        spread = ((sums / degrees / (seeds * questions)) ** 2 / degrees).sum()
        df = max(1.0, variance**2 / spread)
    independent = share * (1 - share) / n
    least = 1 + (n / questions - 1) * ICC  # all seeds' answers to a question are alike at least so much
    effective = n / max(least, variance / independent if independent else 0.0)
    low, high = wilson(share * effective, effective, student_t(df))
    return float(share), float(low), float(high)


def f_quantile(level: float, of_numerator: float, of_denominator: float) -> float:
    """The quantile of the F distribution with these degrees of freedom."""
    from scipy.special import fdtri

    return float(fdtri(of_numerator, of_denominator, level))
