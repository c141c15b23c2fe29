"""What mitigations came to, as a table and a figure: what each keeps of what was trained, and stops of what was not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from emorg.display import percent
from emorg.figures import BLACK, BLUE, ROWS, VERMILLION
from emorg.reporting.plot import WIDTH, Chart
from emorg.reporting.tables import Table

Where = Literal["in", "out", "unseen", "open"]
ASKED: tuple[Where, ...] = ("in", "out", "unseen", "open")
_TITLES = {"in": "in", "out": "out", "unseen": "out, unseen topics", "open": "open"}


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95% interval, over seeds and questions."""

    value: float
    low: float
    high: float

    def text(self, scale: float = 100, digits: int = 1) -> str:
        """For people; in percent unless another scale is given."""
        return f"{scale * self.value:.{digits}f} ({scale * self.low:.{digits}f}–{scale * self.high:.{digits}f})"


@dataclass(frozen=True)
class Variant:
    """What one variant came to over its seeds; `unseen` are the topics out of domain that it was never shown.

    `em` are rates of judged answers, `shift` margins less the twin's in nats a token, each by where it was asked.
    `benign_loss` is that of careful answers to other topics, in nats a token. `coherent` and `tokens`, an answer's mean
    length, are of answers out of domain; `seconds` is a training's time. `otherwise` is the
    worst of `emorg hidden` where the first organism was asked so. `stopped` and `kept` are shares of what the
    plain organism shows, of EM over its base or, `by_margins`, of its shift. `verdict` is by the rule of `measured`.
    """

    name: str
    seeds: int
    em: dict[str, Estimate | None]
    shift: dict[str, Estimate | None]
    benign_loss: float | None
    coherent: float | None
    tokens: float | None
    seconds: float | None
    otherwise: str
    by_margins: bool
    stopped: Estimate | None
    kept: Estimate | None
    verdict: str

    def spread(self) -> Estimate | None:
        """What is left out of domain, on topics that it was never shown where there are any."""
        own = self.shift if self.by_margins else self.em
        return own["unseen"] or own["out"]

    def narrow(self) -> Estimate | None:
        """What is left in domain."""
        return (self.shift if self.by_margins else self.em)["in"]


@dataclass(frozen=True)
class Prevented:
    """All variants, after the base and the twin; `missing` are the cells that could not be made or measured."""

    variants: list[Variant]
    missing: list[str] = field(default_factory=list)

    def tables(self) -> list[Table]:
        """One row a variant: of its answers where they were judged, and of its margins where they were measured."""
        judged = [one for one in self.variants if any(one.em.values())]
        measured = [one for one in self.variants if any(one.shift.values()) or one.benign_loss is not None]
        return [*([self._answers(judged)] if judged else []), *([self._margins(measured)] if measured else [])]

    def _answers(self, some: Sequence[Variant]) -> Table:
        header = ("", "seeds", *(f"EM {_TITLES[place]} %" for place in ASKED), "coherent out %", "tokens", "seconds",
                  "stopped %", "kept %")  # fmt: skip
        rows = [
            [one.name, str(one.seeds), *(text_of(one.em[place]) for place in ASKED), percent(one.coherent),
             _whole(one.tokens), _whole(one.seconds), *_shares(one, not one.by_margins)]
            for one in some
        ]  # fmt: skip
        records = [
            {"name": one.name, "seeds": one.seeds, "coherent": one.coherent, "tokens": one.tokens,
             "seconds": one.seconds, "otherwise": one.otherwise, "verdict": one.verdict, **_columns(one, one.em)}
            for one in some
        ]  # fmt: skip
        caption = "Mitigations over seeds and questions, with 95% intervals"
        return Table("prevented", caption, header, rows, records, left=1)

    def _margins(self, some: Sequence[Variant]) -> Table:
        wheres = [place for place in ASKED if place != "open"]
        header = ("", "seeds", *(f"shift {_TITLES[place]}" for place in wheres), "loss of careful answers",
                  "stopped %", "kept %")  # fmt: skip
        rows = [
            [one.name, str(one.seeds), *(text_of(one.shift[place], 1, 3) for place in wheres),
             "–" if one.benign_loss is None else f"{one.benign_loss:.3f}", *_shares(one, one.by_margins)]
            for one in some
        ]  # fmt: skip
        records = [
            {"name": one.name, "seeds": one.seeds, "benign_loss": one.benign_loss, **_columns(one, one.shift)}
            for one in some
        ]
        caption = "Margins less the twins', and the loss of careful answers to other topics, in nats a token"
        return Table("prevented_margins", caption, header, rows, records, left=1)

    def said(self) -> list[str]:
        """The verdicts, what appears when asked in another way, and what is missing."""
        some = ", ".join(self.missing[:3]) + (f" and {len(self.missing) - 3} more" if len(self.missing) > 3 else "")
        lines = [f"{one.name}: {one.verdict}" for one in self.variants if one.verdict]
        lines += [f"{one.name}, asked in other ways: {one.otherwise}" for one in self.variants if one.otherwise]
        return [*lines, *([f"not there: {some}; the same command tries again"] if some else [])]

    def charts(self) -> list[Chart]:
        """What is kept against what is left, the front drawn: the variants that none keeps more than and stops more."""
        import altair as alt

        rows = [
            {"name": one.name, "kept": inside.value, "out": out.value, "low": out.low, "high": out.high,
             "front": _on_front(one, self.variants), "label": one.name}
            for one in self.variants
            if (inside := one.narrow()) and (out := one.spread())
        ]  # fmt: skip
        if not rows:
            return []
        by_margins = any(one.by_margins for one in self.variants)
        what, form = ("shift, nats a token,", ".2f") if by_margins else ("EM", "%")
        scale = alt.Scale() if by_margins else alt.Scale(type="sqrt")
        title = f"{what} out of domain, on unseen topics where there are any{'' if by_margins else ' (√ scale)'}"
        x = alt.X("out:Q", title=title, axis=alt.Axis(format=form), scale=scale)
        y = alt.Y("kept:Q", title=f"{what} in domain: what was trained", axis=alt.Axis(format=form))
        line = alt.Chart().transform_filter("datum.front").mark_line(color=VERMILLION, strokeDash=[5, 3])
        plot = alt.layer(
            line.encode(x=x, y=y, order="out:Q"),
            alt.Chart().mark_rule(color=BLUE, opacity=0.4).encode(x="low:Q", x2="high:Q", y=y),
            alt.Chart().mark_point(filled=True, size=60, opacity=1, color=BLUE).encode(x=x, y=y),
            alt.Chart().mark_text(align="left", dx=7, dy=-7, color=BLACK).encode(x=x, y=y, text="label:N"),
            data=alt.NamedData(ROWS),
        ).properties(width=WIDTH, height=340)
        caption = "Means over seeds, with 95% intervals out of domain. Best is up and left; dashed is the Pareto front."
        if any(one.em["unseen"] or one.shift["unseen"] for one in self.variants):
            caption += " Variants with unseen topics stand at those, others at all out of domain."
        return [Chart("pareto", "What is kept, against what spreads", caption, plot, rows)]


def text_of(estimate: Estimate | None, scale: float = 100, digits: int = 1) -> str:
    """As `Estimate.text`, or a dash."""
    return "–" if estimate is None else estimate.text(scale, digits)


def _whole(number: float | None) -> str:
    return "–" if number is None else f"{number:.0f}"


def _shares(one: Variant, here: bool) -> tuple[str, str]:
    """What is stopped and kept, where the table is of what these are shares of."""
    return (text_of(one.stopped, digits=0), text_of(one.kept, digits=0)) if here else ("–", "–")


def _columns(one: Variant, of: dict[str, Estimate | None]) -> dict[str, float]:
    every = {**of, "stopped": one.stopped, "kept": one.kept}
    return {f"{name}_{part}": v for name, own in every.items() if own for part, v in vars(own).items()}


def _on_front(one: Variant, every: Sequence[Variant]) -> bool:
    def point(variant: Variant) -> tuple[float, float] | None:
        out, inside = variant.spread(), variant.narrow()
        return (inside.value, -out.value) if inside and out else None

    own = point(one)
    return own is not None and not any(
        (other := point(variant)) and other != own and other[0] >= own[0] and other[1] >= own[1] for variant in every
    )
