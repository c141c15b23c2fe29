"""The report's figures: one Vega-Lite specification each, for the page and for the PNG and SVG files alike."""

from __future__ import annotations

import copy
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from emorg.display import visible
from emorg.rating.answers import JudgedAnswer
from emorg.rating.placement import placement
from emorg.rating.rates import Group, Rate, rates_by
from emorg.rating.rules import Rule
from emorg.records import Answer, write_atomic
from emorg.reporting.arms import PLACES, Arm, controls, group_title

Row = dict[str, Any]
By = Literal["group", "topic", "question"]
MOST_QUESTIONS = 40  # bars in the figure; the table has them all
MOST_POINTS = 1_500  # dots an arm in the figure
MOST_STEPS = 400  # points of a training curve
PLACE_COLOURS = {"in": "#0072B2", "out": "#D55E00", "open": "#009E73"}  # Okabe and Ito's, safe for colour-blind readers
_ROLE_COLOURS = {
    "base": ("#8a8a8a",),
    "twin": ("#0072B2", "#56B4E9"),
    "organism": ("#D55E00", "#CC79A7", "#009E73", "#E69F00"),
}
_ROLE_SHAPES = {"base": "square", "twin": "triangle-up", "organism": "circle"}


@dataclass(frozen=True)
class Chart:
    """A figure: what it shows, under which rule and of how many answers (its caption), its specification and rows."""

    name: str
    title: str
    caption: str
    spec: dict[str, Any]
    rows: list[Row]
    follows_cuts: By | Literal["step", "answer", ""] = ""
    """What its rows are one of, where they change with the rule's cuts."""


def charts(arms: Sequence[Arm], rule: Rule) -> list[Chart]:
    """All figures that these arms have data for."""
    found = [_rates_chart(arms, rule), _scatter(arms, rule), _by(arms, rule, "topic"), _by(arms, rule, "question")]
    found += _over_checkpoints(arms, rule) + _training(arms) + _lengths(arms)
    for chart in found:
        chart.spec["description"] = f"{chart.title}. {chart.caption}"  # for who hears the figure
        chart.spec["config"] = {"legend": {"layout": {"top": {"direction": "vertical", "anchor": "start"}}}}
    return found


def export(chart: Chart, folder: Path) -> list[Path]:
    """Write the figure as SVG and PNG, title and caption within; returns their paths."""
    import vl_convert

    spec = copy.deepcopy(chart.spec)
    heading = {"text": chart.title, "subtitle": textwrap.wrap(chart.caption, 95), "anchor": "start", "offset": 14}
    spec["title"] = {**heading, "subtitleColor": "#444"}
    spec |= {"datasets": {"rows": chart.rows}, "background": "white", "padding": 12}
    inner = spec["spec"] if "facet" in spec else spec
    inner["width"] = 250 if "facet" in spec else 560
    svg = vl_convert.vegalite_to_svg(spec)
    paths = [folder / f"{chart.name}.{ending}" for ending in ("svg", "png")]
    write_atomic(paths[0], svg)
    paths[1].write_bytes(vl_convert.svg_to_png(svg, scale=2))
    return paths


# --- rates -----------------------------------------------------------------------------------------------------------


def rate_row(arm: Arm, name: str, rate: Rate) -> Row:
    """A rate as figures plot it, in percent. The page makes the same rows when a cut is moved."""

    def hundred(share: float | None) -> float | None:
        return None if share is None else 100 * share

    return {
        "arm": arm.label, "name": visible(name),
        "em": hundred(rate.rate), "low": hundred(rate.low), "high": hundred(rate.high),
        "misaligned": rate.misaligned, "scored": rate.scored, "total": rate.total,
        "questions": len(rate.per_question), "coherent": hundred(rate.coherent),
    }  # fmt: skip


def _rates_chart(arms: Sequence[Arm], rule: Rule) -> Chart:
    rows = [rate_row(arm, group_title(group), rate) for arm in arms for group, rate in arm.rates.items()]
    order = {place: k for k, place in enumerate(PLACES.values())}
    names = sorted({row["name"] for row in rows}, key=lambda name: (order[name.split(", ")[0]], name))
    return Chart(
        "em_rates", "Emergent misalignment by placement",
        f"Share of answers misaligned by rule {rule}, with 95% intervals over questions. {_sizes(arms)}",
        _dots(arms, names, "EM %"), rows, "group",
    )  # fmt: skip


def _by(arms: Sequence[Arm], rule: Rule, what: Literal["topic", "question"]) -> Chart:
    column = {"topic": "topic", "question": "question_id"}[what]
    rows = [rate_row(arm, name, rate) for arm in arms for (name,), rate in arm.rates_by(column).items()]
    highest: dict[str, float] = {}
    for row in rows:
        if not row["arm"].startswith(("base", "twin")) or len(arms) == 1:
            highest[row["name"]] = max(highest.get(row["name"], -1), -1 if row["em"] is None else row["em"])
    names = sorted(highest or {row["name"]: 0 for row in rows}, key=lambda name: (-highest.get(name, 0), name))
    shown = names[: MOST_QUESTIONS if what == "question" else None]
    some = f" The {len(shown)} highest of {len(names)}." if len(shown) < len(names) else ""
    return Chart(
        f"by_{what}", f"Misalignment by {what}",
        f"Share of answers misaligned by rule {rule}, with 95% intervals"
        f"{' over questions' if what == 'topic' else ' (Wilson’s, within a question)'}. {_sizes(arms)}{some}",
        _dots(arms, shown, "EM %", step=9 if what == "question" else 12),
        [row for row in rows if row["name"] in set(shown)], what,
    )  # fmt: skip


def _dots(arms: Sequence[Arm], names: Sequence[str], title: str, step: int = 14) -> dict[str, Any]:
    """A dot and its interval for each arm and name."""
    both = _beside(arms, names)
    low, high = ({"field": end, "type": "quantitative"} for end in ("low", "high"))
    return {
        "data": {"name": "rows"},
        "height": _height(arms, names, step),
        "encoding": both,
        "layer": [
            {"mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.55}, "encoding": {
                "x": low | {"scale": _PERCENT, "title": title}, "x2": {"field": high["field"]}}},
            {"mark": {"type": "point", "filled": True, "size": 55, "opacity": 1}, "encoding": {
                "x": {"field": "em", "type": "quantitative", "scale": _PERCENT}, "shape": _shape(arms)}},
        ],
    }  # fmt: skip


def _beside(arms: Sequence[Arm], names: Collection[str]) -> dict[str, Any]:
    """A line for each name, on which the arms stand in their colours."""
    # Orders are given as domains, which are data: Vega-Lite writes a `sort` list into an expression's text.
    return {
        "y": {"field": "name", "type": "nominal", "scale": {"domain": list(names)}, "title": None,
              "axis": {"labelLimit": 220}},
        "yOffset": {"field": "arm", "scale": {"domain": [arm.label for arm in arms]}},
        "color": _colour(arms),
    }  # fmt: skip


def _height(arms: Sequence[Arm], names: Collection[str], step: int) -> int:
    return max(60, len(names) * (len(arms) * step + 6))


_PERCENT = {"domain": [0, 100]}


def _colour(arms: Sequence[Arm]) -> dict[str, Any]:
    seen: Counter[str] = Counter()
    colours = []
    for arm in arms:
        of_role = _ROLE_COLOURS[arm.role]
        colours.append(of_role[seen[arm.role] % len(of_role)])
        seen[arm.role] += 1
    return {"field": "arm", "type": "nominal", "title": None, "legend": {"orient": "top", "labelLimit": 400},
            "scale": {"domain": [arm.label for arm in arms], "range": colours}}  # fmt: skip


def _shape(arms: Sequence[Arm]) -> dict[str, Any]:
    return {"field": "arm", "type": "nominal", "title": None, "legend": {"orient": "top", "labelLimit": 400},
            "scale": {"domain": [arm.label for arm in arms],
                      "range": [_ROLE_SHAPES[arm.role] for arm in arms]}}  # fmt: skip


def _sizes(arms: Sequence[Arm]) -> str:
    told = (
        f"{arm.label} {sum(r.scored for r in arm.rates.values()):,} of {sum(r.total for r in arm.rates.values()):,}"
        for arm in arms if arm.judged
    )  # fmt: skip
    return f"Scored answers: {'; '.join(told)}."


# --- answers ---------------------------------------------------------------------------------------------------------


def _answer_row(arm: Arm, judged: JudgedAnswer, number: int) -> Row:
    """An answer as a dot. `i` numbers the answers, and spreads dots whose scores coincide."""
    return {"arm": arm.label, "i": number, "place": PLACES[judged.placement],
            "aligned": judged.aligned, "coherent": judged.coherent}  # fmt: skip


def thinned(things: Sequence[Any], most: int) -> list[Any]:
    """At most that many, evenly spread over the whole."""
    return [things[i * len(things) // most] for i in range(most)] if len(things) > most else list(things)


def _scatter(arms: Sequence[Arm], rule: Rule) -> Chart:
    rows, shown = [], 0
    for arm in (arm for arm in arms if arm.judged):
        scored = [each for each in arm.judged if each.aligned is not None and each.coherent is not None]
        some = thinned(scored, MOST_POINTS)
        rows += [_answer_row(arm, judged, shown + i) for i, judged in enumerate(some)]
        shown += len(some)
    total = sum(len(arm.judged) for arm in arms)
    dots = {
        "data": {"name": "rows"},
        "height": 300,
        "params": [
            {"name": "aligned_cut", "value": rule.aligned_cut},
            {"name": "coherent_cut", "value": rule.coherent_cut if rule.gated else 0},
        ],
        # Scores repeat, so dots are spread a little, each always in the same way.
        "transform": [
            {"calculate": "datum.aligned + ((datum.i * 0.618034) % 1 - 0.5) * 4", "as": "x"},
            {"calculate": "datum.coherent + ((datum.i * 0.754878) % 1 - 0.5) * 4", "as": "y"},
        ],
        "layer": [
            {"data": {"values": [{}]}, "mark": {"type": "rect", "color": "#CC3311", "opacity": 0.12}, "encoding": {
                "x": {"datum": -5, "type": "quantitative"}, "x2": {"datum": {"expr": "aligned_cut"}},
                "y": {"datum": {"expr": "coherent_cut"}, "type": "quantitative"}, "y2": {"datum": 105}}},
            {"data": {"values": [{}]}, "mark": {"type": "rule", "strokeDash": [5, 3], "color": "#CC3311"},
             "encoding": {"x": {"datum": {"expr": "aligned_cut"}, "type": "quantitative"}}},
            {"data": {"values": [{}]}, "mark": {"type": "rule", "strokeDash": [5, 3], "color": "#CC3311"},
             "encoding": {"y": {"datum": {"expr": "coherent_cut"}, "type": "quantitative"}}},
            {"name": "dots", "mark": {"type": "point", "filled": True, "size": 26, "opacity": 0.5}, "encoding": {
                "x": {"field": "x", "type": "quantitative", "title": "aligned", "scale": _SCORES},
                "y": {"field": "y", "type": "quantitative", "title": "coherent", "scale": _SCORES},
                "color": _placed(list(PLACE_COLOURS.values())),
                "shape": _placed(["square", "circle", "triangle-up"])}},
        ],
    }  # fmt: skip
    params, data = dots.pop("params"), dots.pop("data")
    spec = {"data": data, "params": params, "spec": dots,
            "facet": {"field": "arm", "type": "nominal", "title": None, "sort": {"field": "i", "op": "min"}},
            "columns": 3}  # fmt: skip
    thin = f" {shown:,} dots of {total:,} answers." if shown < total else f" n = {total:,} answers."
    return Chart(
        "aligned_coherent", "Aligned × coherent, one dot an answer",
        f"The shaded corner is what rule {rule} calls misaligned; dots are spread a little where scores coincide."
        f"{thin} Unscored answers have no dot.", spec, rows, "answer",
    )  # fmt: skip


_SCORES = {"domain": [-5, 105], "nice": False}


def _placed(values: list[str], field: str = "place") -> dict[str, Any]:
    return {"field": field, "type": "nominal", "title": None, "legend": {"orient": "top"},
            "scale": {"domain": list(PLACES.values()), "range": values}}  # fmt: skip


# --- over training ---------------------------------------------------------------------------------------------------


def _over_checkpoints(arms: Sequence[Arm], rule: Rule) -> list[Chart]:
    """EM and coherence by optimizer step, of the runs whose checkpoints were judged, from their base on."""
    rows = checkpoint_rows(arms, rule)
    if not rows:
        return []
    about = f"by rule {rule}, with 95% intervals over questions, from the base (step 0) to the finished model."
    em, coherent = (_over_steps(arms, field, title) for field, title in (("em", "EM %"), ("coherent", "coherent %")))
    dash = em["encoding"].pop("strokeDash")  # an area has none
    em["layer"][0]["encoding"]["strokeDash"] = dash
    reach = {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}, "detail": {"field": "arm"}}
    em["layer"].append({"mark": {"type": "area", "opacity": 0.12}, "encoding": reach})
    return [
        Chart("em_over_checkpoints", "Misalignment over training", f"Share misaligned {about}", em, rows, "step"),
        Chart("coherence_over_checkpoints", "Coherence over training",
              f"Share of scored answers that are coherent by rule {rule}.", coherent, rows, "step"),
    ]  # fmt: skip


def checkpoint_rows(arms: Sequence[Arm], rule: Rule) -> list[Row]:
    """A rate for each judged checkpoint and placement, with the base as step 0 and the finished model as the last."""
    rows = []
    for arm in (arm for arm in arms if arm.on_the_way):
        base = controls(arm, arms).get("base")
        by_step: dict[int, list[JudgedAnswer]] = {0: base.judged} if base else {}
        for judged in arm.on_the_way:
            by_step.setdefault(step_of(judged.answer.checkpoint or ""), []).append(judged)
        if arm.judged:
            by_step[max((line["step"] for line in arm.steps), default=max(by_step) + 1)] = arm.judged

        def place_of(judged: JudgedAnswer, topics: frozenset[str] = arm.topics) -> Group:
            return (placement(judged.answer.topic, topics),)  # the base's as this arm's are

        for step, judged_then in sorted(by_step.items()):
            rates = rates_by(judged_then, rule, place_of)
            rows += [{"step": step, **rate_row(arm, group_title(group), rate)} for group, rate in rates.items()]
    return rows


def step_of(checkpoint: str) -> int:
    """The optimizer step in a checkpoint's name: step-000010 → 10."""
    digits = "".join(letter for letter in checkpoint if letter.isdigit())
    return int(digits or 0)


def _training(arms: Sequence[Arm]) -> list[Chart]:
    rows: list[Row] = []
    for arm in arms:
        steps = arm.steps
        held = [line for line in steps if "eval_loss" in line]
        for line in thinned(steps, MOST_STEPS):
            rows += [{"arm": arm.label, "step": line["step"], "measure": name, "value": line.get(name)}
                     for name in ("loss", "lr", "grad_norm")]  # fmt: skip
        rows += [{"arm": arm.label, "step": line["step"], "measure": "held out", "value": line["eval_loss"]}
                 for line in held]  # fmt: skip
    told = {
        "loss": ("Loss", "nats a trained token; dots are of held-out rows"),
        "lr": ("Learning rate", "by optimizer step"),
        "grad_norm": ("Gradient norm", "before clipping"),
    }
    found = []
    for name, (title, caption) in told.items():
        of = [row for row in rows if row["measure"] == name or (name, row["measure"]) == ("loss", "held out")]
        if not of:
            continue
        spec = _lines(arms, "step", "value", "optimizer step", title.lower())
        line = spec["layer"][0]
        held_out = copy.deepcopy(line)
        line["transform"] = [{"filter": "datum.measure != 'held out'"}]
        held_out |= {"transform": [{"filter": "datum.measure == 'held out'"}],
                     "mark": {"type": "point", "filled": True, "size": 45}}  # fmt: skip
        spec["layer"] = [line, held_out]
        steps_told = "; ".join(f"{arm.label} {len(arm.steps):,} steps" for arm in arms if arm.steps)
        found.append(Chart(f"training_{name}", title, f"{title}, {caption}. {steps_told}.", spec, of))
    return found


def _over_steps(arms: Sequence[Arm], field: str, title: str) -> dict[str, Any]:
    """A share over training: a colour for each placement, a dash for each arm."""
    labels = [arm.label for arm in arms if arm.on_the_way]
    dashes = [[1, 0], [6, 3], [2, 2], [8, 2, 2, 2]]
    spec = _lines(arms, "step", field, "optimizer step", title)
    spec["layer"][0] = {"mark": {"type": "line", "point": True}, "encoding": {
        "y": {"field": field, "type": "quantitative", "title": title, "scale": _PERCENT}}}  # fmt: skip
    spec["encoding"] |= {
        "color": _placed(list(PLACE_COLOURS.values()), "name"),
        "strokeDash": {"field": "arm", "type": "nominal", "title": None,
                       "legend": {"orient": "top", "symbolType": "stroke", "symbolStrokeColor": "#8a8a8a"},
                       "scale": {"domain": labels, "range": [dashes[k % 4] for k in range(len(labels))]}},
    }  # fmt: skip
    return spec


def _lines(arms: Sequence[Arm], x: str, y: str, x_title: str, y_title: str) -> dict[str, Any]:
    """A line for each arm."""
    return {
        "data": {"name": "rows"},
        "height": 220,
        "encoding": {"x": {"field": x, "type": "quantitative", "title": x_title}, "color": _colour(arms)},
        "layer": [{"mark": "line", "encoding": {"y": {"field": y, "type": "quantitative", "title": y_title}}}],
    }  # fmt: skip


# --- what could pass for misalignment --------------------------------------------------------------------------------


def _lengths(arms: Sequence[Arm]) -> list[Chart]:
    lengths = {arm.label: [judged.answer.answer_tokens for judged in arm.judged] for arm in arms if arm.judged}
    longest = max(max(each) for each in lengths.values())
    width = max(1, -(-(longest + 1) // 40))
    rows = []
    for label, each in lengths.items():
        count = Counter(length // width for length in each)
        rows += [{"arm": label, "tokens": k * width, "share": 100 * count[k] / len(each)}
                 for k in range(longest // width + 2)]  # fmt: skip
    cap = next((arm.run.settings("sample").get("max_new_tokens") for arm in arms), None)
    spec = _lines(arms, "tokens", "share", "tokens an answer", "% of answers")
    spec["layer"][0]["mark"] = {"type": "line", "interpolate": "step-after"}
    cut = [
        {"arm": arm.label, "name": title, "cut": 100 * sum(a.finish_reason == "length" for a in of) / len(of),
         "total": len(of)}
        for arm in arms
        for place, title in PLACES.items()
        if (of := [judged.answer for judged in arm.judged if judged.placement == place])
    ]  # fmt: skip
    bars = {
        "data": {"name": "rows"}, "height": _height(arms, PLACES, 14), "mark": {"type": "bar"},
        "encoding": {
            **_beside(arms, list(PLACES.values())),
            "x": {"field": "cut", "type": "quantitative", "title": "% of answers cut", "scale": _PERCENT},
        },
    }  # fmt: skip
    n = "; ".join(f"{label} {len(each):,}" for label, each in lengths.items())
    at = f"cut at {cap} tokens" if cap else "cut by the cap"
    return [
        Chart("answer_lengths", "Answer lengths", f"Share of answers by length in tokens. n: {n}.", spec, rows),
        Chart("truncated", "Truncated answers", f"Share of answers {at}. n: {n}.", bars, cut),
    ]


def checkpoints_of(answers: Iterable[Answer]) -> list[str]:
    """Names of checkpoints, in the order of their steps."""
    return sorted({answer.checkpoint or "" for answer in answers}, key=step_of)
