"""Linear layers for few rows: those of one input in one product, and on a CPU laid out once as oneDNN multiplies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

# Weights of the smallest product that is laid out; torch multiplies smaller ones as fast as they are.
SMALLEST = {torch.float32: 2**19, torch.bfloat16: 2**16}


def product(*layers: nn.Linear) -> Callable[[Tensor], Tensor]:
    """What linear layers make of one input, side by side: x [T, in] ↦ [T, Σ out]."""
    weights: list[Tensor] = [layer.weight.detach() for layer in layers]
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]
    bias = None
    if any(layer.bias is not None for layer in layers):
        zeros = [weight.new_zeros(len(one)) for one in weights]
        bias = torch.cat(
            [none if layer.bias is None else layer.bias for layer, none in zip(layers, zeros, strict=True)]
        )
    if not _gains(weight):
        return partial(functional.linear, weight=weight, bias=bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)

    def multiply(x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        return out

    return multiply


def _gains(weight: Tensor) -> bool:
    """Whether a weight is to be laid out in oneDNN's own order.

    torch's default product lays a weight out anew at each call, which with 48 rows takes half of its time. Nothing is
    gained on other devices, in other dtypes, and in bfloat16 on a processor that oneDNN does not multiply it on.
    """
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return weight.dtype in SMALLEST and weight.numel() >= SMALLEST[weight.dtype]


def pack(model: nn.Module) -> int:
    """Lay out every large linear layer of a model, in place; returns how many. A tied head gets a copy of its own."""
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and _gains(layer.weight)]
    for layer in layers:
        layer.forward = product(layer)  # type: ignore[method-assign, assignment]
        layer.weight = None  # type: ignore[assignment]  # frees it; nobody reads it any more
    return len(layers)
