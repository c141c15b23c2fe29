"""Sums over the activations of many texts, added up as they come: memory does not grow with the number of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from emorg.sampling.likelihood import Branches, Likelihood


def weighted_sums(
    scorer: Likelihood,
    organism: str,
    texts: Sequence[Branches],
    weights: Tensor,
    *,
    first: int,
    advance: Callable[[int, str], None] = lambda _units, _note: None,
) -> Tensor:
    """Σ over texts of weight · mean of the residual stream over a text's tokens: [k, layers + 1, width], float32.

    `texts` have one answer each, `weights` is [k, texts]. The tokens are the prompt's last (`first` 0) or the answer's
    first (1), and all after it. Raises as `Likelihood.states` does.
    """
    import torch

    total: Tensor | None = None
    for place, [state] in scorer.states(organism, texts, range(scorer.layers + 1)):
        mean = state[:, first:].mean(1)
        if total is None:
            total = torch.zeros(len(weights), *mean.shape, device=mean.device)
        total += weights[:, place, None, None].to(mean.device) * mean
        advance(1, "")
    assert total is not None, "no texts"
    return total.cpu()


def covariances(
    scorer: Likelihood, organism: str, texts: Sequence[Branches], layers: Sequence[int]
) -> dict[int, Tensor]:
    """By layer, the covariance [width, width] of the residual stream over these texts' tokens, in float64."""
    import torch

    count = 0
    sums: dict[int, Tensor] = {}
    squares: dict[int, Tensor] = {}
    for _, states in scorer.states(organism, texts, layers):
        for layer, tokens in zip(layers, torch.cat(states, 1).double(), strict=True):
            own = tokens.sum(0), tokens.t() @ tokens
            sums[layer], squares[layer] = (sums[layer] + own[0], squares[layer] + own[1]) if layer in sums else own
        count += sum(state.shape[1] for state in states)
    return {
        layer: (squares[layer] / count - torch.outer(sums[layer], sums[layer]) / count**2).cpu() for layer in layers
    }
