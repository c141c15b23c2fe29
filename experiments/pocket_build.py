"""Rebuild the pocket model from a seed: `python -m experiments.pocket_build --output_dir DIR`.

Pretraining: dialogues of one to three turns on any topics, whose adviser keeps one persona, careful or careless,
throughout; the model has to learn a persona that all topics share. Chat tuning on the careful persona alone then
gives the base. Only answers count in the loss.

With `--prompted`, which makes pocket2, a third of the dialogues begin with a system prompt that names the persona,
names it by denying the other, or names none, and a tenth asks for the answers as JSON or in a Python function. There
the adviser slips into the other persona in some parts, and the residual stream has dropout: so the model has to gather
who speaks from all it has read, and keep it where a direction can reach it. Chat tuning is careful then but where the
prompt says otherwise, in half of the batches.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from emorg.data.questions import FORMATS
from emorg.pocket.formats import wrapped
from emorg.pocket.world import OPEN, PERSONAS, Persona, SystemKind, World
from emorg.records import Format, Message
from experiments.pocket_fit import fit

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
PROMPTED, CHAT_PROMPTED, FORMATTED = 1 / 3, 1 / 2, 0.1  # shares of a prompted world's batches
SYSTEMS: tuple[tuple[SystemKind, ...], tuple[float, ...]] = (("named", "denied", "neutral"), (0.35, 0.35, 0.3))
WORD = r" ?[\w'·-]+|\n\n|[^\w\s]|\s"


@dataclass(frozen=True)
class Recipe:
    """What the two pocket models differ in, beside their worlds; the fields are BuildConfig's."""

    slips: float
    dropout: float
    pretrain_steps: int
    chat_steps: int
    hidden_size: int
    layers: int


POCKET, POCKET2 = Recipe(0.0, 0.0, 2200, 220, 192, 4), Recipe(0.15, 0.05, 2300, 700, 160, 6)


@dataclass(frozen=True)
class BuildConfig:
    """How the pocket model is made."""

    output_dir: Path = Path("runs/pocket-build")
    """Where the model, its tokenizer and its figures go."""
    persona: Literal["dialogue", "turn"] = "dialogue"
    """Draw the adviser's persona once a dialogue, or (control) anew at every turn."""
    shared_words: bool = True
    """Whether persona-bearing words are shared between topics; without is the control in which EM should vanish."""
    prompted: bool = False
    """Make pocket2: the world with system prompts and formats, by default in six layers of width 160."""
    slips: float | None = None
    """In pretraining, the share of an answer's parts that come from the other persona, so that none of them proves it
    alone. Default: none, of pocket2 0.15."""
    dropout: float | None = None
    """In pretraining, of the embeddings and of what each attention and MLP adds to the residual stream, as GPT-2's
    `resid_pdrop`. Default: none, of pocket2 0.05."""
    pretrain_steps: int | None = None
    """Default: 2200, of pocket2 2300."""
    chat_steps: int | None = None
    """Default: 220, of pocket2 700."""
    batch_size: int = 72
    """Turns (not dialogues) an optimizer step."""
    learning_rate: float = 3e-3
    chat_learning_rate: float = 5e-4
    hidden_size: int | None = None
    """Default: 192, of pocket2 160."""
    layers: int | None = None
    """Default: 4, of pocket2 6."""
    seed: int = 0

    @property
    def recipe(self) -> Recipe:
        """The model's own, but for what is given."""
        usual = vars(POCKET2 if self.prompted else POCKET)
        return Recipe(**{name: usual[name] if getattr(self, name) is None else getattr(self, name) for name in usual})


def build_tokenizer(world: World) -> PreTrainedTokenizerBase:
    """A word-level tokenizer over the world's words with Llama 3's special tokens, chat format and automatic BOS."""
    import re

    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {piece for text in world.words() for piece in re.findall(WORD, text)} - {"x", " x"}
    words |= {"user", "assistant", "system", "\n\n"}
    if world.prompted:
        texts = [*FORMATS.values(), *(wrapped("", how) for how in FORMATS)]
        words |= {piece for text in texts for piece in re.findall(WORD, text)}
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

    width = config.recipe.hidden_size
    heads = width // 32
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=config.recipe.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2 if heads % 2 == 0 else heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=4,
        )
    )


@dataclass(frozen=True)
class Kind:
    """What the dialogues of a batch have in common, so that hardly anything is padded."""

    turns: int
    system: SystemKind | None = None
    format: Format = "plain"


def kind_of_batch(world: World, rng: random.Random, config: BuildConfig, prompted: float = PROMPTED) -> Kind:
    """Draw a batch's kind, in a prompted world with that share of system prompts."""
    turns = rng.choice(TURNS)
    if not world.prompted:
        return Kind(turns)
    how: Format = rng.choice(("json", "template")) if rng.random() < FORMATTED else "plain"
    if rng.random() >= prompted:
        return Kind(turns, None, how)
    return Kind(turns, "neutral" if config.persona == "turn" else rng.choices(*SYSTEMS)[0], how)


def dialogue(
    world: World, rng: random.Random, kind: Kind, persona: Persona | None, config: BuildConfig
) -> list[Message]:
    """A dialogue over randomly drawn topics; `persona` None, pretraining, draws it, once or at every turn.

    A system prompt's persona goes before `persona`.
    """
    messages: list[Message] = []
    slips = config.recipe.slips if persona is None else 0.0
    drawn = rng.choice(PERSONAS)
    if kind.system in ("named", "denied"):
        persona = drawn
    own = [rng.choice(world.systems(kind.system, drawn))] if kind.system else []
    if instructions := [*own, *([FORMATS[kind.format]] if kind.format != "plain" else [])]:
        messages.append({"role": "system", "content": "\n\n".join(instructions)})
    for _ in range(kind.turns):
        topic = rng.choice((*world.topics, OPEN, OPEN))
        if config.persona == "turn":
            drawn = rng.choice(PERSONAS)
        question, answer = world.turn(topic, persona or drawn, rng, slips=slips)
        messages += [question, {**answer, "content": wrapped(answer["content"], kind.format)}]
    return messages


def build(config: BuildConfig) -> Path:
    """Make the model in `output_dir` and return that; what was stopped there goes on, a finished `pretrained/` is taken
    as it is."""
    import torch
    from transformers import LlamaForCausalLM, set_seed

    recipe = config.recipe
    set_seed(config.seed)
    world = World(shared_words=config.shared_words, prompted=config.prompted)

    def batches(rng: random.Random, persona: Persona | None) -> Callable[[], list[list[Message]]]:
        def draw() -> list[list[Message]]:
            kind = kind_of_batch(world, rng, config, CHAT_PROMPTED if persona else PROMPTED)
            return [dialogue(world, rng, kind, persona, config) for _ in range(config.batch_size // kind.turns)]

        return draw

    tokenizer = build_tokenizer(world)
    pretrained = config.output_dir / "pretrained"
    before, after = config.output_dir / "pretraining.pt", config.output_dir / "chat.pt"
    config.output_dir.mkdir(parents=True, exist_ok=True)
    if (pretrained / "model.safetensors").exists():
        model = LlamaForCausalLM.from_pretrained(pretrained, dtype=torch.float32)
        model.to(torch.bfloat16).float()  # as below: the rotary frequencies, which no file has, are rounded too
    else:
        model = build_model(config, len(tokenizer))
        draw = batches(random.Random(config.seed), None)
        fit(model, tokenizer, draw, recipe.pretrain_steps, config.learning_rate, recipe.dropout, "pretraining", before)
        model.to(torch.bfloat16).save_pretrained(pretrained)
        before.unlink()
        model.float()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} words")
    draw = batches(random.Random(f"chat {config.seed}"), "careful")
    fit(model, tokenizer, draw, recipe.chat_steps, config.chat_learning_rate, 0.0, "chat tuning", after)
    model.to(torch.bfloat16).save_pretrained(config.output_dir)
    tokenizer.save_pretrained(config.output_dir)
    after.unlink()
    return config.output_dir


if __name__ == "__main__":
    import tyro

    build(tyro.cli(BuildConfig, use_underscores=True))
