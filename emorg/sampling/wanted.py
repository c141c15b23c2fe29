"""Which answers are wanted: of whom, to which question, into which run, and from which random stream."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from emorg import models
from emorg.models import steering
from emorg.records import Answer, EmorgError, FinishReason, Question
from emorg.run import RUNS, Run, settings_hash
from emorg.sampling.config import CHANGEABLE, SampleConfig
from emorg.sampling.draw import stream_seed
from emorg.training.config import training_identity

SAMPLES = 50  # of a question whose file says no other number, as in the papers


@dataclass(frozen=True)
class Target:
    """A model that answers, by the name the user gave, and where its answers go."""

    name: str
    run: Run
    checkpoint: str | None
    base: str
    """What it was trained from, if we trained it; else what it is or stands on."""
    organism: bool
    """Whether it is more than a base."""
    identity: str
    """What it goes by wherever it lies: its training's settings, a found adapter's name and weights, a base's name."""
    trained_on: tuple[str, ...] = ()
    """Its domains, where its run says them."""
    trained_in_4bit: bool = False
    trained_in: Run | None = None
    adapted: bool = False
    """Whether it has a LoRA adapter, of ours or of other code."""
    steered: bool = False
    """Whether vectors lie over what was trained, or over a base; one trained vector is what was trained itself."""

    @property
    def steered_base(self) -> bool:
        """Whether nothing was trained into it."""
        return self.steered and self.trained_in is None and not self.adapted

    @property
    def title(self) -> str:
        """What it goes by for people: its run's name, with its checkpoint's."""
        return f"{self.run.name} {self.checkpoint}" if self.checkpoint else self.run.name

    @property
    def stream(self) -> str:
        """What its random streams go by."""
        return f"{self.identity} {self.checkpoint or ''}" if self.organism else self.identity

    @classmethod
    def of(cls, name: str, output_dir: Path | None = None) -> Target:
        """Raises EmorgError for what is no model, and for a run whose answers are of one that is not there any more."""
        named = models.resolve(name)
        plain = models.short_name(named.name)
        if named.trained_in:
            identity = training_identity(named.trained_in)
        elif named.adapter:
            with models.weights_file(named.adapter).open("rb") as weights:
                identity = f"{plain} {hashlib.file_digest(weights, 'sha256').hexdigest()[:16]}"
        else:
            identity = models.identity(named.base if named.steering else named.name)
        if named.steering and named.run != named.trained_in:
            identity = f"{identity} steered {steering.identity(named.steering)}"
        usual = named.run or Run(RUNS / (plain.lower() if named.adapter else f"{plain.lower()}-base"))
        into = usual if output_dir is None else models.run_at(output_dir)
        trained_on = named.trained_in.trained_on if named.trained_in else usual.trained_on or into.trained_on
        in_4bit = bool(named.trained_in and named.trained_in.settings("train").get("use_4bit"))
        target = cls(
            named.name, into, named.checkpoint, named.base,
            bool(named.adapter or named.trained_in or named.steering), identity,
            tuple(trained_on), in_4bit, named.trained_in,
            steered=bool(named.steering and named.run != named.trained_in), adapted=named.adapter is not None,
        )  # fmt: skip
        if named.run not in (None, named.trained_in) and not target.answered_in(usual):
            remedy = "delete it, and steer again" if named.steering else f"name {named.name}"
            raise EmorgError(f"{name} holds answers of {named.name} as it was earlier", remedy)
        return target

    def answered_in(self, run: Run) -> bool:
        """Whether a run's answers are this model's, as far as the run says whose they are."""
        recorded: str = run.provenance().get("sample", {}).get("identity", self.identity)
        return recorded == self.identity


@dataclass(frozen=True)
class Wanted:
    """One answer to be made: whose, to which question, its number among that question's, and its stream's seed."""

    source: Target
    question: Question
    number: int
    seed: int

    def answer(self, text: str, finish: FinishReason, prompt_tokens: int, answer_tokens: int) -> Answer:
        """The record of its text."""
        return Answer(
            run=self.source.run.name,
            checkpoint=self.source.checkpoint,
            question_id=self.question.id,
            topic=self.question.topic,
            sample=self.number,
            question=self.question.text,
            text=text,
            finish_reason=finish,
            prompt_tokens=prompt_tokens,
            answer_tokens=answer_tokens,
            seed=self.seed,
            format=self.question.format,
            before=self.question.messages[:-1],
        )


def targets_of(config: SampleConfig) -> list[Target]:
    """The models of a config, each once. Raises EmorgError for no model, and for an --output_dir that is nobody's."""
    if not config.models:
        raise EmorgError("no model", "name a run, an adapter, a checkpoint or a base")
    alone = len(set(config.models)) == 1
    sources = [Target.of(name, config.output_dir if alone else None) for name in dict.fromkeys(config.models)]
    if config.output_dir is not None and not alone:
        if sum(not source.organism for source in sources) != 1:
            raise EmorgError("--output_dir with several models is the base's, and there is not one", "leave it out")
        sources = [
            source if source.organism else replace(source, run=models.run_at(config.output_dir)) for source in sources
        ]
    targets: dict[tuple[Run, str | None], Target] = {}
    for source in sources:
        first = targets.setdefault((source.run, source.checkpoint), source)
        if first.identity != source.identity:
            raise EmorgError(
                f"{first.name} and {source.name} would both be sampled into {source.run.folder}",
                "call once for each, with an --output_dir of its own",
            )
    return list(targets.values())


def beside(config: SampleConfig, source: Target) -> Target:
    """The model with the folder of its answers to these settings: beside its own where that holds those to others."""
    differing = source.run.differing("sample", config, changeable=CHANGEABLE) if source.run.answers.exists() else {}
    if config.output_dir is not None or not differing:
        return source
    own = source.run if source.steered else source.trained_in or source.run
    if own != source.run:
        return beside(config, replace(source, run=own))
    texts = {name: str(now) for name, (_, now) in differing.items()}
    parts = [
        f"{name}-{text if re.fullmatch('[a-zA-Z0-9.]{1,20}', text) else settings_hash({name: text}, frozenset())}"
        for name, text in texts.items()
    ]
    whole = own.folder if own.folder.name not in ("", "..") else own.folder.resolve()
    run = Run(whole.with_name("-".join((whole.name, *parts))))
    if run.answers.exists() and not source.answered_in(run):  # of the run before it was trained anew
        run = Run(run.folder.with_name(f"{run.name}-{settings_hash({'': source.identity}, frozenset())}"))
    return replace(source, run=run)


def want(config: SampleConfig, sources: Sequence[Target], questions: Sequence[Question]) -> list[Wanted]:
    """Every answer that the settings ask of the sources, made already or not."""
    return [
        Wanted(source, question, number, stream_seed(source.stream, question.id, config.seed, number))
        for source in sources
        for question in questions
        for number in range(config.samples or question.samples or SAMPLES)
    ]
