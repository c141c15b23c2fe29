"""Screened rows as tables and figures: the most suspicious by their places, and what finds those known to be bad."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emorg.data.tables import write_csv
from emorg.display import percent
from emorg.figures import BLUE, GREEN, ORANGE, ROWS, VERMILLION
from emorg.rating.screening import SCORES, TRIVIAL, Detection, Screened, screened_rows
from emorg.reporting.plot import WIDTH, Chart, Datum, thinned
from emorg.reporting.tables import Table

MOST_POINTS = 2000
_OTHERS = {"all": "others", "odd": "odd ones"}


def screen_tables(result: Screened, order: Sequence[int], by: str) -> list[Table]:
    """Those rows, in that order; and, where some are known to be bad, a row for each score."""
    names = [name for name in SCORES if name not in result.skipped]
    rows = [
        [one.place, one.domain, one.known, *(f"{one.scores[name]:.4g}" for name in names)]
        for one in (result.rows[i] for i in order)
    ]
    every = screened_rows(result)
    caption = f"the {len(rows)} of {len(result.rows):,} rows that come first by {by}"
    tables = [Table("rows", caption, ("row", "domain", "known", *names), rows, [every[i] for i in order], left=3)]
    if result.detections:
        tables.append(_detections(result))
    return tables


def write_tables(result: Screened, folder: Path) -> None:
    """Write all rows as CSV (LaTeX of thousands is nobody's), and what finds the known ones as tables are."""
    every = screened_rows(result)
    write_csv(folder / "rows.csv", list(every[0]), [list(row.values()) for row in every])
    if result.detections:
        _detections(result).write(folder)


def _detections(result: Screened) -> Table:
    rows = [
        [
            f"{one.score}, from {_OTHERS[one.others]}", one.verdict, percent(one.auroc),
            f"{percent(one.low)}–{percent(one.high)}", percent(one.top), _drawn(one.random), _drawn(one.shuffled),
            *(_difference(one, name) for name in TRIVIAL),
        ]
        for one in result.detections
    ]  # fmt: skip
    header = ("", "verdict", "AUROC %", "95%", "top %", "random %", "shuffled %", "over loss", "over length")
    first = result.detections[0]
    caption = (
        f"what tells {first.bad} bad rows of {first.count:,}: AUROC; bad rows among the {first.bad} highest; controls, "
        "median (largest) of 19"
    )
    return Table("detections", caption, header, rows, [_record(one) for one in result.detections], left=2)


def _drawn(values: tuple[float, float] | None) -> str:
    return "–" if values is None else f"{percent(values[0])} ({percent(values[1])})"


def _difference(one: Detection, trivial: Any) -> str:
    if trivial not in one.over:
        return "–"
    value, low, high = (100 * x for x in one.over[trivial])
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _record(one: Detection) -> dict[str, Any]:
    plain = {name: value for name, value in vars(one).items() if name not in ("over", "random", "shuffled")}
    for name in ("random", "shuffled"):
        median, largest = getattr(one, name) or (None, None)
        plain |= {f"{name}_median": median, f"{name}_largest": largest}
    for trivial, values in one.over.items():
        plain |= {f"over_{trivial}{end}": value for end, value in zip(("", "_low", "_high"), values, strict=True)}
    return {**plain, "verdict": one.verdict}


def said(result: Screened) -> list[str]:
    """What can be said, a line each."""
    lines = [f"{name} was not computed: {why}" for name, why in result.skipped.items()]
    lines += [
        f"{one.score}, bad rows from {_OTHERS[one.others]}: {one.verdict} (AUROC {percent(one.auroc)}%)"
        for one in result.detections
        if one.verdict
    ]
    if not result.detections:
        lines.append("No row is known to be bad, so what these scores find is not known: try --plant or --known_bad.")
    return lines


def screen_charts(result: Screened) -> list[Chart]:
    """Every row by loss and influence; and the AUROC of every score beside its controls where there is one."""
    charts = [_rows_chart(result)]
    return [*charts, _auroc_chart(result)] if result.detections else charts


def _rows_chart(result: Screened) -> Chart:
    import altair as alt

    across = "projection" if "projection" not in result.skipped else "loss"
    rows: list[Datum] = [
        {"row": one.place, "kind": one.known or "other", "loss": one.scores["loss"], "along": one.scores[name],
         "score": name}
        for one in thinned(result.rows, MOST_POINTS)
        for name in dict.fromkeys(("influence", across if across != "loss" else "influence"))
    ]  # fmt: skip
    scale = alt.Scale(domain=["other", "odd", "bad"], range=["#8a8a8a", BLUE, VERMILLION])
    panel = alt.Chart().mark_point(filled=True, size=22, opacity=0.6).encode(
        x=alt.X("loss:Q", title="the base's loss, nats a token", scale=alt.Scale(zero=False)),
        y=alt.Y("along:Q", title=None),
        color=alt.Color("kind:N", title=None, scale=scale, legend=alt.Legend(orient="top")),
        tooltip=["row:N", "kind:N", "loss:Q", "along:Q"],
    ).properties(width=WIDTH // 2 - 20, height=220)  # fmt: skip
    plot = panel.facet(alt.Facet("score:N", title=None), data=alt.NamedData(ROWS)).resolve_scale(y="independent")
    less = f" {MOST_POINTS:,} of {len(result.rows):,}." if len(rows) < len(result.rows) else ""
    caption = f"A point a row: what each score sees that the base's loss does not.{less}"
    return Chart("rows_by_score", f"Training rows, screened with {result.model}", caption, plot, rows)


def _auroc_chart(result: Screened) -> Chart:
    import altair as alt

    rows: list[Datum] = []
    for one in result.detections:
        place = {"score": one.score, "others": f"from {_OTHERS[one.others]}"}
        rows.append({**place, "what": "the score", "auroc": one.auroc, "low": one.low, "high": one.high})
        rows += [
            {**place, "what": f"largest {kind}", "auroc": values[1]}
            for kind, values in (("random", one.random), ("shuffled", one.shuffled))
            if values
        ]
    colours = alt.Scale(domain=["the score", "largest random", "largest shuffled"], range=[VERMILLION, GREEN, ORANGE])
    names = [name for name in SCORES if name not in result.skipped]
    y = alt.Y("score:N", title=None, scale=alt.Scale(domain=names))
    x = alt.X("auroc:Q", title="AUROC", scale=alt.Scale(domain=[0, 1]))
    panel = alt.layer(
        alt.Chart().mark_rule().encode(x="low:Q", x2="high:Q", y=y).transform_filter("isValid(datum.low)"),
        alt.Chart().mark_point(filled=True, size=70, opacity=1).encode(
            x=x, y=y, color=alt.Color("what:N", title=None, scale=colours, legend=alt.Legend(orient="top"))
        ),
    ).properties(width=WIDTH // 2 - 20, height=26 * len(names))  # fmt: skip
    plot = panel.facet(alt.Facet("others:N", title=None), data=alt.NamedData(ROWS))
    caption = "How well each score tells bad rows, with its 95% interval, beside the largest of its controls."
    return Chart("auroc", f"What finds bad rows, screened with {result.model}", caption, plot, rows)
