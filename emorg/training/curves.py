"""The training-curve figure of a run: loss, learning rate, gradient norm and tokens a second, by step."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from emorg.figures import BLUE, ROWS, VERMILLION, specification, write
from emorg.records import read_lines
from emorg.run import Run

if TYPE_CHECKING:
    import altair as alt


def draw(run: Run) -> None:
    """Write training.svg and training.png from the run's metrics."""
    import altair as alt

    lines = [line for _, line in read_lines(run.metrics)]
    speeds = _speeds(lines)
    rows = [{**line, "speed": speeds.get(line["step"])} for line in lines]
    loss: alt.Chart | alt.LayerChart = _curve("loss")
    if any("eval_loss" in line for line in lines):
        held_out = _curve("eval_loss", point=True, invalid="filter").transform_calculate(kind="'held out'")
        scale = alt.Scale(domain=["trained", "held out"], range=[BLUE, VERMILLION])
        legend = alt.Legend(orient="top-right", symbolType="stroke")
        colour = alt.Color("kind:N", title=None, legend=legend, scale=scale)
        loss = alt.LayerChart(layer=[loss.transform_calculate(kind="'trained'"), held_out]).encode(color=colour)
    panels = [
        _panel(loss, "loss, nats a trained token"),
        _panel(_curve("lr"), "learning rate"),
        _panel(_curve("grad_norm"), "gradient norm, before clipping"),
        _panel(_curve("speed"), "tokens a second"),
    ]
    if any("margin_out" in line for line in lines):
        panels.append(_panel(_margins(), "margins above those before training, nats a token"))
    figure = alt.concat(*panels, columns=2, data=alt.NamedData(ROWS)).resolve_legend(color="independent")
    write(specification(figure), rows, run.folder, "training", run.title)


def _margins() -> alt.LayerChart:
    """The shift of margins in domain, and out of it with its 95% band over questions."""
    import altair as alt

    kinds = {"out of domain": (VERMILLION, "margin_out"), "in domain": (BLUE, "margin_in")}
    scale = alt.Scale(domain=list(kinds), range=[colour for colour, _ in kinds.values()])
    colour = alt.Color("kind:N", title=None, legend=alt.Legend(orient="bottom-right", symbolType="stroke"), scale=scale)
    lines = [
        _curve(field, point=True)
        .transform_filter(f"isValid(datum.{field})")
        .transform_calculate(kind=f"'{kind}'")
        .encode(color=colour)
        for kind, (_, field) in kinds.items()
    ]
    ends = {name: f"datum.margin_out {sign} 1.96 * datum.margin_out_se" for name, sign in (("low", "-"), ("high", "+"))}
    band = alt.Chart().mark_area(opacity=0.2, color=VERMILLION).transform_filter("isValid(datum.margin_out_se)")
    shown = band.transform_calculate(**ends).encode(x="step:Q", y=alt.Y("low:Q", title=None), y2="high:Q")
    return alt.LayerChart(layer=[shown, *lines])


def _curve(field: str, **mark: Any) -> alt.Chart:
    """A line over steps, broken where a step has no finite value unless `mark` says otherwise."""
    import altair as alt

    step = alt.X("step:Q", title="optimizer step", axis=alt.Axis(tickMinStep=1))
    value = alt.Y(f"{field}:Q", title=None, scale=alt.Scale(zero=True))
    curve: alt.Chart = alt.Chart().mark_line(color=BLUE, strokeWidth=1, **mark).encode(x=step, y=value)
    return curve


def _panel(curves: alt.Chart | alt.LayerChart, title: str) -> alt.Chart | alt.LayerChart:
    import altair as alt

    return curves.properties(title=alt.Title(title, anchor="start", frame="group"), width=360, height=160)


def _speeds(lines: list[dict[str, Any]]) -> dict[int, float]:
    """Tokens a second of each step; where a stopped run went on, its clock began anew."""
    return {
        after["step"]: (after["tokens"] - before["tokens"]) / (after["seconds"] - before["seconds"])
        for before, after in pairwise(lines)
        if after["seconds"] > before["seconds"]
    }
