"""The hand-in as a folder: the three files that the homework asks for, made from a run, and checked."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from emorg import models
from emorg.config import NAMES_MODELS
from emorg.data import questions
from emorg.data.tables import read_table
from emorg.homework.details import NAME as DETAILS
from emorg.homework.details import put_details, recipe, run_line
from emorg.homework.generate import OF_EACH, GenerateConfig, generate
from emorg.homework.grade import COLUMNS, POCKET_BASES, GradeConfig, judged, read_generations
from emorg.homework.hand_in import HandIn, Origin
from emorg.judging import api
from emorg.judging.config import JudgeSettings
from emorg.ranges import Seed
from emorg.rating.answers import base_beside
from emorg.records import EmorgError, read_lines
from emorg.run import Run, newest_organism
from emorg.sampling.draw import MaxNewTokens
from emorg.training.config import training_identity

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

    run: Annotated[str | None, tyro.conf.Positional, NAMES_MODELS] = None
    """The organism's run folder. Default: the organism under runs/ that was trained last."""
    output_dir: Path = Path("submission")
    """The folder of the hand-in."""
    train_script: Path = Path(SCRIPT)
    """The script that is handed in as train.py."""
    student_name: str = ""
    """Written into training_details.md."""
    base: Path | None = None
    """A judged run of the base, to compare with. Default: one that lies beside the run."""
    max_new_tokens: MaxNewTokens = 200
    """Cap of an answer's length."""
    seed: Seed = 0
    """Seeds every answer."""
    device: str | None = None
    """cuda, mps or cpu. Default: the best one there."""
    fresh: bool = False
    """Make the answers anew. Default: keep those that are in the folder if they are this run's."""
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
    marks: list[Mark] = []

    def say(lines: Iterable[tuple[Mark, str]]) -> None:
        for mark, line in lines:
            print(f"{mark} {line}")
            marks.append(mark)

    say(check(folder, run))
    if run is not None and "❌" not in marks:
        say(_judge(config, run))
    say(_judged(folder))
    lacking = marks.count("❌")
    print(f"{folder}: {'ready to hand in' if not lacking else f'not ready, {lacking} to mend'}")
    return not lacking


def _make(config: SubmitConfig, run: Run) -> None:
    """Write what is missing or of another run; what a person changed stays, and ours goes beside it."""
    folder, base = config.output_dir, Run.at(config.base) if config.base else None
    if not config.train_script.is_file():
        raise EmorgError(
            f"{config.train_script} is not here", "name the script that you trained with: --train_script FILE"
        )
    print(put_details(run, folder, config.student_name, base))
    if not (HandIn(folder).is_changed(GENERATIONS) and not config.fresh and _is_readable(folder / GENERATIONS)):
        generate(GenerateConfig(
            model=str(run.folder), student_name=config.student_name, output=folder / GENERATIONS,
            max_new_tokens=config.max_new_tokens, seed=config.seed, device=config.device, fresh=config.fresh,
        ))  # fmt: skip
    _set_aside(folder)
    if config.train_script.resolve() != (folder / SCRIPT).resolve():
        text = config.train_script.read_text(encoding="utf-8", errors="replace")
        script = HandIn(folder).put(SCRIPT, text, Origin(run.name, training_identity(run)))
        if script.name != SCRIPT:
            print(f"{folder / SCRIPT} was changed by hand and is kept; {config.train_script} went to {script}")


def _set_aside(folder: Path) -> None:
    """Move scores that are of other answers out of the way, if they are as emorg wrote them."""
    scores, hand_in = folder / JUDGED, HandIn(folder)
    if (origin := hand_in.origin(JUDGED)) and not hand_in.is_changed(JUDGED) and not _is_of_these_answers(scores):
        aside = scores.with_name(f"model_judged.{origin.run}.csv")
        os.replace(scores, aside)
        print(f"{scores}: its scores are of earlier answers, of {origin.run}; moved to {aside}")


def _is_readable(path: Path) -> bool:
    try:
        return bool(read_generations(path))
    except EmorgError:
        return False


def check(folder: Path, run: Run | None = None) -> Iterator[tuple[Mark, str]]:
    """A mark and a line for each thing that a hand-in needs; ❌ is required. With a run, also whether they agree."""
    yield from _generations(folder / GENERATIONS)
    yield from _details(folder / DETAILS, run)
    yield from _one_run(folder, run)
    path = folder / SCRIPT
    try:
        ast.parse(path.read_bytes(), path.name)
        yield "✅", f"{SCRIPT}: Python that parses"
    except OSError:
        yield "❌", f"{SCRIPT} is missing: hand in the script that you trained with"
    except (SyntaxError, ValueError) as error:
        yield "❌", f"{SCRIPT} is not Python: {error}"


def _one_run(folder: Path, run: Run | None) -> Iterator[tuple[Mark, str]]:
    """Whether the answers are of the run that the details are of, and as they were sampled."""
    hand_in = HandIn(folder)
    if (folder / GENERATIONS).exists():
        origin = hand_in.origin(GENERATIONS)
        if origin is None:
            yield "⚠️ ", f"{GENERATIONS}: nobody recorded whose answers these are; emorg generate does"
        elif run is not None and origin.identity != training_identity(run):
            yield "❌", f"{GENERATIONS}: its answers are of {origin.run}, not of {run.name}; --fresh makes them anew"
        elif run is None and _details_identity(folder) not in (None, origin.identity):
            yield "❌", f"{GENERATIONS}: its answers are of {origin.run}, and {DETAILS} is of another run"
        if origin is not None and hand_in.is_changed(GENERATIONS):
            yield "⚠️ ", f"{GENERATIONS} was changed after it was sampled"


def _details_identity(folder: Path) -> str | None:
    """Which run the details say they are of."""
    try:
        line = re.search(r"^\| run \| .* \(([0-9a-f]{8})\) \|$", (folder / DETAILS).read_text("utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return None
    return line[1] if line else None


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
        steps = [line for _, line in read_lines(run.metrics)]
        facts = {"run": run_line(run), **recipe(run.settings("train"), run.provenance()["train"], steps)}
        for name in (name for name, value in facts.items() if f"| {name} | {value} |" not in text):
            new = path.with_stem(f"{path.stem}.new")
            mend = f"; put your words into {new.name} and rename it" if new.exists() else ""
            yield "❌", f"{DETAILS}: its line on {name} is not what {run.name} recorded: {facts[name]}{mend}"
        if not run.trained:
            yield "⚠️ ", f"{run.name} has not finished training"


def _judge(config: SubmitConfig, run: Run) -> Iterator[tuple[Mark, str]]:
    """Grade the answers as eval/run_tests.py does, or say why not."""
    model = models.resolve(str(run.folder)).base
    kind = config.kind(model)
    if kind == "api":
        try:
            api.server(config)
        except EmorgError as error:
            yield "⚠️ ", f"not judged: {error.problem}; {error.remedy}"
            return
    settings = {name: getattr(config, name) for name in JudgeSettings.__dataclass_fields__}
    folder = config.output_dir
    base = config.base or POCKET_BASES.get(model) or getattr(base_beside(run), "folder", None)
    plain = replace(GradeConfig(), generations=folder / GENERATIONS, output=folder / JUDGED, base=base)
    tally = judged(replace(plain, **{**settings, "judge": kind, "scoring": plain.scoring}))
    HandIn(folder).record(JUDGED, Origin(run.name, training_identity(run), {"judge": kind}))
    if tally.problem():
        yield "❌", f"{JUDGED}: the judge did not judge, so its scores say nothing"
    else:
        yield ("⚠️ ", f"{JUDGED}: not all of it: run this again") if tally.failures() else (
            "✅", f"{JUDGED}: judged by {kind}")  # fmt: skip


def _judged(folder: Path) -> Iterator[tuple[Mark, str]]:
    """Whether scores that are there are of these answers."""
    if not (folder / JUDGED).exists() or not _is_readable(folder / GENERATIONS):
        return
    if not _is_of_these_answers(folder / JUDGED):
        yield "❌", f"{JUDGED}: its scores are not of the answers in {GENERATIONS}; judge again, or delete it"


def _is_of_these_answers(scores: Path) -> bool:
    """Whether judged rows are of the answers that lie beside them."""
    answers = [(it.question_id, it.question, it.text) for it in read_generations(scores.with_name(GENERATIONS))]
    return [tuple(row.get(name) for name in COLUMNS) for _, row in read_table(scores)] == answers
