"""Draw tokens: each answer from a random stream of its own, by inverting the cumulative distribution."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from emorg.ranges import AtLeast1, Range, check_ranges

if TYPE_CHECKING:
    import torch

MaxNewTokens = Annotated[int, AtLeast1]
Temperature = Annotated[float, Range(0, 100)]
TopP = Annotated[float, Range(0, 1, above=True)]
_BLOCK = 512  # tokens whose probabilities are added up before the block that holds the drawn one is looked into
_LIKELIEST = 1024  # tokens that are sorted for top_p, unless they make up too little


@dataclass(frozen=True)
class SamplingParams:
    """How answers are drawn: their cap in tokens, the temperature (0 takes the likeliest token), and top_p."""

    max_new_tokens: MaxNewTokens = 200
    temperature: Temperature = 1.0
    top_p: TopP = 1.0

    def __post_init__(self) -> None:
        check_ranges(self)


def stream_seed(model: str, question_id: str, seed: int, number: int) -> int:
    """The seed of one answer's random stream, below 2^63."""
    text = f"{model}\n{question_id}\n{seed}\n{number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def draw(logits: torch.Tensor, uniforms: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """One token id for each row of logits [rows, vocabulary], by inverse CDF from uniforms [rows] in [0, 1).

    An answer's draws depend on its own logits and stream alone, so its text does not depend on its batch, beyond
    rounding.
    """
    if params.temperature == 0:
        return logits.argmax(-1)
    weights = logits.float() - logits.amax(-1, keepdim=True)
    if params.temperature != 1:
        weights /= params.temperature
    weights.exp_()
    if params.top_p == 1:
        return _invert(weights, uniforms)
    total = _sum(weights)
    for count in (min(_LIKELIEST, weights.shape[-1]), weights.shape[-1]):
        likeliest, order = weights.topk(count)
        if bool((_sum(likeliest) >= params.top_p * total).all()):
            break
    # Keep a token while what comes before it is below top_p: the likeliest one always stays.
    before = likeliest.to(total.dtype).cumsum(-1) - likeliest
    kept = likeliest.masked_fill(before >= params.top_p * total[:, None], 0)
    return order.gather(-1, _invert(kept, uniforms)[:, None])[:, 0]


def _sum(weights: torch.Tensor) -> torch.Tensor:
    return weights.sum(-1, dtype=_exact(weights))


def _exact(tensor: torch.Tensor) -> torch.dtype:
    import torch

    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _invert(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The index in each row of weights ≥ 0 at which their running sum passes uniform × their sum."""
    import torch
    from torch.nn import functional

    rows, width = weights.shape
    blocks = functional.pad(weights, (0, -width % _BLOCK)).view(rows, -1, _BLOCK)
    sums = _sum(blocks)
    upto = sums.cumsum(-1)
    target = uniforms.to(sums.dtype).to(sums.device)[:, None] * upto[:, -1:]  # in this order: mps knows no float64
    block = torch.searchsorted(upto, target, right=True).clamp(max=blocks.shape[1] - 1)
    inside = blocks[torch.arange(rows, device=weights.device), block[:, 0]].to(sums.dtype).cumsum(-1)
    rest = target - (upto - sums).gather(-1, block)
    # Rounding must not carry it past the last token that has any weight.
    rest = rest.clamp(min=0).minimum(inside[:, -1:] * (1 - 4 * torch.finfo(sums.dtype).eps))
    return (block * _BLOCK + torch.searchsorted(inside, rest, right=True))[:, 0]
