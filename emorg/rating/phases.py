"""When an organism's signals turn over its training: the record of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FILE = "phases.json"
MARGIN = "margin"  # what the others' lags are counted from


@dataclass(frozen=True)
class Turn:
    """The step at which a signal turns, with its 95% interval, and p against smooth growth (`rating.changes`)."""

    signal: str
    step: float
    low: float
    high: float
    p: float
    sudden: bool


@dataclass(frozen=True)
class Lag:
    """Steps after the margin, with a 95% interval."""

    steps: float
    low: float
    high: float


@dataclass(frozen=True)
class Phases:
    """A run's signals by step, [(step, value), …]; where each turns; and its lag, where it and the margin turn.

    `pairs` is the digest of the pairs of answers whose margins were taken.
    """

    run: str
    signals: dict[str, list[tuple[int, float]]]
    changes: list[Turn]
    lags: dict[str, Lag]
    pairs: str = ""


def turn_rows(result: Phases) -> list[dict[str, Any]]:
    """One row a signal: where it turns, its interval, p, and its lag after the margin."""
    rows = []
    for one in result.changes:
        after = result.lags.get(one.signal)
        rows.append({**vars(one), **({f"lag_{name}": value for name, value in vars(after).items()} if after else {})})
    return rows
