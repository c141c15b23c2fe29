"""Linear layers for few rows on a CPU: their weights are laid out once as oneDNN multiplies them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Weights of the smallest layer that is laid out; torch multiplies smaller ones as fast as they are.
SMALLEST = {torch.float32: 2**19, torch.bfloat16: 2**16}


def pack(model: nn.Module) -> int:
    """Lay out every large linear layer's weight in oneDNN's own order, in place; returns how many.

    torch's default product lays a weight out anew at each call, which with 48 rows takes half of its time. A tied
    head gets a copy of its own. Nothing is done on other devices, in other dtypes, and in bfloat16 on a processor that
    oneDNN does not multiply it on.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return 0
    dtypes = {torch.float32, *([torch.bfloat16] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else [])}
    layers = [
        layer
        for layer in model.modules()
        if type(layer) is nn.Linear
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype in dtypes
        and layer.weight.numel() >= SMALLEST[layer.weight.dtype]
    ]
    for layer in layers:
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
        layer.weight = nn.Parameter(packed, requires_grad=False)
        layer.forward = _forward(packed, layer.bias)  # type: ignore[method-assign]
    return len(layers)


def _forward(packed: Tensor, bias: Tensor | None):  # type: ignore[no-untyped-def]
    def forward(x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        return out

    return forward
