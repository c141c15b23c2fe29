"""A broad organism beside a narrow one in a report: stability, norm against loss, KL to the base, significance."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from emorg.figures import BLUE, ROWS, SKY, VERMILLION
from emorg.rating.narrow import Mean, Narrowness, narrow_rows
from emorg.reporting.arms import PLACEMENT_TITLES
from emorg.reporting.plot import WIDTH, Chart, Datum
from emorg.reporting.tables import Table

if TYPE_CHECKING:
    pass

_COLOURS = {"broad": VERMILLION, "narrow": BLUE, "twin": SKY, "random": "#b0b0b0"}
_NATS = "nats a token"


def narrow_tables(result: Narrowness, suffix: str = "") -> list[Table]:
    """A table for each of the four measures, a column or two for each model; with what the papers' code makes of it
    where that was asked for."""
    roles = [side.role for side in result.sides]
    records = narrow_rows(result)

    def table(name: str, caption: str, header: list[str], rows: list[list[str]], *figures: str) -> Table:
        own = [record for record in records if record["figure"] in figures]
        return Table(f"narrow_{name}{suffix}", caption, ["", *header], rows, own, left=1)

    noise = [["none", *(f"{side.loss:.3f}" for side in result.sides)]]
    noise += [
        [f"ε = {at[0].epsilon:g}", *(f"{one.mean:.3f} ± {_spread(one.losses):.3f}" for one in at)]
        for at in zip(*(side.noise for side in result.sides), strict=True)
    ]
    of = ", ".join(f"{side.role} {side.rows}{' held out' if side.held_out else ''}" for side in result.sides)

    def by_scale(figure: str) -> list[list[str]]:
        return [
            [f"× {at[0].scale:g}", *(cell for one in at for cell in (f"{one.norm:.2f}", f"{getattr(one, figure):.3f}"))]
            for at in zip(*(side.scaled for side in result.sides), strict=True)
        ]

    header = [f"{role}: {name}" for role in roles for name in ("‖ΔW‖", "loss")]
    caption = f"Loss with the whole adapter scaled, {_NATS}"
    published = (
        [table("published", f"{caption}: every module at one norm, as in the papers' code", header,
               by_scale("published"), "published")]
        if result.published
        else []
    )  # fmt: skip
    return [
        table("stability", f"Loss under noise in the weights, {_NATS} (mean ± sd over draws); rows: {of}",
              list(roles), noise, "noise"),
        table("norm", caption, header, by_scale("loss"), "scale"),
        *published,
        _kl_table(result, suffix, [record for record in records if record["figure"] == "kl"]),
        _significance_table(result, suffix, [record for record in records if record["figure"] == "significance"]),
    ]  # fmt: skip


def _kl_table(result: Narrowness, suffix: str, records: list[dict[str, Any]]) -> Table:
    rows = []
    for side in result.sides:
        rows.append([side.role, *map(_interval, side.kl.values())])
        if result.published:
            divided = (f"{mean.value / result.vocabulary:.2g}" for mean in side.kl.values())
            rows.append([f"{side.role}, divided by {result.vocabulary:,} too, as in the papers' code", *divided])
    header = ["", *(PLACEMENT_TITLES[place] for place in result.sides[0].kl)]
    return Table(f"narrow_kl{suffix}", f"KL(base‖organism) on the base's own answers, {_NATS}", header, rows, records,
                 left=1)  # fmt: skip


def _significance_table(result: Narrowness, suffix: str, records: list[dict[str, Any]]) -> Table:
    rows = []
    for k, size in enumerate(result.sizes):
        drawn = [one[k] for one in result.random]
        rows.append(
            [f"{size:g}", *(f"{side.significance[k]:.3f} (p = {result.p(side)[k]:.2f})" for side in result.sides),
             f"{statistics.median(drawn):.3f}", f"{max(drawn):.3f}"]
        )  # fmt: skip
    own = ", ".join(f"{side.role}'s {side.size:.2f}" for side in result.sides)
    caption = (
        f"KL(base‖base + v) by ‖v‖ at layer {result.layer}, {_NATS} of {result.texts} texts; the stream's norm is "
        f"{result.stream:.1f} there, the shift's own size {own}"
    )
    header = ["‖v‖", *(f"{side.role}'s shift" for side in result.sides), "random, median", "random, largest"]
    return Table(f"narrow_significance{suffix}", caption, header, rows, records, left=1)


def narrow_charts(result: Narrowness, suffix: str = "") -> list[Chart]:
    """Loss against noise, loss against norm, and how far vectors move the base, beside random ones."""
    said = result.said()
    noise: list[Datum] = [
        {"model": side.role, "x": epsilon, "y": loss}
        for side in result.sides
        for epsilon, losses in ((0.0, [side.loss]), *((one.epsilon, one.losses) for one in side.noise))
        for loss in losses
    ]
    curve: list[Datum] = [
        {"model": side.role, "x": one.norm, "y": one.loss, "itself": one.scale == 1}
        for side in result.sides
        for one in side.scaled
    ]
    sizes = [0.0, *result.sizes]
    moved: list[Datum] = [
        {"model": side.role, "series": side.role, "x": x, "y": y}
        for side in result.sides
        for x, y in zip(sizes, [0.0, *side.significance], strict=True)
    ]
    moved += [
        {"model": "random", "series": f"random {k}", "x": x, "y": y}
        for k, one in enumerate(result.random)
        for x, y in zip(sizes, [0.0, *one], strict=True)
    ]
    loss = f"loss, {_NATS}"
    return [
        Chart(f"narrow_stability{suffix}", "Loss under noise in the weights", said[0],
              _lines("ε, the share of another direction", loss, "mean(y):Q"), noise),
        Chart(f"narrow_norm{suffix}", "Loss against the adapter's norm", said[1],
              _lines("‖ΔW‖ over all modules", loss, "y:Q"), curve),
        Chart(f"narrow_significance{suffix}", "How far a vector moves what the base says",
              " ".join(line for line in said if "significant" in line),
              _lines("‖v‖", f"KL(base‖base + v), {_NATS}", "y:Q", by="series:N"), moved),
    ]  # fmt: skip


def _lines(x: str, y: str, value: str, by: str = "model:N") -> Any:
    import altair as alt

    scale = alt.Scale(domain=list(_COLOURS), range=list(_COLOURS.values()))
    colour = alt.Color("model:N", scale=scale, title=None, legend=alt.Legend(orient="top"))
    across = alt.X("x:Q", title=x, scale=alt.Scale(zero=False))
    return alt.layer(
        alt.Chart().mark_line(opacity=0.8).encode(
            x=across, y=alt.Y(value, title=y, scale=alt.Scale(zero=False)), color=colour, detail=by
        ),
        alt.Chart().mark_point(filled=True, size=22, opacity=0.7).encode(x=across, y=alt.Y("y:Q"), color=colour),
        data=alt.NamedData(ROWS),
    ).properties(width=WIDTH, height=260)  # fmt: skip


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _interval(mean: Mean) -> str:
    interval = "" if mean.low is None or mean.high is None else f" ({max(0.0, mean.low):.3f} to {mean.high:.3f})"
    return f"{mean.value:.3f}{interval}"
