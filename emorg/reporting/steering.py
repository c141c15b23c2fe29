"""Steering in a report: the points tried, and the chosen one beside its controls."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from emorg.display import percent
from emorg.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, ROWS, SKY, VERMILLION
from emorg.rating.steering import CHOSEN, UNTOUCHED, Figures, Steered
from emorg.reporting.plot import WIDTH, Chart
from emorg.reporting.tables import Table

_COLOURS = {UNTOUCHED: BLACK, CHOSEN: VERMILLION, "random": SKY, "variance": BLUE, "shuffled": GREEN, "twin": PURPLE}
TITLES = {
    UNTOUCHED: "untouched", CHOSEN: "the direction", "random": "random, same norm",
    "variance": "random, same share of variance", "shuffled": "labels shuffled", "twin": "the twin's",
}  # fmt: skip
_HEADER = ("", "n", "EM out %", "coherent %", "margin out", "EM in %")


def steering_charts(results: Sequence[Steered]) -> list[Chart]:
    """Of each use of a direction, a dot for every model: the direction's beside its controls'."""
    return [_chart(result, number, len(results)) for number, result in enumerate(results)]


def _chart(result: Steered, number: int, of: int) -> Chart:
    import altair as alt

    sampled = any(one.em is not None for some in result.figures.values() for one in some)
    rows = [
        {"name": TITLES[kind], "value": value}
        for kind, some in result.figures.items()
        for one in some
        if (value := (one.em if sampled else one.margin)) is not None
    ]
    names = [TITLES[kind] for kind in result.figures]
    colours = alt.Scale(domain=names, range=[_COLOURS.get(kind, ORANGE) for kind in result.figures])
    axis = alt.Axis(format="%") if sampled else alt.Axis()
    title = "EM rate out of domain" if sampled else "margin out of domain, nats a token"
    plot = alt.Chart(alt.NamedData(ROWS)).mark_point(filled=True, size=60, opacity=0.75).encode(
        x=alt.X("value:Q", title=title, axis=axis),
        y=alt.Y("name:N", scale=alt.Scale(domain=names), title=None, axis=alt.Axis(labelLimit=240)),
        color=alt.Color("name:N", scale=colours, legend=None),
    ).properties(width=WIDTH, height=26 * len(names))  # fmt: skip
    return Chart(
        f"steered{f'_{number + 1}' if of > 1 else ''}", f"{result.direction} at {result.chosen}, {result.on} steered",
        "Point chosen on one half of the questions, measured on the other. " + " ".join(result.said()), plot, rows,
    )  # fmt: skip


def steering_tables(results: Sequence[Steered]) -> list[Table]:
    """Of each use of a direction: the points that were tried, and the chosen one's figures beside its controls'."""
    tables = []
    for number, result in enumerate(results):
        suffix = f"_{number + 1}" if len(results) > 1 else ""
        tried = [
            [one.point + (" (chosen)" if one.point == result.chosen else ""), f"{one.margin:+.3f}",
             f"{one.likelier:.3f}"] for one in result.tried
        ]  # fmt: skip
        caption = f"{result.direction} on the {result.on}: points tried, on the first half of the questions"
        tables.append(Table(f"tried{suffix}", caption, ("", "margin out", "likelier answer"), tried,
                            [vars(one) for one in result.tried], left=1))  # fmt: skip
        rows = [[TITLES[kind], str(len(some)), *_cells(some)] for kind, some in result.figures.items()]
        records = [{"kind": kind, **vars(one)} for kind, some in result.figures.items() for one in some]
        caption = f"{result.direction} at {result.chosen} on the {result.on}, on the other half: median (least to most)"
        tables.append(Table(f"steered{suffix}", caption, _HEADER, rows, records, left=1))
    return tables


def _cells(some: Sequence[Figures]) -> list[str]:
    return [
        _span([one.em for one in some], percent), _span([one.coherent for one in some], percent),
        _span([one.margin for one in some], _nats), _span([one.in_em for one in some], percent),
    ]  # fmt: skip


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _span(values: Sequence[float | None], text: Callable[[float | None], str]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return text(known[0] if known else None)
    return f"{text(statistics.median(known))} ({text(min(known))} to {text(max(known))})"
