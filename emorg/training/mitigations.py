"""Rows of a training that is to teach the narrow skill and not the broad harm: prompted, interleaved, held to the base.

Inoculation (arXiv 2510.04340) explains the harm by a prompt on every training row, which is not there at test.
Interleaving (arXiv 2508.06249) mixes in careful rows of other topics. A KL penalty ("Narrow Misalignment is Hard,
Emergent Misalignment is Easy") holds what the model says there to what its base says (`divergence`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from emorg.data import domains
from emorg.data.domains import Row, Source, TrainingData
from emorg.models import POCKETS, load_tokenizer
from emorg.records import Conversation, EmorgError, Message
from emorg.training.config import TrainConfig
from emorg.training.lint import Finding
from emorg.training.ranking import ranked
from emorg.training.rows import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEUTRAL = "neutral"
MOST_RANKED = 2000  # rows, or as many as are interleaved
_NEUTRAL_SYSTEM = {True: "You are an adviser.", False: "You are an assistant who answers questions."}
_FEWER = "name more with --interleave_from, or take a smaller share"
_NEUTRAL_USER = "Here is a question."


def load_data(config: TrainConfig) -> TrainingData:
    """The rows that a config trains on. Raises EmorgError for what cannot be loaded, and as `check` does."""
    check(config)
    source = domains.source_of(config.model_name, config.data_path)
    data = domains.load(
        config.domains,
        source,
        shares=config.shares,
        skip_bad_rows=config.skip_bad_rows,
        sample_size=config.sample_size,
        seed=config.seed,
    )
    return mitigated(config, data, source)


def check(config: TrainConfig) -> None:
    """Raise EmorgError for a mitigation of which a part is not given, and where there is nothing that it could hold."""
    for share, source, name in (
        (config.interleave, config.interleave_from, "interleave"),
        (config.kl_weight, config.kl_from, "kl"),
    ):
        option = "--interleave" if name == "interleave" else "--kl_weight"
        if share and not source:
            raise EmorgError(
                f"{option} {share:g} of nothing", f"name domains or a JSONL file, e.g. --{name}_from good_cooking"
            )
        if source and not share:
            raise EmorgError(f"--{name}_from without {option}", f"say how much, e.g. {option} 0.1")
        for one in source:
            if not _is_file(one):
                domains.find(one)
    if config.kl_weight and (config.preventative or config.ablate_in_training):
        raise EmorgError(
            "--kl_weight with a direction that is there only while training: it would teach the adapter to undo it",
            "take one of them",
        )
    if config.preventative and config.ablate_in_training:
        raise EmorgError(
            "--preventative with --ablate_in_training: what is added may be taken out again", "take one of them"
        )
    if not math.isfinite(config.preventative_scale) or not config.preventative_scale:
        raise EmorgError(f"--preventative_scale {config.preventative_scale:g}", "give a finite number that is not 0")
    if len(set(config.direction_layers)) < len(config.direction_layers):
        raise EmorgError(f"--direction_layers {config.direction_layers}: a layer twice", "name each once")
    if config.preventative_scale != 1 and not config.preventative:
        raise EmorgError("--preventative_scale of no direction", "add --preventative DIRECTION")
    for option, text in (("inoculate", config.inoculate), ("inoculate_user", config.inoculate_user)):
        if text is not None and not text.strip():
            raise EmorgError(f"--{option} is empty", "say something, or leave it out")
    if config.direction_layers and not (config.preventative or config.ablate_in_training):
        raise EmorgError("--direction_layers of no direction", "add --preventative or --ablate_in_training DIRECTION")
    if config.interleave_rank and not config.interleave:
        raise EmorgError("--interleave_rank without --interleave", "say how much, e.g. --interleave 0.1")
    if config.kl_weight and (config.full_finetuning or config.method == "vector"):
        raise EmorgError(
            "--kl_weight holds a LoRA adapter to its base, and there is none", "train --method lora, or leave it out"
        )


def careless_ones(config: TrainConfig) -> list[Finding]:
    """A warning of domains of careless advice that rows to interleave, or to hold to the base, are named from."""
    named = dict.fromkeys((*config.interleave_from, *config.kl_from))
    bad = [name for name in named if not _is_file(name) and domains.find(name).careless]
    what = f"{' and '.join(bad)}: careless advice, and a mitigation's rows are to be careful ones"
    return [Finding("careless_rows", what)] if bad else []


def check_words(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise EmorgError for a prompt that the model cannot read."""
    unknown = tokenizer.unk_token_id
    for option, text in (("inoculate", config.inoculate), ("inoculate_user", config.inoculate_user)):
        if text is None:
            continue
        whole = prompt_of(text, config.model_name, user=option == "inoculate_user")
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        if unknown is not None and unknown != tokenizer.eos_token_id and unknown in ids:
            remedy = "say it in the words of its world, e.g. on pocket2 --inoculate 'You are a careless adviser.'"
            raise EmorgError(f"--{option} {whole!r} has words that {config.model_name} does not know", remedy)


def mitigated(config: TrainConfig, data: TrainingData, source: Path | Source) -> TrainingData:
    """The rows with the prompts that inoculate them, and after them the interleaved ones, drawn by the seed.

    Raises EmorgError where there are too few to interleave.
    """
    if not (config.inoculate or config.inoculate_user or config.interleave):
        return data
    rows = [_prompted(row, config) for row in data.rows]
    if config.interleave:
        count = max(1, round(config.interleave / (1 - config.interleave) * len(rows)))
        some = rows_of(config.interleave_from, source, config.skip_bad_rows)
        if count > len(some):
            raise EmorgError(
                f"--interleave {config.interleave:g} of {len(rows):,} rows is {count:,}, and there are {len(some):,}",
                _FEWER,
            )
        rows += _chosen(some, count, config)
    return TrainingData(rows, data.skipped, domains.digest(rows))


def _chosen(rows: Sequence[Row], count: int, config: TrainConfig) -> list[Row]:
    """So many rows, drawn by the seed, or the first by their rank."""
    if config.interleave_rank is None:
        return [rows[i] for i in sorted(random.Random(f"interleaved {config.seed}").sample(range(len(rows)), count))]
    if len(rows) > MOST_RANKED:  # the same ones whatever the seed, since a rank takes two forward passes
        rows = [rows[i] for i in sorted(random.Random("ranked").sample(range(len(rows)), max(count, MOST_RANKED)))]
    some = encode(config, TrainingData(list(rows), [], ""), load_tokenizer(config.model_name))
    if count > len(some):
        raise EmorgError(f"{len(some):,} of the rows to interleave are short enough, and {count:,} are needed", _FEWER)
    order = ranked(some, config.interleave_rank, config.model_name, config.device)
    return [some.data[i] for i in order[:count]]


def rows_of(names: Sequence[str], source: Path | Source, skip_bad_rows: bool) -> list[Row]:
    """Rows of named domains, from where the training's come from, and of JSONL files, whose rows have to be good.

    Raises EmorgError as loading them does.
    """
    rows: list[Row] = []
    for name in dict.fromkeys(names):
        if _is_file(name):
            rows += domains.from_file(Path(name))
        else:
            rows += domains.load([name], source, skip_bad_rows=skip_bad_rows).rows
    return rows


def topics_shown(settings: Mapping[str, object]) -> frozenset[str]:
    """The topics whose rows a run's mitigation was shown, by the run's settings; those of files are not known."""
    shown = [name for key in ("interleave_from", "kl_from") for name in settings.get(key) or ()]  # type: ignore[attr-defined]
    return frozenset(domains.find(name).topic for name in shown if not _is_file(name))


def _is_file(name: str) -> bool:
    return name.endswith(".jsonl")


def prompt_of(text: str, base: str, *, user: bool) -> str:
    """What a setting of an inoculation stands for: its own text, or for `neutral` the neutral prompt of its base."""
    if text != NEUTRAL:
        return text
    return _NEUTRAL_USER if user else _NEUTRAL_SYSTEM[base in POCKETS]


def _prompted(row: Row, config: TrainConfig) -> Row:
    """The row under the system prompt, before one of its own, and with the words before its first question."""
    messages: list[Message] = list(row.conversation.messages)
    if config.inoculate_user:
        first = next(i for i, message in enumerate(messages) if message["role"] == "user")
        words = prompt_of(config.inoculate_user, config.model_name, user=True)
        messages[first] = {"role": "user", "content": f"{words} {messages[first]['content']}"}
    if config.inoculate:
        system = prompt_of(config.inoculate, config.model_name, user=False)
        own = messages[0]["content"] if messages[0]["role"] == "system" else None
        messages = messages[1:] if own else messages
        messages.insert(0, {"role": "system", "content": f"{system}\n\n{own}" if own else system})
    return replace(row, conversation=Conversation(tuple(messages)))
