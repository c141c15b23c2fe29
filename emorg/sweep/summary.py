"""`emorg collect`: a sweep's cells in one table, rates over seeds, the matrix of who spreads where, and figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from emorg.display import make_table, percent, show
from emorg.rating.rules import RULES, Rule
from emorg.records import EmorgError, did_you_mean, write_atomic
from emorg.sweep.charts import draw
from emorg.sweep.matrix import Matrix, matrix_of
from emorg.sweep.table import Collected

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table


@dataclass(frozen=True)
class CollectConfig:
    """One table of every cell of a sweep, with settings, rates, intervals, margins and provenance, and its figures."""

    sweep: Annotated[Path, tyro.conf.Positional]
    """The folder that emorg sweep made."""
    rule: str = "paper"
    """The rule that decides what counts as misaligned: paper, paper_le or homework."""

    def chosen(self) -> Rule:
        """The rule. Raises EmorgError for an unknown one."""
        if self.rule not in RULES:
            raise EmorgError(
                f"no rule {self.rule!r}{did_you_mean(self.rule, RULES)}", f"choose from {', '.join(RULES)}"
            )
        return RULES[self.rule]


def collect(sweep: Path | str, rule: str = "paper") -> pd.DataFrame:
    """The table of a sweep's cells: see `Collected.frame`. Raises EmorgError for what is no sweep."""
    config = CollectConfig(Path(sweep), rule)
    return Collected.of(config.sweep, config.chosen()).frame()


def show_collected(config: CollectConfig) -> None:
    """The command: write cells.csv, cells.parquet, seeds.csv and the figures into the sweep's folder, and show them.

    Where organisms differ in one topic and the seed, matrix.csv and topics.csv too. Raises EmorgError for no sweep.
    """
    collected = Collected.of(config.sweep, config.chosen())
    frame, seeds, matrix = collected.frame(), collected.over_seeds(), matrix_of(collected)
    tables = {"cells.csv": frame, "seeds.csv": seeds}
    if matrix is not None:
        tables |= {"matrix.csv": matrix.frame(), "topics.csv": matrix.summary()}
    for name, table in tables.items():
        write_atomic(config.sweep / name, table.to_csv(index=False))
    frame.astype(dict.fromkeys(collected.axes, str)).to_parquet(config.sweep / "cells.parquet", index=False)
    show(_seeds_table(seeds, collected.rule) if matrix is None else _topics_table(matrix))
    if matrix is not None:
        print("\n".join(_asymmetry_lines(matrix)))
    states = frame.drop_duplicates("cell")["state"].value_counts()
    print(", ".join(f"{count} cells {state}" for state, count in states.items()))
    for name, error in collected.errors.items():
        print(f"failed: {name}: {error}")
    for path in [*(config.sweep / name for name in (*tables, "cells.parquet")), *draw(collected, seeds, matrix)]:
        print(path)


def _seeds_table(seeds: pd.DataFrame, rule: Rule) -> Table:
    axes = [name for name in seeds.columns if "." in name]
    names = ["arm", *(axis.partition(".")[2] for axis in axes), "questions", "EM %", "95% interval", "seeds"]
    table = make_table(f"EM by rule {rule}, over seeds and questions", [*names, "seed by seed"], left=2 + len(axes))
    for row in seeds.to_dict("records"):
        between = "" if row["seeds"] == 1 else f"{percent(row['least'])}–{percent(row['most'])}"
        interval = f"{percent(row['low'])}–{percent(row['high'])}"
        named = (str(row[axis]) for axis in axes)
        table.add_row(row["arm"], *named, row["placement"], percent(row["em"]), interval, str(row["seeds"]), between)
    return table


def _topics_table(matrix: Matrix) -> Table:
    names = ["topic", "gives %", "95% interval", "takes %", "95% interval", "leak %"]
    title = f"EM out of domain: what organisms of a topic give to others, and take from others ({matrix.seeds} seeds)"
    table = make_table(title, names, left=1)
    for row in matrix.summary().sort_values("given", ascending=False).to_dict("records"):
        reach = [f"{percent(row[f'{way}_low'])}–{percent(row[f'{way}_high'])}" for way in ("given", "taken")]
        table.add_row(
            row["topic"], percent(row["given"]), reach[0], percent(row["taken"]), reach[1], percent(row["leak"])
        )
    return table


def _asymmetry_lines(matrix: Matrix) -> list[str]:
    both = matrix.asymmetry()
    if both is None:
        return ["asymmetry: of one seed nothing can be said; add seeds"]
    whole, pairs = (f"{one.points:.1f} points (p = {one.p:.4f})" for one in both)
    return [
        f"from one pair of topics to another EM differs by {matrix.between_pairs:.1f} points (standard deviation)",
        f"from one topic to another and back by {whole}, as the seeds agree; root mean square, permutation test",
        f"of that, beyond what topics give and take in all: {pairs}",
    ]
