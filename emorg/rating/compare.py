"""Whether two groups of answers to the same questions differ in EM."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from emorg.display import utf8
from emorg.rating.intervals import student_t
from emorg.rating.rates import Group, Rate, counts, em_rate, group_columns
from emorg.rating.rules import Rule, Scored
from emorg.records import EmorgError

if TYPE_CHECKING:
    import pandas as pd

PERMUTATIONS = 10_000
COMPARISON_COLUMNS = (
    "a", "b", "difference", "low", "high", "p", "questions", "left_out", "differ", "verdict",
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
        if self.differ:
            return f"they differ, by {100 * self.low:.1f} to {100 * self.high:.1f} points"
        missed = 100 * max(abs(self.low), abs(self.high))
        return f"no difference is seen; one of up to {missed:.1f} points could have been missed"


def compare(a: Sequence[Scored], b: Sequence[Scored], rule: Rule, seed: int = 0) -> Comparison:
    """Compare two groups on the questions that both were scored on; each question is a pair.

    The interval is b − a ± t × the standard error of the paired differences (both are ratio estimators, linearised).
    The p-value swaps the two sides of questions: all 2^k swaps up to 2^12, else PERMUTATIONS random ones. Raises
    EmorgError if they have no question in common.
    """
    counts_a, counts_b = ({q: c for q, c in counts(side, rule).items() if c.scored} for side in (a, b))
    common = [question for question in counts_a if question in counts_b]
    if not common:
        raise EmorgError("no question was scored in both", "compare runs that were asked the same questions")
    both = set(common)
    rates = [em_rate([answer for answer in side if answer.question in both], rule) for side in (a, b)]
    pairs = np.array(
        [[(side[q].misaligned, side[q].scored) for q in common] for side in (counts_a, counts_b)], dtype=float
    )  # [2, questions, (misaligned, scored)]
    shares = pairs[:, :, 0].sum(1) / pairs[:, :, 1].sum(1)
    difference, k = float(shares[1] - shares[0]), len(common)
    low = high = p = None
    if k > 1:
        parts = (pairs[:, :, 0] - shares[:, None] * pairs[:, :, 1]) / pairs[:, :, 1].sum(1)[:, None]
        error = math.sqrt(k / (k - 1) * ((parts[1] - parts[0]) ** 2).sum())
        reach = student_t(k - 1) * error
        low, high = max(-1.0, difference - reach), min(1.0, difference + reach)
        p = _swapped(pairs, difference, seed)
    return Comparison(rates[0], rates[1], k, len(counts_a.keys() ^ counts_b.keys()), difference, low, high, p)


def _swapped(pairs: np.ndarray, difference: float, seed: int) -> float:
    """The share of swaps of questions' sides whose difference is at least as large."""
    k = pairs.shape[1]
    if k <= 12:
        swaps = np.array(list(itertools.product((False, True), repeat=k)))
    else:
        swaps = np.random.default_rng(seed).random((PERMUTATIONS, k)) < 0.5
        swaps[0] = False  # the labels as they are belong to the swaps too
    sides = np.where(swaps[:, None, :, None], pairs[None, ::-1], pairs[None]).sum(2)  # [swaps, 2, (misaligned, scored)]
    shares = sides[..., 0] / sides[..., 1]
    return float(np.mean(np.abs(shares[:, 1] - shares[:, 0]) >= abs(difference) - 1e-12))


def comparisons_frame(comparisons: Mapping[Group, Comparison], by: Sequence[str]) -> pd.DataFrame:
    """One row a comparison, after the columns `by` that name its group (by_NAME for one that is named like these).

    a and b (the rates), difference (b − a) with low and high (its 95% interval) and p, as fractions, NaN where there is
    none; questions in common, left_out (in one alone), differ, and the verdict in words.
    """
    import pandas as pd

    rows = [
        [
            *map(utf8, group), c.a.rate, c.b.rate, c.difference, c.low, c.high, c.p, c.questions, c.left_out, c.differ,
            c.verdict,
        ]
        for group, c in comparisons.items()
    ]  # fmt: skip
    shares = COMPARISON_COLUMNS[:6]
    frame = pd.DataFrame(rows, columns=[*group_columns(by, COMPARISON_COLUMNS), *COMPARISON_COLUMNS])
    return frame.astype(dict.fromkeys(shares, float))
