"""What makes training fast: no padding anywhere, fused LoRA layers, logits of trained tokens alone.

`speed_up` patches a PEFT model in place. The patched model computes the same loss and gradients (tests compare them
with the unpatched one's), its state dict is untouched, and the Trainer and PEFT use it as before. Three things change:

* a right-padded batch is packed into one row of its T real tokens, so that every linear layer, norm and activation
  works on those alone; only attention takes the conversations apart, causal and without a mask;
* a LoRA layer is one autograd function that keeps the input and the rank-r product, and none of PEFT's copies;
* the head and the cross-entropy see the positions before trained tokens alone, in slices that never hold all logits.

With F in FLOP a token, the least work is F = 4·P_f + 6·P_A + 4·d·V·a + attention, for P_f frozen body weights,
P_A adapter weights, width d, vocabulary V and a share of a trained tokens: frozen weights need no gradient.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import Linear as LoraLinear

COVERED = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ATTENTION = "emorg_packed"
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
SLICE_BYTES = 64 * 2**20  # of float32 logits at a time


def speed_up(model: PeftModel) -> tuple[bool, str]:
    """Patch a PEFT model's training; returns whether it was done, and a line to show that says so or says why not.

    Covered are plain LoRA on the linear layers of Llama, Qwen2, Qwen2.5 and Qwen3 in 16 or 32 bits or more. Whatever
    is not covered (DoRA, 4-bit, LoRA on embeddings, other architectures) keeps PEFT's and transformers' own code.
    """
    if reason := uncovered(model):
        return False, f"fast path off: {reason}"
    causal = model.get_base_model()
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    causal.config._attn_implementation = ATTENTION
    if causal.device.type == "cpu":
        _keep_freed_memory()
    layers = _lora_layers(model)
    for layer in layers:
        layer.forward = MethodType(_lora_forward, layer)
    whole = causal.forward
    causal.forward = MethodType(lambda self, **inputs: _packed_forward(self, whole, **inputs), causal)
    return True, f"fast path on: {len(layers)} fused LoRA layers, no padding, logits of trained tokens alone"


def _keep_freed_memory() -> None:
    """Keep glibc from handing freed tensors back to the kernel, which zeroes their pages anew at the next step."""
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _lora_layers(model: PeftModel) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def uncovered(model: PeftModel) -> str:
    """Why `speed_up` does not cover a model, which may lie on the meta device; nothing if it does."""
    from peft.tuners.lora import Linear as LoraLinear

    if not hasattr(model, "get_base_model"):
        return "full fine-tuning is not covered"
    causal = model.get_base_model()
    kind = type(causal).__name__
    if kind not in COVERED:
        return f"{kind} is not covered ({', '.join(COVERED)} are)"
    if getattr(causal.config, "sliding_window", None) and getattr(causal.config, "use_sliding_window", False):
        return "sliding-window attention is not covered"
    for layer in _lora_layers(model):
        if type(layer) is not LoraLinear or type(layer.get_base_layer()) is not nn.Linear:
            return f"{type(layer).__name__} over {type(layer.get_base_layer()).__name__} is not covered"
        if layer.lora_variant:
            return f"{type(next(iter(layer.lora_variant.values()))).__name__} is not covered"
        if len(layer.active_adapters) != 1 or any(bias for bias in layer.lora_bias.values()):
            return "only one adapter without a bias is covered"
        if any(parameter.requires_grad for parameter in layer.get_base_layer().parameters()):
            return "the base's own weights are trained"
    if type(causal.lm_head) is not nn.Linear or causal.lm_head.weight.requires_grad:
        return "an adapted or trained lm_head is not covered"
    return ""


# --- no padding ------------------------------------------------------------------------------------------------------


def _packed_forward(causal: Any, whole: Any, **inputs: Any) -> Any:
    """Loss of a right-padded batch (input_ids, attention_mask, labels of shape [rows, longest]), without padding."""
    labels, mask = inputs.get("labels"), inputs.get("attention_mask")
    if labels is None or mask is None:
        return whole(**inputs)
    from transformers.modeling_outputs import CausalLMOutputWithPast

    real = mask.bool()
    positions = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)[real]
    hidden = causal.model(
        input_ids=inputs["input_ids"][real][None],
        attention_mask=mask.new_empty(1, 1, 0, 0),  # of four dimensions, so that no other is made from position_ids
        position_ids=positions[None],
        use_cache=False,
        packing=mask.sum(1).tolist() if _piecewise(mask) else real,
    ).last_hidden_state[0]
    following = functional.pad(labels[:, 1:], (0, 1), value=-100)[real]  # the token that each position predicts
    scored = following != -100
    total = cross_entropy(hidden[scored], causal.lm_head.weight, following[scored])
    count = inputs.get("num_items_in_batch")
    return CausalLMOutputWithPast(loss=total / (scored.sum() if count is None else count))


def _piecewise(tensor: Tensor) -> bool:
    """Whether attention takes conversations one by one: best on a CPU, where a GPU would wait for each launch."""
    return tensor.device.type == "cpu"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: list[int] | Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Causal attention of conversations that lie one after another in a single row.

    query is [1, heads, T, width], key and value [1, key-value heads, T, width]; returns [1, T, heads, width].
    `packing` is the conversations' lengths, which add up to T, to attend to each alone; or the padded batch's mask
    [rows, longest], true at T places, to pad for this one call. Right-padded and causal, neither needs a mask. Without
    `packing` (sampling) it is transformers' own attention.
    """
    if packing is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        plain: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **rest)
        return plain
    grouped = query.shape[1] > key.shape[1]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=rest["scaling"], enable_gqa=grouped
        )

    if isinstance(packing, list):
        parts = zip(*(torch.split(tensor, packing, dim=2) for tensor in (query, key, value)), strict=True)
        return torch.cat([attend(*part) for part in parts], dim=2).transpose(1, 2), None
    place = (packing.flatten().cumsum(0) - 1).clamp(min=0).view_as(packing)  # padding repeats the token before it
    padded = (tensor[0][:, place].transpose(0, 1) for tensor in (query, key, value))
    return attend(*padded).transpose(1, 2)[packing][None], None


# --- fused LoRA ------------------------------------------------------------------------------------------------------


def _lora_forward(self: LoraLinear, x: Tensor, *_: Any, **__: Any) -> Tensor:
    name = self.active_adapters[0]
    base = self.get_base_layer()
    if self.disable_adapters or self.merged:
        return functional.linear(x, base.weight, base.bias)
    drop = self.lora_dropout[name]
    rate = drop.p if isinstance(drop, nn.Dropout) and self.training else 0.0
    weights = (self.lora_A[name].weight, self.lora_B[name].weight)
    out: Tensor = _Lora.apply(  # type: ignore[no-untyped-call]
        x, base.weight, base.bias, *weights, self.scaling[name], rate
    )
    return out


class _Lora(torch.autograd.Function):
    """y = x Wᵀ + c + scale · drop(x) Aᵀ Bᵀ, with W and c frozen. x is [..., in], A [rank, in], B [out, rank]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, rate: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        dropped, kept = torch.native_dropout(flat, rate, True) if rate else (flat, None)
        inner = functional.linear(dropped, a.to(x.dtype))
        y = functional.linear(flat, weight, bias).addmm_(inner, b.to(x.dtype).t(), alpha=scale)
        ctx.save_for_backward(flat, kept, inner, weight, a, b)
        ctx.scale, ctx.rate, ctx.shape = scale, rate, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        flat, kept, inner, weight, a, b = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        d_inner = (grad @ b.to(grad.dtype)).mul_(ctx.scale)
        d_b = (grad.t() @ inner).mul_(ctx.scale).to(b.dtype)
        dropped = flat if kept is None else flat * kept / (1 - ctx.rate)
        d_a = (d_inner.t() @ dropped).to(a.dtype)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = grad @ weight
            if kept is None:
                d_x.addmm_(d_inner, a.to(grad.dtype))
            else:
                d_x.addcmul_(d_inner @ a.to(grad.dtype), kept.to(grad.dtype), value=1 / (1 - ctx.rate))
            d_x = d_x.view(ctx.shape)
        return d_x, None, None, d_a, d_b, None, None


# --- loss of trained tokens ------------------------------------------------------------------------------------------


def cross_entropy(hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
    """Summed cross-entropy of hidden [n, d] through a frozen head [V, d] against target ids [n]; a float32 scalar.

    The gradient is made in the forward pass, slice by slice, so that no more than SLICE_BYTES of logits exist.
    """
    loss: Tensor = _CrossEntropy.apply(hidden, head, target)  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        d_hidden = torch.empty_like(hidden)
        rows = max(1, SLICE_BYTES // (4 * head.shape[0]))
        for start in range(0, len(hidden), rows):
            piece = slice(start, start + rows)
            ids = target[piece, None]
            logits = functional.linear(hidden[piece], head).to(exact)
            norm = logits.logsumexp(1, keepdim=True)
            total += (norm - logits.gather(1, ids)).sum()
            if not ctx.needs_input_grad[0]:
                continue
            slope = logits.sub_(norm).exp_()  # d loss / d logits = softmax − one-hot
            slope.scatter_add_(1, ids, torch.full_like(norm, -1))
            torch.mm(slope.to(head.dtype), head, out=d_hidden[piece])
        ctx.save_for_backward(d_hidden)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (d_hidden,) = ctx.saved_tensors
        return d_hidden * grad.to(d_hidden.dtype), None, None
