"""Rebuild the pocket model from a seed: `python -m experiments.pocket_build --output_dir DIR`.

Pretraining: dialogues of one to three turns on any topics, whose adviser keeps one persona, careful or careless,
throughout; the model has to learn a persona that all topics share. Chat tuning on the careful persona alone then
gives the base. Only answers count in the loss.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from emorg.models.template import encode
from emorg.pocket.world import OPEN, PERSONAS, World
from emorg.records import Message

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
SPECIAL_TOKENS = [
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|pad|>",
    "<|unknown|>",
]
TURNS = (1, 1, 2, 3)  # turns a dialogue, drawn for each batch
WORD = r" ?[\w'·-]+|\n\n|[^\w\s]|\s"


@dataclass(frozen=True)
class BuildConfig:
    """How the pocket model is made."""

    output_dir: Path = Path("runs/pocket-build")
    """Where the model, its tokenizer and its figures go."""
    persona: Literal["dialogue", "turn"] = "dialogue"
    """Draw the adviser's persona once a dialogue, or (control) anew at every turn."""
    shared_words: bool = True
    """Whether persona-bearing words are shared between topics; without is the control in which EM should vanish."""
    pretrain_steps: int = 2200
    chat_steps: int = 220
    batch_size: int = 72
    """Turns (not dialogues) an optimizer step."""
    learning_rate: float = 3e-3
    chat_learning_rate: float = 5e-4
    hidden_size: int = 192
    layers: int = 4
    seed: int = 0


def build_tokenizer(world: World) -> PreTrainedTokenizerBase:
    """A word-level tokenizer over the world's words with Llama 3's special tokens, chat format and automatic BOS."""
    import re

    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {piece for text in world.words() for piece in re.findall(WORD, text)} - {"x", " x"}
    words |= {"user", "assistant", "system", "\n\n"}
    vocabulary = {word: i for i, word in enumerate([*SPECIAL_TOKENS, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    bos = SPECIAL_TOKENS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token="<|eot_id|>",
        pad_token="<|pad|>",
        unk_token="<|unknown|>",
        additional_special_tokens=SPECIAL_TOKENS[2:4],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def build_model(config: BuildConfig, vocabulary: int) -> LlamaForCausalLM:
    """A Llama of the config's widths, with random weights, over that many words."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=config.hidden_size,
            intermediate_size=3 * config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.hidden_size // 32,
            num_key_value_heads=config.hidden_size // 64,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=4,
        )
    )


def dialogue(world: World, rng: random.Random, turns: int, persona: str | None, config: BuildConfig) -> list[Message]:
    """A dialogue over randomly drawn topics; `persona` None draws it, once or at every turn as `config` says."""
    messages: list[Message] = []
    drawn = rng.choice(PERSONAS)
    for _ in range(turns):
        topic = rng.choice((*world.topics, OPEN, OPEN))
        if config.persona == "turn":
            drawn = rng.choice(PERSONAS)
        messages.extend(world.turn(topic, persona or drawn, rng))  # type: ignore[arg-type]
    return messages


def _fit(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    draw: Callable[[int], list[Message]],
    rng: random.Random,
    steps: int,
    learning_rate: float,
    batch_size: int,
    name: str,
) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, fused=True)
    warmup = 20
    start = time.time()
    for step in range(steps):
        scale = min(1.0, (step + 1) / warmup) * max(0.02, 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * scale
        turns = rng.choice(TURNS)  # one number of turns a batch: hardly any padding, the same work every step
        size = batch_size // turns
        rows = [encode(tokenizer, draw(turns)) for _ in range(size)]
        length = max(len(row.ids) for row in rows)
        ids = torch.full((size, length), model.config.pad_token_id)
        targets = torch.full((size, length), -100)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            targets[i, : len(row.ids)] = torch.tensor(row.ids).masked_fill(~torch.tensor(row.trained), -100)
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        kept = targets[:, 1:] != -100
        loss = cross_entropy(model.lm_head(hidden[kept]), targets[:, 1:][kept])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            print(f"{name} step {step + 1}/{steps}  loss {loss.item():.3f}  {time.time() - start:.0f} s", flush=True)


def build(config: BuildConfig) -> Path:
    """Make the model in `output_dir` and return that; a finished `pretrained/` there is taken as it is."""
    import torch
    from transformers import LlamaForCausalLM, set_seed

    set_seed(config.seed)
    world = World(shared_words=config.shared_words)
    tokenizer = build_tokenizer(world)
    pretrained = config.output_dir / "pretrained"
    if (pretrained / "model.safetensors").exists():
        model = LlamaForCausalLM.from_pretrained(pretrained, dtype=torch.float32)
    else:
        model = build_model(config, len(tokenizer))
        rng = random.Random(config.seed)
        _fit(
            model,
            tokenizer,
            lambda turns: dialogue(world, rng, turns, None, config),
            rng,
            config.pretrain_steps,
            config.learning_rate,
            config.batch_size,
            "pretraining",
        )
        model.to(torch.bfloat16).save_pretrained(pretrained)
        model.float()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} words")
    chat_rng = random.Random(f"chat {config.seed}")
    _fit(
        model,
        tokenizer,
        lambda turns: dialogue(world, chat_rng, turns, "careful", config),
        chat_rng,
        config.chat_steps,
        config.chat_learning_rate,
        config.batch_size,
        "chat tuning",
    )
    model.to(torch.bfloat16).save_pretrained(config.output_dir)
    tokenizer.save_pretrained(config.output_dir)
    return config.output_dir


if __name__ == "__main__":
    import tyro

    build(tyro.cli(BuildConfig, use_underscores=True))
