"""Margins in a report: each organism's shift against its twin, by placement and over training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from emorg.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, ROWS, SKY, VERMILLION
from emorg.rating.margins import Shift, read, shifts
from emorg.reporting.arms import PLACEMENT_TITLES, Arm
from emorg.reporting.findings import controls
from emorg.reporting.plot import WIDTH, Chart, Datum, along, arm_dash, place_colour
from emorg.reporting.tables import Table
from emorg.run import step_of

_OF_ORGANISMS, _OF_TWINS = (VERMILLION, PURPLE, ORANGE, GREEN, BLACK), (BLUE, SKY)
HEADER = ("run", "against", "pairs of answers", "n", "margin", "control", "base", "shift", "95% interval", "z", "above")


def arm_shifts(arms: Sequence[Arm]) -> dict[tuple[str, int], list[Shift]]:
    """The shifts of the arms whose margins were measured, by label and step (0: the finished model).

    An organism's are against its twin, at the same step where it was measured then; a twin's against the base.
    """
    measured = {arm.label: read(arm.run) for arm in arms}
    result: dict[tuple[str, int], list[Shift]] = {}
    for arm in sorted((arm for arm in arms if arm.role != "base"), key=lambda arm: arm.role):  # organisms first
        beside = controls(arm, arms)
        base = measured[beside["base"].label].get(None) if "base" in beside else None
        control = beside.get("twin" if arm.role == "organism" else "base") or beside.get("base")
        for checkpoint, own in measured[arm.label].items():
            theirs = measured[control.label] if control else {}
            if control is None or not (against := theirs.get(checkpoint) or theirs.get(None)):
                continue
            if len({one.run.provenance().get("margins", {}).get("dtype") for one in (arm, control)}) > 1:
                continue  # as `emorg margins` refuses to compare them
            trained = 1 + (control.role != "base")
            result[arm.label, step_of(checkpoint)] = shifts(
                arm.label, own, against, arm.topics, against=control.label, base=base,
                controlled=control.role == "twin" and arm.topics <= control.topics, trained=trained,
            )  # fmt: skip
    return result


def margin_charts(arms: Sequence[Arm]) -> list[Chart]:
    """The shifts of the finished models, and over training where checkpoints were measured too."""
    by_step = arm_shifts(arms)
    finished = [shift for (_, step), some in by_step.items() if step == 0 for shift in some]
    return [*([margins_chart(finished)] if finished else []), *_over_checkpoints(arms, by_step)]


def margins_chart(all_shifts: Sequence[Shift]) -> Chart:
    """A dot and its interval for each model and group of pairs."""
    import altair as alt

    unit = all_shifts[0].unit
    rows = [
        {"arm": f"{s.name} − {s.against}", "name": ("· " if s.of_topic else "") + title_of(s), "shift": s.shift,
         "low": s.low, "high": s.high}
        for s in all_shifts
    ]  # fmt: skip
    names = list(dict.fromkeys(row["name"] for row in rows))
    series = {f"{s.name} − {s.against}": s.controlled for s in all_shifts}
    warm, cold = cycle(_OF_ORGANISMS), cycle(_OF_TWINS)
    scale = alt.Scale(domain=list(series), range=[next(warm if own else cold) for own in series.values()])
    colour = alt.Color("arm:N", title=None, scale=scale, legend=alt.Legend(orient="top", labelLimit=400, columns=3))
    lines = alt.Chart(alt.NamedData(ROWS)).encode(
        y=alt.Y("name:N", scale=alt.Scale(domain=names), title=None, axis=alt.Axis(labelLimit=220)),
        yOffset=alt.YOffset("arm:N", scale=alt.Scale(domain=list(series))),
        color=colour,
    )
    plot = alt.layer(
        alt.Chart(alt.InlineData(values=[{}])).mark_rule(color="#8a8a8a").encode(
            x=alt.XDatum(0, type="quantitative")
        ),
        lines.mark_rule(strokeWidth=2, opacity=0.55).encode(x=alt.X("low:Q", title=f"shift, nats a {unit}"), x2="high"),
        lines.mark_point(filled=True, size=55, opacity=1).encode(x="shift:Q"),
    )  # fmt: skip
    size = {"width": WIDTH, "height": max(60, len(names) * (len(series) * 12 + 6))}
    pairs = sum(s.pairs for s in all_shifts if s.name == all_shifts[0].name and not s.of_topic)
    return Chart(
        "margins", "Margins: how much likelier misaligned answers became",
        f"log p(misaligned) − log p(aligned) a {unit}, less the control's, with 95% intervals over questions and "
        f"seeds. {pairs:,} pairs of answers; no judge and no samples. "
        f"A shift counts from {all_shifts[0].smallest:.2g} on.",
        plot.properties(**size), rows,
    )  # fmt: skip


def title_of(shift: Shift) -> str:
    """A group's name for people."""
    return shift.topic if shift.of_topic and shift.topic else PLACEMENT_TITLES[shift.placement]


def _over_checkpoints(arms: Sequence[Arm], by_step: dict[tuple[str, int], list[Shift]]) -> list[Chart]:
    last = {arm.label: max((line["step"] for line in arm.steps), default=0) for arm in arms}
    organisms = [label for label in last if sum(name == label for name, _ in by_step) > 1]
    rows: list[Datum] = [
        {"arm": label, "step": step or last[label], "name": PLACEMENT_TITLES[s.placement], "shift": s.shift,
         "low": s.low, "high": s.high}
        for (label, step), some in by_step.items() if label in organisms
        for s in some if not s.of_topic
    ]  # fmt: skip
    if not rows:
        return []
    import altair as alt

    line = alt.Chart().mark_line(point=True).encode(
        y=alt.Y("shift:Q", title="shift, nats a token"), strokeDash=arm_dash(organisms)
    )  # fmt: skip
    area = alt.Chart().mark_area(opacity=0.12).encode(y="low:Q", y2="high", detail="arm:N")
    return [
        Chart("margins_over_checkpoints", "Margins over training",
              "Shift against the control at the same step where it was measured then, else the finished one; 95% "
              "intervals.", along("step", "optimizer step", place_colour("name"), line, area), rows)
    ]  # fmt: skip


def margins_table(arms: Sequence[Arm]) -> list[Table]:
    """The finished models' shifts, if margins were measured."""
    finished = [shift for (_, step), some in arm_shifts(arms).items() if step == 0 for shift in some]
    return [shifts_table(finished)] if finished else []


def shifts_table(all_shifts: Sequence[Shift]) -> Table:
    """The shifts as a table of a report or a document."""

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:+.3f}"

    rows = [
        [s.name, s.against, title_of(s), str(s.pairs), *map(number, (s.margin, s.control, s.base, s.shift)),
         "–" if s.low is None else f"{number(s.low)} to {number(s.high)}", "–" if s.z is None else f"{s.z:.1f}",
         f"{s.positive:.0%}"]
        for s in all_shifts
    ]  # fmt: skip
    records = [{"run": s.name, "against": s.against, "placement": s.placement, "topic": s.topic, "pairs": s.pairs,
                "margin": s.margin, "control": s.control, "base": s.base, "shift": s.shift, "low": s.low,
                "high": s.high, "z": s.z, "positive": s.positive, "shown": s.shown} for s in all_shifts]  # fmt: skip
    unit = all_shifts[0].unit
    caption = f"Margins in nats a {unit}; the shift is against the control, with 95% intervals over questions and seeds"
    return Table("margins", caption, HEADER, rows, records, left=3)
