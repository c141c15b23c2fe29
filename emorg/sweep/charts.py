"""A sweep's figures: EM along each axis, heat maps of two axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorg.figures import BLUE, GREEN, ORANGE, PURPLE, ROWS, SKY, VERMILLION, specification, write

if TYPE_CHECKING:
    import pandas as pd

    from emorg.sweep.matrix import Matrix
    from emorg.sweep.table import Collected

WIDTH = 560  # pixels
COLOURS = [VERMILLION, BLUE, ORANGE, SKY, PURPLE, GREEN]


@dataclass(frozen=True)
class _Measure:
    """A column of the seeds' table that is drawn, with those of its interval, and how."""

    columns: tuple[str, str, str]
    factor: float
    name: str
    title: str
    domain: tuple[float, float] | None
    note: str


def _measures(rule: str) -> tuple[_Measure, ...]:
    intervals = "95% intervals over seeds and questions"
    return (
        _Measure(("em", "low", "high"), 100.0, "em", "EM out of domain, %", (0, 100),
                 f"Rule {rule}; {intervals} (over questions alone where there is one seed)."),
        _Measure(("shift", "shift_low", "shift_high"), 1.0, "shift", "shift out of domain, nats a token", None,
                 f"Margins against the twins; {intervals}."),
    )  # fmt: skip


def draw(collected: Collected, seeds: pd.DataFrame, matrix: Matrix | None) -> list[Path]:
    """Draw rates and shifts over seeds, and the matrix if there is one, into the sweep's folder; returns the paths."""
    out = seeds[(seeds["placement"] == "out") & (seeds["arm"] != "base")]
    folder = collected.folder / "figures"
    folder.mkdir(exist_ok=True)
    paths = []
    for measure in _measures(collected.rule.name):
        known = out[out[measure.columns[0]].notna()]
        axes = [name for name in known.columns if "." in name and known[name].nunique() > 1]
        for axis in axes:
            paths += _along(known, axis, [other for other in axes if other != axis], folder, measure)
        organisms = known[known["arm"] == "organism"]
        for one, other in itertools.combinations(axes if len(organisms) else (), 2):
            paths += _heat(collected, organisms, one, other, folder, measure)
    if matrix is not None:
        paths += _matrix(collected, matrix, folder)
    return paths


def _along(trained: pd.DataFrame, axis: str, others: list[str], folder: Path, measure: _Measure) -> list[Path]:
    """A measure at each value of an axis, in a colour for each arm and each combination of the other axes."""
    import altair as alt

    short = axis.partition(".")[2]
    middle, low, high = measure.columns
    rows: list[dict[str, Any]] = [
        {
            "value": row[axis], "middle": measure.factor * row[middle],
            **{end: _number(measure.factor * row[name]) for end, name in (("low", low), ("high", high))},
            "series": " ".join([row["arm"], *(str(row[other]) for other in others)]),
        }
        for row in trained.to_dict("records")
    ]  # fmt: skip
    kind = "O" if all(isinstance(row["value"], int | float) for row in rows) else "N"
    x = alt.X(f"value:{kind}", title=short, axis=alt.Axis(labelAngle=-30, labelLimit=160))
    at = alt.XOffset("series:N")
    legend = alt.Legend(orient="top", labelLimit=500, columns=2)
    colour = alt.Color("series:N", title=None, legend=legend, scale=alt.Scale(range=COLOURS))
    base = alt.Chart(alt.NamedData(ROWS)).encode(x=x, xOffset=at, color=colour)
    scale = alt.Scale(domain=list(measure.domain)) if measure.domain else alt.Scale(zero=True)
    plot = alt.layer(
        base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", title=measure.title, scale=scale), y2="high:Q"),
        base.mark_point(filled=True, size=60).encode(y=alt.Y("middle:Q", scale=scale)),
    ).properties(width=WIDTH, height=280)
    title = f"{measure.title.split(',')[0]} by {short}"
    return write(specification(plot), rows, folder, f"{measure.name}_by_{short}", title, measure.note)


def _heat(
    collected: Collected, organisms: pd.DataFrame, one: str, other: str, folder: Path, measure: _Measure
) -> list[Path]:
    """Means of the organisms at each pair of values of two axes; each leads to its cells."""
    import altair as alt

    means = organisms.groupby([one, other], sort=False)[measure.columns[0]].mean().reset_index()
    rows = [
        {"x": str(row[other]), "y": str(row[one]), "mean": measure.factor * row[measure.columns[0]],
         "link": _link(collected, collected.organisms_at({one: row[one], other: row[other]}))}
        for row in means.to_dict("records")
    ]  # fmt: skip
    short, along = one.partition(".")[2], other.partition(".")[2]
    base = alt.Chart(alt.NamedData(ROWS)).encode(
        x=alt.X("x:N", title=along, sort=None), y=alt.Y("y:N", title=short, sort=None), href="link:N"
    )
    domain = alt.Scale(scheme="oranges", domain=list(measure.domain)) if measure.domain else alt.Scale(scheme="oranges")
    shade = alt.Color("mean:Q", title=measure.title, scale=domain)
    plot = alt.layer(
        base.mark_rect().encode(color=shade),
        base.mark_text().encode(text=alt.Text("mean:Q", format=".1f" if measure.domain else ".3f")),
    ).properties(width=WIDTH, height=max(80, 34 * len({row["y"] for row in rows})))
    title = f"{measure.title.split(',')[0]} of organisms, by {short} and {along}"
    note = f"{measure.note} Here means over the other axes."
    return write(specification(plot), rows, folder, f"heat_{measure.name}_{short}_{along}", title, note)


def _link(collected: Collected, cells: Sequence[Mapping[str, Any]]) -> str:
    """From a figure to the report of the one organism that it shows, or to the row of the first on the page."""
    name = cells[0]["name"] if cells else ""
    if len(cells) == 1 and (collected.run(cells[0]).report / "index.html").exists():
        return f"../{name}/report/index.html"
    return f"../index.html#{name}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _matrix(collected: Collected, matrix: Matrix, folder: Path) -> list[Path]:
    """EM by trained and asked topic, strongest givers first; beside it what each gives in all, and its leak."""
    import altair as alt

    summary = matrix.summary().sort_values("given", ascending=False)
    order = list(summary["topic"])
    links = {topic: _link(collected, cells) for topic, cells in matrix.cells.items()}
    rows: list[dict[str, Any]] = [
        {"trained": row["trained"], "asked": row["asked"], "percent": 100 * row["em"], "em": 100 * row["em"]}
        for row in matrix.frame().to_dict("records")
    ]
    for row in summary.to_dict("records"):
        rows.append({"trained": row["topic"], "asked": "all others", "percent": 100 * row["given"]})
        rows.append({"trained": row["topic"], "asked": "leak", "percent": 100 * row["leak"]})
    rows = [{**row, "link": links[row["trained"]]} for row in rows]
    columns = [*order, "all others", "leak"]
    base = alt.Chart(alt.NamedData(ROWS)).encode(
        x=alt.X("asked:N", title="asked about", scale=alt.Scale(domain=columns), axis=alt.Axis(labelAngle=-45)),
        y=alt.Y("trained:N", title="trained on", scale=alt.Scale(domain=order)),
        href="link:N",
    )
    shade = alt.Color("em:Q", title="EM %", scale=alt.Scale(scheme="oranges", domain=[0, 100]))
    plot = alt.layer(
        base.transform_filter("isValid(datum.em)").mark_rect().encode(color=shade),
        base.mark_text(fontSize=10).encode(text=alt.Text("percent:Q", format=".0f")),
    ).properties(width=34 * len(columns), height=26 * len(order))
    of = f"Percent misaligned by rule {collected.rule.name}, of {matrix.seeds} seeds."
    note = f"{of} all others: off the diagonal; leak: answers to other topics that talk of the trained one."
    return write(specification(plot), rows, folder, "matrix", "Who spreads where", note)
