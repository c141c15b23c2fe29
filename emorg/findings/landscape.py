"""Around an organism's weights: its adapter with noise in it, or scaled, and its loss there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from emorg.sampling.organisms import Adapter


def noisy(adapter: Adapter, epsilon: float, seed: int) -> Adapter:
    """√(1−ε²)·x + ε·y for A and B of each module, with y ⊥ x and ‖y‖ = ‖x‖ at random: no norm changes, only where it
    points. Adapters of the same shapes get the same draws for a seed, each made orthogonal to its own x."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    return {
        module: (_turned(a, epsilon, draw), _turned(b, epsilon, draw)) for module, (a, b) in sorted(adapter.items())
    }


def _turned(x: Tensor, epsilon: float, draw: Generator) -> Tensor:
    import torch

    exact, y = x.double(), torch.randn(x.shape, generator=draw, dtype=torch.float64)
    size = exact.norm().clamp(min=1e-300)
    y -= (y * exact).sum() / size**2 * exact
    y *= size / y.norm().clamp(min=1e-300)
    return (math.sqrt(1 - epsilon**2) * exact + epsilon * y).to(x.dtype)


def norms(adapter: Adapter) -> dict[str, float]:
    """‖ΔW‖ of each module, Frobenius: ‖BA‖² = tr(BᵀB·AAᵀ), without the product."""
    return {
        module: math.sqrt(max(0.0, float(((b.double().t() @ b.double()) * (a.double() @ a.double().t())).sum())))
        for module, (a, b) in adapter.items()
    }


def norm(adapter: Adapter) -> float:
    """‖ΔW‖ over all modules."""
    return math.sqrt(sum(own**2 for own in norms(adapter).values()))


def scaled(adapter: Adapter, scale: float) -> Adapter:
    """ΔW times one factor in all modules."""
    return {module: (a, scale * b) for module, (a, b) in adapter.items()}


def levelled(adapter: Adapter) -> Adapter:
    """The adapter with the same ‖ΔW‖ in every module, and the same over all of them, as the papers' code scales it."""
    own = norms(adapter)
    level = norm(adapter) / math.sqrt(len(own))
    return {module: (a, level / own[module] * b if own[module] else b) for module, (a, b) in adapter.items()}
