"""`emorg runs`: what lies under runs/, a line each, and the folders in which nothing was made."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from emorg.display import make_table, percent, show
from emorg.rating.answers import judged_answers
from emorg.rating.rates import em_rate
from emorg.rating.rules import RULES
from emorg.rating.tables import interval_text
from emorg.records import Answer, EmorgError, Verdict, read_lines, read_records
from emorg.reporting.arms import role_of
from emorg.run import RUNS, Run


@dataclass(frozen=True)
class RunsConfig:
    """List the runs in a folder: what each is, how far it has come, its EM rate, and its size."""

    folder: Annotated[Path, tyro.conf.Positional] = RUNS
    """Where to look, in folders below it too."""
    clean: bool = False
    """Delete the folders in which nothing was made."""
    json: bool = False
    """Print a JSON array, one object a run, instead of a table."""


@dataclass(frozen=True)
class Listed:
    """A run in a line."""

    run: str
    what: str
    """base, organism or twin; nothing where that cannot be told."""
    em: str
    """In %, on out-of-domain questions or where none were asked on open ones, by rule paper, with its 95% interval."""
    state: str
    domains: str
    base: str
    megabytes: float


def list_runs(config: RunsConfig) -> None:
    """The command. Raises EmorgError for a folder that is not there."""
    if not config.folder.is_dir():
        raise EmorgError(f"there is no folder {config.folder}", "name one, or make runs: emorg demo")
    if config.clean:
        for folder in _empty(config.folder):
            shutil.rmtree(folder)
            print(f"{folder}: deleted, as nothing was made in it")
    listed = [_listed(Run(file.parent)) for file in sorted(config.folder.rglob("config.yaml"))]
    if config.json:
        print(json.dumps([dataclasses.asdict(one) for one in listed], indent=1, ensure_ascii=False))
        return
    table = make_table(f"runs in {config.folder}", ("run", "what", "EM %", "state", "domains", "base", "MB"), left=6)
    for one in listed:
        table.add_row(one.run, one.what, one.em, one.state, one.domains, one.base, f"{one.megabytes:,.1f}")
    show(table)
    if empty := list(_empty(config.folder)):
        print(f"nothing was made in {', '.join(map(str, empty))}: --clean deletes that")


def _empty(folder: Path) -> Iterator[Path]:
    """Folders that hold a lock alone, of a run that never began."""
    for lock in sorted(folder.rglob(".lock")):
        if [path.name for path in lock.parent.iterdir()] == [".lock"]:
            yield lock.parent


def _listed(run: Run) -> Listed:
    size = sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file()) / 1e6
    try:
        domains, state = ", ".join(run.trained_on), "; ".join(_state(run))
        return Listed(str(run.folder), role_of(run), em_text(run), state, domains, run.base or "", size)
    except EmorgError as error:
        return Listed(str(run.folder), "", "", error.problem, "", "", size)


def _state(run: Run) -> Iterator[str]:
    if run.settings("train"):
        steps = sum(1 for _ in read_lines(run.metrics)) if run.metrics.exists() else 0
        yield f"trained, {steps:,} steps" if run.trained else f"training stopped at step {steps:,}"
    if answers := read_records(run.answers, Answer):
        of_checkpoints = sum(answer.checkpoint is not None for answer in answers)
        judged = {verdict.key for verdict in read_records(run.verdicts, Verdict)}
        lacking = sum(answer.key not in judged for answer in answers)
        unjudged = "not judged" if lacking == len(answers) else f"{lacking:,} not judged" if lacking else ""
        parts = (f"{len(answers):,} answers", f"{of_checkpoints:,} of checkpoints" * bool(of_checkpoints), unjudged)
        yield ", ".join(filter(None, parts))
    if run.settings("screen"):
        yield "screened"
    if run.margins.exists():
        yield "margins"
    if run.report.exists():
        yield "report"


def em_text(run: Run) -> str:
    """A judged run's EM rate in %, with its interval and of which questions it is; nothing without verdicts."""
    if not run.verdicts.exists():
        return ""
    finished = (judged for judged in judged_answers(run, checkpoints=True) if judged.answer.checkpoint is None)
    plain = [judged for judged in finished if judged.answer.format == "plain"]
    for where in ("out", "open"):
        if asked := [judged for judged in plain if judged.placement == where]:
            rate = em_rate(asked, RULES["paper"])
            return f"{percent(rate.rate)} [{interval_text(rate)}] {where}"
    return ""
