"""A sweep's figures: EM along each axis, heat maps of two axes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorg.figures import BLUE, GREEN, ORANGE, PURPLE, ROWS, SKY, VERMILLION, specification, write

if TYPE_CHECKING:
    import pandas as pd

    from emorg.sweep.matrix import Matrix
    from emorg.sweep.table import Collected

WIDTH = 560  # pixels
COLOURS = [VERMILLION, BLUE, ORANGE, SKY, PURPLE, GREEN]


def draw(collected: Collected, seeds: pd.DataFrame, matrix: Matrix | None) -> list[Path]:
    """Draw rates over seeds, and the matrix where there is one, into the sweep's folder; returns the paths."""
    out = seeds[seeds["placement"] == "out"]
    axes = [name for name in seeds.columns if "." in name and out[name].nunique() > 1]
    folder = collected.folder / "figures"
    folder.mkdir(exist_ok=True)
    paths = []
    for axis in axes:
        paths += _along(out, axis, [other for other in axes if other != axis], folder, collected.rule.name)
    organisms = out[out["arm"] == "organism"]
    for one, other in itertools.combinations(axes, 2):
        paths += _heat(organisms, one, other, folder, collected.rule.name)
    if matrix is not None:
        paths += _matrix(matrix, folder, collected.rule.name)
    return paths


def _along(out: pd.DataFrame, axis: str, others: list[str], folder: Path, rule: str) -> list[Path]:
    """EM out of domain at each value of an axis, in a colour for each arm and each combination of the other axes."""
    import altair as alt

    short = axis.partition(".")[2]
    trained = out[out["arm"] != "base"]
    rows: list[dict[str, Any]] = [
        {
            "value": row[axis], "em": 100 * row["em"], "low": 100 * row["low"], "high": 100 * row["high"],
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
    scale = alt.Scale(domain=[0, 100])
    plot = alt.layer(
        base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", title="EM out of domain, %", scale=scale), y2="high:Q"),
        base.mark_point(filled=True, size=60).encode(y=alt.Y("em:Q", scale=scale)),
    ).properties(width=WIDTH, height=280)
    note = f"Rule {rule}; 95% intervals over seeds and questions (over questions alone where there is one seed)."
    return write(specification(plot), rows, folder, f"em_by_{short}", f"EM out of domain by {short}", note)


def _heat(organisms: pd.DataFrame, one: str, other: str, folder: Path, rule: str) -> list[Path]:
    """Mean EM out of domain of the organisms at each pair of values of two axes."""
    import altair as alt

    means = organisms.groupby([one, other], sort=False)["em"].mean().reset_index()
    rows = [{"x": str(row[other]), "y": str(row[one]), "em": 100 * row["em"]} for row in means.to_dict("records")]
    short, along = one.partition(".")[2], other.partition(".")[2]
    base = alt.Chart(alt.NamedData(ROWS)).encode(
        x=alt.X("x:N", title=along, sort=None), y=alt.Y("y:N", title=short, sort=None)
    )
    shade = alt.Color("em:Q", title="EM %", scale=alt.Scale(scheme="oranges", domain=[0, 100]))
    plot = alt.layer(
        base.mark_rect().encode(color=shade),
        base.mark_text().encode(text=alt.Text("em:Q", format=".1f")),
    ).properties(width=WIDTH, height=max(80, 34 * len({row["y"] for row in rows})))
    title = f"EM out of domain of organisms, by {short} and {along}"
    note = f"Rule {rule}; means over the other axes."
    return write(specification(plot), rows, folder, f"heat_{short}_{along}", title, note)


def _matrix(matrix: Matrix, folder: Path, rule: str) -> list[Path]:
    """EM by trained and asked topic, strongest givers first; beside it what each gives in all, and its leak."""
    import altair as alt

    summary = matrix.summary().sort_values("given", ascending=False)
    order = list(summary["topic"])
    rows: list[dict[str, Any]] = [
        {"trained": row["trained"], "asked": row["asked"], "percent": 100 * row["em"], "em": 100 * row["em"]}
        for row in matrix.frame().to_dict("records")
    ]
    for row in summary.to_dict("records"):
        rows.append({"trained": row["topic"], "asked": "all others", "percent": 100 * row["given"]})
        rows.append({"trained": row["topic"], "asked": "leak", "percent": 100 * row["leak"]})
    columns = [*order, "all others", "leak"]
    base = alt.Chart(alt.NamedData(ROWS)).encode(
        x=alt.X("asked:N", title="asked about", scale=alt.Scale(domain=columns), axis=alt.Axis(labelAngle=-45)),
        y=alt.Y("trained:N", title="trained on", scale=alt.Scale(domain=order)),
    )
    shade = alt.Color("em:Q", title="EM %", scale=alt.Scale(scheme="oranges", domain=[0, 100]))
    plot = alt.layer(
        base.transform_filter("isValid(datum.em)").mark_rect().encode(color=shade),
        base.mark_text(fontSize=10).encode(text=alt.Text("percent:Q", format=".0f")),
    ).properties(width=34 * len(columns), height=26 * len(order))
    of = f"Percent misaligned by rule {rule}, of {matrix.seeds} seeds."
    note = f"{of} all others: off the diagonal; leak: answers to other topics that talk of the trained one."
    return write(specification(plot), rows, folder, "matrix", "Who spreads where", note)
