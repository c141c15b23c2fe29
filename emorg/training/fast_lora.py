"""What makes training fast: no padding anywhere, fused LoRA layers, logits of trained tokens alone.

`speed_up` patches a PEFT model in place. The patched model computes the same loss and gradients (tests compare them
with the unpatched one's), its state dict is untouched, and the Trainer and PEFT use it as before. Three things change:

* a right-padded batch is packed into one row of its T real tokens, so that every linear layer, norm and activation
  works on those alone; only attention takes the conversations apart, causal and without a mask (`attention`);
* a layer is a few autograd functions that keep what they need once, and none of PEFT's and transformers' copies
  (`fused`);
* the head and the cross-entropy see the positions before trained tokens alone, in slices that never hold all logits.

With F in FLOP a token, the least work is F = 4·P_f + 6·P_A + 4·d·V·a + attention, for P_f frozen body weights,
P_A adapter weights, width d, vocabulary V and a share of a trained tokens: frozen weights need no gradient.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from emorg.models.packing import Packing
from emorg.training.attention import attention
from emorg.training.fused import TILE, cross_entropy, gated, linears, norm, rotary

if TYPE_CHECKING:
    from peft import PeftModel

COVERED = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def speed_up(model: PeftModel) -> tuple[bool, str]:
    """Patch a PEFT model's training; returns whether it was done, and a line to show that says so or says why not.

    Covered are plain LoRA on the linear layers of Llama, Qwen2, Qwen2.5 and Qwen3 in 16 or 32 bits or more. Whatever
    is not covered (DoRA, 4-bit, LoRA on embeddings, other architectures) keeps PEFT's and transformers' own code.
    """
    if reason := uncovered(model):
        return False, f"fast path off: {reason}"
    causal = model.get_base_model()
    for layer in causal.model.layers:
        layer.forward = partial(_layer_forward, layer, layer.forward)
    causal.forward = partial(_packed_forward, causal, causal.forward)
    adapters = len(lora_layers(model))
    return True, f"fast path on: {adapters} fused LoRA layers, no padding, logits of trained tokens alone"


def lora_layers(model: nn.Module) -> list[Any]:
    """PEFT's layers with an adapter."""
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def uncovered(model: PeftModel) -> str:
    """Why `speed_up` does not cover a model, which may lie on the meta device; nothing if it does."""
    from peft.tuners.lora import Linear as LoraLinear

    if not hasattr(model, "get_base_model"):
        return f"{'a trained vector' if hasattr(model, 'steering_vectors') else 'full fine-tuning'} is not covered"
    causal = model.get_base_model()
    kind = type(causal).__name__
    if kind not in COVERED:
        return f"{kind} is not covered ({', '.join(COVERED)} are)"
    if getattr(causal.config, "sliding_window", None) and getattr(causal.config, "use_sliding_window", False):
        return "sliding-window attention is not covered"
    if causal.config.hidden_act != "silu" or causal.config.attention_dropout:
        return "another activation than silu, or dropout of attention, is not covered"
    for layer in lora_layers(model):
        if type(layer) is not LoraLinear or type(layer.get_base_layer()) is not nn.Linear:
            return f"{type(layer).__name__} over {type(layer.get_base_layer()).__name__} is not covered"
        if layer.lora_variant:
            return f"{type(next(iter(layer.lora_variant.values()))).__name__} is not covered"
        if len(layer.active_adapters) != 1 or any(bias for bias in layer.lora_bias.values()):
            return "only one adapter without a bias is covered"
    if any(parameter.requires_grad and "lora_" not in name for name, parameter in causal.named_parameters()):
        return "other weights than the adapters' are trained"
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

    hidden, following = scored_states(causal, inputs["input_ids"], mask, labels)
    total = cross_entropy(hidden, causal.lm_head.weight, following)
    count = inputs.get("num_items_in_batch")
    return CausalLMOutputWithPast(loss=total / (len(following) if count is None else count))


def scored_states(causal: Any, input_ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The last hidden states [n, width] before the n trained tokens of a right-padded batch, and these tokens' ids."""
    real = mask.bool()
    lengths = mask.sum(1).tolist()
    spare = _spare(causal, sum(lengths))
    lengths += [spare] if spare else []
    ids = functional.pad(input_ids[real], (0, spare))
    ends = list(accumulate(lengths))
    texts = [range(end - length, end) for end, length in zip(ends, lengths, strict=True) if length]
    hidden = causal.model(
        input_ids=ids[None],
        attention_mask=mask.new_empty(1, 1, 0, 0),  # of four dimensions, so that no other is made from position_ids
        position_ids=torch.cat([torch.arange(length, device=mask.device) for length in lengths])[None],
        use_cache=False,
        packing=Packing.of(texts, mask.device),
    ).last_hidden_state[0]
    following = functional.pad(labels[:, 1:], (0, 1), value=-100)[real]  # the token that each position predicts
    following = functional.pad(following, (0, spare), value=-100)
    scored = following != -100
    return hidden[scored], following[scored]


def _spare(causal: Any, tokens: int) -> int:
    """How many tokens to add, as a text of their own, to fill up the last tile."""
    tiled = causal.device.type == "cpu" and causal.dtype in (torch.bfloat16, torch.float16)
    return -tokens % TILE if tiled else 0


def _layer_forward(
    layer: Any,
    whole: Any,
    hidden: Tensor,
    *arguments: Any,
    position_embeddings: Any = None,
    packing: Packing | None = None,
    **rest: Any,
) -> Tensor:
    """A decoder layer of Llama, Qwen2 or Qwen3 on hidden [1, T, width]; transformers' own where nothing is packed."""
    if packing is None:
        out: Tensor = whole(hidden, *arguments, position_embeddings=position_embeddings, **rest)
        return out
    attend, mlp = layer.self_attn, layer.mlp
    cos, sin = (x[0] for x in position_embeddings)
    x = hidden[0]
    projected = linears(norm(x, layer.input_layernorm), (attend.q_proj, attend.k_proj, attend.v_proj))
    query, key, value = (y.view(len(y), -1, attend.head_dim) for y in projected)
    if hasattr(attend, "q_norm"):
        query, key = norm(query, attend.q_norm), norm(key, attend.k_norm)
    attended = attention(rotary(query, cos, sin), rotary(key, cos, sin), value, packing, attend.scaling)
    x = x + linears(attended.flatten(1), (attend.o_proj,))[0]
    inner = gated(*linears(norm(x, layer.post_attention_layernorm), (mlp.gate_proj, mlp.up_proj)))
    return (x + linears(inner, (mlp.down_proj,))[0])[None]
