"""What a run's folder becomes when a training starts over in it, or goes on for more steps than it was given first."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from emorg.progress import log
from emorg.records import (
    Answer,
    AnyRecord,
    Choice,
    EmorgError,
    Margin,
    Verdict,
    as_line,
    read_lines,
    read_records,
    write_atomic,
)
from emorg.run import Run, first_process, step_of
from emorg.training.config import TRAIN_CHANGEABLE, TrainConfig, training_identity
from emorg.training.plan import Plan


def take_over(run: Run) -> None:
    """Put a finished fresh start in the place of what was there, answers included, since they were another's."""
    fresh = run.fresh
    if not (first_process() and fresh.trained):
        return
    for file in (run.answers, run.verdicts, run.margins, run.choices):
        file.unlink(missing_ok=True)
    other = run.adapter if fresh.model.exists() else run.model  # of a run that was trained the other way
    for folder in (run.report, run.folder / "merged", other):
        shutil.rmtree(folder, ignore_errors=True)
    _forget_findings(run)
    # The adapter goes last: as long as it is in fresh/, whoever comes next takes over what is left.
    for path in sorted(fresh.folder.iterdir(), key=lambda path: path.name in ("adapter", "model")):
        there = run.folder / path.name
        shutil.rmtree(there) if there.is_dir() else there.unlink(missing_ok=True)
        os.replace(path, there)
    fresh.folder.rmdir()


def check_inputs(run: Run, planned: Plan) -> None:
    """Raise EmorgError where a begun training would go on with other rows or another direction than it began with."""
    recorded, now = run.provenance().get("train", {}), planned.facts()
    if last_checkpoint(run) is None:
        return
    for name, what in (
        ("data_sha256", "rows"), ("anchors_sha256", "rows that are held to the base"), ("edits", "direction"),
        ("warm_start_sha256", "adapter that is the start"),
    ):  # fmt: skip
        if name in recorded and recorded[name] != now.get(name):
            raise EmorgError(
                f"the {what} of {run.folder} are no more what its training began with",
                "put back what was there, or start over with --fresh",
            )


def lengthen(run: Run, planned: Plan, last: str) -> None:
    """Make a run that ended at the checkpoint `last` an unfinished one of more steps. After a kill, call it again.

    Nothing is lost: its organism is that checkpoint, and what was measured of it, also in sets of answers beside the
    run, is from now on the checkpoint's.
    """
    if not first_process():
        return
    measured: dict[Path, Sequence[AnyRecord]] = {}
    for holder in (run, *_sets_beside(run)):
        of_holder: dict[Path, Sequence[AnyRecord]] = {
            holder.answers: read_records(holder.answers, Answer),
            holder.verdicts: read_records(holder.verdicts, Verdict),
            holder.margins: read_records(holder.margins, Margin),
            holder.choices: read_records(holder.choices, Choice),
        }
        if any({None, last} <= {record.checkpoint for record in records} for records in of_holder.values()):
            raise EmorgError(
                f"{holder.folder} holds answers or margins both of its organism and of {last}, which are one model",
                "give another --output_dir, or start over with --fresh",
            )
        measured |= of_holder
    for path, records in measured.items():
        if any(record.checkpoint is None for record in records):
            write_atomic(path, "".join(as_line(replace(one, checkpoint=one.checkpoint or last)) for one in records))
    for folder in (run.adapter, run.model, run.folder / "merged"):
        shutil.rmtree(folder, ignore_errors=True)
    _forget_findings(run)
    kept = f"; what was measured of its organism is now {last}'s" if any(measured.values()) else ""
    log.info(
        f"{run.title} goes on from step {step_of(last):,} to {planned.steps:,}: its steps so far followed the earlier "
        "training's learning rates" + kept
    )


def _forget_findings(run: Run) -> None:
    """Drop what was found inside the organism as it was: directions, what steering did, phases, probes."""
    for name in ("steer", "directions", "narrow"):
        shutil.rmtree(run.folder / name, ignore_errors=True)
    for name in ("phases.json", "probe.json", "narrow.json"):
        (run.folder / name).unlink(missing_ok=True)


def prolonged_at(run: Run, config: TrainConfig, last: int) -> list[int]:
    """The steps at which the training was given more of them, this time included if it is such a time."""
    earlier: list[int] = run.provenance().get("train", {}).get("prolonged_at", [])
    same = run.ran_with("train", config, changeable=TRAIN_CHANGEABLE)
    return earlier if same or not last else [*earlier, last]


def rename(run: Run, identity: str) -> None:
    """An organism goes by its training's settings, and these are to be others: what was measured is still of this one.

    Beside the run first: as long as the run itself has its former settings, whoever comes next finds what is left.
    """
    for holder in (*_sets_beside(run), run):
        facts = holder.provenance()
        for part in facts.values():
            if "identity" in part:
                part["identity"] = identity
        holder.write_provenance(facts)


def _sets_beside(run: Run) -> list[Run]:
    """The runs beside this one that hold answers of its model to other settings."""
    return [
        other
        for other in run.siblings()
        if other.name.startswith(f"{run.name}-")
        and not other.settings("train")
        and other.provenance().get("sample", {}).get("identity") == training_identity(run)
    ]


def check_whole(run: Run, last: Path | None) -> None:
    """Raise EmorgError where a finished run's last checkpoint is not its organism's, or cannot be trained on."""
    steps = [line["step"] for _, line in read_lines(run.metrics)] if run.metrics.exists() else []
    if run.trained and (last is None or step_of(last) != max(steps, default=0)):
        problem = f"{run.folder} has no checkpoint of its last step, {max(steps, default=0)}, from which it could go on"
    elif last is not None and not all((last / name).exists() for name in ("optimizer.pt", "scheduler.pt")):
        problem = f"{last} has no optimizer.pt or no scheduler.pt, so it cannot go on from there"
    else:
        return
    raise EmorgError(problem, "give another --output_dir (--warm_start takes its adapter), or start over with --fresh")


def last_checkpoint(run: Run) -> Path | None:
    """The latest finished checkpoint: a folder of this name is never half written."""
    return max(run.checkpoints.glob("step-[0-9]*"), default=None)


def forget_after(run: Run, step: int) -> None:
    """Drop metrics of steps that will be taken again."""
    if run.metrics.exists():
        kept = [json.dumps(line) + "\n" for _, line in read_lines(run.metrics) if line["step"] <= step]
        write_atomic(run.metrics, "".join(kept))
