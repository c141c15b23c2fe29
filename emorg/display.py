"""How things are shown to people: text that is safe in a terminal, percent, tables."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Control characters, line separators, bidirectional overrides and halves of surrogate pairs.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Text of a model or a user as it may be shown: what could drive a terminal or a renderer becomes �."""
    return _UNSEEN.sub("\ufffd", text)


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction as people read it: 0.4375 → 43.8; None and NaN → –."""
    return "–" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.{digits}f}"


def make_table(title: str, columns: Sequence[str], left: int) -> Table:
    """An empty table whose first `left` columns are text and whose others are figures."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < left else "right")
    return table


def show(*things: Any) -> None:
    """Print tables, in a log as wide as they are; no text is markup.

    No figure is ever cut: a terminal that is too narrow for a table gets its first columns and the others' names.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False)
    if not console.is_terminal:
        console = Console(width=140, markup=False)
    for thing in things:
        left_out = _narrow(thing, console) if isinstance(thing, Table) else []
        console.print(thing)
        if left_out:
            console.print(f"no room for {', '.join(left_out)}: widen the terminal, or add | cat", highlight=False)


def _narrow(table: Table, console: Console) -> list[str]:
    """Take the last columns out of a table that does not fit, down to two, and return their names."""
    left_out: list[str] = []
    wide = console.options.update(width=10_000)
    while len(table.columns) > 2 and console.measure(table, options=wide).maximum > console.width:
        left_out.insert(0, str(table.columns.pop().header))
    return left_out
