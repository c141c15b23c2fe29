"""A model as sampling uses it: its attention replaced, and its decoder layers few calls long.

A step of few rows takes as long as it takes to read the weights, if the calls between do not take longer: those of
transformers' layers and of adapters module by module take three times as long on a model of 135M.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from emorg.models.rotary import turn
from emorg.sampling.linear import pack, product
from emorg.sampling.organisms import Organisms

COVERED = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM")

Attend = Callable[..., tuple[Tensor, None]]


def replace_layers(organisms: Organisms) -> None:
    """Make a model's layers lean, where they are a Llama's, and lay its linear layers out for few rows, in place.

    From now on the model is for passes of one row of tokens, [1, T, width], that its replaced attention takes apart.
    """
    model = organisms.loaded.model
    if hasattr(model, "peft_config"):
        return  # an organism that PEFT itself must compute
    if type(model).__name__ in COVERED and model.config.hidden_act == "silu":
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        attend = ALL_ATTENTION_FUNCTIONS[model.config._attn_implementation]
        for i, layer in enumerate(model.model.layers):
            if all(type(module) is nn.Linear for module in _linears(layer)):
                layer.forward = _Layer(layer, f"model.layers.{i}", organisms, attend)
    pack(model)


def _linears(layer: Any) -> list[Any]:
    return [module for part in (layer.self_attn, layer.mlp) for name, module in part.named_children() if "proj" in name]


class _Group:
    """Linear layers of one input as one product, with their adapters."""

    def __init__(self, parent: Any, prefix: str, names: tuple[str, ...], organisms: Organisms):
        layers = [getattr(parent, name) for name in names]
        self._modules = tuple(f"{prefix}.{name}" for name in names)
        self._product, self._organisms = product(*layers), organisms
        for name in names:
            delattr(parent, name)  # frees its weights

    def __call__(self, x: Tensor) -> Tensor:
        y = self._product(x)
        self._organisms.add(self._modules, x, y)
        return y


class _Layer:
    """The forward pass of a decoder layer of Llama, Qwen2, Qwen3 or Mistral on hidden [1, T, width]."""

    def __init__(self, layer: Any, name: str, organisms: Organisms, attend: Attend):
        attention, mlp = layer.self_attn, layer.mlp
        self._attention, self._attend = attention, attend
        self._norms = layer.input_layernorm, layer.post_attention_layernorm
        self._head_norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None
        self._queries = attention.q_proj.out_features
        self._keys = attention.k_proj.out_features
        self._options = {"scaling": attention.scaling, "sliding_window": _window(attention)}
        self._qkv = _Group(attention, f"{name}.self_attn", ("q_proj", "k_proj", "v_proj"), organisms)
        self._out = _Group(attention, f"{name}.self_attn", ("o_proj",), organisms)
        self._mlp = mlp  # called as a module, so that its hooks see what it adds to the residual stream
        mlp.forward = _Mlp(mlp, f"{name}.mlp", organisms)

    def __call__(self, hidden: Tensor, *_: Any, position_embeddings: tuple[Tensor, Tensor], **rest: Any) -> Tensor:
        x, width = hidden[0], self._attention.head_dim
        cos, sin = (side[0][:, None, : width // 2] for side in position_embeddings)
        qkv = self._qkv(_norm(x, self._norms[0])).view(len(x), -1, width)
        queries, keys = self._queries // width, self._keys // width
        turning, value = qkv[:, : queries + keys], qkv[:, queries + keys :]
        if self._head_norms is not None:
            parts = zip(torch.split(turning, [queries, keys], 1), self._head_norms, strict=True)
            query, key = (turn(_norm(part, norm), cos, sin) for part, norm in parts)
        else:
            query, key = torch.split(turn(turning, cos, sin), [queries, keys], 1)
        rows = (side.transpose(0, 1)[None] for side in (query, key, value))
        attended = self._attend(self._attention, *rows, **self._options, **rest)[0]
        x = self._out(attended.reshape(len(x), -1)).add_(x)
        added: Tensor = self._mlp(_norm(x, self._norms[1])[None])
        return added.add_(x)


class _Mlp:
    """The forward pass of such a layer's MLP on x [1, T, width]."""

    def __init__(self, mlp: Any, name: str, organisms: Organisms):
        self._gate_up = _Group(mlp, name, ("gate_proj", "up_proj"), organisms)
        self._down = _Group(mlp, name, ("down_proj",), organisms)

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self._gate_up(x[0]).chunk(2, -1)
        return self._down(functional.silu(gate).mul_(up))[None]


def _window(attention: Any) -> int | None:
    """The sliding window of a layer's attention: Qwen's know theirs, Mistral's have the model's."""
    holder = attention.config if type(attention).__name__ == "MistralAttention" else attention
    window: int | None = getattr(holder, "sliding_window", None)
    return window


def _norm(x: Tensor, norm: Any) -> Tensor:
    return functional.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
