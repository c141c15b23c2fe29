"""The report's figures: one Vega-Lite specification each, for the page and for the PNG and SVG files alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from emorg.figures import ROWS, write
from emorg.rating.answers import JudgedAnswer
from emorg.rating.rules import Rule
from emorg.reporting.arms import PLACEMENT_TITLES, Arm, group_title
from emorg.reporting.margins import margin_charts
from emorg.reporting.over_training import over_checkpoints, training
from emorg.reporting.plot import (
    Chart,
    Datum,
    along,
    arm_colour,
    arm_shape,
    beside,
    percent_scale,
    place_colour,
    place_shape,
    rate_row,
    thinned,
)

if TYPE_CHECKING:
    import altair as alt

RED = "#CC3311"
MOST_QUESTIONS = 40  # bars in the figure; the table has them all
MOST_POINTS = 1_500  # dots an arm in the figure


def charts(arms: Sequence[Arm], rule: Rule) -> list[Chart]:
    """All figures that these arms have data for."""
    return [
        _rates_chart(arms, rule),
        _scatter(arms, rule),
        _by(arms, rule, "topic"),
        _by(arms, rule, "question"),
        *over_checkpoints(arms, rule),
        *margin_charts(arms),
        *training(arms),
        *_lengths(arms),
    ]


def export(chart: Chart, folder: Path) -> list[Path]:
    """Write the figure as SVG and PNG, title and caption within; returns their paths."""
    return write(chart.spec, chart.rows, folder, chart.name, chart.title, chart.caption)


# --- rates -----------------------------------------------------------------------------------------------------------


def _rates_chart(arms: Sequence[Arm], rule: Rule) -> Chart:
    rows = [rate_row(arm, group_title(group), rate) for arm in arms for group, rate in arm.rates.items()]
    order = {place: k for k, place in enumerate(PLACEMENT_TITLES.values())}
    names = sorted({row["name"] for row in rows}, key=lambda name: (order[name.split(", ")[0]], name))
    return Chart(
        "em_rates", "Emergent misalignment by placement",
        f"Share of answers misaligned by rule {rule}, with 95% intervals over questions. {_sizes(arms)}",
        _dots(arms, names), rows, "group",
    )  # fmt: skip


def _by(arms: Sequence[Arm], rule: Rule, what: Literal["topic", "question"]) -> Chart:
    column = {"topic": "topic", "question": "question_id"}[what]
    rows = [rate_row(arm, name, rate) for arm in arms for (name,), rate in arm.rates_by(column).items()]
    organisms = {arm.label for arm in arms if arm.role == "organism"}
    highest: dict[str, float] = {}
    for row in rows:
        if row["arm"] in organisms or len(arms) == 1:
            highest[row["name"]] = max(highest.get(row["name"], -1), -1 if row["em"] is None else row["em"])
    names = sorted(highest or {row["name"]: 0 for row in rows}, key=lambda name: (-highest.get(name, 0), name))
    shown = names[: MOST_QUESTIONS if what == "question" else None]
    some = f" The {len(shown)} highest of {len(names)}." if len(shown) < len(names) else ""
    return Chart(
        f"by_{what}", f"Misalignment by {what}",
        f"Share of answers misaligned by rule {rule}, with 95% intervals"
        f"{' over questions' if what == 'topic' else ' (Wilson’s, within a question)'}. {_sizes(arms)}{some}",
        _dots(arms, shown, step=9 if what == "question" else 12),
        [row for row in rows if row["name"] in set(shown)], what,
    )  # fmt: skip


def _dots(arms: Sequence[Arm], names: Sequence[str], step: int = 14) -> alt.LayerChart:
    """A dot and its interval for each arm and name."""
    import altair as alt

    interval = alt.X("low:Q", scale=percent_scale(), title="EM %")
    rate = alt.X("em:Q", scale=percent_scale())
    return beside(
        arms, names, step,
        alt.Chart().mark_rule(strokeWidth=2, opacity=0.55).encode(x=interval, x2="high"),
        alt.Chart().mark_point(filled=True, size=55, opacity=1).encode(x=rate, shape=arm_shape(arms)),
    )  # fmt: skip


def _sizes(arms: Sequence[Arm]) -> str:
    counts = (
        f"{arm.label} {sum(r.scored for r in arm.rates.values()):,} of {sum(r.total for r in arm.rates.values()):,}"
        for arm in arms if arm.judged
    )  # fmt: skip
    return f"Scored answers: {'; '.join(counts)}."


# --- answers ---------------------------------------------------------------------------------------------------------


def _answer_row(arm: Arm, judged: JudgedAnswer, number: int) -> Datum:
    """An answer as a dot. `i` numbers the answers, and spreads dots whose scores coincide."""
    return {"arm": arm.label, "i": number, "place": PLACEMENT_TITLES[judged.placement],
            "aligned": judged.aligned, "coherent": judged.coherent}  # fmt: skip


def _scatter(arms: Sequence[Arm], rule: Rule) -> Chart:
    rows, shown = [], 0
    for arm in (arm for arm in arms if arm.judged):
        scored = [judged for judged in arm.judged if judged.aligned is not None and judged.coherent is not None]
        some = thinned(scored, MOST_POINTS)
        rows += [_answer_row(arm, judged, shown + i) for i, judged in enumerate(some)]
        shown += len(some)
    total = sum(len(arm.judged) for arm in arms)
    thin = f" {shown:,} dots of {total:,} answers." if shown < total else f" n = {total:,} answers."
    return Chart(
        "aligned_coherent", "Aligned × coherent, one dot an answer",
        f"The shaded corner is what rule {rule} calls misaligned; dots are spread a little where scores coincide."
        f"{thin} Unscored answers have no dot.", _corner_and_dots(rule), rows, "answer",
    )  # fmt: skip


def _corner_and_dots(rule: Rule) -> alt.FacetChart:
    """Answers by their scores, a panel for each arm; the page moves the cuts, by their names."""
    import altair as alt

    aligned = alt.param("aligned_cut", value=rule.aligned_cut)
    coherent = alt.param("coherent_cut", value=rule.coherent_cut if rule.gated else 0)
    left, bottom = alt.XDatum(aligned, type="quantitative"), alt.YDatum(coherent, type="quantitative")
    once = alt.Chart(alt.InlineData(values=[{}]))
    scores = alt.Scale(domain=[-5, 105], nice=False)
    layers = (
        once.mark_rect(color=RED, opacity=0.12).encode(
            x=alt.XDatum(-5, type="quantitative"), x2=alt.X2Datum(aligned), y=bottom, y2=alt.Y2Datum(105)
        ),
        once.mark_rule(strokeDash=[5, 3], color=RED).encode(x=left),
        once.mark_rule(strokeDash=[5, 3], color=RED).encode(y=bottom),
        alt.Chart(name="dots").mark_point(filled=True, size=26, opacity=0.5).encode(
            x=alt.X("x:Q", title="aligned", scale=scores), y=alt.Y("y:Q", title="coherent", scale=scores),
            color=place_colour("place"), shape=place_shape("place"),
        ),
    )  # fmt: skip
    # Scores repeat, so dots are spread a little, each always in the same way.
    spread = {
        "x": "datum.aligned + ((datum.i * 0.618034) % 1 - 0.5) * 4",
        "y": "datum.coherent + ((datum.i * 0.754878) % 1 - 0.5) * 4",
    }
    panel = alt.layer(*layers, width=250, height=300).add_params(aligned, coherent).transform_calculate(**spread)
    by_arm = alt.Facet("arm:N", title=None, sort=alt.EncodingSortField("i", op="min"))
    return panel.facet(by_arm, data=alt.NamedData(ROWS), columns=3)


# --- what could pass for misalignment --------------------------------------------------------------------------------


def _lengths(arms: Sequence[Arm]) -> list[Chart]:
    import altair as alt

    lengths = {arm.label: [judged.answer.answer_tokens for judged in arm.judged] for arm in arms if arm.judged}
    longest = max(max(tokens) for tokens in lengths.values())
    width = max(1, -(-(longest + 1) // 40))
    rows = []
    for label, tokens in lengths.items():
        count = Counter(length // width for length in tokens)
        rows += [{"arm": label, "tokens": k * width, "share": 100 * count[k] / len(tokens)}
                 for k in range(longest // width + 2)]  # fmt: skip
    cap = next((arm.run.settings("sample").get("max_new_tokens") for arm in arms), None)
    share = alt.Chart().mark_line(interpolate="step-after").encode(y=alt.Y("share:Q", title="% of answers"))
    cut = [
        {"arm": arm.label, "name": title, "cut": 100 * sum(a.finish_reason == "length" for a in answers) / len(answers),
         "total": len(answers)}
        for arm in arms
        for place, title in PLACEMENT_TITLES.items()
        if (answers := [judged.answer for judged in arm.judged if judged.placement == place])
    ]  # fmt: skip
    bars = alt.Chart().mark_bar().encode(x=alt.X("cut:Q", title="% of answers cut", scale=percent_scale()))
    n = "; ".join(f"{label} {len(tokens):,}" for label, tokens in lengths.items())
    at = f"cut at {cap} tokens" if cap else "cut by the cap"
    return [
        Chart("answer_lengths", "Answer lengths", f"Share of answers by length in tokens. n: {n}.",
              along("tokens", "tokens an answer", arm_colour(arms), share), rows),
        Chart("truncated", "Truncated answers", f"Share of answers {at}. n: {n}.",
              beside(arms, list(PLACEMENT_TITLES.values()), 14, bars), cut),
    ]  # fmt: skip
