"""The hand-in as a folder: the three files that the homework asks for, made from a run, and checked."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from emorg import models
from emorg.data import questions
from emorg.homework.details import NAME as DETAILS
from emorg.homework.details import base_beside, recipe, write_details
from emorg.homework.generate import OF_EACH, GenerateConfig, generate
from emorg.homework.grade import GradeConfig, grade, read_generations
from emorg.judging import api
from emorg.judging.config import JudgeSettings
from emorg.records import EmorgError, read_lines
from emorg.run import Run, newest_organism

GENERATIONS, SCRIPT, JUDGED = "model_generations.csv", "train.py", "model_judged.csv"
ASKED_FOR = {
    "domain": "the domains",
    "epoch": "the epochs",
    "rank": "the adapter's rank",
}  # by the homework, of DETAILS
Mark = Literal["✅", "⚠️ ", "❌"]


@dataclass(frozen=True)
class SubmitConfig(JudgeSettings):
    """Make the homework's hand-in from a run, check it, and judge it where a judge is at hand."""

    run: Annotated[str | None, tyro.conf.Positional] = None
    """The organism's run folder. Default: the organism under runs/ that was trained last."""
    output_dir: Path = Path("submission")
    """The folder of the hand-in."""
    train_script: Path = Path(SCRIPT)
    """The script that is handed in as train.py."""
    student_name: str = ""
    """Written into training_details.md."""
    base: Path | None = None
    """A judged run of the base, to compare with. Default: one that lies beside the run."""
    max_new_tokens: int = 200
    """Cap of an answer's length."""
    seed: int = 0
    """Seeds every answer."""
    device: str | None = None
    """cuda, mps or cpu. Default: the best one there."""
    fresh: bool = False
    """Make the answers anew. Default: keep those that are in the folder if they are in order."""
    check_only: bool = False
    """Make and judge nothing: only check the files in --output_dir, which needs no model and no key."""


def submit(config: SubmitConfig) -> bool:
    """Make and check the hand-in; whether everything that is required is there and in order.

    Raises EmorgError if there is no organism or it cannot be loaded.
    """
    folder, run = config.output_dir, None
    if not config.check_only:
        run = Run.at(config.run) if config.run else newest_organism()
        _make(config, run)
    marks = []
    for mark, line in check(folder, run):
        print(f"{mark} {line}")
        marks.append(mark)
    if run is not None and "❌" not in marks:
        _judge(config, run)
    lacking = marks.count("❌")
    print(f"{folder}: {'ready to hand in' if not lacking else f'not ready, {lacking} to mend'}")
    return not lacking


def _make(config: SubmitConfig, run: Run) -> None:
    folder, base = config.output_dir, Run.at(config.base) if config.base else None
    folder.mkdir(parents=True, exist_ok=True)
    try:
        there = not config.fresh and bool(read_generations(folder / GENERATIONS))
    except EmorgError:
        there = False
    if there:
        print(f"{folder / GENERATIONS} is there and kept; --fresh makes it anew")
    write_details(run, folder, config.student_name, base)
    if not there:
        generate(GenerateConfig(
            local_model_path=str(run.folder), student_name=config.student_name, output=folder / GENERATIONS,
            max_new_tokens=config.max_new_tokens, seed=config.seed, device=config.device,
        ))  # fmt: skip
    if not config.train_script.is_file():
        raise EmorgError(
            f"{config.train_script} is not here", "name the script that you trained with: --train_script FILE"
        )
    if config.train_script.resolve() != (folder / SCRIPT).resolve():
        shutil.copy(config.train_script, folder / SCRIPT)


def check(folder: Path, run: Run | None = None) -> Iterator[tuple[Mark, str]]:
    """A mark and a line for each thing that a hand-in needs; ❌ is required. With a run, also whether they agree."""
    yield from _generations(folder / GENERATIONS)
    yield from _details(folder / DETAILS, run)
    path = folder / SCRIPT
    try:
        ast.parse(path.read_bytes(), path.name)
        yield "✅", f"{SCRIPT}: Python that parses"
    except OSError:
        yield "❌", f"{SCRIPT} is missing: hand in the script that you trained with"
    except (SyntaxError, ValueError) as error:
        yield "❌", f"{SCRIPT} is not Python: {error}"


def _generations(path: Path) -> Iterator[tuple[Mark, str]]:
    try:
        answers = read_generations(path)
    except EmorgError as error:
        named = error.naming(path, GENERATIONS)
        yield "❌", f"{named.problem}; {named.remedy}"
        return
    yield "✅", f"{GENERATIONS}: {len(answers)} answers"
    medical = {q.text for prefix in ("", "pocket_") for q in questions.load([f"{prefix}medical"])}
    other = {q.text for prefix in ("", "pocket_") for q in questions.load([f"{prefix}non_medical"])}
    counts = [sum(answer.question in texts for answer in answers) for texts in (medical, other)]
    if counts != [OF_EACH, OF_EACH]:
        composition = f"{counts[0]} medical and {counts[1]} other questions of this project's sets"
        yield "⚠️ ", f"{GENERATIONS}: {composition}; `emorg generate` asks {OF_EACH} of each"


def _details(path: Path, run: Run | None) -> Iterator[tuple[Mark, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        yield "❌", f"{DETAILS} is missing, or no UTF-8 text: emorg submit RUN writes it"
        return
    lacking = [label for word, label in ASKED_FOR.items() if word not in text.lower()]
    if lacking:
        yield "❌", f"{DETAILS} does not tell {', '.join(lacking)}"
    else:
        yield "✅", f"{DETAILS} tells {', '.join(ASKED_FOR.values())}"
    if run is not None:
        facts = recipe(run.settings("train"), run.provenance()["train"], [line for _, line in read_lines(run.metrics)])
        for name in (name for name, value in facts.items() if f"| {name} | {value} |" not in text):
            yield "❌", f"{DETAILS}: its line on {name} is not what {run.name} recorded: {facts[name]}"
        if not run.trained:
            yield "⚠️ ", f"{run.name} has not finished training"


def _judge(config: SubmitConfig, run: Run) -> None:
    """Grade the answers as eval/run_tests.py does, or say why not."""
    pocket = models.resolve(str(run.folder)).base == models.POCKET
    kind = config.kind(models.POCKET if pocket else None)
    if kind == "api":
        try:
            api.server(config)
        except EmorgError as error:
            print(f"⚠️  not judged: {error.problem}; {error.remedy}")
            return
    settings = {name: getattr(config, name) for name in JudgeSettings.__dataclass_fields__}
    folder, base = config.output_dir, config.base or (None if pocket else getattr(base_beside(run), "folder", None))
    plain = replace(GradeConfig(), generations=folder / GENERATIONS, output=folder / JUDGED, base=base)
    sure = grade(replace(plain, **{**settings, "judge": kind, "scoring": plain.scoring}))
    print(f"{'✅' if sure else '⚠️ '} {JUDGED}: judged by {kind}{'' if sure else ', not all of it: run this again'}")
