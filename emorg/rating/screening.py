"""Scores of training rows, and how well they tell bad rows where it is known which are bad.

The rule, written before anything was measured: a score *tells* bad rows from others where its AUROC is above those of
all its controls (19 random directions and, where there are any, 19 with labels shuffled: p ≤ .05) and the 95% interval
of what it has over both trivial scores, the base's loss and the length, lies above 0. A trivial score may count either
way round, whichever serves it. A score that is above its controls and not above the trivial ones tells nothing new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from emorg.rating.intervals import Z95, wilson
from emorg.records import EmorgError

Array = NDArray[np.float64]
ScoreName = Literal["loss", "length", "projection", "influence"]
SCORES: tuple[ScoreName, ...] = ("loss", "length", "projection", "influence")
TRIVIAL: tuple[ScoreName, ...] = ("loss", "length")
FILE = "screen.json"
FEWEST = 5  # rows on either side of an AUROC


@dataclass(frozen=True)
class Score:
    """One score of one row, the larger the more suspicious, and the same along the controls' directions.

    `row` is its number among those screened, from 0.
    """

    row: int
    score: ScoreName
    value: float
    random: tuple[float, ...] = ()
    shuffled: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "random", tuple(self.random))  # JSON knows lists alone
        object.__setattr__(self, "shuffled", tuple(self.shuffled))
        if not np.isfinite([self.value, *self.random, *self.shuffled]).all():
            raise ValueError(f"not all finite numbers: {self}")


@dataclass(frozen=True)
class Scored:
    """A row by its place, never its text, with its scores; `known` is "bad" or "odd" where that is known."""

    place: str
    domain: str
    scores: dict[ScoreName, float]
    known: str = ""


@dataclass(frozen=True)
class Detection:
    """How well a score tells bad rows from `others`: AUROC with its 95% interval (DeLong et al. 1988, on logits).

    `random` and `shuffled` are the median and the largest AUROC of the controls, `p_random` and `p_shuffled` the share
    of these, with one added, that came as far. `top` is the share of bad rows among as many that score highest. `over`
    is what it has over a trivial score: the difference of AUROCs, low, high.
    """

    score: ScoreName
    others: Literal["all", "odd"]
    bad: int
    count: int
    auroc: float
    low: float
    high: float
    top: float
    random: tuple[float, float] | None = None
    p_random: float | None = None
    shuffled: tuple[float, float] | None = None
    p_shuffled: float | None = None
    over: dict[ScoreName, tuple[float, float, float]] = field(default_factory=dict)

    @property
    def beyond_controls(self) -> bool:
        """Whether it is above all its controls, of which there are enough."""
        ps = [p for p in (self.p_random, self.p_shuffled) if p is not None]
        return bool(ps) and max(ps) <= 0.05

    @property
    def tells(self) -> bool:
        """By the rule above."""
        return self.beyond_controls and bool(self.over) and all(low > 0 for _, low, _ in self.over.values())

    @property
    def verdict(self) -> str:
        """In words; nothing of the trivial scores, which others are held against."""
        if self.score in TRIVIAL:
            return ""
        if self.tells:
            return "tells them"
        return "not beyond trivial scores" if self.beyond_controls else "not beyond controls"


@dataclass(frozen=True)
class Screened:
    """What was screened with which model, the rows in order, and what the scores tell of the known ones."""

    model: str
    rows: list[Scored]
    skipped: dict[str, str]
    """Scores that were not computed, and why."""
    direction: str
    detections: list[Detection] = field(default_factory=list)

    def ranked(self, by: ScoreName) -> list[int]:
        """Numbers of rows, the most suspicious first. Raises EmorgError for a score that was not computed."""
        if by in self.skipped:
            raise EmorgError(f"rows have no {by}: {self.skipped[by]}", "rank them by another score")
        return sorted(range(len(self.rows)), key=lambda i: (-self.rows[i].scores[by], i))


def check_counts(bad: int, others: int) -> None:
    """Raise EmorgError for too few rows that are known to be bad, or others, to say what finds them."""
    if min(bad, others) < FEWEST:
        raise EmorgError(
            f"{bad} rows are known to be bad and {others} are not; at least {FEWEST} of each are needed to say what "
            "finds them",
            "take more rows, or know more of them",
        )


def detections(rows: Sequence[Scored], scores: Mapping[ScoreName, Sequence[Score]]) -> list[Detection]:
    """How each score tells the rows known to be bad: from all others, and from those that are odd.

    `scores` are in the rows' order. Raises EmorgError for fewer than 5 rows on either side.
    """
    result = []
    for others in ("all", "odd"):
        chosen = [i for i, row in enumerate(rows) if others == "all" or row.known]
        labels = np.array([rows[i].known == "bad" for i in chosen])
        if others == "odd" and labels.all():
            continue
        check_counts(int(labels.sum()), int((~labels).sum()))
        compared = _Compared.of(labels, {name: [some[i] for i in chosen] for name, some in scores.items()})
        result += [compared.detection(name, others) for name in SCORES if name in scores]
    return result


@dataclass(frozen=True)
class _Compared:
    """Scores of the same rows, of which `labels` are true for bad ones: AUROCs, and their covariance, in that order."""

    labels: NDArray[np.bool_]
    scores: Mapping[ScoreName, Sequence[Score]]
    aurocs: Array
    covariance: Array

    @classmethod
    def of(cls, labels: NDArray[np.bool_], scores: Mapping[ScoreName, Sequence[Score]]) -> _Compared:
        values = np.array([[one.value for one in some] for some in scores.values()])
        return cls(labels, scores, *delong(values, labels))

    def detection(self, name: ScoreName, others: Literal["all", "odd"]) -> Detection:
        own, k, bad = self.scores[name], list(self.scores).index(name), int(self.labels.sum())
        low, high = logit_interval(self.aurocs[k], self.covariance[k, k], min(bad, len(self.labels) - bad))
        highest = np.argsort([-one.value for one in own], kind="stable")[:bad]
        random, p_random = self._controls(k, np.array([one.random for one in own]))
        shuffled, p_shuffled = self._controls(k, np.array([one.shuffled for one in own]))
        return Detection(
            score=name,
            others=others,
            bad=bad,
            count=len(self.labels),
            auroc=float(self.aurocs[k]),
            low=low,
            high=high,
            top=float(self.labels[highest].mean()),
            random=random,
            p_random=p_random,
            shuffled=shuffled,
            p_shuffled=p_shuffled,
            over={} if name in TRIVIAL else {trivial: self._over(k, trivial) for trivial in TRIVIAL},
        )

    def _over(self, own: int, trivial: ScoreName) -> tuple[float, float, float]:
        """An AUROC less a trivial score's, which counts the way round that serves it; and its 95% interval."""
        other = list(self.scores).index(trivial)
        turned = -1 if self.aurocs[other] < 0.5 else 1
        against = 0.5 + turned * (self.aurocs[other] - 0.5)
        both = self.covariance[own, own] + self.covariance[other, other]
        variance = both - 2 * turned * self.covariance[own, other]
        difference, reach = float(self.aurocs[own] - against), Z95 * float(np.sqrt(max(variance, 0.0)))
        return difference, difference - reach, difference + reach

    def _controls(self, own: int, values: Array) -> tuple[tuple[float, float] | None, float | None]:
        """Controls' median and largest AUROC, and p; `values` are [rows, controls], of which there may be none."""
        if not values.size:
            return None, None
        drawn, _ = delong(values.T, self.labels)
        p = (1 + (drawn >= self.aurocs[own]).sum()) / (1 + len(drawn))
        return (float(np.median(drawn)), float(drawn.max())), float(p)


def delong(scores: Array, labels: NDArray[np.bool_]) -> tuple[Array, Array]:
    """AUROCs [k] of scores [k, n], and their covariance over draws of rows (DeLong, DeLong and Clarke-Pearson 1988).

    By midranks (Sun and Xu 2014), so ties count half. `labels` [n] are true of positives; at least two of each.
    """
    from scipy.stats import rankdata

    positive, negative = scores[:, labels], scores[:, ~labels]
    m, n = positive.shape[1], negative.shape[1]
    whole = rankdata(scores, axis=1)
    of_positive = (whole[:, labels] - rankdata(positive, axis=1)) / n
    of_negative = 1 - (whole[:, ~labels] - rankdata(negative, axis=1)) / m
    covariance = np.atleast_2d(np.cov(of_positive)) / m + np.atleast_2d(np.cov(of_negative)) / n
    return of_positive.mean(1), covariance


def logit_interval(auroc: float, variance: float, fewer: int) -> tuple[float, float]:
    """A 95% interval that stays in 0–1; where no pair is out of order (or all are), Wilson's for the smaller side."""
    if not 0 < auroc < 1 or variance <= 0:
        low, high = wilson(auroc * fewer, fewer)
        return float(low), float(high)
    centre, reach = np.log(auroc / (1 - auroc)), Z95 * np.sqrt(variance) / (auroc * (1 - auroc))
    low, high = (1 / (1 + np.exp(-x)) for x in (centre - reach, centre + reach))
    return float(low), float(high)


def screened_rows(result: Screened) -> list[dict[str, Any]]:
    """One row a training row: place, domain, known, and its scores."""
    return [
        {"place": row.place, "domain": row.domain, "known": row.known, **{str(k): x for k, x in row.scores.items()}}
        for row in result.rows
    ]
