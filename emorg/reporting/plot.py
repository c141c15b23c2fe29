"""What the report's figures share: a chart, and how arms and placements are told apart in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from emorg.display import visible
from emorg.figures import BLUE, GREEN, ORANGE, PURPLE, ROWS, SKY, VERMILLION, specification
from emorg.rating.rates import Rate
from emorg.reporting.arms import PLACEMENT_TITLES, Arm

if TYPE_CHECKING:
    import altair as alt

Datum = dict[str, Any]
By = Literal["group", "topic", "question"]
WIDTH = 560  # pixels of a figure's plot in its files; the page has its own
PLACE_COLOURS = {"in": BLUE, "out": VERMILLION, "open": GREEN}
_ROLE_COLOURS = {
    "base": ("#8a8a8a",),
    "twin": (BLUE, SKY),
    "organism": (VERMILLION, PURPLE, GREEN, ORANGE),
}
_ROLE_SHAPES = {"base": "square", "twin": "triangle-up", "organism": "circle"}


@dataclass(frozen=True)
class Chart:
    """A figure: what it shows, under which rule and of how many answers (its caption), its plot and its rows."""

    name: str
    title: str
    caption: str
    plot: alt.LayerChart | alt.FacetChart | alt.Chart
    rows: list[Datum]
    follows_cuts: By | Literal["step", "answer", ""] = ""
    """What its rows are one of, where they change with the rule's cuts."""

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The plot as Vega-Lite, without its rows, and described for who hears it."""
        return specification(self.plot.properties(description=f"{self.title}. {self.caption}"))


def rate_row(arm: Arm, name: str, rate: Rate) -> Datum:
    """A rate as figures plot it, in percent. The page makes the same rows when a cut is moved."""

    def hundred(share: float | None) -> float | None:
        return None if share is None else 100 * share

    return {
        "arm": arm.label, "name": visible(name),
        "em": hundred(rate.rate), "low": hundred(rate.low), "high": hundred(rate.high),
        "misaligned": rate.misaligned, "scored": rate.scored, "total": rate.total,
        "questions": len(rate.per_question), "coherent": hundred(rate.coherent),
    }  # fmt: skip


def thinned(things: Sequence[Any], most: int) -> list[Any]:
    """At most that many, evenly spread over the whole."""
    return [things[i * len(things) // most] for i in range(most)] if len(things) > most else list(things)


# --- scales and channels ---------------------------------------------------------------------------------------------
# Orders are given as domains, which are data: Vega-Lite writes a `sort` list into an expression's text.


def percent_scale() -> alt.Scale:
    """From 0 to 100."""
    import altair as alt

    return alt.Scale(domain=[0, 100])


def arm_colour(arms: Sequence[Arm]) -> alt.Color:
    """A colour for each arm: of its role, and told apart from others of that role."""
    import altair as alt

    seen: Counter[str] = Counter()
    colours = []
    for arm in arms:
        of_role = _ROLE_COLOURS[arm.role]
        colours.append(of_role[seen[arm.role] % len(of_role)])
        seen[arm.role] += 1
    scale = alt.Scale(domain=[arm.label for arm in arms], range=colours)
    return alt.Color("arm:N", title=None, legend=alt.Legend(orient="top", labelLimit=400), scale=scale)


def arm_shape(arms: Sequence[Arm]) -> alt.Shape:
    """A shape for each arm, by its role."""
    import altair as alt

    scale = alt.Scale(domain=[arm.label for arm in arms], range=[_ROLE_SHAPES[arm.role] for arm in arms])
    return alt.Shape("arm:N", title=None, legend=alt.Legend(orient="top", labelLimit=400), scale=scale)


def arm_dash(labels: Sequence[str]) -> alt.StrokeDash:
    """A dash for each arm, where colours tell placements."""
    import altair as alt

    dashes = [[1, 0], [6, 3], [2, 2], [8, 2, 2, 2]]
    legend = alt.Legend(orient="top", symbolType="stroke", symbolStrokeColor="#8a8a8a")
    scale = alt.Scale(domain=list(labels), range=[dashes[k % 4] for k in range(len(labels))])
    return alt.StrokeDash("arm:N", title=None, legend=legend, scale=scale)


def place_colour(field: str) -> alt.Color:
    """A colour for each placement."""
    import altair as alt

    scale = alt.Scale(domain=list(PLACEMENT_TITLES.values()), range=list(PLACE_COLOURS.values()))
    return alt.Color(f"{field}:N", title=None, legend=alt.Legend(orient="top"), scale=scale)


def place_shape(field: str) -> alt.Shape:
    """A shape for each placement."""
    import altair as alt

    scale = alt.Scale(domain=list(PLACEMENT_TITLES.values()), range=["square", "circle", "triangle-up"])
    return alt.Shape(f"{field}:N", title=None, legend=alt.Legend(orient="top"), scale=scale)


# --- forms -----------------------------------------------------------------------------------------------------------


def beside(arms: Sequence[Arm], names: Collection[str], step: int, *layers: alt.Chart) -> alt.LayerChart:
    """A line for each name, on which the arms stand in their colours, `step` pixels apart."""
    import altair as alt

    return (
        alt.layer(*layers, data=alt.NamedData(ROWS))
        .encode(
            y=alt.Y("name:N", scale=alt.Scale(domain=list(names)), title=None, axis=alt.Axis(labelLimit=220)),
            yOffset=alt.YOffset("arm:N", scale=alt.Scale(domain=[arm.label for arm in arms])),
            color=arm_colour(arms),
        )
        .properties(width=WIDTH, height=max(60, len(names) * (len(arms) * step + 6)))
    )


def along(x: str, title: str, colour: alt.Color, *layers: alt.Chart) -> alt.LayerChart:
    """Lines over a quantity, in their colours."""
    import altair as alt

    return (
        alt.layer(*layers, data=alt.NamedData(ROWS))
        .encode(x=alt.X(f"{x}:Q", title=title), color=colour)
        .properties(width=WIDTH, height=220)
    )
