"""Figures over training: rates by checkpoint, and the loss, learning rate and gradient norm by step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from emorg.rating.answers import JudgedAnswer
from emorg.rating.placement import placement
from emorg.rating.rates import Group, rates_by
from emorg.rating.rules import Rule
from emorg.records import Answer
from emorg.reporting.arms import Arm, group_title
from emorg.reporting.findings import controls
from emorg.reporting.plot import (
    Chart,
    Datum,
    along,
    arm_colour,
    arm_dash,
    percent_scale,
    place_colour,
    rate_row,
    thinned,
)
from emorg.run import step_of

if TYPE_CHECKING:
    import altair as alt

MOST_STEPS = 400  # points of a training curve


def over_checkpoints(arms: Sequence[Arm], rule: Rule) -> list[Chart]:
    """EM and coherence by optimizer step, of the runs whose checkpoints were judged, from their base on."""
    rows = checkpoint_rows(arms, rule)
    if not rows:
        return []
    import altair as alt

    about = f"by rule {rule}, with 95% intervals over questions, from the base (step 0) to the finished model."
    interval = alt.Chart().mark_area(opacity=0.12).encode(y="low:Q", y2="high", detail="arm:N")
    em, coherent = _share(arms, "em", "EM %"), _share(arms, "coherent", "coherent %")
    return [
        Chart("em_over_checkpoints", "Misalignment over training", f"Share misaligned {about}",
              along("step", "optimizer step", place_colour("name"), em, interval), rows, "step"),
        Chart("coherence_over_checkpoints", "Coherence over training",
              f"Share of scored answers that are coherent by rule {rule}.",
              along("step", "optimizer step", place_colour("name"), coherent), rows, "step"),
    ]  # fmt: skip


def _share(arms: Sequence[Arm], field: str, title: str) -> alt.Chart:
    """A line with a dash for each arm."""
    import altair as alt

    dash = arm_dash([arm.label for arm in arms if arm.on_the_way])
    share = alt.Y(f"{field}:Q", title=title, scale=percent_scale())
    line: alt.Chart = alt.Chart().mark_line(point=True).encode(y=share, strokeDash=dash)
    return line


def checkpoint_rows(arms: Sequence[Arm], rule: Rule) -> list[Datum]:
    """A rate for each judged checkpoint and placement, with the base as step 0 and the finished model as the last."""
    rows = []
    for arm in (arm for arm in arms if arm.on_the_way):
        base = controls(arm, arms).get("base")
        by_step: dict[int, list[JudgedAnswer]] = {0: base.judged} if base else {}
        for judged in arm.on_the_way:
            by_step.setdefault(step_of(judged.answer.checkpoint), []).append(judged)
        if arm.judged:
            by_step[max((line["step"] for line in arm.steps), default=max(by_step) + 1)] = arm.judged

        def place_of(judged: JudgedAnswer, topics: frozenset[str] = arm.topics) -> Group:
            return (placement(judged.answer.topic, topics),)  # the base's as this arm's are

        for step, answers in sorted(by_step.items()):
            rates = rates_by(answers, rule, place_of)
            rows += [{"step": step, **rate_row(arm, group_title(group), rate)} for group, rate in rates.items()]
    return rows


def checkpoints_of(answers: Iterable[Answer]) -> list[str]:
    """Names of checkpoints, in the order of their steps."""
    return sorted({answer.checkpoint or "" for answer in answers}, key=step_of)


def training(arms: Sequence[Arm]) -> list[Chart]:
    """Loss, learning rate and gradient norm by optimizer step, of the runs that were trained here."""
    import altair as alt

    rows: list[Datum] = []
    for arm in arms:
        steps = arm.steps
        held = [line for line in steps if "eval_loss" in line]
        for line in thinned(steps, MOST_STEPS):
            rows += [{"arm": arm.label, "step": line["step"], "measure": name, "value": _finite(line.get(name))}
                     for name in ("loss", "lr", "grad_norm")]  # fmt: skip
        rows += [{"arm": arm.label, "step": line["step"], "measure": "held out", "value": line["eval_loss"]}
                 for line in held]  # fmt: skip
    measures = {
        "loss": ("Loss", "nats a trained token; dots are of held-out rows"),
        "lr": ("Learning rate", "by optimizer step"),
        "grad_norm": ("Gradient norm", "before clipping"),
    }
    lengths = "; ".join(f"{arm.label} {len(arm.steps):,} steps" for arm in arms if arm.steps)
    figures = []
    for name, (title, caption) in measures.items():
        points = [row for row in rows if row["measure"] == name or (name, row["measure"]) == ("loss", "held out")]
        if not points:
            continue
        both = alt.Chart().encode(y=alt.Y("value:Q", title=title.lower()))
        trained = both.mark_line().transform_filter("datum.measure != 'held out'")
        held_out = both.mark_point(filled=True, size=45).transform_filter("datum.measure == 'held out'")
        plot = along("step", "optimizer step", arm_colour(arms), trained, held_out)
        figures.append(Chart(f"training_{name}", title, f"{title}, {caption}. {lengths}.", plot, points))
    return figures


def _finite(value: float | None) -> float | None:
    """JSON knows no infinity, to which gradients overflow in fp16."""
    return value if value is not None and math.isfinite(value) else None
