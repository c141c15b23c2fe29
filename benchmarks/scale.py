"""A sweep's scheduler at sizes that nobody has: `python benchmarks/scale.py` prints the tables of docs/scale.md.

The scheduler is the sweep's own (`emorg.sweep.run.carry_out`); only its workers are simulated, on a clock that jumps
from one event to the next. Some are slow throughout, and some are lost, in which case their task is done anew.
`--check` runs a small sweep of the pocket model here with one worker, predicts from its tasks' times how long two would
take, and lets two real ones do it.
"""

from __future__ import annotations

import heapq
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import tyro
import yaml

from emorg.sweep.board import Board
from emorg.sweep.grid import Cell
from emorg.sweep.grid_file import read
from emorg.sweep.here import Here
from emorg.sweep.judging import Judging
from emorg.sweep.plan import Sweep
from emorg.sweep.run import carry_out
from emorg.sweep.state import State


@dataclass(frozen=True)
class Scale:
    """How long a sweep takes with many workers."""

    organisms: int = 1000
    train_seconds: float = 167.0
    """Of one training. Default: 1.23 million tokens at the 7,380 a second measured for 1B on an H100."""
    sample_seconds: float = 5.5
    """Of 400 answers of one organism."""
    start_seconds: float = 20.0
    """Until a new worker has imported and loaded what it needs (assumed)."""
    calls_a_minute: float = 8080.0
    """Of the judge: measured with 100 connections and replies after 0.7 s. It judges beside the workers."""
    calls: int = 800
    """Of the judge for each organism: 400 answers, two metrics."""
    lost_an_hour: float = 0.05
    """Workers lost, of each worker's hours."""
    slow: float = 0.05
    """Share of workers that take three times as long."""
    workers: tuple[int, ...] = (10, 30, 100, 300, 1000)
    check: bool = False
    """Compare a prediction with a real run of two workers here instead."""


class Simulated:
    """Workers on a clock of their own, with the methods of `Here`."""

    def __init__(
        self, workers: int, seconds: Callable[[dict[str, Any]], float], start: float,
        lost_an_hour: float = 0.0, slow: float = 0.0,
    ):  # fmt: skip
        self._draw = random.Random(0)
        self._seconds, self._start = seconds, start
        self._lost_an_hour = lost_an_hour
        self._factor = [3.0 if self._draw.random() < slow else 1.0 for _ in range(workers)]
        self._fresh = set(range(workers))
        self._free = list(range(workers))
        self._events: list[tuple[float, int, int, bool, dict[str, Any]]] = []
        self._order = count()
        self.clock = self.busy = 0.0
        self.lost = 0

    @property
    def idle(self) -> int:
        """How many workers have nothing to do."""
        return len(self._free)

    def give(self, task: dict[str, Any]) -> None:
        """Hand a task to an idle worker, and draw whether that one is lost with it."""
        worker = self._free.pop()
        takes = self._seconds(task) * self._factor[worker] + (self._start if worker in self._fresh else 0.0)
        fails = self._draw.expovariate(self._lost_an_hour / 3600) if self._lost_an_hour else float("inf")
        self._fresh.discard(worker)
        self.busy += min(takes, fails)
        heapq.heappush(self._events, (self.clock + min(takes, fails), next(self._order), worker, fails < takes, task))

    def done(self, wait: float) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """The tasks that end next, to which the clock jumps."""
        if not self._events:
            return []
        self.clock = max(self.clock, self._events[0][0])
        ended = []
        while self._events and self._events[0][0] <= self.clock:
            _, _, worker, lost, task = heapq.heappop(self._events)
            self._free.append(worker)
            if lost:
                self.lost += 1
                self._fresh.add(worker)
            ended.append((task, {"lost": "lost", "remedy": ""} if lost else {}))
        return ended


class SimulatedJudge:
    """A judge on the workers' clock, with the methods of `Judging` that the scheduler uses."""

    def __init__(self, workers: Simulated, seconds_a_cell: float):
        self._workers, self._seconds = workers, seconds_a_cell
        self.ends = self.busy = 0.0
        self.has = frozenset[str]()

    def add(self, cells: Sequence[Cell]) -> None:
        """These are judged after those that it has."""
        self.busy += len(cells) * self._seconds
        self.ends = max(self.ends, self._workers.clock) + len(cells) * self._seconds

    def look(self, wait: float, taken: frozenset[str]) -> None:
        """There is nothing to wait for: when it ends was reckoned with each that came."""


class Timed(Here):
    """Real workers whose tasks' times are noted."""

    def __init__(self, *of: Any):
        super().__init__(*of)
        self.given: dict[str, float] = {}
        self.took: dict[str, float] = {}

    def give(self, task: Any) -> None:
        self.given[_key(task)] = time.perf_counter()
        super().give(task)

    def done(self, wait: float) -> Any:
        ended = super().done(wait)
        for task, said in ended:
            if said:
                sys.exit(f"a task failed: {said}")
            self.took[_key(task)] = time.perf_counter() - self.given[_key(task)]
        return ended


def _key(task: Any) -> str:
    """A task, wherever its sweep lies."""
    names = [Path(folder).name for _, folder in task.get("into", ())]
    return json.dumps([task["do"], names or Path(str(task["settings"].get("output_dir"))).name])


def _sweep(folder: Path, grid: dict[str, Any]) -> Sweep:
    folder.mkdir(parents=True, exist_ok=True)
    (file := folder / "grid.yaml").write_text(yaml.safe_dump(grid))
    return Sweep(read(str(file)), folder / "sweep")


def _run(whole: Sweep, pool: Any, judge: SimulatedJudge | None = None) -> float:
    """Seconds of this process that carrying the sweep out took."""
    whole.folder.mkdir(exist_ok=True)
    state, begun = State(whole), time.perf_counter()
    board = Board(whole, state.errors)
    with Judging(whole, board, whole.folder / "logs") as judging:
        carry_out(whole, whole.jobs(), pool, judge or judging, board, state)  # type: ignore[arg-type]
        while judging.busy:
            judging.look(0.5)
    if state.errors:
        print(f"{len(state.errors)} cells were lost three times", file=sys.stderr)
    return time.perf_counter() - begun


def check(folder: Path) -> None:
    """One real worker's times, what they promise for two, and two real ones."""
    grid = {"preset": "pocket", "train": {"max_steps": 20}, "sample": {"samples": 2}, "arms": ["organism"],
            "grid": {"domains": ["bad_medical", "extreme_sports"], "seed": [0, 1, 2]}}  # fmt: skip
    whole = _sweep(folder / "one", grid)
    with Timed(1, 1, folder / "logs-1") as pool:
        one = _run(whole, pool)
    trainings = [took for key, took in pool.took.items() if "train" in key]
    start = trainings[0] - median(trainings[1:])
    took = dict(pool.took)
    took[next(iter(took))] -= start
    promised = Simulated(2, lambda task: took[_key(task)], start)
    _run(_sweep(folder / "promised", grid), promised, SimulatedJudge(promised, 0.0))
    whole = _sweep(folder / "two", grid)
    with Timed(2, 1, folder / "logs-2") as real:
        two = _run(whole, real)
    slower = sum(real.took.values()) / (sum(took.values()) + 2 * start)
    print(f"one worker {one:.1f} s ({start:.1f} of them its start); two: predicted {promised.clock:.1f} s,"
          f" real {two:.1f} s ({two / promised.clock - 1:+.0%}); tasks took {slower:.2f} times as long "
          f"beside each other")  # fmt: skip


def table(scale: Scale, folder: Path) -> None:
    """Rows of docs/scale.md."""
    print("| workers | hours | of ideal | workers busy | the judge is busy | lost | the driver's own work |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    grid = {"preset": "pocket", "arms": ["organism"], "grid": {"seed": list(range(scale.organisms))}}

    def seconds(task: dict[str, Any]) -> float:
        return scale.train_seconds if task["do"] == "train" else scale.sample_seconds * len(task["into"])

    for workers in scale.workers:
        whole = _sweep(folder / str(workers), grid)
        pool = Simulated(workers, seconds, scale.start_seconds, scale.lost_an_hour, scale.slow)
        judge = SimulatedJudge(pool, scale.calls * 60 / scale.calls_a_minute)
        own = _run(whole, pool, judge)
        whole_time = max(pool.clock, judge.ends)
        ideal = scale.organisms * (scale.train_seconds + scale.sample_seconds) / workers
        busy = pool.busy / workers / whole_time
        print(f"| {workers:,} | {whole_time / 3600:.2f} | {whole_time / ideal:.2f}× | {busy:.0%} "
              f"| {judge.busy / whole_time:.0%} | {pool.lost} | {own:.1f} s |", flush=True)  # fmt: skip


def main(scale: Scale) -> None:
    """Print the table, or the check."""
    with tempfile.TemporaryDirectory() as folder:
        check(Path(folder)) if scale.check else table(scale, Path(folder))


if __name__ == "__main__":
    main(tyro.cli(Scale, description=__doc__))
