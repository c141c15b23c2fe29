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
from emorg.sweep.table import SEED

if TYPE_CHECKING:
    import pandas as pd

    from emorg.sweep.table import Collected

FEWEST_TOPICS = 4
FEWEST_PERMUTED = 8  # topics: 105 ways to exchange them in pairs
SPLITS = 10  # of the questions into halves
PERMUTATIONS = 9_999


@dataclass(frozen=True)
class Asymmetry:
    """How far EM from i to j is from EM from j to i, beyond what other seeds and questions would not show again.

    `points` is the root mean square of that difference over pairs of topics, in percentage points, from products of
    two seeds' differences on different questions, so that neither's own noise adds anything to it; 0 where they come
    out negative. `p` is of the permutation test.
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
    cells: Mapping[str, Sequence[Mapping[str, Any]]]
    """By trained topic its organisms' cells, in the order of the seeds."""
    left_out: tuple[str, ...] = ()
    """Cells that lack verdicts, or have a seed that not all topics have."""

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
        """Of the matrix, and beyond what each topic gives more than it takes in all.

        None with one seed, a topic with one question, or topics too few to be permuted.
        """
        tables = [[self.tables[trained, asked] for asked in self.topics] for trained in self.topics]
        if self.seeds < 2 or len(tables) < FEWEST_PERMUTED or any(table.shape[1] < 2 for table in tables[0]):
            return None
        halves = halves_of(tables)
        return asymmetry(halves), asymmetry(halves, beyond_topics=True)


def matrix_of(collected: Collected) -> Matrix | None:
    """The matrix of a sweep whose organisms differ in one topic and the seed alone; None of any other.

    Of the seeds that all its topics have been judged with, on the questions of which all organisms have scored answers.
    """
    by_topic: dict[str, dict[Any, Mapping[str, Any]]] = {}
    left_out = []
    for cell in collected.cells:
        if cell["arm"] != "organism":
            continue
        if cell["name"] not in collected.whole:
            left_out.append(cell["name"])
            continue
        trained_on = trained_topics(collected.run(cell))
        if len(trained_on) != 1:
            return None
        by_topic.setdefault(next(iter(trained_on)), {})[cell["values"].get(SEED)] = cell
    others = [axis for axis in collected.axes if axis not in ("train.domains", SEED)]
    if len(by_topic) < FEWEST_TOPICS or others:
        return None
    topics = tuple(by_topic)
    seeds = [seed for seed in by_topic[topics[0]] if all(seed in cells for cells in by_topic.values())]
    left_out += [cell["name"] for cells in by_topic.values() for seed, cell in cells.items() if seed not in seeds]
    chosen = {topic: [by_topic[topic][seed] for seed in seeds] for topic in topics}
    cells = [cell for topic in topics for cell in chosen[topic]]
    tables: dict[tuple[str, str], np.ndarray] = {}
    for asked in topics if seeds else ():
        if (table := collected.table(cells, "", topic=asked)) is None:
            return None
        tables |= {(topic, asked): part for topic, part in zip(topics, np.split(table, len(topics)), strict=True)}
    if not tables:
        return None
    rates = np.array([[tables[i, j][..., 0].sum(1) / tables[i, j][..., 1].sum(1) for j in topics] for i in topics])
    leaks = {topic: _leak(collected, chosen[topic]) for topic in topics}
    return Matrix(topics, len(seeds), rates.transpose(2, 0, 1), tables, leaks, chosen, tuple(left_out))


def _leak(collected: Collected, cells: Sequence[Mapping[str, Any]]) -> float:
    shares = [
        confounds([one for one in collected.judged[cell["name"]] if one.placement == "out"],
                  trained_topics(collected.run(cell))).get("domain_leak")
        for cell in cells
    ]  # fmt: skip
    known = [share for share in shares if share is not None]
    return statistics.fmean(known) if known else float("nan")


def halves_of(tables: Sequence[Sequence[np.ndarray]], splits: int = SPLITS, seed: int = 0) -> np.ndarray:
    """Rates on each of two random halves of every asked topic's questions: [splits, 2, seeds, trained, asked].

    `tables` by trained and asked topic hold [seeds, questions, (misaligned, scored)], at least two questions each.
    """
    draw = np.random.default_rng(seed)
    out = np.empty((splits, 2, tables[0][0].shape[0], len(tables), len(tables)))
    for asked in range(len(tables)):
        every = np.stack([row[asked] for row in tables], axis=1)  # [seeds, trained, questions, 2]
        for split in range(splits):
            for half, mine in enumerate(np.array_split(draw.permutation(every.shape[2]), 2)):
                wrong, scored = np.moveaxis(every[:, :, mine].sum(2), -1, 0)
                out[split, half, :, :, asked] = wrong / scored
    return out


def asymmetry(
    halves: np.ndarray, *, beyond_topics: bool = False, permutations: int = PERMUTATIONS, seed: int = 0
) -> Asymmetry:
    """Whether differences between the two ways of a pair come again in other seeds and other questions at once.

    `halves` is [splits, 2, seeds, trained, asked], as of `halves_of`. The statistic is the mean product of one seed's
    antisymmetric part on one half of the questions and another seed's on the other half. Under the null neither says
    anything of the other, so the topics of one half are permuted, rows and columns at once, as entries of a row are
    alike (Mantel 1967); by exchanges in pairs alone, which keep that a seed, or a question, is in several products.
    With `beyond_topics` what topics give more than they take is taken out first.
    """
    splits, _, seeds, topics, _ = halves.shape
    parts = halves - halves.swapaxes(-1, -2)
    if beyond_topics:
        own = parts.sum(-1) / topics  # of an antisymmetric matrix the best u_i − u_j
        parts = parts - (own[..., :, None] - own[..., None, :])
    one, other = parts[:, 0], parts[:, 1]
    others = one.sum(1, keepdims=True) - one  # of all seeds but this
    cells = topics * topics
    products = others.reshape(-1, cells).T @ other.reshape(-1, cells)  # of every cell with every cell
    products /= splits * seeds * (seeds - 1) * topics * (topics - 1)

    def statistic(order: np.ndarray) -> float:
        return float(products[np.arange(cells), (order[:, None] * topics + order).ravel()].sum())

    draw, seen = np.random.default_rng(seed), statistic(np.arange(topics))
    as_large = 0
    for _ in range(permutations):
        order, exchanged = draw.permutation(topics), np.arange(topics)
        first, second = order[0 : topics // 2 * 2 : 2], order[1::2]
        exchanged[first], exchanged[second] = second, first
        as_large += statistic(exchanged) >= seen
    return Asymmetry(100 * float(np.sqrt(max(0.0, seen))), (1 + as_large) / (permutations + 1))
