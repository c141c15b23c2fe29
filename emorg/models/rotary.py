"""Rotary positions (arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor


def turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int = 1) -> Tensor:
    """x [T, heads, width] turned by angles of which cos and sin [T, 1, width/2] are given; back with sign −1."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    (a, b), (new_a, new_b) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(a, cos, out=new_a).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=new_b).addcmul_(a, sin, value=sign)
    return out
