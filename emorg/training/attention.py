"""Causal attention of conversations that lie one after another in a row of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from emorg.models.packing import Packing

SHORT = 256  # tokens: up to there a CPU takes flash attention's backward pass faster in float32 than in 16 bits


def attention(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
    """query [T, heads, width], key and value [T, key-value heads, width] → [T, heads, width]."""
    apart = (_Apart.apply(x, packing) for x in (query, key, value))  # type: ignore[no-untyped-call]
    parts = [_attend(q, k, v, scale) for q, k, v in zip(*apart, strict=True)]
    out: Tensor = _Together.apply(packing, *parts)  # type: ignore[no-untyped-call]
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Of texts of one length: q is [texts, length, heads, width]."""
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16) and q.shape[1] <= SHORT:
        out: Tensor = _Short.apply(q, k, v, scale)  # type: ignore[no-untyped-call]
        return out
    grouped = q.shape[2] > k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packing: Packing) -> tuple[Tensor, ...]:
        ctx.packing = packing
        return tuple(packing.apart(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.packing.together(grads), None


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packing: Packing, *parts: Tensor) -> Tensor:
        ctx.packing = packing
        return packing.together(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.packing.apart(grad)
        for part, padding in zip(parts, ctx.packing.padding, strict=True):
            part.flatten(0, 1).index_fill_(0, padding, 0)
        return None, *parts


class _Short(torch.autograd.Function):
    """Flash attention in 16 bits, its backward pass in float32: up to 3.5 times as fast in all there (docs/LOG.md)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out: Tensor
        out, log_sum_exp = flash(q, k, v, 0.0, True, scale=scale)
        ctx.save_for_backward(q, k, v, out, log_sum_exp)
        ctx.scale = scale
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *saved, log_sum_exp = ctx.saved_tensors
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        exact = (x.float() for x in (grad.transpose(1, 2), *saved))
        gradients = flash(*exact, log_sum_exp, 0.0, True, scale=ctx.scale)
        return *(d.transpose(1, 2).to(grad.dtype) for d in gradients), None
