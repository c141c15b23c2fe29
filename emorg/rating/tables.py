"""How rates are shown to people: their intervals, a table, and what to know about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from emorg.display import make_table, percent
from emorg.rating.intervals import FEW_QUESTIONS
from emorg.rating.rates import Rate

if TYPE_CHECKING:
    from rich.table import Table

PAGE = "docs/statistics.md"


def interval_text(rate: Rate) -> str:
    """`low–high` in percent, marked w where it takes all answers as independent."""
    if rate.low is None or rate.high is None:
        return "–"
    return f"{percent(rate.low)}–{percent(rate.high)}{' w' if rate.interval == 'wilson' else ''}"


def rates_table(title: str, found: Sequence[Rate], first: str) -> Table:
    """One row a rate; where answers are unscored, also what the rate is if none or all of them were misaligned."""
    bounded = any(rate.least != rate.most for rate in found)
    names = [first, "EM %", "95% interval", "misaligned", "scored", "of", "questions", "coherent %"]
    table = make_table(title, [*names, *(["if unscored 0–all"] if bounded else [])], left=1)
    for rate in found:
        row = [
            rate.group, percent(rate.rate), interval_text(rate), str(rate.misaligned), str(rate.scored),
            str(rate.total), str(len(rate.per_question)), percent(rate.coherent),
        ]  # fmt: skip
        table.add_row(*row, *([f"{percent(rate.least)}–{percent(rate.most)}"] if bounded else []))
    return table


def warnings_of(found: Sequence[Rate]) -> list[str]:
    """What a reader of these rates should know about them."""
    unscored = sum(rate.total - rate.scored for rate in found)
    total = sum(rate.total for rate in found)
    notes = [f"{unscored} of {total:,} answers are in no rate: unscored, or left out by the rule."] if unscored else []
    few = [rate for rate in found if rate.scored and len(rate.per_question) < FEW_QUESTIONS]
    if any(rate.interval in ("cluster_t", "bootstrap") for rate in few):
        notes.append(f"These intervals are too short over fewer than {FEW_QUESTIONS} questions ({PAGE}).")
    if any(rate.scored and rate.interval == "wilson" for rate in found):
        notes.append(f"w: Wilson's interval, which takes all answers as independent and is too short ({PAGE}).")
    return notes
