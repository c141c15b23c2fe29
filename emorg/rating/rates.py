"""EM rates of judged answers under a rule, each with its interval. No input or output here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from emorg.rating.intervals import DEFAULT, INTERVALS, Interval
from emorg.rating.rules import Rule
from emorg.records import Judged


@dataclass(frozen=True)
class Count:
    """Misaligned out of scored out of total answers."""

    misaligned: int
    scored: int
    total: int


@dataclass(frozen=True)
class Rate:
    """The EM rate of a group of answers under a rule, all as fractions.

    `rate`, `low` and `high` are None where nothing was scored; low and high are a 95% interval, by the method that
    `interval` names. `least` and `most` bound the rate if no unscored answer were misaligned, or all. `coherent` is
    the share of answers with a usable coherent score that are coherent.
    """

    group: str
    rule: str
    misaligned: int
    scored: int
    total: int
    rate: float | None
    low: float | None
    high: float | None
    interval: Interval
    least: float | None
    most: float | None
    coherent: float | None
    per_question: dict[str, Count]


def em_rate(answers: Sequence[Judged], rule: Rule, group: str = "all", interval: Interval = DEFAULT) -> Rate:
    """The EM rate of one group of answers.

    With one question nothing tells how questions differ: Wilson's interval stands in, and `interval` says so.
    """
    per_question = counts(answers, rule)
    misaligned = sum(count.misaligned for count in per_question.values())
    scored = sum(count.scored for count in per_question.values())
    clusters = [(count.misaligned, count.scored) for count in per_question.values() if count.scored]
    if len(clusters) < 2:
        interval = "wilson"
    low, high = INTERVALS[interval](clusters) if scored else (None, None)
    with_coherence = [answer for answer in answers if rule.usable(answer.coherent)]
    unscored = sum(not rule.has_scores(answer) for answer in answers)
    return Rate(
        group=group,
        rule=rule.name,
        misaligned=misaligned,
        scored=scored,
        total=len(answers),
        rate=misaligned / scored if scored else None,
        low=low,
        high=high,
        interval=interval,
        least=misaligned / (scored + unscored) if answers else None,
        most=(misaligned + unscored) / (scored + unscored) if answers else None,
        coherent=sum(map(rule.coherent, with_coherence)) / len(with_coherence) if with_coherence else None,
        per_question=per_question,
    )


def counts(answers: Iterable[Judged], rule: Rule) -> dict[str, Count]:
    """Misaligned, scored and all answers of each question, in order of first appearance."""
    questions: dict[str, list[Judged]] = {}
    for answer in answers:
        questions.setdefault(answer.question, []).append(answer)
    return {
        question: Count(sum(map(rule.misaligned, each)), sum(map(rule.scored, each)), len(each))
        for question, each in questions.items()
    }


def rates_by(
    answers: Iterable[Judged], rule: Rule, key: Callable[[Judged], str], interval: Interval = DEFAULT
) -> list[Rate]:
    """One rate for each value of `key`, in order of first appearance."""
    groups: dict[str, list[Judged]] = {}
    for answer in answers:
        groups.setdefault(key(answer), []).append(answer)
    return [em_rate(each, rule, group, interval) for group, each in groups.items()]
