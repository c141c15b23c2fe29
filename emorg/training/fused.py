"""The layers of a Llama as autograd functions that pass over memory as few times as torch's own operations allow.

Frozen weights get no gradient. Everything is computed in the input's type, norms and losses in float32 or more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from emorg.models.rotary import turn

SLICE_BYTES = 64 * 2**20  # of float32 logits at a time
TILE = 64  # tokens: in 16 bits a CPU multiplies whole tiles, and plans anew for every new shape


def _exact(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


# --- linear layers with adapters -------------------------------------------------------------------------------------


class _Lora(NamedTuple):
    """Which of the linear layers an adapter is over, its scale, and its rate of dropout."""

    layer: int
    scale: float
    rate: float


def linears(x: Tensor, layers: Sequence[Any]) -> tuple[Tensor, ...]:
    """What linear layers, PEFT's LoRA over them or plain ones, make of one input x [T, in]: each [T, out]."""
    frozen: list[tuple[Tensor, Tensor | None]] = []
    adapters: list[Tensor] = []
    lora: list[_Lora] = []
    for i, layer in enumerate(layers):
        base = layer if isinstance(layer, nn.Linear) else layer.get_base_layer()
        frozen.append((base.weight, base.bias))
        if base is layer or layer.disable_adapters or layer.merged:
            continue
        (name,) = layer.active_adapters
        drop = layer.lora_dropout[name]
        rate = drop.p if isinstance(drop, nn.Dropout) and layer.training else 0.0
        lora.append(_Lora(i, layer.scaling[name], rate))
        adapters += (layer.lora_A[name].weight, layer.lora_B[name].weight)
    out: tuple[Tensor, ...] = _Linears.apply(x, frozen, lora, *adapters)  # type: ignore[no-untyped-call]
    return out


class _Linears(torch.autograd.Function):
    """y_i = x W_iᵀ + c_i + scale_i · drop_i(x) A_iᵀ B_iᵀ; W, c frozen. x is [T, in], A [rank, in], B [out, rank].

    Without dropout the adapters' A are one matrix, so that x is read once for all of them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        frozen: Sequence[tuple[Tensor, Tensor | None]],
        lora: Sequence[_Lora],
        *adapters: Tensor,
    ) -> tuple[Tensor, ...]:
        outs = tuple(functional.linear(x, weight, bias) for weight, bias in frozen)
        down = [a.to(x.dtype) for a in adapters[::2]]
        kept = [torch.native_dropout(x, one.rate, True)[1] for one in lora if one.rate]
        if kept:
            inner = [
                functional.linear(_dropped(x, mask, one), a) for a, mask, one in zip(down, kept, lora, strict=True)
            ]
        else:
            inner = _split(functional.linear(x, torch.cat(down)), down, 1) if down else []
        for one, h, b in zip(lora, inner, adapters[1::2], strict=True):
            outs[one.layer].addmm_(h, b.to(x.dtype).t(), alpha=one.scale)
        ctx.save_for_backward(x, *(weight for weight, _ in frozen), *adapters, *inner, *kept)
        ctx.lora = lora
        return outs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        lora, count = ctx.lora, len(ctx.lora)
        x, *saved = ctx.saved_tensors
        weights, saved = saved[: len(grads)], saved[len(grads) :]
        adapters, inner, kept = saved[: 2 * count], saved[2 * count : 3 * count], saved[3 * count :]
        down, up = ([w.to(x.dtype) for w in adapters[i::2]] for i in (0, 1))
        d_inner = [(grads[one.layer] @ b).mul_(one.scale) for one, b in zip(lora, up, strict=True)]
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = grads[0] @ weights[0]
            for grad, weight in zip(grads[1:], weights[1:], strict=True):
                d_x.addmm_(grad, weight)
            for d, a, mask, one in zip(d_inner, down, kept, lora, strict=True) if kept else ():
                d_x += _dropped(d @ a, mask, one)
        if kept:
            d_down = [d.t() @ _dropped(x, mask, one) for d, mask, one in zip(d_inner, kept, lora, strict=True)]
        elif down:
            whole = torch.cat(d_inner, 1)
            d_down = _split(whole.t() @ x, down, 0)
            if d_x is not None:
                d_x.addmm_(whole, torch.cat(down))
        d_adapters = [
            d.to(adapter.dtype)
            for i, one in enumerate(lora)
            for adapter, d in (
                (adapters[2 * i], d_down[i]),
                (adapters[2 * i + 1], (inner[i].t() @ grads[one.layer]).t() * one.scale),
            )
        ]
        return d_x, None, None, *d_adapters


def _split(x: Tensor, down: Sequence[Tensor], axis: int) -> list[Tensor]:
    """x adapter by adapter, along the axis that all their ranks share."""
    return list(torch.split(x, [len(a) for a in down], axis))


def _dropped(x: Tensor, mask: Tensor, one: _Lora) -> Tensor:
    """x without what dropout took out, the rest scaled up."""
    return (x * mask).mul_(1 / (1 - one.rate))


# --- norm, rotation, gate --------------------------------------------------------------------------------------------


def norm(x: Tensor, layer: Any) -> Tensor:
    """RMSNorm of x [T, …, width] by a frozen layer of transformers (arXiv 1910.07467)."""
    out: Tensor = _Norm.apply(x, layer.weight, layer.variance_epsilon)  # type: ignore[no-untyped-call]
    return out


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        exact = x.to(_exact(x), copy=True)
        length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return exact.mul_(inverse).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        slope = grad.to(_exact(x), copy=True).mul_(weight)
        unit = x.to(_exact(x), copy=True).mul_(inverse)
        along = torch.linalg.vecdot(slope, unit)[..., None].div_(-x.shape[-1])
        return slope.addcmul_(unit, along).mul_(inverse).to(x.dtype), None, None


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864) of x [T, heads, width]; cos and sin [T, width], both halves the same."""
    half = x.shape[-1] // 2
    out: Tensor = _Rotary.apply(x, cos[:, None, :half], sin[:, None, :half])  # type: ignore[no-untyped-call]
    return out


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return turn(grad, cos, sin, -1), None, None


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """SwiGLU (arXiv 2002.05202): silu(gate) · up."""
    out: Tensor = _Gated.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        open_ = functional.silu(gate)
        ctx.save_for_backward(gate, up, open_)
        return open_ * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up, open_ = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), grad * open_


# --- loss of trained tokens ------------------------------------------------------------------------------------------


def cross_entropy(hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
    """Summed cross-entropy of hidden [n, d] through a frozen head [V, d] against target ids [n]; a float32 scalar.

    The gradient is made in the forward pass, slice by slice, so that no more than SLICE_BYTES of logits exist.
    """
    loss: Tensor = _CrossEntropy.apply(hidden, head, target)  # type: ignore[no-untyped-call]
    return loss


def divergence(hidden: Tensor, reference: Tensor, head: Tensor) -> Tensor:
    """Summed KL(reference‖hidden) in nats of hidden states [n, d] through a frozen head [V, d]; a float32 scalar.

    `reference` gets no gradient, and as in `cross_entropy` no more than a slice of logits exists.
    """
    loss: Tensor = _Divergence.apply(hidden, reference, head)  # type: ignore[no-untyped-call]
    return loss


def _pieces(count: int, head: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of so many rows, filled up to whole tiles, and which rows of each are real."""
    rows = max(TILE, SLICE_BYTES // (4 * head.shape[0]) // TILE * TILE)
    for start in range(0, count + -count % TILE, rows):
        yield slice(start, start + rows), slice(0, max(0, count - start))


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
        exact, count = _exact(hidden), len(hidden)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        hidden, target = functional.pad(hidden, (0, 0, 0, -count % TILE)), functional.pad(target, (0, -count % TILE))
        d_hidden = torch.empty_like(hidden)
        for piece, real in _pieces(count, head):
            ids = target[piece, None]
            logits = functional.linear(hidden[piece], head).to(exact)
            norm = logits.logsumexp(1, keepdim=True)
            total += (norm - logits.gather(1, ids))[real].sum()
            if not ctx.needs_input_grad[0]:
                continue
            slope = logits.sub_(norm).exp_()  # d loss / d logits = softmax − one-hot
            slope.scatter_add_(1, ids, torch.full_like(norm, -1))
            torch.mm(slope.to(head.dtype), head, out=d_hidden[piece])
        d_hidden = d_hidden[:count]
        ctx.save_for_backward(d_hidden)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (d_hidden,) = ctx.saved_tensors
        return d_hidden * grad.to(d_hidden.dtype), None, None


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, reference: Tensor, head: Tensor) -> Tensor:
        exact, count = _exact(hidden), len(hidden)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        hidden, reference = (functional.pad(x, (0, 0, 0, -count % TILE)) for x in (hidden, reference))
        d_hidden = torch.empty_like(hidden)
        for piece, real in _pieces(count, head):
            own, other = (functional.linear(x[piece], head).to(exact).log_softmax(1) for x in (hidden, reference))
            chance = other.exp()
            total += (chance * (other - own))[real].sum()
            if ctx.needs_input_grad[0]:  # d KL / d logits = softmax − the reference's
                torch.mm(own.exp_().sub_(chance).to(head.dtype), head, out=d_hidden[piece])
        d_hidden = d_hidden[:count]
        ctx.save_for_backward(d_hidden)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (d_hidden,) = ctx.saved_tensors
        return d_hidden * grad.to(d_hidden.dtype), None, None
