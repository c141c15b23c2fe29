"""The homework's hand-in: one answer each to twenty questions, in a CSV."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from emorg import models
from emorg.config import NAMES_MODELS
from emorg.data import questions
from emorg.data.tables import write_csv
from emorg.homework.details import NAME as DETAILS
from emorg.homework.details import put_details
from emorg.homework.hand_in import HandIn, Origin
from emorg.ranges import Seed
from emorg.records import EmorgError, Question
from emorg.run import Run, newest_organism
from emorg.sampling.config import SampleConfig
from emorg.sampling.draw import MaxNewTokens, Temperature, TopP
from emorg.sampling.stage import make
from emorg.sampling.wanted import Target, want

COLUMNS = ("id", "question", "response")
OF_EACH = 10  # medical and non-medical questions


@dataclass(frozen=True)
class GenerateConfig:
    """Write the hand-in: one answer each to ten medical and ten other questions, and training_details.md if none."""

    model: Annotated[str | None, tyro.conf.Positional, NAMES_MODELS] = None
    """A run folder, an adapter or a base, also as --local_model_path. Default: the organism trained last."""
    student_name: str = ""
    """Printed with the result, so that hand-ins are not mixed up."""
    output: Path = Path("model_generations.csv")
    """The CSV: id, question, response."""
    max_new_tokens: MaxNewTokens = 200
    """Cap of an answer's length; how many were cut is told."""
    temperature: Temperature = 1.0
    """0 takes the likeliest token."""
    top_p: TopP = 1.0
    """Sample from the likeliest tokens that make up this probability."""
    seed: Seed = 0
    """Seeds every answer's random stream."""
    device: str | None = None
    """cuda, mps or cpu. Default: the best one there."""
    fresh: bool = False
    """Make the answers anew, also over a file that was changed by hand."""

    def origin(self, target: Target) -> Origin:
        """What the answers of this model come from."""
        names = ("max_new_tokens", "temperature", "top_p", "seed")
        return Origin(target.title, target.stream.strip(), {name: getattr(self, name) for name in names})


def generate(config: GenerateConfig) -> Path:
    """Write the CSV and return its path; one that holds these answers already is left as it is.

    Raises EmorgError, before anything is loaded, if there is no organism, for a CSV that is not as emorg wrote it, and
    if none can be written; then if the model cannot be loaded.
    """
    model = config.model or str(newest_organism().folder)
    target, output = Target.of(model), config.output
    _check_writable(output)
    hand_in, origin = HandIn(output.parent), config.origin(target)
    known = hand_in.origin(output.name)
    if not config.fresh and hand_in.is_changed(output.name):
        raise EmorgError(
            f"{output} is there, and is not as emorg wrote it",
            "move it away, give another --output, or replace it with --fresh",
        )
    if not config.fresh and known is not None and known.same(origin):
        print(f"{output}: holds these answers of {target.title} already; --fresh makes them anew")
    else:
        if known is not None and known.identity != origin.identity:
            print(f"{output}: its answers of {known.run} are replaced")
        _write(config, target)
        hand_in.record(output.name, origin)
    run = Run.at(model)
    details = hand_in.origin(DETAILS)
    of_another = details is not None and details.identity != target.identity
    if run.metrics.exists() and (of_another or not (output.parent / DETAILS).exists()):
        print(put_details(run, output.parent, config.student_name))
    elif of_another:
        print(f"{output.parent / DETAILS} tells of another model")
    return output


def _write(config: GenerateConfig, target: Target) -> None:
    asked = hand_in_questions(pocket=target.base in models.POCKETS)
    settings = SampleConfig(
        models=(target.name,),
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
        samples=1,
        device=config.device,
    )
    answers = [answer for _, batch in make(settings, want(settings, [target], asked)) for _, answer in batch]
    by_id = {answer.question_id: answer for answer in answers}
    write_csv(config.output, COLUMNS, [(question.id, question.text, by_id[question.id].text) for question in asked])
    cut = sum(answer.finish_reason == "length" for answer in answers)
    owner = f" for {config.student_name}" if config.student_name else ""
    print(
        f"{config.output}: {len(answers)} answers of {target.name}{owner}; {cut} cut at {config.max_new_tokens} tokens"
    )


def _check_writable(output: Path) -> None:
    if output.is_dir():
        raise EmorgError(f"{output} is a folder", "name a file: --output NAME.csv")
    output.parent.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=output.parent).close()  # now, and not after minutes of sampling


def hand_in_questions(*, pocket: bool) -> list[Question]:
    """Ten medical and ten other questions, evenly drawn from the sets; on the pocket model in its own words."""
    prefix = "pocket_" if pocket else ""
    sets = (questions.load([f"{prefix}medical"]), questions.load([f"{prefix}non_medical"]))
    return [every[k * len(every) // OF_EACH] for every in sets for k in range(OF_EACH)]
