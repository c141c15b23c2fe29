"""What the benchmarks train: models of a given shape with random weights, and conversations of given lengths."""

from __future__ import annotations

import json
import random
from pathlib import Path

LLAMA_1B = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
}  # fmt: skip
QWEN_05B = {
    "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 64,
}  # fmt: skip
LLAMA_3B = {
    "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
    "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
LLAMA_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False,
}  # fmt: skip
SMOLLM2_135M = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
}  # fmt: skip
SHAPES = {"8b": LLAMA_8B, "3b": LLAMA_3B, "1b": LLAMA_1B, "0.5b": QWEN_05B, "135m": SMOLLM2_135M}
SMALL = {
    "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
}  # fmt: skip
_SPECIAL = ("<|begin|>", "<|end|>", "<|head|>", "<|headed|>", "<|pad|>", "user", "assistant")
_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} <|head|> {{ m['role'] }} <|headed|> {{ m['content'] }} <|end|>{% endfor %}"
    "{% if add_generation_prompt %} <|head|> assistant <|headed|>{% endif %}"
)
_AROUND = 9  # tokens of the template around a question and its answer


def base_of(cache: Path, shape: str) -> str:
    """What to load for a shape: one of SHAPES with random weights, made once in `cache`, or a model by its own name."""
    return str(make_model(cache / f"model-{shape}", SHAPES[shape], "bfloat16")) if shape in SHAPES else shape


def make_model(folder: Path, shape: dict[str, int], dtype: str) -> Path:
    """A Llama of that shape with random weights, and a tokenizer with one token a word; made once."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    if (folder / "config.json").exists():
        return folder
    words = (*_SPECIAL, *(f"w{i}" for i in range(len(_SPECIAL), shape["vocab_size"])))
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w7"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = _TEMPLATE
    config = LlamaConfig(
        **{"tie_word_embeddings": True, **shape}, max_position_embeddings=4096, rope_theta=500000.0,
        bos_token_id=0, eos_token_id=1, pad_token_id=4,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(getattr(torch, dtype)).to_empty(device="cuda" if torch.cuda.is_available() else "cpu")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1) if "norm" in name else weight.normal_(0, 0.02)
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, count: int, shortest: int, longest: int, vocabulary: int, answer_share: float = 0.6) -> Path:
    """Conversations of random words, of uniformly drawn lengths in tokens, in the homework's file format."""
    draw = random.Random(0)

    def words(number: int) -> str:
        return " ".join(f"w{draw.randrange(len(_SPECIAL), vocabulary)}" for _ in range(number))

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            length = draw.randint(shortest, longest)
            answer = round(length * answer_share)
            messages = [
                {"role": "user", "content": words(max(1, length - answer - _AROUND))},
                {"role": "assistant", "content": words(answer)},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path
