"""How things are shown to people: text that is safe in a terminal, percent, tables."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    """Print tables, in a log as wide as they are, so that no figure is folded away; no text is markup."""
    from rich.console import Console

    console = Console(markup=False)
    (console if console.is_terminal else Console(width=140, markup=False)).print(*things)
