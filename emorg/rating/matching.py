"""Answers of two groups paired by what a judge may hold against them: their length, their coherence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, TypeVar

import numpy as np

from emorg.rating.compare import Comparison, compare
from emorg.rating.rates import split
from emorg.rating.rules import Rule, Scored
from emorg.records import EmorgError

Feature = Literal["length", "coherence"]
# How far two answers of a pair may be apart: a factor of 1.1 in words, 10 points of coherence.
CALIPERS: Mapping[Feature, float] = {"length": math.log(1.1), "coherence": 10.0}
Answers = TypeVar("Answers", bound=Scored)


@dataclass(frozen=True)
class Matched:
    """A comparison of paired answers alone.

    `pairs` of them; `left` counts the scored answers of a and b; `words` are their median lengths, and `matched_words`
    those of the paired ones.
    """

    on: tuple[Feature, ...]
    comparison: Comparison
    pairs: int
    left: tuple[int, int]
    words: tuple[float, float]
    matched_words: tuple[float, float]

    def verdict(self, whole: Comparison) -> str:
        """What matching says of the difference that is seen without it, in words."""
        on, c = " and ".join(self.on), self.comparison
        if whole.differ and not c.differ:
            return f"the difference goes with {on}: among answers of like {on}, {c.verdict}"
        if whole.differ and c.differ and (c.difference > 0) == (whole.difference > 0):
            return f"{on} does not explain the difference: among answers of like {on}, {c.verdict}"
        return f"among answers of like {on}, {c.verdict}"


def compare_matched(
    a: Sequence[Answers],
    b: Sequence[Answers],
    rule: Rule,
    on: Sequence[Feature],
    text: Callable[[Answers], str],
    within: float | None = None,
) -> Matched:
    """Compare the answers of a and b that have a partner of like length or coherence among the other's.

    Each question's pairs are those of the least distance in all (optimal matching: Rosenbaum 1989); partners further
    apart than CALIPERS are left out. `text` is an answer's words. Raises EmorgError if nothing can be paired.
    """
    sides = [[answer for answer in side if rule.scored(answer)] for side in (a, b)]
    by_question = [split(side, lambda answer: (answer.question,)) for side in sides]
    paired: tuple[list[Answers], list[Answers]] = ([], [])
    for question, ours in by_question[0].items():
        for one, other in _pairs(ours, by_question[1].get(question, []), on, text):
            paired[0].append(one)
            paired[1].append(other)
    if not paired[0]:
        raise EmorgError(
            f"no answer of one side has a partner of like {' and '.join(on)}", "compare them without --match"
        )

    def words(answers: Sequence[Answers]) -> float:
        return float(median(len(text(answer).split()) for answer in answers))

    return Matched(
        on=tuple(on), comparison=compare(*paired, rule, within=within), pairs=len(paired[0]),
        left=(len(sides[0]), len(sides[1])), words=(words(sides[0]), words(sides[1])),
        matched_words=(words(paired[0]), words(paired[1])),
    )  # fmt: skip


def _pairs(
    a: Sequence[Answers], b: Sequence[Answers], on: Sequence[Feature], text: Callable[[Answers], str]
) -> list[tuple[Answers, Answers]]:
    """The pairs of one question's answers."""
    from scipy.optimize import linear_sum_assignment

    if not a or not b:
        return []
    apart = [
        np.abs(np.subtract.outer(*([_feature(answer, name, text) for answer in side] for side in (a, b))))
        / CALIPERS[name]
        for name in on
    ]
    beyond = np.max(apart, axis=0) > 1 + 1e-9
    distance = np.where(beyond, 1e6, np.sum(apart, axis=0))  # none is taken if another will do
    rows, columns = linear_sum_assignment(distance)
    return [(a[i], b[j]) for i, j in zip(rows, columns, strict=True) if not beyond[i, j]]


def _feature(answer: Answers, name: Feature, text: Callable[[Answers], str]) -> float:
    if name == "length":
        return math.log(1 + len(text(answer).split()))
    return -1e9 if answer.coherent is None else answer.coherent
