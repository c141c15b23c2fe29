"""`emorg collect`: a sweep's cells in one table, rates over seeds, the matrix of who spreads where, and figures."""

from __future__ import annotations

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
    for name, table in frames.items():
        write_atomic(config.sweep / name, table.to_csv(index=False))
    if find_spec("pyarrow"):  # of the extra sweep, or homework
        frame.astype(dict.fromkeys(collected.axes, str)).to_parquet(config.sweep / "cells.parquet", index=False)
    headline = _seeds_table(seeds, collected.rule) if matrix is None else _topics_table(matrix)
    lines = [] if matrix is None else _asymmetry_lines(matrix)
    by_state = frame.drop_duplicates("cell")["state"].value_counts()
    states = ", ".join(f"{count} cells {state}" for state, count in by_state.items())
    figures = draw(collected, seeds, matrix)
    if config.reports:
        write_reports(collected)
    drawings = [path for path in figures if path.suffix == ".svg"]
    write_atomic(config.sweep / "index.html", page(collected, headline, lines, states, drawings))
    shown = make_table(headline.caption, headline.header, left=headline.left)
    for row in headline.rows:
        shown.add_row(*row)
    show(shown)
    print("\n".join([*lines, states, *(f"failed: {name}: {error}" for name, error in collected.errors.items())]))
    for name in (*frames, "cells.parquet", "index.html"):
        if (config.sweep / name).exists():
            print(config.sweep / name)


def _seeds_table(seeds: pd.DataFrame, rule: Rule) -> Table:
    axes = [name for name in seeds.columns if "." in name]
    header = ["arm", *(axis.partition(".")[2] for axis in axes), "questions", "EM %", "95% interval", "seeds"]
    rows = []
    for row in seeds.to_dict("records"):
        between = "" if row["seeds"] == 1 else f"{percent(row['least'])}–{percent(row['most'])}"
        interval = f"{percent(row['low'])}–{percent(row['high'])}"
        named = [str(row[axis]) for axis in axes]
        rows.append([row["arm"], *named, row["placement"], percent(row["em"]), interval, str(row["seeds"]), between])
    caption = f"EM by rule {rule}, over seeds and questions"
    return Table("seeds", caption, [*header, "seed by seed"], rows, [], left=2 + len(axes))


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


def _asymmetry_lines(matrix: Matrix) -> list[str]:
    both = matrix.asymmetry()
    if both is None:
        return [f"asymmetry: it takes two seeds, {FEWEST_PERMUTED} topics, and two questions a topic"]
    whole, pairs = (f"{one.points:.1f} points (p = {one.p:.4f})" for one in both)
    return [
        f"from one pair of topics to another EM differs by {matrix.between_pairs:.1f} points (standard deviation)",
        f"from one topic to another and back by {whole}, as seeds and questions agree (RMS; permutation test)",
        f"of that, beyond what topics give and take in all: {pairs}",
    ]
