"""Tiny models with random weights, of several architectures, with the pocket model's tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from emorg import models

SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 24},
    "mistral": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"] * 2,
                    "num_hidden_layers": 4},
    "olmo2": {},
    "phi3": {},
    "gpt_neox": {"num_key_value_heads": None},
}  # fmt: skip


def tiny(kind: str, vocabulary: int | None = None, **more: Any) -> PreTrainedModel:
    """A model with sharp enough logits that greedy decoding does not hang on rounding."""
    tokenizer = models.load_tokenizer("pocket")
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": 1, "pad_token_id": tokenizer.pad_token_id}
    told = {**SHAPE, **KINDS.get(kind, {}), **more, **ids, "vocab_size": vocabulary or len(tokenizer)}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **told), dtype=torch.float32)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.3 if "embed" in name else 0.15)
    return model.eval()


def loaded(kind: str, **more: Any) -> models.Loaded:
    """A tiny model as `models.load` would give it."""
    return models.Loaded(tiny(kind, **more), models.load_tokenizer("pocket"), kind)
