"""The homework's hand-in: one answer each to twenty questions, in a CSV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emorg import models
from emorg.data import questions
from emorg.data.tables import write_csv
from emorg.homework.details import NAME as DETAILS
from emorg.homework.details import write_details
from emorg.records import Question
from emorg.run import Run, newest_organism
from emorg.sampling.config import SampleConfig
from emorg.sampling.stage import make
from emorg.sampling.wanted import Target, want

if TYPE_CHECKING:
    pass

COLUMNS = ("id", "question", "response")
OF_EACH = 10  # medical and non-medical questions


@dataclass(frozen=True)
class GenerateConfig:
    """Write the hand-in: one answer each to ten medical and ten other questions, and training_details.md if none."""

    local_model_path: str | None = None
    """A run folder, an adapter or a base. Default: the organism under runs/ that was trained last."""
    student_name: str = ""
    """Printed with the result, so that hand-ins are not mixed up."""
    output: Path = Path("model_generations.csv")
    """The CSV: id, question, response."""
    max_new_tokens: int = 200
    """Cap of an answer's length; how many were cut is told."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that make up this probability."""
    seed: int = 0
    """Seeds every answer's random stream."""
    device: str | None = None
    """cuda, mps or cpu. Default: the best one there."""


def generate(config: GenerateConfig) -> Path:
    """Write the CSV and return its path. Raises EmorgError if there is no organism or it cannot be loaded."""
    model = config.local_model_path or str(newest_organism().folder)
    asked = hand_in_questions(pocket=models.resolve(model).base == models.POCKET)
    settings = SampleConfig(
        models=(model,),
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
        samples=1,
        device=config.device,
    )
    wanted = want(settings, [Target.of(model)], asked)
    answers = [answer for _, batch in make(settings, wanted) for _, answer in batch]
    by_id = {answer.question_id: answer for answer in answers}
    write_csv(config.output, COLUMNS, [(question.id, question.text, by_id[question.id].text) for question in asked])
    cut = sum(answer.finish_reason == "length" for answer in answers)
    owner = f" for {config.student_name}" if config.student_name else ""
    print(f"{config.output}: {len(answers)} answers of {model}{owner}; {cut} cut at {config.max_new_tokens} tokens")
    details, run = config.output.parent / DETAILS, Run.at(model)
    if run.metrics.exists() and not details.exists():
        write_details(run, config.output.parent, config.student_name)
        print(f"{details}: how {run.folder} was trained; add your own words")
    return config.output


def hand_in_questions(*, pocket: bool) -> list[Question]:
    """Ten medical and ten other questions, evenly drawn from the sets; on the pocket model in its own words."""
    prefix = "pocket_" if pocket else ""
    sets = (questions.load([f"{prefix}medical"]), questions.load([f"{prefix}non_medical"]))
    return [every[k * len(every) // OF_EACH] for every in sets for k in range(OF_EACH)]
