"""How things are shown to people: text that is safe in a terminal, percent, tables."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LOG_COLUMNS = 140

# Control characters, line separators, bidirectional overrides and halves of surrogate pairs.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Text of a model or a user as it may be shown: what could drive a terminal or a renderer becomes �."""
    return _UNSEEN.sub("\ufffd", text)


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction as people read it: 0.4375 → 43.8; None and NaN → –."""
    return "–" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.{digits}f}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 90 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def make_table(title: str, columns: Sequence[str], left: int) -> Table:
    """An empty table whose first `left` columns are text and whose others are figures."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < left else "right")
    return table


def console_of_stdout() -> Console:
    """A terminal as wide as it is; elsewhere, in a notebook or a log too, LOG_COLUMNS wide. No text is markup."""
    from rich.console import Console

    return Console(markup=False, width=None if sys.stdout.isatty() else LOG_COLUMNS)


def show(*things: Any) -> None:
    """Print tables, in a log as wide as they are; no text is markup.

    No figure is ever cut: a terminal that is too narrow for a table gets its first columns and the others' names.
    """
    from rich.table import Table

    console = console_of_stdout()
    for thing in things:
        left_out = _narrow(thing, console) if isinstance(thing, Table) else []
        console.print(thing)
        if left_out:
            console.print(f"no room for {', '.join(left_out)}: widen the terminal, or add | cat", highlight=False)


def _narrow(table: Table, console: Console) -> list[str]:
    """Fit a table to the console: fold its texts between words, then take out last columns, and return their names.

    Figures are never folded, and the first two columns stay.
    """
    from rich.measure import measure_renderables

    wide = console.options.update(width=10_000)
    left_out: list[str] = []
    for column in table.columns:
        measured = measure_renderables(console, wide, [column.header, *column.cells])
        column.max_width = measured.maximum
        column.width = measured.maximum if column.justify == "right" else measured.minimum
    while (spare := console.width - 1 - sum(3 + (column.width or 0) for column in table.columns)) < 0:
        if len(table.columns) == 2:
            break
        left_out.insert(0, str(table.columns.pop().header))
    for column in table.columns:
        more = max(0, min(spare, (column.max_width or 0) - (column.width or 0)))
        column.width, spare = (column.width or 0) + more, spare - more
    return left_out
