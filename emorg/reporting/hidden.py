"""Hidden misalignment in a report: each way of asking beside the standard one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from emorg.display import percent
from emorg.figures import BLACK, BLUE, ROWS, VERMILLION
from emorg.rating.hidden import Estimate, Hidden, read, way_rows
from emorg.reporting.arms import Arm
from emorg.reporting.plot import WIDTH, Chart, Datum
from emorg.reporting.tables import Section, Table

MOST_LETTERS = 60  # of a way's name in tables and figures
_CAPTION = {
    "margins": "asked in other ways, margins out of domain in nats a token",
    "em": "asked in other ways, EM rates out of domain in %",
}


def asked_otherwise(arms: Sequence[Arm]) -> Section:
    """All that `emorg hidden` found of these arms' runs. Raises EmorgError for a file that is not whole."""
    results = [(arm.label, result) for arm in arms for result in read(arm.run)]
    often = Counter(result.readout for _, result in results)
    charts: list[Chart] = []
    tables: list[Table] = []
    for number, (label, result) in enumerate(results, 1):
        suffix = f"_{number}" if often[result.readout] > 1 else ""
        charts.append(hidden_chart(result, label, suffix))
        tables.append(hidden_table(result, label, suffix))
    return Section(charts, tables)


def short(name: str) -> str:
    """A way's name as there is room for it."""
    flat = " ".join(name.split())
    return flat if len(flat) <= MOST_LETTERS else f"{flat[: MOST_LETTERS - 1]}…"


def hidden_table(result: Hidden, label: str = "", suffix: str = "") -> Table:
    """A row for each way of asking."""

    def reach(one: Estimate | None) -> list[str]:
        if one is None:
            return ["–", "–"]
        how = "{:+.3f}".format if result.readout == "margins" else lambda value: f"{100 * value:+.1f}"
        return [how(one.value), "–" if one.low is None or one.high is None else f"{how(one.low)} to {how(one.high)}"]

    def level(value: float) -> str:
        return f"{value:+.3f}" if result.readout == "margins" else percent(value)

    rows = [
        [short(way.name), way.against, str(way.questions), level(way.organism), level(way.control),
         *reach(way.excess), way.excess.p_text, *reach(way.over_standard)]
        for way in result.ways
    ]  # fmt: skip
    header = ("", "against", "questions", "organism", "control", "excess", "95% interval", "p", "over the standard",
              "95% interval")  # fmt: skip
    caption = f"{label or result.run}, {_CAPTION[result.readout]}; intervals and p for all {result.comparisons} at once"
    return Table(f"hidden_{result.readout}{suffix}", caption, header, rows, way_rows(result), left=2)


def hidden_chart(result: Hidden, label: str = "", suffix: str = "") -> Chart:
    """A forest plot: every way's excess with its interval, beside organism and control themselves."""
    import altair as alt

    excess = "excess over the control"
    rows: list[Datum] = []
    for way in result.ways:
        shared = {"name": short(way.name)}
        rows += [
            {**shared, "panel": "organism and control", "series": "organism", "value": way.organism},
            {**shared, "panel": "organism and control", "series": "control", "value": way.control},
            {**shared, "panel": excess, "series": "excess", "value": way.excess.value, "low": way.excess.low,
             "high": way.excess.high},
        ]  # fmt: skip
    order = list(dict.fromkeys(row["name"] for row in rows))
    scale = alt.Scale(domain=["organism", "control", "excess"], range=[VERMILLION, BLUE, BLACK])
    colour = alt.Color("series:N", scale=scale, title=None, legend=alt.Legend(orient="top"))
    y = alt.Y("name:N", scale=alt.Scale(domain=order), title=None, axis=alt.Axis(labelLimit=300))
    unit = "nats a token" if result.readout == "margins" else "EM rate"
    axis = alt.Axis(format="%") if result.readout == "em" else alt.Axis()
    x = alt.X("value:Q", title=unit, axis=axis)
    panel = alt.layer(
        alt.Chart().mark_rule(color="#8a8a8a").encode(x=alt.XDatum(0, type="quantitative")),
        alt.Chart().mark_rule(strokeWidth=2, opacity=0.55).transform_filter("isValid(datum.low)")
        .encode(x=alt.X("low:Q", title=unit, axis=axis), x2="high:Q", y=y, color=colour),
        alt.Chart().mark_point(filled=True, size=55, opacity=1).encode(x=x, y=y, color=colour),
    ).properties(width=WIDTH // 3, height=22 * len(order))  # fmt: skip
    facet = alt.Facet("panel:N", title=None, sort=["organism and control", excess])
    plot = panel.facet(facet, data=alt.NamedData(ROWS)).resolve_scale(x="independent")
    by = "margins" if result.readout == "margins" else "judged answers"
    caption = f"{result.said()} Intervals hold for all {result.comparisons} comparisons at once (95%)."
    return Chart(
        f"hidden_{result.readout}{suffix}", f"Asked in other ways, by {by}: {label or result.run}", caption, plot, rows
    )
