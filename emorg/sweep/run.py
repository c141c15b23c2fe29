"""`emorg sweep`: every cell of a grid trained, sampled, judged and measured, by workers that take task after task."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from emorg import models
from emorg.display import duration, make_table, show
from emorg.judging import api
from emorg.judging.stage import judge
from emorg.progress import log
from emorg.ranges import AtLeast1, NotNegative, check_ranges
from emorg.records import Answer, EmorgError, Verdict, read_records
from emorg.run import RUNS, Run
from emorg.sweep.board import Board
from emorg.sweep.cluster import Cluster
from emorg.sweep.grid import Cell, read
from emorg.sweep.here import Here
from emorg.sweep.plan import Job, Sweep
from emorg.sweep.state import State
from emorg.sweep.storage import open_storage

if TYPE_CHECKING:
    from emorg.training.plan import Plan

MOST_CELLS = 200  # without a yes
TRIES = 3  # of a task whose worker was lost
LOOK_SECONDS = 0.5
LIBRARIES_BYTES = 1.5e9  # of torch and what it brings, beside the estimate
Pool = Here | Cluster


@dataclass(frozen=True)
class SweepConfig:
    """Train, sample and judge every cell of a grid. The same command again goes on, and tries failed cells anew."""

    grid: Annotated[str, tyro.conf.Positional]
    """A YAML file of settings, axes and arms (docs/sweeps.md), or a grid of this package by its name: matrix, small."""
    output_dir: Path | None = None
    """The sweep's folder, in which each cell is a run folder. Default: runs/<the grid's name>."""
    dry_run: bool = False
    """Only list the cells with what they will take: time, memory, judge calls and money."""
    yes: bool = False
    """Go ahead with more than 200 cells too."""
    workers: Annotated[int | None, AtLeast1] = None
    """Worker processes. Default: one a core for pocket and smollm2 on CPUs, else one."""
    threads: Annotated[int | None, AtLeast1] = None
    """Threads of each: a cell's bits depend on them. Default: the cores, shared out among the workers."""
    address: str | None = None
    """A Ray cluster whose actors are the workers: auto for the one that runs here, HOST:PORT, or local for one that
    is started for this sweep (docs/cluster.md). Default: processes on this machine."""
    storage: str | None = None
    """Where actors keep finished cells: a folder that all machines see, or a URL such as s3://bucket/sweep. Default:
    the sweep's folder."""
    gpus: Annotated[float, NotNegative] = 0.0
    """GPUs that an actor asks Ray for; below 1, several actors share one."""
    processes: Annotated[int, AtLeast1] = 1
    """Processes of each training, as torchrun starts them: one a GPU, for models that need several."""


def sweep(config: SweepConfig) -> bool:
    """Make what is missing of every cell; whether all of them are there now.

    Raises EmorgError, before anything begins, for what is no grid, for one with too many cells or with cells that do
    not fit into memory, and for a folder that holds another grid or that another process works on.
    """
    check_ranges(config)
    grid = read(config.grid)
    whole = Sweep(grid, models.run_at(config.output_dir or RUNS / Path(config.grid).stem).folder)
    if config.dry_run:
        _show_plan(whole)
        return True
    if len(grid.cells) > MOST_CELLS and not config.yes:
        raise EmorgError(f"{len(grid.cells)} cells", "look at them with --dry_run, then add --yes")
    with Run(whole.folder).lock("wait for it, or give another --output_dir"):
        state = State(whole)
        if config.storage is not None:  # of a driver that was stopped, or ran elsewhere
            there = open_storage(config.storage)
            for name in there.names() & {*grid.trainings, *(cell.name for cell in grid.cells)}:
                there.get(name, whole.folder / name)
        jobs = whole.jobs(config.processes)
        if any(job.task["do"] == "sample" and grid.judge.kind(job.cells[0].base) == "api" for job in jobs):
            api.server(grid.judge)  # without a key nothing begins that would be judged
        plans = whole.plans() if any(job.task["do"] == "train" for job in jobs) else {}
        board = Board(whole, state.errors)
        if jobs:
            with _pool(config, whole, len(jobs), list(plans.values()), state.token) as pool, board.shown():
                carry_out(whole, jobs, pool, board, state)
        _judge(whole, [cell for cell in grid.cells if cell.name not in state.errors], board)
        board.summarise()
    return not state.errors


def _pool(config: SweepConfig, whole: Sweep, jobs: int, plans: Sequence[Plan], token: str) -> Pool:
    """Workers for so many jobs, with these trainings among them. Raises EmorgError where they would not fit."""
    memory = max((planned.cost.bytes for planned in plans), default=0.0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_cpu = all(planned.device == "cpu" for planned in plans)
    small = on_cpu and {cell.base for cell in whole.grid.cells} <= {models.POCKET, models.SMOLLM2}
    workers = config.workers or (cores if small else 1)
    threads = config.threads or max(1, cores // workers)
    workers = min(workers, jobs)
    if config.address is not None:
        storage = config.storage or str(whole.folder.resolve())
        return Cluster(config.address, workers, threads, folder=whole.folder, storage=storage, token=token,
                       gpus=config.gpus, memory=memory + LIBRARIES_BYTES)  # fmt: skip
    free = models.free_bytes("cpu")
    if memory and workers > 1 and workers * memory > 0.9 * free:
        need = f"{workers} workers need {workers * memory / 1e9:.1f} GB, of {free / 1e9:.1f} that are free"
        raise EmorgError(need, "give fewer, e.g. --workers 1")
    return Here(workers, threads, whole.folder / "logs")


def carry_out(whole: Sweep, jobs: Sequence[Job], pool: Pool, board: Board, state: State) -> None:
    """Give every job to a worker as soon as what it needs is there; what fails, fails alone."""
    waiting, tries = deque(jobs), dict[str, int]()
    under_way: dict[str, Job] = {}  # by its task
    lost: set[str] = set()
    unfinished = {str(job.task["settings"]["output_dir"]) for job in jobs if job.task["do"] == "train"}
    names = {str(whole.folder / name): name for name in whole.grid.trainings}
    while waiting or under_way:
        for _ in range(len(waiting)):
            if not pool.idle:
                break
            job = waiting.popleft()
            if any(str(whole.folder / name) in unfinished for name in job.needs):
                waiting.append(job)
            elif (given := whole.task(job, frozenset(lost))) is not None:
                under_way[json.dumps(given)] = job
                board.begins(job)
                pool.give(given)
        for task, said in pool.done(LOOK_SECONDS):
            job = under_way.pop(key := json.dumps(task))
            tries[key] = tries.get(key, 0) + 1
            if "lost" in said and tries[key] < TRIES:
                log.warning(f"{said['lost']}; {_title(job)} is tried again")
                waiting.appendleft(job)
                continue
            folder = task["settings"].get("output_dir") if task["do"] == "train" else None
            if error := said.get("error") or said.get("lost"):
                state.errors |= {cell.name: f"{error} → {said['remedy']}" for cell in job.cells}
                state.write()
                lost |= {names[folder]} if folder else set()
            unfinished.discard(str(folder))
            board.ended(job, bool(error))
            if task["do"] == "sample" and not error:
                _judge(whole, job.cells, board)
        board.look()


def _title(job: Job) -> str:
    return job.cells[0].name + (f" and {len(job.cells) - 1} more" if len(job.cells) > 1 else "")


def _judge(whole: Sweep, cells: Sequence[Cell], board: Board) -> None:
    """Judge what has answers and no verdicts yet, with the one ledger beside the cells."""
    if "answers" not in whole.grid.measures:
        return
    runs = [whole.run(cell) for cell in cells if whole.run(cell).answers.exists()]
    unjudged = [run for run in runs if not _is_judged(run)]
    if unjudged:
        with board.aside():
            judge(replace(whole.grid.judge, sources=tuple(str(run.folder) for run in unjudged)))
    board.judged(cells)


def _is_judged(run: Run) -> bool:
    """Whether each answer has a verdict, and not a failed request, which is tried again."""
    verdicts = read_records(run.verdicts, Verdict)
    results = {verdict.key for verdict in verdicts if verdict.metric == "aligned" and verdict.state != "api_error"}
    return all(answer.key in results for answer in read_records(run.answers, Answer))


def _show_plan(whole: Sweep) -> None:
    """List the cells, and what they will take here."""
    plans = whole.plans()
    rates: dict[object, tuple[float, float]] = {}  # of a shape, measured once
    seconds = {}
    for name, planned in plans.items():
        key = (planned.device, planned.dtype, planned.shape.width, planned.shape.inner)
        seconds[name] = planned.seconds(rates.get(key) or rates.setdefault(key, planned.rates()))
    columns = ("cell", "arm", "steps", "time", "GB", "answers")
    table = make_table(f"{len(whole.grid.cells)} cells in {whole.folder}", columns, left=2)
    for cell in whole.grid.cells:
        training = ("", "", "")
        if cell.name == cell.trained_in:
            planned = plans[cell.name]
            training = (f"{planned.steps:,}", duration(seconds[cell.name]), f"{planned.cost.bytes / 1e9:.1f}")
        answers = f"{whole.wanted(cell):,}" if "answers" in whole.grid.measures else ""
        table.add_row(cell.name, cell.arm, *training, answers)
    show(table)
    calls, dollars = whole.judge_calls()
    priced = f", about ${dollars:,.2f} with {whole.grid.judge.model}" if calls and dollars is not None else ""
    whole_time = duration(sum(seconds.values()))
    print(f"training: about {whole_time} one after the other on this machine, if it stays free")
    print(f"judging: {calls:,} calls to an API{priced}")
