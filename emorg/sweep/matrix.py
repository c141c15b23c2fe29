"""Who spreads where: organisms trained on one topic each, rated on every topic, and whether it goes both ways alike."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from emorg.rating.confounds import confounds
from emorg.rating.intervals import crossed_wilson
from emorg.rating.placement import trained_topics

if TYPE_CHECKING:
    import pandas as pd

    from emorg.sweep.table import Collected

FEWEST_TOPICS = 4
PERMUTATIONS = 9_999


@dataclass(frozen=True)
class Asymmetry:
    """How far EM from i to j is from EM from j to i, beyond what other seeds would not show again.

    `points` is the root mean square of that difference over pairs of topics, in percentage points, from products of
    two seeds' differences, so that a seed's own noise adds nothing to it; 0 where they come out negative. `p` is of
    the permutation test. Of one seed nothing can be said.
    """

    points: float
    p: float


@dataclass(frozen=True)
class Matrix:
    """EM of organisms, by the topic that they were trained on and the topic that they were asked about."""

    topics: tuple[str, ...]
    seeds: int
    rates: np.ndarray
    """[seeds, trained, asked], fractions."""
    tables: Mapping[tuple[str, str], np.ndarray]
    """By trained and asked topic [seeds, questions, (misaligned, scored)]."""
    leaks: Mapping[str, float]
    """By trained topic the share of out-of-domain answers that talk of it."""

    def frame(self) -> pd.DataFrame:
        """One row a pair: trained, asked, em with low and high (over seeds and questions), seeds, questions, scored."""
        import pandas as pd

        rows = [
            (trained, asked, *crossed_wilson(table), self.seeds, table.shape[1], int(table[..., 1].sum()))
            for (trained, asked), table in self.tables.items()
        ]
        return pd.DataFrame(rows, columns=["trained", "asked", "em", "low", "high", "seeds", "questions", "scored"])

    def summary(self) -> pd.DataFrame:
        """One row a topic: given (its organisms' EM on all other topics) and taken (others' on it), leak.

        given and taken with low and high; given's over seeds and questions, taken's over organisms and questions.
        """
        import pandas as pd

        rows = []
        for topic in self.topics:
            others = [other for other in self.topics if other != topic]
            given = np.concatenate([self.tables[topic, other] for other in others], axis=1)
            taken = np.concatenate([self.tables[other, topic].sum(0, keepdims=True) for other in others])
            rows.append((topic, *crossed_wilson(given), *crossed_wilson(taken), self.leaks[topic]))
        columns = ["topic", "given", "given_low", "given_high", "taken", "taken_low", "taken_high", "leak"]
        return pd.DataFrame(rows, columns=columns)

    @property
    def between_pairs(self) -> float:
        """The standard deviation of EM over pairs of topics, both ways and all seeds together, in percentage points."""
        mean = self.rates.mean(0)
        both = (mean + mean.T) / 2
        return 100 * float(both[np.triu_indices(len(self.topics), 1)].std(ddof=1))

    def asymmetry(self) -> tuple[Asymmetry, Asymmetry] | None:
        """Of the matrix, and beyond what each topic gives more than it takes in all; None of one seed."""
        if self.seeds < 2:
            return None
        return asymmetry(self.rates), asymmetry(self.rates, beyond_topics=True)


def matrix_of(collected: Collected) -> Matrix | None:
    """The matrix of a sweep whose organisms differ in one topic and the seed alone; None of any other."""
    by_topic: dict[str, list[Mapping[str, Any]]] = {}
    for cell in collected.cells:
        run = collected.run(cell)
        if cell["arm"] == "organism" and collected.judged[cell["name"]]:
            trained_on = trained_topics(run)
            if len(trained_on) != 1:
                return None
            by_topic.setdefault(next(iter(trained_on)), []).append(cell)
    others = [axis for axis in collected.axes if axis not in ("train.domains", "train.seed")]
    if len(by_topic) < FEWEST_TOPICS or others or len({len(cells) for cells in by_topic.values()}) > 1:
        return None
    tables: dict[tuple[str, str], np.ndarray] = {}
    for trained, cells in by_topic.items():
        for asked in by_topic:
            table = collected.table(cells, "", topic=asked)
            if table is None:
                return None
            tables[trained, asked] = table
    topics = tuple(by_topic)
    rates = np.array([[tables[i, j][..., 0].sum(1) / tables[i, j][..., 1].sum(1) for j in topics] for i in topics])
    return Matrix(topics, rates.shape[2], rates.transpose(2, 0, 1), tables,
                  {topic: _leak(collected, cells) for topic, cells in by_topic.items()})  # fmt: skip


def _leak(collected: Collected, cells: Sequence[Mapping[str, Any]]) -> float:
    shares = [
        confounds([one for one in collected.judged[cell["name"]] if one.placement == "out"],
                  trained_topics(collected.run(cell))).get("domain_leak")
        for cell in cells
    ]  # fmt: skip
    known = [share for share in shares if share is not None]
    return statistics.fmean(known) if known else float("nan")


def asymmetry(
    rates: np.ndarray, *, beyond_topics: bool = False, permutations: int = PERMUTATIONS, seed: int = 0
) -> Asymmetry:
    """Whether differences between the two ways of a pair come again in other seeds: rates [seeds, topics, topics].

    The statistic is the sum over pairs of seeds of the product of their antisymmetric parts; under the null the topics
    of one seed say nothing of those of another, so they are permuted, rows and columns at once (Mantel 1967; a
    permutation test of matrices, since entries of a row are alike). With `beyond_topics` what topics give more than
    they take is taken out first.
    """
    seeds, topics, _ = rates.shape
    parts = rates - rates.transpose(0, 2, 1)
    if beyond_topics:
        own = parts.sum(2) / topics  # of an antisymmetric matrix the best u_i − u_j
        parts = parts - (own[:, :, None] - own[:, None, :])
    pairs = [(a, b) for a in range(seeds) for b in range(a)]
    above = np.triu_indices(topics, 1)

    def statistic(of: np.ndarray) -> float:
        return float(np.mean([(of[a][above] * of[b][above]).mean() for a, b in pairs]))

    draw, seen = np.random.default_rng(seed), statistic(parts)
    as_large = 0
    for _ in range(permutations):
        orders = [draw.permutation(topics) for _ in range(seeds)]
        shuffled = np.array([part[np.ix_(order, order)] for part, order in zip(parts, orders, strict=True)])
        as_large += statistic(shuffled) >= seen
    return Asymmetry(100 * float(np.sqrt(max(0.0, seen))), (1 + as_large) / (permutations + 1))
