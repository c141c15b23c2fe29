"""What changes inside organisms, drawn and tabled: shared directions, where signals turn, what adapters carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

from emorg.display import percent
from emorg.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, ROWS, SKY, VERMILLION
from emorg.models.directions import Direction, direction_file, read
from emorg.rating import narrow, phases, probes, results, steering
from emorg.rating.directions import Shared, cosine_rows, shared
from emorg.rating.narrow import Narrowness
from emorg.rating.phases import Phases
from emorg.rating.probes import ALL, NONE, Probed
from emorg.reporting.arms import Arm
from emorg.reporting.narrow import narrow_charts, narrow_tables
from emorg.reporting.plot import WIDTH, Chart, Datum
from emorg.reporting.steering import steering_charts, steering_tables
from emorg.reporting.tables import Section, Table

if TYPE_CHECKING:
    import altair as alt

KINDS = ("shift", "answers", "persona")
MOST_PARTS = 40  # modules in the figure: those that do most
MOST_NAMED = 3  # adapters in the table; the file has them all
_GREY = "#8a8a8a"


def mechanism(arms: Sequence[Arm]) -> Section:
    """All that was measured inside these arms' runs. Raises EmorgError for a file that is not whole."""
    charts: list[Chart] = []
    tables: list[Table] = []
    for kind, compared in _compared(arms).items():
        charts.append(directions_chart(kind, compared))
        tables.append(directions_table(kind, compared))
    steered = [result for arm in arms for result in steering.read(arm.run)]
    charts += steering_charts(steered)
    tables += steering_tables(steered)
    of_phases = [(arm, results.load(file, Phases)) for arm in arms if (file := arm.run.folder / phases.FILE).is_file()]
    of_probes = [(arm, results.load(file, Probed)) for arm in arms if (file := arm.run.folder / probes.FILE).is_file()]
    of_narrow = [results.load(file, Narrowness) for arm in arms if (file := arm.run.folder / narrow.FILE).is_file()]
    for number, one in enumerate(of_narrow, 1):
        suffix = f"_{number}" if len(of_narrow) > 1 else ""
        charts += narrow_charts(one, suffix)
        tables += narrow_tables(one, suffix)
    for number, (arm, turned) in enumerate(of_phases, 1):
        suffix = f"_{number}" if len(of_phases) > 1 else ""
        charts += phases_charts(turned, arm.label, suffix)
        tables.append(phases_table(turned, arm.label, suffix))
    for number, (arm, probed) in enumerate(of_probes, 1):
        suffix = f"_{number}" if len(of_probes) > 1 else ""
        charts.append(probe_chart(probed, arm.label, suffix))
        tables += probe_tables(probed, arm.label, suffix)
    return Section(charts, tables)


def _compared(arms: Sequence[Arm]) -> dict[str, list[Shared]]:
    """By kind, each two organisms' directions beside each other, where both were computed of the same texts."""
    result: dict[str, list[Shared]] = {}
    for kind in KINDS:
        files = [(arm, direction_file(arm.run, kind)) for arm in arms if arm.role in ("organism", "twin")]
        some = [(arm, replace(read(file), title=arm.label)) for arm, file in files if file.is_file()]
        for (one, a), (other, b) in combinations(some, 2):
            if _alike(a, b) and one.role == other.role == "organism":
                twins = [own for arm, own in some if arm.role == "twin" and _alike(own, a)]
                result.setdefault(kind, []).append(shared(a, b, twins))
    return result


def _alike(a: Direction, b: Direction) -> bool:
    """Whether two directions are of one base and of the same texts."""
    facts = ("base", "digest", "tokens", "texts", "pool", "prompt")
    return a.vectors.shape == b.vectors.shape and all(a.facts.get(fact) == b.facts.get(fact) for fact in facts)


# --- directions ------------------------------------------------------------------------------------------------------


def directions_table(kind: str, compared: Sequence[Shared]) -> Table:
    """A row for each two organisms: their cosines over the layers, the nulls' largest, and the verdict."""
    rows = [
        [
            f"{one.a} and {one.b}",
            "shared" if one.shared else "not shared",
            "; ".join(f"{name} {max(null[1:]):.2f}" for name, null in one.nulls.items()),
            f"{min(one.cosine[1:]):.2f} to {max(one.cosine[1:]):.2f}",
            f"{len(one.beyond)} of {len(one.cosine) - 1}",
            f"{min(one.excess[1:]):+.3f} to {max(one.excess[1:]):+.3f}",
        ]
        for one in compared
    ]
    header = ("", "verdict", "largest nulls", "cosine over layers", "layers beyond all", "above the largest null")
    return Table(f"directions_{kind}", f"{kind}: is the direction shared?", header, rows, cosine_rows(compared), left=3)


def directions_chart(kind: str, compared: Sequence[Shared]) -> Chart:
    """Cosine by layer, a panel for each two organisms, beside every null."""
    import altair as alt

    both = "the two"
    rows: list[Datum] = [
        {"pair": f"{one.a} and {one.b}", "series": name, "layer": layer, "cosine": value}
        for one in compared
        for name, values in {both: one.cosine, **one.nulls}.items()
        for layer, value in enumerate(values)
    ]
    series = list(dict.fromkeys(row["series"] for row in rows))
    scale = alt.Scale(domain=series, range=[VERMILLION, BLUE, GREEN, ORANGE, PURPLE][: len(series)])
    lines = alt.Chart().mark_line(point=True).encode(
        x=alt.X("layer:Q", title="layer, 0 being the embeddings", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("cosine:Q", scale=alt.Scale(domain=[-0.1, 1], clamp=True)),
        color=alt.Color("series:N", scale=scale, title=None, legend=alt.Legend(orient="top")),
    ).properties(width=250, height=170)  # fmt: skip
    said = "; ".join(f"{one.a} and {one.b}: {'' if one.shared else 'not '}shared" for one in compared)
    caption = (
        f"A direction is shared where the cosine is above every null at more than half of the layers. Nulls are the "
        f"largest of their kind, in size. {said}."
    )
    plot = lines.facet(alt.Facet("pair:N", title=None), data=alt.NamedData(ROWS), columns=2)
    return Chart(f"directions_{kind}", f"Cosines of {kind} directions, layer by layer", caption, plot, rows)


# --- phases ----------------------------------------------------------------------------------------------------------


def phases_table(result: Phases, label: str = "", suffix: str = "") -> Table:
    """A row for each signal: where it turns, whether suddenly, and its lag."""
    rows = []
    for one in result.changes:
        after = result.lags.get(one.signal)
        cells = ("–", "–") if after is None else (f"{after.steps:+.0f}", f"{after.low:+.0f} to {after.high:+.0f}")
        rows.append([one.signal, f"{one.step:.0f}", f"{one.low:.0f} to {one.high:.0f}", f"{one.p:.3f}",
                     "yes" if one.sudden else "no", *cells])  # fmt: skip
    header = ("", "turns at step", "95% interval", "p", "sudden", "steps after the margin", "95% interval")
    caption = f"{label or result.run}: where each signal turns; p is against smooth growth"
    return Table(f"phases{suffix}", caption, header, rows, phases.turn_rows(result), left=1)


def phases_charts(result: Phases, label: str = "", suffix: str = "") -> list[Chart]:
    """Every signal by step, with where it turns; and the ways of A and B in their first two components."""
    import altair as alt

    turns = {one.signal: one for one in result.changes}
    plain = {name: own for name, own in result.signals.items() if "component" not in name}
    rows: list[Datum] = [
        {"signal": name, "step": step, "value": value} for name, own in plain.items() for step, value in own
    ]
    rows += [
        {"signal": name, "low": turn.low, "high": turn.high, "turn": turn.step, "sudden": turn.sudden}
        for name, turn in turns.items()
        if name in plain
    ]
    x = alt.Scale(nice=False)
    panel = alt.layer(
        alt.Chart().mark_rect(color=SKY, opacity=0.3).transform_filter("isValid(datum.turn)").encode(
            x=alt.X("low:Q", title="step", scale=x), x2="high:Q"
        ),
        alt.Chart().mark_rule(color=VERMILLION).transform_filter("isValid(datum.turn)").encode(x="turn:Q"),
        alt.Chart().mark_line(point=alt.OverlayMarkDef(size=12), color=BLACK).transform_filter("isValid(datum.step)")
        .encode(x="step:Q", y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False))),
    ).properties(width=165, height=80)  # fmt: skip
    plot = panel.facet(
        alt.Facet("signal:N", title=None, sort=list(plain)), data=alt.NamedData(ROWS), columns=3
    ).resolve_scale(y="independent")
    sudden = [one.signal for one in result.changes if one.sudden]
    caption = (
        "Red: the step at which a signal turns, its 95% interval shaded. "
        f"Sudden beside smooth growth (p ≤ .05): {', '.join(sudden) or 'none'}."
    )
    name = label or result.run
    charts = [Chart(f"phases{suffix}", f"When signals turn: {name}", caption, plot, rows)]
    if ways := _ways(result):
        charts.append(Chart(f"phases_ways{suffix}", f"The ways of A and B: {name}", _WAYS, _ways_plot(), ways))
    return charts


_WAYS = (
    "Coordinates of all A, and of all B, along their first two principal components; the darker, the later. A sudden "
    "rotation is a corner; a smooth way is bent too, since a second component takes up whatever is curved."
)


def _ways(result: Phases) -> list[Datum]:
    return [
        {"side": side, "step": step, "first": first, "second": second}
        for side in ("A", "B")
        for (step, first), (_, second) in zip(
            *(result.signals.get(f"{side}, component {number}", ()) for number in (1, 2)), strict=True
        )
    ]


def _ways_plot() -> alt.FacetChart:
    import altair as alt

    x, y = alt.X("first:Q", title="first component"), alt.Y("second:Q", title="second component")
    colour = alt.Color("step:Q", scale=alt.Scale(range=["#cfe6f5", BLUE]), legend=alt.Legend(orient="top"))
    panel = alt.layer(
        alt.Chart().mark_line(color=_GREY).encode(x=x, y=y, order="step:Q"),
        alt.Chart().mark_point(filled=True, size=40, opacity=1).encode(x=x, y=y, color=colour),
    ).properties(width=250, height=200)
    plot: alt.FacetChart = panel.facet(alt.Facet("side:N", title=None), data=alt.NamedData(ROWS)).resolve_scale(
        x="independent", y="independent"
    )
    return plot


# --- probes ----------------------------------------------------------------------------------------------------------


def probe_tables(result: Probed, label: str = "", suffix: str = "") -> list[Table]:
    """What each part of the adapter does, and what is read from A·x."""
    name = label or result.run
    does = [[part.name, *("–" if m is None else f"{m:+.3f}" for m in (part.inside, part.out))] for part in result.parts]
    parts = Table(f"adapters{suffix}", f"{name}: mean margins with some of the adapters, nats a token",
                  ("", "in domain", "out"), does, [vars(part) for part in result.parts], left=1)  # fmt: skip
    if not result.probes:
        return [parts]
    rows = [
        [place, str(one.answers), percent(one.auroc), percent(one.shuffled),
         f"{percent(one.random[0])} ({percent(one.random[1])} at most)", f"{one.p:.2f}", _listed(one.telling)]
        for place, one in result.probes.items()
    ]  # fmt: skip
    records = [{"place": place, **vars(one)} for place, one in result.probes.items()]
    header = ("", "answers", "AUROC %", "most, labels shuffled %", "random A %", "p", "adapters that tell")
    caption = f"{name}: is an answer misaligned? read from A·x, over questions not learned from"
    return [parts, Table(f"probes{suffix}", caption, header, rows, records, left=1)]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more or "none"


def probe_chart(result: Probed, label: str = "", suffix: str = "") -> Chart:
    """Margins with each adapter alone and with each left out, between those of all and of none."""
    import altair as alt

    parts = {part.name: part for part in result.parts}
    names = [name for name in parts if name not in (ALL, NONE) and not name.startswith("without ")]

    def moved(name: str) -> float:
        alone, none = parts[name], parts[NONE]
        pairs = ((alone.inside, none.inside), (alone.out, none.out))
        return max((abs(a - b) for a, b in pairs if a is not None and b is not None), default=0.0)

    shown = set(sorted(names, key=moved, reverse=True)[:MOST_PARTS])
    every = [ALL, NONE, *(name for name in names if name in shown)]
    rows: list[Datum] = [
        {"part": name, "place": place, "with": how, "margin": value}
        for name in every
        for how, part in (("alone", parts[name]), ("left out", parts.get(f"without {name}")))
        if part is not None
        for place, value in (("in domain", part.inside), ("out of domain", part.out))
        if value is not None
    ]
    panel = alt.Chart().mark_point(filled=True, size=55, opacity=0.9).encode(
        x=alt.X("margin:Q", title="mean margin, nats a token", scale=alt.Scale(zero=False)),
        y=alt.Y("part:N", sort=every, title=None, axis=alt.Axis(labelLimit=240)),
        color=alt.Color("with:N", scale=alt.Scale(domain=["alone", "left out"], range=[VERMILLION, BLUE]), title=None,
                        legend=alt.Legend(orient="top")),
        shape=alt.Shape("with:N", scale=alt.Scale(domain=["alone", "left out"]), title=None),
    ).properties(width=WIDTH // 3, height=14 * len(every))  # fmt: skip
    plot = panel.facet(alt.Facet("place:N", title=None), data=alt.NamedData(ROWS))
    left = f" The {len(shown)} of {len(names)} that do most." if len(shown) < len(names) else ""
    caption = f"Each adapter alone, and all but each; `all` and `none` beside them.{left}"
    return Chart(f"adapters{suffix}", f"Which adapters carry it: {label or result.run}", caption, plot, rows)
