"""Rotary positions (arXiv 2104.09864)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def room(config: Any) -> int | None:
    """The most tokens of a text that a model holds beside others in one forward pass; None if it does not say.

    With `longrope` the angles of all change where the longest passes the length that the model was first trained on.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = (rope, *(part for part in rope.values() if isinstance(part, dict)))
    first = [kind.get("original_max_position_embeddings") for kind in kinds if kind.get("rope_type") == "longrope"]
    limits = (getattr(config, "max_position_embeddings", None), *first)
    return min((limit for limit in limits if limit), default=None)


def turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int = 1) -> Tensor:
    """x [T, heads, width] turned by angles of which cos and sin [T, 1, width/2] are given; back with sign −1."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    (a, b), (new_a, new_b) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(a, cos, out=new_a).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=new_b).addcmul_(a, sin, value=sign)
    return out
