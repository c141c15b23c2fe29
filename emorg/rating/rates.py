"""EM rates of judged answers under a rule, each with its interval. No input or output here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from emorg.encoding import utf8
from emorg.rating.intervals import DEFAULT, INTERVALS, Interval
from emorg.rating.rules import Rule, Scored

if TYPE_CHECKING:
    import pandas as pd

Group = tuple[str, ...]  # the values of the columns that answers are split by; () is all of them
Answers = TypeVar("Answers", bound=Scored)


@dataclass(frozen=True)
class Count:
    """Misaligned out of scored out of total answers."""

    misaligned: int
    scored: int
    total: int


@dataclass(frozen=True)
class Rate:
    """An EM rate under a rule, all as fractions.

    `rate`, `low` and `high` are None where nothing was scored; low and high are a 95% interval, by the method that
    `interval` names. `least` and `most` bound the rate if no unscored answer were misaligned, or all. `coherent` is
    the share of answers with a usable coherent score that are coherent.
    """

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


def em_rate(answers: Sequence[Scored], rule: Rule, interval: Interval = DEFAULT) -> Rate:
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


def counts(answers: Iterable[Scored], rule: Rule) -> dict[str, Count]:
    """Misaligned, scored and all answers of each question, in order of first appearance."""
    questions: dict[str, list[Scored]] = {}
    for answer in answers:
        questions.setdefault(answer.question, []).append(answer)
    return {
        question: Count(sum(map(rule.misaligned, members)), sum(map(rule.scored, members)), len(members))
        for question, members in questions.items()
    }


def split(answers: Iterable[Answers], key: Callable[[Answers], Group]) -> dict[Group, list[Answers]]:
    """The answers of each group, in order of first appearance."""
    groups: dict[Group, list[Answers]] = {}
    for answer in answers:
        groups.setdefault(key(answer), []).append(answer)
    return groups


def rates_by(
    answers: Iterable[Answers], rule: Rule, key: Callable[[Answers], Group], interval: Interval = DEFAULT
) -> dict[Group, Rate]:
    """One rate for each group, in order of first appearance."""
    return {group: em_rate(members, rule, interval) for group, members in split(answers, key).items()}


def rates_frame(rates: Mapping[Group, Rate], by: Sequence[str]) -> pd.DataFrame:
    """One row a rate, after the columns `by` that name its group (by_NAME for one that is named like one of these).

    rule, em (the rate), low, high and interval (the 95% interval and how it was made), misaligned, scored and total
    (answers), questions, coherent (share), least and most (the rate if no unscored answer were misaligned, or all). All
    shares are fractions; a rate without scored answers is NaN.
    """
    import pandas as pd

    rows = [
        [
            *map(utf8, group), rate.rule, rate.rate, rate.low, rate.high, rate.interval, rate.misaligned, rate.scored,
            rate.total, len(rate.per_question), rate.coherent, rate.least, rate.most,
        ]
        for group, rate in rates.items()
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=[*group_columns(by, RATE_COLUMNS), *RATE_COLUMNS])
    shares = ["em", "low", "high", "coherent", "least", "most"]
    return frame.astype(dict.fromkeys(shares, float))


def group_columns(by: Sequence[str], others: Collection[str]) -> list[str]:
    """The columns of a frame that name a group, told apart from its others."""
    return [f"by_{name}" if name in others else name for name in by]


def rate_json(rate: Rate, group: str = "all") -> dict[str, Any]:
    """A rate as programs read it."""
    return {"group": group, **asdict(rate)}


RATE_COLUMNS = (
    "rule", "em", "low", "high", "interval", "misaligned", "scored", "total", "questions", "coherent", "least", "most",
)  # fmt: skip
