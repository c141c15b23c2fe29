"""Which answers are wanted: of whom, to which question, into which run, and from which random stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emorg import models
from emorg.records import Answer, EmorgError, FinishReason, Question
from emorg.rundir import RUNS, Run, settings_hash
from emorg.sample.config import SampleConfig
from emorg.sample.draw import stream_seed
from emorg.train.config import NOT_WHAT_IS_MADE

SAMPLES = 50  # of a question whose file says no other number, as in the papers


@dataclass(frozen=True)
class Source:
    """A model that answers, by the name the user gave, and where its answers go."""

    name: str
    run: Run
    checkpoint: str | None
    base: str
    """What it was trained from, if we trained it; else what it is or stands on."""
    organism: bool
    """Whether it is more than a base."""
    stream: str
    """What its random streams go by, wherever it lies: its training's settings, or its name."""

    @classmethod
    def of(cls, name: str, output_dir: Path | None = None) -> Source:
        """Raises EmorgError for what is no model."""
        adapter, checkpoint = models.adapter_of(name), models.checkpoint_of(name)
        trained = Run.at(name).settings("train")
        base = Run.at(name).provenance()["train"]["base"] if trained else models.base_of(name)
        known = bool(trained or Run.at(name).settings("sample"))
        plain = Path(base if known and not trained else name).name
        run = (
            Run.at(output_dir)
            if output_dir is not None
            else Run.at(name) if known
            else Run(RUNS / (plain.lower() if adapter else f"{plain.lower()}-base"))
        )  # fmt: skip
        stream = f"{settings_hash(trained, NOT_WHAT_IS_MADE)} {checkpoint or ''}" if trained else plain
        return cls(name, run, checkpoint, base, bool(adapter or trained), stream)


@dataclass(frozen=True)
class Wanted:
    """One answer to be made: whose, to which question, its number among that question's, and its stream's seed."""

    source: Source
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
        )


def sources_of(config: SampleConfig) -> list[Source]:
    """The models of a config, each once. Raises EmorgError for no model, and for an --output_dir that is nobody's."""
    names = list(dict.fromkeys(config.models))
    if config.output_dir is None or len(names) == 1:
        return [Source.of(name, config.output_dir) for name in names]
    sources = [Source.of(name) for name in names]
    if sum(not source.organism for source in sources) != 1:
        raise EmorgError("--output_dir with several models is the base's, and there is not one", "leave it out")
    return [source if source.organism else Source.of(source.name, config.output_dir) for source in sources]


def want(config: SampleConfig, sources: Sequence[Source], asked: Sequence[Question]) -> list[Wanted]:
    """Every answer that the settings ask of the sources, made already or not."""
    return [
        Wanted(source, question, number, stream_seed(source.stream, question.id, config.seed, number))
        for source in sources
        for question in asked
        for number in range(config.samples or question.samples or SAMPLES)
    ]
