"""Steering in a report: the points tried, and the chosen one beside its controls."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
MATRIX = "transfer"
_HEADER = ("", "n", "EM out %", "coherent %", "margin out", "EM in %")


def steering_charts(results: Sequence[Steered]) -> list[Chart]:
    """Of each use of a direction, a dot for every model: the direction's beside its controls'; and of several
    organisms the transfer matrix."""
    every = [_chart(result, number, len(results)) for number, result in enumerate(results)]
    return [*_transfer_charts(results), *every]


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
    """Of several organisms the transfer matrix; and of each use of a direction the points that were tried, and the
    chosen one's figures beside its controls'."""
    tables = _transfer_tables(results)
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


@dataclass(frozen=True)
class _Cell:
    """What one organism's direction, taken out of another, did to its EM rate, or to its margin if none was sampled."""

    direction: str
    organism: str
    sampled: bool
    before: float
    after: float
    beyond: bool

    @property
    def text(self) -> str:
        how = percent if self.sampled else _nats
        return f"{how(self.before)} → {how(self.after)}{'*' if self.beyond else ''}"


def _transfers(results: Sequence[Steered]) -> list[_Cell]:
    """The cells of a matrix, if there are several organisms and directions."""
    cells: dict[tuple[str, str], _Cell] = {}
    some = [one for one in results if one.on == "organism" and not one.chosen.startswith("add")]
    some.sort(key=lambda one: len(one.tried))  # of two searches the wider one
    sampled = all(effect.measure == "em" for one in some for effect in one.effects[:1])
    for result in some:
        direction = result.direction if " of " in result.direction else f"{result.direction} of {result.run}"
        effect = result.effects[0] if sampled else result.effects[-1]
        before, after = (getattr(result.figures[kind][0], effect.measure) for kind in (UNTOUCHED, CHOSEN))
        beyond = all(effect.beyond.values())
        cells[direction, result.run] = _Cell(direction, result.run, effect.measure == "em", before, after, beyond)
    if any(len({key[side] for key in cells}) < 2 for side in (0, 1)):
        return []
    organisms = list(dict.fromkeys(cell.organism for cell in cells.values()))  # whose own are then the diagonal
    order = {f" of {name}": k for k, name in enumerate(organisms)}
    return sorted(cells.values(), key=lambda cell: next((k for end, k in order.items() if cell.direction.endswith(end)),
                                                        len(order)))  # fmt: skip


_MATRIX = (
    "Each direction taken out of each organism, on the half of the questions it was not chosen on: before → after; "
    "* beyond every control of every kind"
)


def _transfer_tables(results: Sequence[Steered]) -> list[Table]:
    if not (cells := _transfers(results)):
        return []
    organisms = list(dict.fromkeys(cell.organism for cell in cells))
    rows = [
        [direction, *(next((c.text for c in cells if (c.direction, c.organism) == (direction, own)), "–")
                      for own in organisms)]
        for direction in dict.fromkeys(cell.direction for cell in cells)
    ]  # fmt: skip
    measure = "EM % out of domain" if cells[0].sampled else "margin out of domain, nats a token"
    header = ("", *(f"out of {name}" for name in organisms))
    return [Table(MATRIX, f"{measure}. {_MATRIX}", header, rows, [vars(cell) for cell in cells], left=1)]


def _transfer_charts(results: Sequence[Steered]) -> list[Chart]:
    import altair as alt

    if not (cells := _transfers(results)):
        return []
    rows = [{**vars(cell), "text": cell.text} for cell in cells]
    x = alt.X("organism:N", title="taken out of", axis=alt.Axis(orient="top", labelAngle=0), sort=None)
    y = alt.Y("direction:N", title=None, axis=alt.Axis(labelLimit=240), sort=None)
    measure = "EM rate" if cells[0].sampled else "margin"
    domain = [0, 1] if cells[0].sampled else alt.Undefined
    scale = alt.Scale(range=["#ffffff", SKY], interpolate="rgb", domain=domain)
    legend = alt.Legend(format="%") if cells[0].sampled else alt.Legend()
    colour = alt.Color("after:Q", title=f"{measure} after", scale=scale, legend=legend)
    plot = alt.layer(
        alt.Chart().mark_rect(stroke="#8a8a8a").encode(x=x, y=y, color=colour),
        alt.Chart().mark_text(color=BLACK).encode(x=x, y=y, text="text:N"),
        data=alt.NamedData(ROWS),
    ).properties(width=WIDTH, height=44 * len({cell.direction for cell in cells}))
    return [Chart(MATRIX, f"Whose direction takes whose {measure} down", f"{_MATRIX}.", plot, rows)]


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
