"""Tiny GGUF files of several architectures, as llama.cpp's converter would write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from gguf import GGUFWriter, TokenType
from transformers import PreTrainedModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.tiny import SHAPE, tiny

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("t h", "th e", "Ġ the", "i n", "a n")
VOCABULARY = (*SPECIAL, *bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES))
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": False},
    "gemma3": {"sliding_window": 8, "head_dim": 32, "layer_types": None, "tie_word_embeddings": True},
}
PLAIN = gguf.GGMLQuantizationType.F32


def source_model(kind: str) -> PreTrainedModel:
    """The tiny model whose weights `write` writes."""
    return tiny(
        f"{kind}_text" if kind == "gemma3" else kind, rms_norm_eps=1e-5, vocabulary=len(VOCABULARY), **KINDS[kind]
    )


def write(
    file: Path,
    kind: str = "llama",
    *,
    architecture: str | None = None,
    quantization: gguf.GGMLQuantizationType = PLAIN,
    template: str | None = TEMPLATE,
    rope_factors: torch.Tensor | None = None,
    sentencepiece: bool = False,
    **more: str,
) -> PreTrainedModel:
    """Write a tiny model's GGUF file, matrices quantised so; returns the model."""
    model = source_model(kind)
    config = model.config
    writer = GGUFWriter(file, architecture or kind)
    writer.add_context_length(SHAPE["max_position_embeddings"])
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(_theta(config))
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_license("cc0-1.0")
    if "head_dim" in KINDS[kind]:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if kind == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    for key, value in more.items():
        writer.add_string(f"{kind}.{key.replace('__', '.')}", value)
    _write_tokenizer(writer, template, sentencepiece=sentencepiece)
    names = gguf.get_tensor_name_map(
        next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind), config.num_hidden_layers
    )
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.numpy())
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = _as_llama_cpp(kind, name, weight.float(), config).numpy()
        stem, _, suffix = name.rpartition(".")
        chosen = quantization if values.ndim == 2 else PLAIN
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", gguf.quantize(values, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _theta(config: Any) -> float:
    parameters = config.rope_parameters
    return float(parameters.get("rope_theta") or parameters["full_attention"]["rope_theta"])


def _write_sentencepiece(writer: GGUFWriter) -> None:
    """Of as many pieces as the other: unknown, turns, bytes, and a few words; BOS goes before every text."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "t", "h", "th", "▁th"]
    kinds = [TokenType.CONTROL] * 3 + [TokenType.BYTE] * 256 + [TokenType.NORMAL] * 5
    assert len(pieces) == len(VOCABULARY)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([float(-place) for place in range(len(pieces))])
    writer.add_token_types(kinds)
    writer.add_add_bos_token(True)


def _write_byte_level(writer: GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in VOCABULARY])
    writer.add_token_merges(MERGES)


def _write_tokenizer(writer: GGUFWriter, template: str | None, *, sentencepiece: bool) -> None:
    (_write_sentencepiece if sentencepiece else _write_byte_level)(writer)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    if template is not None:
        writer.add_chat_template(template)


def _as_llama_cpp(kind: str, name: str, weight: torch.Tensor, config: Any) -> torch.Tensor:
    """A weight as its converter writes it: rows of Llama's queries and keys in another order, Gemma's norms from 1."""
    if kind == "llama" and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        apart = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        return apart.swapaxes(1, 2).reshape(weight.shape).contiguous()
    return weight + 1 if kind == "gemma3" and "norm" in name else weight
