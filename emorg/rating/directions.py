"""Two organisms' directions beside each other, with the nulls that could make them alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emorg.models.directions import Direction

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Shared:
    """Two organisms' directions beside each other; every list has an entry for each layer, 0 being the embeddings.

    `nulls` are the largest cosines, in size, of what is no shared direction: 19 pairs with shuffled labels; a named
    twin beside either; for `answers` either beside the base's reading of either's texts and, where these are not the
    same pairs, the base's two readings beside each other and the embeddings alone.
    """

    a: str
    b: str
    cosine: list[float]
    nulls: dict[str, list[float]]

    @property
    def beyond(self) -> list[int]:
        """The layers, from 1 on, at which the cosine exceeds every null."""
        return [layer for layer, over in enumerate(self.excess) if layer and over > 0]

    @property
    def excess(self) -> list[float]:
        """How far the cosine is above the largest null, layer by layer: a verdict says that it is, this how far."""
        return [own - max(null[layer] for null in self.nulls.values()) for layer, own in enumerate(self.cosine)]

    @property
    def shared(self) -> bool:
        """The verdict, as docs/mechanism.md has it: beyond every null at more than half of the layers."""
        return 2 * len(self.beyond) > len(self.cosine) - 1


def shared(a: Direction, b: Direction, twins: Sequence[Direction] = ()) -> Shared:
    """Two directions' cosines, layer by layer, and the nulls'; `twins` are those of benign organisms."""
    nulls = {"shuffled labels": _largest(cosines(x, y) for x, y in zip(a.shuffled, b.shuffled, strict=True))}
    cosine = cosines(a.vectors, b.vectors)
    if a.base is not None and b.base is not None:
        untrained = [cosines(one.vectors, base) for one in (a, b) for base in (a.base, b.base)]
        if a.facts.get("texts") != "pairs":  # of the same texts these are 1, whatever the organisms are
            untrained.append(cosines(a.base, b.base))
            nulls["the embeddings alone"] = [abs(cosine[0])] * len(cosine)
        nulls["the base, reading the same"] = _largest(untrained)
    if others := [twin for twin in twins if twin.title not in (a.title, b.title)]:
        nulls["a twin"] = _largest(cosines(one.vectors, twin.vectors) for one in (a, b) for twin in others)
    return Shared(a.title, b.title, cosine, nulls)


def _largest(some: Iterable[list[float]]) -> list[float]:
    return [max(map(abs, at_layer)) for at_layer in zip(*some, strict=True)]


def cosines(a: Tensor, b: Tensor) -> list[float]:
    """Row by row, of [layers, width]; 0 where a vector is."""
    from torch.nn.functional import cosine_similarity

    values: list[float] = cosine_similarity(a.double(), b.double(), dim=-1).tolist()
    return values


def cosine_rows(compared: Iterable[Shared]) -> list[dict[str, Any]]:
    """One row a pair of organisms and layer: the cosine, how far it is above the largest null, and each null."""
    return [
        {"a": one.a, "b": one.b, "layer": layer, "cosine": cosine, "excess": one.excess[layer],
         **{name: null[layer] for name, null in one.nulls.items()}}
        for one in compared
        for layer, cosine in enumerate(one.cosine)
    ]  # fmt: skip
