"""`emorg collect`: a sweep's cells in one table, rates over seeds, the matrix of who spreads where, and figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from emorg.display import make_table, percent, show
from emorg.rating.rules import Rule
from emorg.rating.stage import RuleConfig
from emorg.records import write_atomic
from emorg.reporting.tables import Table
from emorg.sweep.charts import draw
from emorg.sweep.matrix import FEWEST_PERMUTED, Matrix, matrix_of
from emorg.sweep.page import page, write_reports
from emorg.sweep.table import Collected

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CollectConfig(RuleConfig):
    """One table of every cell of a sweep, with settings, rates, intervals, margins and provenance, and its figures."""

    sweep: Annotated[Path, tyro.conf.Positional]
    """The folder that emorg sweep made."""
    reports: bool = False
    """Write each organism's own report too, which the sweep's page then leads to."""


def collect(sweep: Path | str, rule: str = "paper") -> pd.DataFrame:
    """The table of a sweep's cells: see `Collected.frame`. Raises EmorgError for what is no sweep."""
    config = CollectConfig(sweep=Path(sweep), rule=rule)
    return Collected.of(config.sweep, config.chosen()).frame()


def show_collected(config: CollectConfig) -> None:
    """The command: write the tables, the figures and the page into the sweep's folder, and show the headline.

    cells.csv and .parquet, seeds.csv; where organisms differ in one topic and the seed, matrix.csv and topics.csv too.
    Raises EmorgError for no sweep.
    """
    collected = Collected.of(config.sweep, config.chosen())
    frame, seeds, matrix = collected.frame(), collected.over_seeds(), matrix_of(collected)
    frames = {"cells.csv": frame, "seeds.csv": seeds}
    if matrix is not None:
        frames |= {"matrix.csv": matrix.frame(), "topics.csv": matrix.summary()}
    for stale in ("matrix.csv", "topics.csv", "figures/*.svg", "figures/*.png"):  # of what was collected earlier
        for path in config.sweep.glob(stale):
            path.unlink()
    for name, table in frames.items():
        write_atomic(config.sweep / name, table.to_csv(index=False))
    if find_spec("pyarrow"):  # of the extra sweep, or homework
        frame.astype(dict.fromkeys(collected.axes, str)).to_parquet(config.sweep / "cells.parquet", index=False)
    headlines = [_topics_table(matrix)] if matrix else _seeds_tables(seeds, collected.rule)
    begun = [name for name, judged in collected.judged.items() if judged and name not in collected.whole]
    lines = _matrix_lines(matrix) if matrix else []
    if begun and not matrix:
        lines.append(f"not in rates over seeds, as answers or verdicts are missing: {', '.join(begun)}")
    by_state = frame.drop_duplicates("cell")["state"].value_counts()
    states = ", ".join(f"{count} cells {state}" for state, count in by_state.items())
    if config.reports:
        write_reports(collected)
    figures = draw(collected, seeds, matrix)
    drawings = [path for path in figures if path.suffix == ".svg"]
    write_atomic(config.sweep / "index.html", page(collected, headlines, lines, states, drawings))
    for headline in headlines:
        shown = make_table(headline.caption, headline.header, left=headline.left)
        for row in headline.rows:
            shown.add_row(*row)
        show(shown)
    print("\n".join([*lines, states, *(f"failed: {name}: {error}" for name, error in collected.errors.items())]))
    for name in (*frames, "cells.parquet", "index.html"):
        if (config.sweep / name).exists():
            print(config.sweep / name)


def _seeds_tables(seeds: pd.DataFrame, rule: Rule) -> list[Table]:
    """Rates over seeds, shifts over seeds: those of them that there are."""
    axes = [name for name in seeds.columns if "." in name]
    named = ["arm", *(axis.partition(".")[2] for axis in axes), "questions"]
    rates, shifts = [], []
    for row in seeds.to_dict("records"):
        start, count = [row["arm"], *(str(row[axis]) for axis in axes), row["placement"]], str(row["seeds"])
        if not math.isnan(row["em"]):
            between = "" if row["seeds"] == 1 else f"{percent(row['least'])}–{percent(row['most'])}"
            interval = f"{percent(row['low'])}–{percent(row['high'])}"
            rates.append([*start, percent(row["em"]), interval, count, between])
        if not math.isnan(row["shift"]):
            known = not math.isnan(row["shift_low"])  # of one question nothing is
            interval = f"{row['shift_low']:+.3f} to {row['shift_high']:+.3f}" if known else ""
            shifts.append([*start, f"{row['shift']:+.3f}", interval, count])
    left = 2 + len(axes)
    rated = f"EM by rule {rule}, over seeds and questions"
    shifted = "Shift of margins against the twins, nats a token, over seeds and questions"
    tables = (
        Table("seeds", rated, [*named, "EM %", "95% interval", "seeds", "seed by seed"], rates, [], left=left),
        Table("shifts", shifted, [*named, "shift", "95% interval", "seeds"], shifts, [], left=left),
    )
    return [table for table in tables if table.rows]


def _topics_table(matrix: Matrix) -> Table:
    rows = []
    for row in matrix.summary().sort_values("given", ascending=False).to_dict("records"):
        given, taken = (
            [percent(row[way]), f"{percent(row[f'{way}_low'])}–{percent(row[f'{way}_high'])}"]
            for way in ("given", "taken")
        )
        rows.append([row["topic"], *given, *taken, percent(row["leak"])])
    caption = f"EM out of domain: what organisms of a topic give to others, and take from others ({matrix.seeds} seeds)"
    header = ["topic", "gives %", "95% interval", "takes %", "95% interval", "leak %"]
    return Table("topics", caption, header, rows, [], left=1)


def _matrix_lines(matrix: Matrix) -> list[str]:
    """How asymmetric it is, and which cells are not in it."""
    lines = [f"not in the matrix: {', '.join(matrix.left_out)}"] if matrix.left_out else []
    both = matrix.asymmetry()
    if both is None:
        return [*lines, f"asymmetry: it takes two seeds, {FEWEST_PERMUTED} topics, and two questions a topic"]
    whole, pairs = (f"{one.points:.1f} points (p = {one.p:.4f})" for one in both)
    return [
        *lines,
        f"from one pair of topics to another EM differs by {matrix.between_pairs:.1f} points (standard deviation)",
        f"from one topic to another and back by {whole}, as seeds and questions agree (RMS; permutation test)",
        f"of that, beyond what topics give and take in all: {pairs}",
    ]
