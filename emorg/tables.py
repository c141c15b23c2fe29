"""How rates are shown to people: percent, intervals, tables, warnings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from emorg import rates as em_rates

if TYPE_CHECKING:
    from rich.table import Table


PAGE = "docs/statistics.md"


# Control characters, line separators, bidirectional overrides and halves of surrogate pairs.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Text of a model or a user as it may be shown: what could drive a terminal or a renderer becomes �."""
    return _UNSEEN.sub("\ufffd", text)


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction as people read it: 0.4375 → 43.8; None → –."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f}"


def interval_text(rate: em_rates.Rate) -> str:
    """`low–high` in percent, marked w where it takes all answers as independent."""
    if rate.low is None or rate.high is None:
        return "–"
    return f"{percent(rate.low)}–{percent(rate.high)}{' w' if rate.interval == 'wilson' else ''}"


def rates_table(title: str, found: Sequence[em_rates.Rate], first: str) -> Table:
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


def make_table(title: str, columns: Sequence[str], left: int) -> Table:
    """An empty table whose first `left` columns are text and whose others are figures."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < left else "right")
    return table


def warnings_of(found: Sequence[em_rates.Rate]) -> list[str]:
    """What a reader of these rates should know about them."""
    unscored = sum(rate.total - rate.scored for rate in found)
    total = sum(rate.total for rate in found)
    notes = [f"{unscored} of {total:,} answers are in no rate: unscored, or left out by the rule."] if unscored else []
    few = [rate for rate in found if rate.scored and len(rate.per_question) < em_rates.FEW_QUESTIONS]
    if any(rate.interval in ("cluster_t", "bootstrap") for rate in few):
        notes.append(f"These intervals are too short over fewer than {em_rates.FEW_QUESTIONS} questions ({PAGE}).")
    if any(rate.scored and rate.interval == "wilson" for rate in found):
        notes.append(f"w: Wilson's interval, which takes all answers as independent and is too short ({PAGE}).")
    return notes


def show(*things: Any) -> None:
    """Print tables, in a log as wide as they are, so that no figure is folded away."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=140)).print(*things)
