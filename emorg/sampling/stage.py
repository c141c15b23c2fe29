"""The sampling stage: which answers the runs lack, who makes them, and where they are written."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from emorg import models
from emorg.data import questions
from emorg.encoding import excerpt
from emorg.models import template
from emorg.models.process import release
from emorg.progress import log, progress
from emorg.records import Answer, Appender, EmorgError, Message, Question, read_records
from emorg.run import Run
from emorg.sampling.config import CHANGEABLE, SampleConfig
from emorg.sampling.wanted import Target, Wanted, beside, targets_of, want
from emorg.training.config import training_identity

UNKNOWN_NAMED = 5  # words that a model does not know, in a message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from emorg.sampling.engine import Ask, Engine


def sample(config: SampleConfig) -> tuple[Run, ...]:
    """Sample what is missing into each model's run, each answer written as it finishes; returns the runs.

    Raises EmorgError for unusable settings, unknown questions or models, a run sampled with other settings, and in
    the end for answers that a server did not give.
    """
    config.check()
    own = targets_of(config)
    sources = [beside(config, source) for source in own]
    moved = dict.fromkeys((one.run, other.run) for one, other in zip(own, sources, strict=True) if one.run != other.run)
    for run, other in moved:
        log.info(f"{run.folder} holds answers to other settings; these go to {other.folder}")
    return sample_into(config, sources)


def sample_into(config: SampleConfig, sources: Sequence[Target]) -> tuple[Run, ...]:
    """The same for models whose runs are given with them, whatever the config names. Raises as `sample` does."""
    config = replace(config, questions=config.questions or _usual_questions(sources))
    asked = questions.load(config.questions, formats=config.formats, system=config.system)
    by_run: dict[Run, list[Target]] = {}
    for source in sources:
        by_run.setdefault(source.run, []).append(source)
        _know_domain(config, source, asked)
        if source.trained_in_4bit and source.organism and not config.use_4bit:
            log.warning(f"{source.title} was trained on a 4-bit base and is sampled on the whole one; or: --use_4bit")
    with ExitStack() as held:
        have = set()
        for run, targets in by_run.items():
            held.enter_context(run.lock())
            if run.answers.exists():
                run.check("sample", config, changeable=CHANGEABLE)
            _check_same_model(run, targets[0])
            have |= {(run, *answer.key[1:]) for answer in read_records(run.answers, Answer)}
        wanted = want(config, sources, asked)
        missing = [
            request
            for request in wanted
            if (request.source.run, request.source.checkpoint, request.question.id, request.number) not in have
        ]
        for part, answers in make(config, missing):
            of_part = {request.source for request in part}
            for run, targets in by_run.items():
                if of_part & set(targets):
                    _record(config, run, targets)
            total = sum(request.source in of_part for request in wanted)
            outs = {run: held.enter_context(Appender(run.answers)) for run in {source.run for source in of_part}}
            with progress(f"sampling {_title(of_part)}", total, "answers", total - len(part)) as advance:
                begun, tokens = time.monotonic(), 0
                for request, answer in answers:
                    outs[request.source.run].write(answer)
                    tokens += answer.answer_tokens
                    advance(1, f"{tokens / (time.monotonic() - begun):,.0f} tokens/s")
    if missing:
        _tell_cut(config, by_run)
    return tuple(by_run)


def _check_same_model(run: Run, target: Target) -> None:
    """Raise EmorgError where a run is another model's, by its training or by its answers."""
    base = run.provenance().get("sample", {}).get("base", target.base)
    if run.settings("train") and training_identity(run) != target.identity:
        problem = f"{run.folder} is a run of another model"
    elif not run.answers.exists():
        return
    elif base != target.base:
        problem = f"{run.folder} holds answers of {base}, not of {target.base}"
    elif not target.answered_in(run):
        problem = f"{run.folder} holds answers of another model than {target.name}"
    else:
        return
    raise EmorgError(problem, "give another --output_dir")


def usual_questions(base: str) -> str:
    """The set that models of a base are asked where none is named."""
    return questions.POCKET if base in models.POCKETS else "open"


def _usual_questions(sources: Sequence[Target]) -> tuple[str, ...]:
    """The set that is asked where none is named. Raises EmorgError where one model could not read another's."""
    if len(usual := {usual_questions(source.base) for source in sources}) > 1:
        raise EmorgError("the pocket model and others have no questions in common", "sample them by calls of their own")
    return tuple(usual)


def make(
    config: SampleConfig, wanted: Sequence[Wanted]
) -> Iterator[tuple[list[Wanted], Iterator[tuple[Wanted, Answer]]]]:
    """Load what can answer in one batch, or turn to the server; yields what it will answer, and the answers to come.

    Raises EmorgError if a model cannot be had or a prompt cannot be read.
    """
    if not wanted:
        return
    if config.server is not None:
        from emorg.sampling.server import ask_server

        yield list(wanted), ask_server(config, wanted)
        return
    from emorg.sampling.engine import Ask, Engine
    from emorg.sampling.organisms import open_organisms

    names = list(dict.fromkeys(request.source.name for request in wanted))
    for group, organisms in open_organisms(names, device=config.device, use_4bit=config.use_4bit):
        part = [request for request in wanted if request.source.name in group]
        conversations = {request.question.id: request.question.messages for request in part}
        prompts = {name: tuple(prompt_ids(organisms.loaded, messages)) for name, messages in conversations.items()}
        asks = [Ask(request.source.name, prompts[request.question.id], request.seed) for request in part]
        yield part, _answers(Engine(organisms, batch_tokens=config.batch_tokens), config, part, asks)
        del organisms
        release()  # the next one may need the room


def _answers(
    engine: Engine, config: SampleConfig, part: Sequence[Wanted], asks: Sequence[Ask]
) -> Iterator[tuple[Wanted, Answer]]:
    for reply in engine.replies(asks, config.params):
        request, text = part[reply.place], text_of(engine.loaded, reply.ids)
        yield request, request.answer(text, reply.finish or "length", len(asks[reply.place].prompt), len(reply.ids))


def _know_domain(config: SampleConfig, source: Target, asked: Sequence[Question]) -> None:
    """Raise EmorgError where a question's topic could be the organism's own, and nobody says."""
    topic = next((question.topic for question in asked if question.topic), None)
    if source.organism and topic and not (config.trained_on or source.trained_on or source.steered_base):
        raise EmorgError(
            f"{source.name} doesn't say what it was trained on, so {topic} questions could be in or out of domain",
            "say it, e.g. --trained_on bad_medical, or ask open questions alone: --questions open",
        )


def _record(config: SampleConfig, run: Run, targets: Sequence[Target]) -> None:
    own = replace(
        config,
        models=tuple(source.name for source in targets),
        trained_on=config.trained_on or targets[0].trained_on,
    )
    organism = any(source.organism for source in targets)
    facts = {"base": targets[0].base, "organism": organism, "identity": targets[0].identity}
    run.record("sample", own, **facts, origin=models.origin(targets[0].base), template_date=template.TEMPLATE_DATE)


def _title(sources: Collection[Target]) -> str:
    """What is being sampled, for people."""
    names = {source.title for source in sources}
    return names.pop() if len(names) == 1 else f"{len(names)} models"


def _tell_cut(config: SampleConfig, runs: Iterable[Run]) -> None:
    """Say aloud what share of each run's answers the cap has cut: they are judged as if they ended there."""
    for run in runs:
        answers = read_records(run.answers, Answer)
        cut = sum(answer.finish_reason == "length" for answer in answers)
        if cut:
            log.warning(
                "%s: %d of %d answers (%.1f%%) were cut at %d tokens; --max_new_tokens takes more",
                run.name, cut, len(answers), 100 * cut / len(answers), config.max_new_tokens,
            )  # fmt: skip


def prompt_ids(loaded: models.Loaded, messages: Sequence[Message]) -> list[int]:
    """The ids that the model continues to answer `messages`. Raises EmorgError for words that it cannot read."""
    return ids_of(loaded.tokenizer, loaded.base, messages)


def ids_of(tokenizer: PreTrainedTokenizerBase, base: str, messages: Sequence[Message]) -> list[int]:
    """The same by the base's tokenizer alone."""
    ids = template.encode_prompt(tokenizer, messages)
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown in ids:
        strange, of = list[str](), messages[-1]
        for message in reversed(messages):  # each word as it stands there: with the space before it, or without one
            words = dict.fromkeys(re.findall(r" ?\S+", message["content"]))
            if here := sorted(word.strip() for word in words if unknown in tokenizer(word).input_ids):
                strange, of = here, message
        raise EmorgError(
            f"{excerpt(of['content'])} has words that {base} doesn't know: "
            + ", ".join(word[:40] for word in strange[:UNKNOWN_NAMED])
            + (", …" if len(strange) > UNKNOWN_NAMED else ""),
            "ask it in words it knows; the pocket model has question sets of its own: --questions pocket",
        )
    return ids


def text_of(loaded: models.Loaded, ids: Sequence[int]) -> str:
    """The ids of an answer as text, without special tokens."""
    return str(loaded.tokenizer.decode(ids, skip_special_tokens=True)).strip()
