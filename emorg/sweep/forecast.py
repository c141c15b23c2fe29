"""How long the rest of a sweep will take, by what its tasks took so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from emorg.display import duration
from emorg.sweep.plan import Job

if TYPE_CHECKING:
    from emorg.training.plan import Plan

NOUNS = {"train": "training", "sample": "sampling", "margins": "measuring"}


class Forecast:
    """Seconds a unit of work of each kind (FLOP of a training, models of the rest), and the work that is left."""

    def __init__(self, jobs: Sequence[Job], plans: Mapping[str, Plan], workers: int):
        self._plans, self._workers = plans, workers
        self._waiting = list(jobs)
        self._under_way: list[tuple[Job, float]] = []
        self._units = dict.fromkeys(NOUNS, 0.0)  # that are done
        self._seconds = dict.fromkeys(NOUNS, 0.0)

    def begins(self, job: Job, planned: Job) -> None:
        """A worker has it from now on, as it is by now of what was planned."""
        self._waiting = [other for other in self._waiting if other is not planned]
        self._under_way.append((job, time.monotonic()))

    def ended(self, job: Job, *, failed: bool) -> None:
        """A worker is done with it; one that failed says nothing of how long another takes."""
        begun = next(since for other, since in self._under_way if other is job)
        self._under_way = [entry for entry in self._under_way if entry[0] is not job]
        if not failed:
            self._units[job.task["do"]] += self._work(job)
            self._seconds[job.task["do"]] += time.monotonic() - begun

    def left(self, step: Callable[[str], int]) -> str:
        """About how long it takes, in words; `step` is how many steps a training under way has taken.

        Empty as long as nothing is known. A kind of task of which none has ended is named instead.
        """
        units, seconds, now = dict(self._units), dict(self._seconds), time.monotonic()
        waits: list[tuple[Job, float]] = [(job, 0.0) for job in self._waiting]  # with the seconds that it has had
        trains: list[tuple[Job, float]] = []  # with the share that it has done
        for job, since in self._under_way:
            if job.task["do"] != "train":
                waits.append((job, now - since))
                continue
            name = str(job.cells[0].trained_in)
            share = step(name) / self._plans[name].steps
            trains.append((job, share))
            units["train"] += share * self._work(job)
            seconds["train"] += (now - since) if share else 0.0
        pace = {kind: seconds[kind] / units[kind] for kind in NOUNS if units[kind]}
        total = sum((1 - share) * self._work(job) * pace.get("train", 0.0) for job, share in trains)
        total += sum(max(0.0, self._work(job) * pace.get(job.task["do"], 0.0) - had) for job, had in waits)
        unknown = {job.task["do"] for job, _ in (*trains, *waits)} - pace.keys()
        if not total:
            return ""
        then = "".join(f" and {NOUNS[kind]}" for kind in NOUNS if kind in unknown)
        return f"about {duration(total / self._workers)}{then} left"

    def _work(self, job: Job) -> float:
        if job.task["do"] == "train":
            return self._plans[str(job.cells[0].trained_in)].cost.flop
        return float(len(job.cells))
