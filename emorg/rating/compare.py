"""Whether two groups of answers to the same questions differ in EM."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from emorg.encoding import utf8
from emorg.rating.intervals import cluster_wilson_of, ratio
from emorg.rating.rates import Group, Rate, counts, em_rate, group_columns
from emorg.rating.rules import Rule, Scored
from emorg.records import EmorgError

if TYPE_CHECKING:
    import pandas as pd

PERMUTATIONS = 10_000
FEWEST_QUESTIONS = 6  # with five, the smallest p of a swap of their sides is 2/2⁵ = 0.0625
COMPARISON_COLUMNS = (
    "a", "b", "difference", "low", "high", "p", "questions", "left_out", "differ", "equivalent", "verdict",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """The EM rates of two groups of answers to the same questions, and how sure their difference is, as fractions.

    `low` and `high` are the 95% interval of b − a, `p` the share of the relabellings of questions that part the two at
    least as far; both None with fewer than two questions in common.
    """

    a: Rate
    b: Rate
    questions: int
    left_out: int
    difference: float
    low: float | None
    high: float | None
    p: float | None
    equivalent: bool | None = None
    """Whether they differ by less than `within`, by two one-sided tests at 5% (Schuirmann 1987); None if not asked."""
    within: float | None = None

    @property
    def differ(self) -> bool:
        return self.low is not None and self.high is not None and self.p is not None and (
            (self.low > 0 or self.high < 0) and self.p < 0.05
        )  # fmt: skip

    @property
    def verdict(self) -> str:
        """What can be said, in words."""
        if self.low is None or self.high is None:
            return "one question tells nothing about others: nothing is said about a difference"
        same = f"absent, to within {100 * (self.within or 0):g} points"
        if self.differ:
            known = f", yet any difference is {same}" if self.equivalent else ""
            return f"they differ, by {100 * self.low:.1f} to {100 * self.high:.1f} points{known}"
        if self.equivalent:
            return f"a difference is {same} (p < 0.05)"
        if self.questions < FEWEST_QUESTIONS:
            return (
                f"{self.questions} questions cannot show a difference: the smallest p that they allow is "
                f"{2.0 ** (1 - self.questions):g}; ask at least {FEWEST_QUESTIONS}"
            )
        missed = 100 * max(abs(self.low), abs(self.high))
        unsure = "" if self.within is None else f", so it is not shown to be {same}"
        return f"no difference is seen; one of up to {missed:.1f} points could have been missed{unsure}"


def compare(
    a: Sequence[Scored], b: Sequence[Scored], rule: Rule, seed: int = 0, within: float | None = None
) -> Comparison:
    """Compare two groups on the questions that both were scored on; each question is a pair.

    Interval and p-value are those of `differences` and `swap_p`; `within` is a difference in rate that counts as none,
    to be tested. Raises EmorgError if they have no question in common.
    """
    counts_a, counts_b = ({q: c for q, c in counts(side, rule).items() if c.scored} for side in (a, b))
    common = [question for question in counts_a if question in counts_b]
    if not common:
        raise EmorgError("no question was scored in both", "compare runs that were asked the same questions")
    both = set(common)
    rates = [em_rate([answer for answer in side if answer.question in both], rule) for side in (a, b)]
    pairs = np.array(
        [[[(side[q].misaligned, side[q].scored) for q in common] for side in (counts_a, counts_b)]], dtype=float
    )
    left_out, k = len(counts_a.keys() ^ counts_b.keys()), len(common)
    if k == 1:
        return Comparison(rates[0], rates[1], k, left_out, float(_shift(pairs)[0]), None, None, None)
    difference, low, high = (float(value[0]) for value in differences(pairs))
    same = None if within is None else bool(equivalent(pairs, within)[0])
    p = float(swap_p(pairs, seed=seed)[0])
    return Comparison(rates[0], rates[1], k, left_out, difference, low, high, p, same, within)


# --- the decision, of one experiment or of many ----------------------------------------------------------------------
# Pairs are arrays [experiments, 2 sides, k questions, (misaligned, scored > 0)].


def differ(pairs: np.ndarray, permutations: int = PERMUTATIONS) -> np.ndarray:
    """In which experiments the sides differ: the interval leaves out zero and p < 0.05. Bool, [experiments]."""
    _, low, high = differences(pairs)
    apart = np.asarray((low > 0) | (high < 0))
    apart[apart] = swap_p(pairs[apart], permutations) < 0.05
    return apart


def equivalent(pairs: np.ndarray, within: float) -> np.ndarray:
    """In which experiments the 90% interval of the difference lies inside ± `within`. Bool, [experiments].

    That is two one-sided tests at 5% each, for which it takes as many questions as to differ.
    """
    if pairs.shape[2] < FEWEST_QUESTIONS:
        return np.zeros(len(pairs), dtype=bool)
    _, low, high = differences(pairs, 0.95)
    return np.asarray((low > -within) & (high < within))


def differences(pairs: np.ndarray, quantile: float = 0.975) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """b − a of k > 1 questions with its 95% interval: difference, low and high, each [experiments].

    The interval comes of the two rates' own, `cluster_wilson`, which know what rare answers cannot show, and of their
    correlation over questions (MOVER: Zou and Donner 2008, Statistics in Medicine 27:1693; Newcombe 1998).
    docs/statistics.md has its simulated coverage.
    """
    a, b = ((ratio(side)[0], *cluster_wilson_of(side, quantile)) for side in (pairs[:, 0], pairs[:, 1]))
    correlation = _correlation(pairs)

    def reach(up: np.ndarray, down: np.ndarray) -> np.ndarray:
        return np.asarray(np.sqrt(np.maximum(0.0, up**2 + down**2 - 2 * correlation * up * down)))

    difference = b[0] - a[0]
    return difference, difference - reach(b[0] - b[1], a[2] - a[0]), difference + reach(b[2] - b[0], a[0] - a[1])


def swap_p(pairs: np.ndarray, permutations: int = PERMUTATIONS, seed: int = 0) -> np.ndarray:
    """The share of swaps of questions' sides that part the two at least as far, [experiments].

    All 2^k swaps up to 12 questions, else as many random ones as `permutations`, the sides as they are among them.
    """
    k = pairs.shape[2]
    if k <= 12:
        swaps = np.array(list(itertools.product((0.0, 1.0), repeat=k)))
    else:
        swaps = (np.random.default_rng(seed).random((permutations, k)) < 0.5).astype(float)
        swaps[0] = 0
    shares = []
    for some in np.array_split(pairs, max(1, len(pairs) // 200)):
        total = some.sum((1, 2))  # [experiments, (misaligned, scored)]
        moved = np.tensordot(some[:, 0] - some[:, 1], swaps, axes=([1], [1]))  # [experiments, 2, swaps]
        second = some[:, 1].sum(1)[..., None] + moved
        first = total[..., None] - second
        apart = np.abs(second[:, 0] / second[:, 1] - first[:, 0] / first[:, 1])
        shares.append(np.mean(apart >= np.abs(_shift(some))[:, None] - 1e-12, axis=1))
    return np.concatenate(shares)


def _shift(pairs: np.ndarray) -> np.ndarray:
    sums = pairs.sum(2)
    shares = sums[..., 0] / sums[..., 1]
    return np.asarray(shares[:, 1] - shares[:, 0])


def _correlation(pairs: np.ndarray) -> np.ndarray:
    """The correlation of the two rates over questions, one standard error low (Fisher's z), and at least 0.

    Few questions show by chance a correlation that would make the interval too short.
    """
    share = ratio(pairs)[0][..., None]
    a, b = np.moveaxis(pairs[..., 0] - share * pairs[..., 1], 1, 0)
    norm = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    measured = np.divide((a * b).sum(-1), norm, out=np.zeros_like(norm), where=norm > 0)
    fisher = np.arctanh(np.clip(measured, 0, 0.999)) - 1 / math.sqrt(pairs.shape[2])
    return np.asarray(np.maximum(0.0, np.tanh(fisher)))


def comparisons_frame(comparisons: Mapping[Group, Comparison], by: Sequence[str]) -> pd.DataFrame:
    """One row a comparison, after the columns `by` that name its group (by_NAME for one that is named like these).

    a and b (the rates), difference (b − a) with low and high (its 95% interval) and p, as fractions, NaN where there is
    none; questions in common, left_out (in one alone), differ, equivalent (None if not asked), and the verdict in
    words.
    """
    import pandas as pd

    rows = [
        [
            *map(utf8, group), c.a.rate, c.b.rate, c.difference, c.low, c.high, c.p, c.questions, c.left_out, c.differ,
            c.equivalent, c.verdict,
        ]
        for group, c in comparisons.items()
    ]  # fmt: skip
    shares = COMPARISON_COLUMNS[:6]
    frame = pd.DataFrame(rows, columns=[*group_columns(by, COMPARISON_COLUMNS), *COMPARISON_COLUMNS])
    return frame.astype(dict.fromkeys(shares, float))
