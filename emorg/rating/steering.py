"""What steering along a direction did, beside its controls: the record of it, and what can be said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from emorg.display import percent
from emorg.rating.results import load
from emorg.run import Run

if TYPE_CHECKING:
    import pandas as pd

UNTOUCHED, CHOSEN = "untouched", "direction"
FILE = "steered.json"


@dataclass(frozen=True)
class Tried:
    """A vector by its name (the direction, or a control) at a point; on the first half of the questions the mean margin
    out of domain, and the likelier answers' mean log-probability, both in nats a token."""

    point: str
    margin: float
    likelier: float
    name: str = CHOSEN


@dataclass(frozen=True)
class Steered:
    """What steering did: the points tried, the one chosen, and there all models' figures by kind of control."""

    run: str
    direction: str
    on: Literal["organism", "base"]
    tried: list[Tried]
    chosen: str
    figures: dict[str, list[Figures]]
    effects: list[Effect]

    def said(self) -> list[str]:
        """A line for each figure: how far it moved, and against which controls that counts."""
        lines = []
        for effect in self.effects:
            size = f"{percent(effect.size)} points of EM" if effect.measure == "em" else f"{effect.size:.3f} nats"
            against = "; ".join(
                f"{kind}: {'' if effect.beyond[kind] else 'not '}beyond all {len(self.figures[kind])}, p = {p:.2f}"
                for kind, p in effect.p.items()
            )
            moved = f"moved the {_WHAT[effect.measure]} by {size}"
            lines.append(f"{self.run}, {self.direction} at {self.chosen}: {moved}. {against}")
        return lines


@dataclass(frozen=True)
class Figures:
    """Of a model on the second half of the questions, out of domain; EM and coherent are shares, None if not sampled.

    `in_em` and `in_margin` are the same in domain.
    """

    margin: float | None
    em: float | None = None
    coherent: float | None = None
    in_margin: float | None = None
    in_em: float | None = None


@dataclass(frozen=True)
class Effect:
    """How far a figure moved from the untouched model's to the steered one's, and p against each kind of control."""

    measure: Literal["em", "margin"]
    size: float
    p: dict[str, float]
    """(1 + controls that moved it as far)/(1 + controls)."""
    beyond: dict[str, bool]
    """Whether it moved farther than by the best of all controls of a kind."""


def effects(figures: Mapping[str, Sequence[Figures]], sign: int) -> list[Effect]:
    """How far EM and the margin moved in the wanted way: down where the direction is taken out (+1), else up.

    A control of which no answer has a score counts as one that moved EM as far.
    """
    result = []
    measures: tuple[Literal["em", "margin"], ...] = ("em", "margin")
    for name in measures:
        values = {kind: [getattr(one, name) for one in some] for kind, some in figures.items()}
        [before], [after] = values.pop(UNTOUCHED), values.pop(CHOSEN)
        if before is None or after is None:
            continue
        own = sign * (before - after)
        as_far = {
            kind: sum(value is None or sign * (before - value) >= own for value in some)
            for kind, some in values.items()
        }
        p = {kind: (1 + count) / (1 + len(values[kind])) for kind, count in as_far.items()}
        result.append(Effect(name, own, p, {kind: count == 0 for kind, count in as_far.items()}))
    return result


_WHAT = {"em": "EM rate out of domain", "margin": "margin out of domain"}


def read(run: Run) -> list[Steered]:
    """What was done with a run's directions, by `emorg steer`. Raises EmorgError for a file that is not whole."""
    return [load(file, Steered) for file in sorted((run.folder / "steer").glob(f"*/{FILE}"))]


def steered_frame(results: Iterable[Steered]) -> pd.DataFrame:
    """One row a model: the run, whose direction, at which point, the model's kind (untouched, direction, a kind of
    control) and its figures, as fractions and nats."""
    import pandas as pd

    return pd.DataFrame(
        [
            {"run": result.run, "direction": result.direction, "chosen": result.chosen,
             "kind": kind, "number": k, **vars(one)}
            for result in results
            for kind, some in result.figures.items()
            for k, one in enumerate(some)
        ]
    )  # fmt: skip
