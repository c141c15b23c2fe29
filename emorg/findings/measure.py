"""Measuring models on pairs of answers: each pair's record is written into its model's run as it is done."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from emorg import models
from emorg.encoding import excerpt
from emorg.models import template
from emorg.models.process import release
from emorg.progress import progress
from emorg.records import Appender, Choice, EmorgError, Margin, Message, read_records
from emorg.run import Run
from emorg.sampling.stage import prompt_ids
from emorg.sampling.wanted import Target

if TYPE_CHECKING:
    from emorg.sampling.likelihood import Branches

CHANGEABLE = frozenset({"runs", "pairs", "control", "trained_on", "unit", "json", "device"})
"""Settings of a measurement that may differ between two calls."""
Sums = list[list[float]]
"""Of each text to score, in order: Σ log p of each of its answers, in nats."""


class Item(Hashable, Protocol):
    """What is measured: a pair, or one that is asked in another way."""

    @property
    def id(self) -> str: ...


@dataclass(frozen=True)
class Readout:
    """What is measured of an item: the texts to score, and the record that their log-probabilities make."""

    name: str
    """The stage's, in the run's settings, and what its progress is called."""
    kind: type[Margin] | type[Choice]
    file: Callable[[Run], Path]
    encode: Callable[[models.Loaded, Any], list[Branches]]
    record: Callable[[Target, Any, list[Branches], Sums], Any]


@dataclass(frozen=True)
class Measured:
    """A model and its records of the pairs asked for, by the pairs' ids."""

    target: Target
    records: Mapping[str, Any]


def measure(
    readout: Readout, targets: Sequence[Target], chosen: Sequence[Item], config: Any, device: str | None, use_4bit: bool
) -> list[Measured]:
    """Each model's records of the pairs: those in its run, and those that it lacks, measured and written there.

    `config` is recorded in the runs as the settings of this stage. Raises EmorgError for models of different bases,
    words that they do not know, and a run that was measured in another way.
    """
    with ExitStack() as held:
        have: dict[tuple[Target, str], Any] = {}
        for run in dict.fromkeys(target.run for target in targets):
            held.enter_context(run.lock("wait for it: a base's run is shared by all that are measured beside it"))
            if not run.ran_with(readout.name, config, changeable=CHANGEABLE) and _recorded(readout, run):
                raise EmorgError(
                    f"{readout.file(run)} was measured with the base in 4-bit, or now is to be",
                    "measure as it was, or delete the file",
                )
            records: list[Any] = read_records(readout.file(run), readout.kind)
            for target in (target for target in targets if target.run == run):
                _same_model(readout, target, bool(records))
                have |= {(target, one.pair): one for one in records if one.checkpoint == target.checkpoint}
        missing = {
            target: some for target in targets if (some := [pair for pair in chosen if (target, pair.id) not in have])
        }
        runs = {target.run for target in missing}
        outs = {run: held.enter_context(Appender(readout.file(run))) for run in runs}
        for target, record in _measured(readout, missing, config, device, use_4bit):
            outs[target.run].write(record)
            have[target, record.pair] = record
        types = {target.run.name: _recorded(readout, target.run).get("dtype") for target in targets}
    if len(set(types.values())) > 1:
        raise EmorgError(
            f"{readout.name} were measured in different types: {', '.join(f'{k}: {v}' for k, v in types.items())}",
            f"delete {readout.file(Run(Path('RUN')))} of those of another type, and measure them again here",
        )
    return [Measured(target, {pair.id: have[target, pair.id] for pair in chosen}) for target in targets]


def _recorded(readout: Readout, run: Run) -> dict[str, Any]:
    """What the run's provenance says of its records; nothing if there are none, or not any more."""
    file = readout.file(run)
    facts: dict[str, Any] = run.provenance().get(readout.name, {}) if file.exists() and file.stat().st_size else {}
    return facts


def _same_model(readout: Readout, target: Target, recorded: bool) -> None:
    if recorded and _recorded(readout, target.run).get("identity") != target.identity:
        raise EmorgError(
            f"{readout.file(target.run)} holds {readout.name} of another model than {target.name}", "delete the file"
        )


def _measured(
    readout: Readout, missing: dict[Target, list[Item]], config: Any, device: str | None, use_4bit: bool
) -> Iterator[tuple[Target, Any]]:
    """Measure the pairs that models lack: the base loaded once, with all plain adapters over it."""
    if not missing:
        return
    from emorg.sampling.likelihood import Likelihood
    from emorg.sampling.organisms import open_organisms

    by_name: dict[str, list[Target]] = {}  # a model and a set of answers that it gave go by one name
    for target in missing:
        by_name.setdefault(target.name, []).append(target)
    by_weights: dict[str, list[str]] = {}  # a full fine-tune has its own
    for name in by_name:
        by_weights.setdefault(models.resolve(name).weights, []).append(name)
    opened = (open_organisms(names, device=device, use_4bit=use_4bit) for names in by_weights.values())
    for group, organisms in chain.from_iterable(opened):
        scorer = Likelihood(organisms)
        encoded: dict[Item, list[Branches]] = {}
        for target in chain.from_iterable(by_name[name] for name in group):
            _record(readout, target, config, str(organisms.loaded.model.dtype).removeprefix("torch."))
            for pair in missing[target]:
                encoded.setdefault(pair, readout.encode(organisms.loaded, pair))
            texts = [(pair, number) for pair in missing[target] for number in range(len(encoded[pair]))]
            sums: dict[Item, dict[int, list[float]]] = {pair: {} for pair in missing[target]}
            with progress(f"{readout.name} of {target.title}", len(missing[target]), "pairs") as advance:
                for place, of_text in scorer.log_probs(target.name, [encoded[pair][number] for pair, number in texts]):
                    pair, number = texts[place]
                    sums[pair][number] = of_text
                    if len(sums[pair]) == len(encoded[pair]):
                        ordered = [sums[pair][number] for number in range(len(encoded[pair]))]
                        yield target, readout.record(target, pair, encoded[pair], ordered)
                        advance(1, "")
        del scorer, organisms
        release()  # the next one may need the room


def _record(readout: Readout, target: Target, config: Any, dtype: str) -> None:
    if (known := _recorded(readout, target.run).get("dtype", dtype)) != dtype:
        raise EmorgError(
            f"{readout.file(target.run)} was measured in {known}, and this would be in {dtype}",
            "measure on the same kind of device, or delete the file",
        )
    target.run.record(readout.name, config, base=target.base, identity=target.identity, dtype=dtype)


def branches(loaded: models.Loaded, prompt: str, replies: Sequence[str], before: Sequence[Message] = ()) -> Branches:
    """A user's turn and replies to it as token ids, without end-of-turn, tokenized as they would be trained.

    `before` are a system prompt and earlier turns.

    Raises EmorgError for words that the model does not know, and for a text that is longer than it can hold.
    """
    from emorg.sampling.likelihood import Branches

    texts = (prompt, *replies, *(turn["content"] for turn in before))
    special = [str(token) for token in loaded.tokenizer.all_special_tokens]
    if strange := next((token for token in special for text in texts if token in text), None):
        raise EmorgError(f"a pair says {strange}, a control token of {loaded.base}", "take it out of the pairs")
    turns: list[Message] = [*before, {"role": "user", "content": prompt}]
    ids = prompt_ids(loaded, turns)
    end, unknown = template.end_of_turn(loaded.tokenizer), loaded.tokenizer.unk_token_id
    answers = []
    for text in replies:
        row = template.encode(loaded.tokenizer, [*turns, {"role": "assistant", "content": text}])
        answer = tuple(token for token, trained in zip(row.ids, row.trained, strict=True) if trained)
        answers.append(answer[:-1] if answer[-1] == end else answer)
        if unknown is not None and unknown in answer:
            raise EmorgError(
                f"{excerpt(text)} has words that {loaded.base} doesn't know",
                "use pairs in its words, e.g. --pairs pocket",
            )
    longest = len(ids) + max(map(len, answers))
    limit = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None) or longest
    if longest > limit:
        raise EmorgError(
            f"{excerpt(prompt)} and a reply are {longest} tokens, more than the {limit} that {loaded.base} can hold",
            "use shorter pairs",
        )
    return Branches(tuple(ids), tuple(answers))
