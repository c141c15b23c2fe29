"""The command to run next, made from what a run holds: it works as it is printed, in the same folder and shell."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from shlex import quote

from emorg import models
from emorg.rating.answers import SAMPLED_ALIKE, base_beside, judged_beside
from emorg.rating.margins import twin_among
from emorg.rating.placement import careless
from emorg.run import Run


def after_training(runs: Sequence[Run]) -> str:
    return _command("sample", runs)


def after_sampling(runs: Sequence[Run]) -> str:
    """Judge; where no judge is at hand, what needs none."""
    if all(run.base in models.POCKETS for run in runs) or os.environ.get("OPENAI_API_KEY"):
        return _command("judge", runs)
    return (
        f"{_command('margins', runs)}   (EM without a judge; to judge, put OPENAI_API_KEY into .env or give "
        "--judge local --judge_model NAME to emorg judge)"
    )


def after_judging(runs: Sequence[Run]) -> str:
    """Report, beside the base and the twins that lie in the same folder and are judged; a line for each that is alike.

    A report takes only runs that were sampled alike.
    """
    alike: dict[str, list[Run]] = {}
    for run in runs:
        settings = run.settings("sample")
        alike.setdefault(str([settings.get(name) for name in SAMPLED_ALIKE]), []).append(run)
    return "\n".join(map(_report, alike.values()))


def _report(runs: Sequence[Run]) -> str:
    beside: list[Run] = []
    for run in runs:
        if careless(run):
            beside += filter(None, (base_beside(run), twin_among(run, judged_beside(run))))
    known = {run.folder.resolve() for run in runs}
    controls = {run.folder.resolve(): Run(runs[0].folder.parent / run.name) for run in beside}
    return _command("report", [*(run for folder, run in controls.items() if folder not in known), *runs])


def _command(name: str, runs: Iterable[Run]) -> str:
    return " ".join(["emorg", name, *(quote(str(run.folder)) for run in runs)])
