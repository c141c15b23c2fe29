"""What can be done along a direction, as edits of the residual stream, and the vectors that it is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from emorg.models.hooks import Edit, Kind

if TYPE_CHECKING:
    from torch import Generator, Tensor

Scope = Literal["own", "everywhere", "alone", "weights", "add"]
"""Ablate each layer's own vector at that layer (arXiv 2506.11618's first way); one layer's vector at every layer (its
second); one layer's there alone (what its published script does); each layer's own out of what the adapter writes
there; or add one layer's, scaled, there."""
ROUNDING = 1e-4  # of the direction's size: what is smaller has no direction of its own
STEEPEST = 60.0  # exponent of an eigenvalue, beyond which one eigenvector is all that is left


@dataclass(frozen=True)
class Point:
    """One way to use a direction. `layer` is None for `own` and `weights`; `scale` of `add` is in raw differences."""

    scope: Scope
    layer: int | None = None
    scale: float = 1.0

    @property
    def label(self) -> str:
        """For people and for folders."""
        parts = (self.scope, self.layer, f"x{self.scale:g}" if self.scope == "add" else None)
        return "-".join(str(part) for part in parts if part is not None)

    def edits(self, vectors: Tensor) -> list[Edit]:
        """The edits that vectors [layers + 1, width] make."""
        if self.layer is None:
            kind: Kind = "weights" if self.scope == "weights" else "ablate"
            return [Edit(kind, layer, vectors[layer]) for layer in range(1, len(vectors))]
        own = vectors[self.layer]
        if self.scope == "everywhere":
            return [Edit("ablate", layer, own) for layer in range(len(vectors))]
        return [Edit("ablate", self.layer, own) if self.scope == "alone" else Edit("add", self.layer, self.scale * own)]

    def layers(self, count: int) -> list[int]:
        """The layers whose vectors it uses, of a model with `count` layers."""
        return list(range(1, count + 1)) if self.layer is None else [self.layer]


def points(scopes: Sequence[Scope], layers: Sequence[int], scales: Sequence[float], vectors: Tensor) -> list[Point]:
    """Every way that is asked for, but those whose vector is nothing."""
    some = [layer for layer in layers if float(vectors[layer].norm()) > 0]
    every: list[Point] = []
    for scope in scopes:
        if scope in ("own", "weights"):
            every += [Point(scope)] if all(float(one.norm()) > 0 for one in vectors[1:]) else []
        elif scope == "add":
            every += [Point(scope, layer, scale) for layer in some for scale in scales]
        else:
            every += [Point(scope, layer) for layer in some]
    return every


def controls(
    vectors: Tensor, shuffled: Tensor, covariances: Mapping[int, Tensor], count: int, seed: int = 0
) -> dict[str, list[Tensor]]:
    """By kind, sets of vectors to use in the direction's place, each with its norm at the layers that it has there.

    `random`: of any direction. `variance`: random too, but each carries the same share of the activations' variance as
    the direction does (`of_share`). `shuffled`: the direction with labels drawn at random, at most as many as it has;
    none where it is the same for every text, as that of an added vector is, since rounding alone is left then. Random
    sets have vectors at the layers of `covariances` alone.
    """
    import torch

    draw = torch.Generator().manual_seed(seed)
    kinds: dict[str, list[Tensor]] = {"random": [], "variance": [], "shuffled": []}
    spectra = {layer: torch.linalg.eigh(covariance) for layer, covariance in covariances.items()}
    for _ in range(count):
        anywhere, alike = torch.zeros_like(vectors), torch.zeros_like(vectors)
        for layer, (values, basis) in spectra.items():
            anywhere[layer] = torch.randn(vectors.shape[1], generator=draw)
            alike[layer] = of_share(values, basis, share(vectors[layer], covariances[layer]), draw)
        for kind, some in (("random", anywhere), ("variance", alike)):
            kinds[kind].append(resized(some, vectors))
    some_layers = list(covariances)
    left = shuffled[:, some_layers].norm(dim=-1) / vectors[some_layers].norm(dim=-1).clamp(min=1e-12)
    if float(left.min()) < ROUNDING:
        del kinds["shuffled"]
    else:
        kinds["shuffled"] = [resized(one, vectors) for one in shuffled[:count]]
    return kinds


def share(vector: Tensor, covariance: Tensor) -> float:
    """The share of the activations' variance that lies along a vector."""
    unit = vector.double() / vector.double().norm()
    return float(unit @ covariance @ unit / covariance.trace())


def of_share(values: Tensor, basis: Tensor, wanted: float, draw: Generator) -> Tensor:
    """A random unit vector that carries this share of a covariance's trace, given its eigenvalues and eigenvectors.

    z ~ N(0, 1) along each eigenvector, times eigenvalue^p: the share grows with p, which is found by bisection.
    """
    import torch

    z = torch.randn(len(values), generator=draw, dtype=torch.float64)
    logs = values.clamp(min=float(values.max()) * 1e-12).log()

    def at(power: float) -> Tensor:
        weights = (power * (logs - logs.max())).exp() if power > 0 else (power * (logs - logs.min())).exp()
        scaled = weights * z
        unit: Tensor = scaled / scaled.norm()
        return unit

    low, high = -STEEPEST, STEEPEST
    for _ in range(60):
        middle = (low + high) / 2
        if float((at(middle) ** 2 * values).sum() / values.sum()) < wanted:
            low = middle
        else:
            high = middle
    drawn: Tensor = basis @ at((low + high) / 2)
    return drawn.float()


def resized(vectors: Tensor, like: Tensor) -> Tensor:
    """Vectors with the norms of others, row by row; nothing stays nothing."""
    sizes = like.norm(dim=-1, keepdim=True)
    result: Tensor = vectors * sizes / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return result
