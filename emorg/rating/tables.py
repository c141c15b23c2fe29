"""How rates and comparisons are shown to people: tables, intervals, and what to know about them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from emorg.display import make_table, percent
from emorg.rating.compare import COMPARISON_COLUMNS
from emorg.rating.intervals import FEW_QUESTIONS
from emorg.rating.rates import RATE_COLUMNS, Rate, group_columns

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

PAGE = "docs/statistics.md"


def interval_text(rate: Rate) -> str:
    """`low–high` in percent, marked w where it takes all answers as independent."""
    return _interval(rate.low, rate.high, rate.interval)


def _interval(low: float | None, high: float | None, interval: str) -> str:
    if low is None or high is None or math.isnan(low):
        return "–"
    return f"{percent(low)}–{percent(high)}{' w' if interval == 'wilson' else ''}"


def rates_table(title: str, rates: pd.DataFrame, by: Sequence[str]) -> Table:
    """One row a rate; where answers are unscored, also what the rate is if none or all of them were misaligned."""
    bounded = any(rates["least"] != rates["most"])
    names = [" / ".join(by) or "file", "EM %", "95% interval", "misaligned", "scored", "of", "questions", "coherent %"]
    table = make_table(title, [*names, *(["if unscored 0–all"] if bounded else [])], left=1)
    for row in rates.to_dict("records"):
        cells = [
            _group(row, by, RATE_COLUMNS), percent(row["em"]), _interval(row["low"], row["high"], row["interval"]),
            *(str(row[name]) for name in ("misaligned", "scored", "total", "questions")), percent(row["coherent"]),
        ]  # fmt: skip
        table.add_row(*cells, *([f"{percent(row['least'])}–{percent(row['most'])}"] if bounded else []))
    return table


def comparisons_table(title: str, comparisons: pd.DataFrame, by: Sequence[str]) -> Table:
    """One row a group: both rates, their difference and how sure it is."""
    table = make_table(
        title, [" / ".join(by) or "file", "A %", "B %", "B − A", "95% interval", "p", "questions"], left=1
    )
    for row in comparisons.to_dict("records"):
        unknown = math.isnan(row["low"])
        reach = "–" if unknown else f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
        p = "–" if unknown else "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
        rates, difference = map(percent, (row["a"], row["b"])), f"{100 * row['difference']:+.1f}"
        table.add_row(_group(row, by, COMPARISON_COLUMNS), *rates, difference, reach, p, str(row["questions"]))
    return table


def _group(row: dict[Any, Any], by: Sequence[str], others: Collection[str]) -> str:
    return " / ".join(row[name] for name in group_columns(by, others)) or "all"


def warnings_of(rates: Iterable[Rate]) -> list[str]:
    """What a reader of these rates should know about them."""
    rates = list(rates)
    unscored = sum(rate.total - rate.scored for rate in rates)
    total = sum(rate.total for rate in rates)
    notes = [f"{unscored} of {total:,} answers are in no rate: unscored, or left out by the rule."] if unscored else []
    few = [rate for rate in rates if rate.scored and len(rate.per_question) < FEW_QUESTIONS]
    if any(rate.interval in ("cluster_t", "bootstrap") for rate in few):
        notes.append(f"These intervals are too short over fewer than {FEW_QUESTIONS} questions ({PAGE}).")
    if any(rate.scored and rate.interval == "wilson" for rate in rates):
        notes.append(f"w: Wilson's interval, which takes all answers as independent and is too short ({PAGE}).")
    return notes
