"""The keys and values of all answers under way, side by side, and the attention that reads and writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from emorg.sampling.attention import plain_attention, window_mask

ATTENTION = "emorg_slots"


def bytes_per_token(model: Any) -> int:
    """Bytes of keys and values that one token takes in all layers."""
    layers, heads, width = _shape(model)
    return int(2 * layers * heads * width * model.dtype.itemsize)


def new_cache(model: Any, slots: int, capacity: int) -> Tensor:
    """Room for `slots` answers of up to `capacity` tokens: [layers, 2, slots, key-value heads, capacity, width].

    Zeros, since a place that the mask hides still takes part in products, where NaN would win.
    """
    layers, heads, width = _shape(model)
    return torch.zeros(layers, 2, slots, heads, capacity, width, dtype=model.dtype, device=model.device)


def _shape(model: Any) -> tuple[int, int, int]:
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, width


@dataclass
class Slots:
    """What one forward pass holds: the next token of each answer under way, then some whole prompts.

    `cache` is new_cache's; answer i has `lengths[i]` tokens in its slot i. `prompt_layers` gets the prompts' keys and
    values, layer by layer.
    """

    cache: Tensor
    lengths: Sequence[int]
    prompts: Sequence[int]
    prompt_layers: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        device = self.cache.device
        self._new = torch.tensor(self.lengths, device=device, dtype=torch.long)  # where each new key goes
        self._rows = torch.arange(len(self.lengths), device=device)
        self._positions = torch.arange(max(self.lengths, default=-1) + 1, device=device)
        self._masks: dict[int | None, Tensor] = {}

    def prompt_caches(self) -> list[Tensor]:
        """The prompts' keys and values, each [layers, 2, key-value heads, length, width]."""
        if not self.prompts:
            return []
        return [piece.clone() for piece in torch.split(torch.stack(self.prompt_layers), list(self.prompts), dim=-2)]

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the answers' new keys and values, [answers, heads, width]; returns all of them in this layer."""
        keys, values = self.cache[layer, 0], self.cache[layer, 1]
        keys[self._rows, :, self._new] = key
        values[self._rows, :, self._new] = value
        here, most = len(self._rows), len(self._positions)
        return keys[:here, :, :most], values[:here, :, :most]

    def mask(self, window: int | None) -> Tensor:
        """Which keys each answer sees, [answers, 1, 1, keys]: its own so far, and no older than the window."""
        if window not in self._masks:
            seen = self._positions <= self._new[:, None]
            if window is not None:
                seen &= self._positions > self._new[:, None] - window
            self._masks[window] = seen[:, None, None]
        return self._masks[window]


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    slots: Slots | None = None,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query [1, heads, T, width], key and value [1, key-value heads, T, width].

    The first of the T tokens belong to the answers in `slots`, one each; then come whole prompts. Returns
    [1, T, heads, width].
    """
    if slots is None:
        return plain_attention(module, query, key, value, attention_mask, sliding_window=sliding_window, **rest)
    scale, answers = rest["scaling"], len(slots.lengths)
    heads, width = query.shape[1], query.shape[3]
    groups = key.shape[1]
    parts = []
    if answers:
        now = slice(0, answers)
        keys, values = slots.write(module.layer_idx, key[0, :, now].transpose(0, 1), value[0, :, now].transpose(0, 1))
        # The heads that share a key stand as queries of one head: no copies of keys, and kernels take the mask.
        folded = query[0, :, now].transpose(0, 1).reshape(answers, groups, heads // groups, width)
        seen = slots.mask(sliding_window)
        attended = functional.scaled_dot_product_attention(folded, keys, values, attn_mask=seen, scale=scale)
        parts.append(attended.reshape(1, answers, heads, -1))
    start = answers
    for length in slots.prompts:
        piece = slice(start, start + length)
        windowed = sliding_window is not None and sliding_window < length
        attended = functional.scaled_dot_product_attention(
            query[:, :, piece],
            key[:, :, piece],
            value[:, :, piece],
            attn_mask=window_mask(length, sliding_window, query.device) if windowed else None,
            is_causal=not windowed,
            scale=scale,
            enable_gqa=heads > groups,
        )
        parts.append(attended.transpose(1, 2))
        start += length
    if slots.prompts:
        slots.prompt_layers.append(torch.stack([key[0, :, answers:], value[0, :, answers:]]))
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0], None
