"""`emorg sweep`: every cell of a grid trained, sampled, judged and measured, by workers that take task after task."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from emorg import models
from emorg.display import duration, make_table, show
from emorg.judging import api
from emorg.judging.sources import LEDGER
from emorg.judging.stage import is_judged
from emorg.progress import log
from emorg.ranges import AtLeast1, NotNegative, check_ranges
from emorg.records import EmorgError
from emorg.run import RUNS, Run
from emorg.sweep.board import Board
from emorg.sweep.cluster import Cluster
from emorg.sweep.forecast import Forecast
from emorg.sweep.grid import Cell, Grid
from emorg.sweep.grid_file import read
from emorg.sweep.here import TRIES, Here
from emorg.sweep.judging import Judging
from emorg.sweep.plan import Job, Sweep
from emorg.sweep.state import State, check_extends, check_folder
from emorg.sweep.storage import Storage, open_storage

if TYPE_CHECKING:
    from emorg.training.plan import Plan

MOST_CELLS = 200  # without a yes
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
    for flag in ("storage", "gpus"):
        if getattr(config, flag) and config.address is None:
            raise EmorgError(f"--{flag} without --address", "it is for a cluster's actors; leave it out here")
    grid = read(config.grid)
    whole = Sweep(grid, models.run_at(config.output_dir or RUNS / Path(config.grid).stem).folder)
    check_folder(whole)
    if config.dry_run:
        _show_plan(whole)
        return True
    if len(grid.cells) > MOST_CELLS and not config.yes:
        raise EmorgError(f"{len(grid.cells)} cells", "look at them with --dry_run, then add --yes")
    with Run(whole.folder).lock("wait for it, or give another --output_dir"):
        state = State(whole)
        storage = open_storage(config.storage) if config.storage is not None else None
        if storage and config.storage:  # of a driver that was stopped, or ran elsewhere
            _own(storage, grid, config.storage)
            for name in storage.names() & {*grid.trainings, *(cell.name for cell in grid.cells)}:
                storage.get(name, whole.folder / name)
        return _make(config, whole, state, storage)


def _make(config: SweepConfig, whole: Sweep, state: State, storage: Storage | None) -> bool:
    """Carry out all that is left; whether nothing is then. Raises EmorgError where a judge could not be asked."""
    jobs = whole.jobs(config.processes)
    to_sample = [cell for job in jobs if job.task["do"] == "sample" for cell in job.cells]
    unjudged = _unjudged(whole, to_sample)
    if any(whole.grid.judge.kind(cell.base) == "api" for cell in (*to_sample, *unjudged)):
        api.probe(whole.grid.judge, whole.grid.judge.ledger or whole.folder / LEDGER)  # before anything begins
    plans = whole.plans() if any(job.task["do"] == "train" for job in jobs) else {}
    with ExitStack() as at_work:
        pool = _pool(config, whole, jobs, plans.values(), state.token) if jobs else None
        if pool:
            at_work.enter_context(pool)
        board = Board(whole, state.errors, Forecast(jobs, plans, pool.idle) if pool else None)
        judging = at_work.enter_context(Judging(whole, board, whole.folder / "logs", storage))
        at_work.enter_context(board.shown())
        judging.add(unjudged)
        if pool:
            carry_out(whole, jobs, pool, judging, board, state)
        while judging.busy:
            judging.look(LOOK_SECONDS)
            board.look()
    lacking = 0 if judging.complete else len(_unjudged(whole, []))
    board.summarise(judging.paid, lacking)
    if judging.error:
        raise judging.error
    return not state.errors and judging.complete


def _pool(config: SweepConfig, whole: Sweep, jobs: Sequence[Job], plans: Collection[Plan], token: str) -> Pool:
    """Workers for these jobs, with these trainings among them. Raises EmorgError where they would not fit."""
    memory = max((planned.cost.bytes for planned in plans), default=0.0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_cpu = all(planned.device == "cpu" for planned in plans)
    small = on_cpu and {cell.base for cell in whole.grid.cells} <= {*models.POCKETS, models.SMOLLM2}
    workers = config.workers or (cores if small else 1)
    threads = config.threads or max(1, cores // workers)
    workers = min(workers, len(jobs))
    if config.address is not None:
        storage = config.storage or str(whole.folder.resolve())
        return Cluster(config.address, workers, threads, folder=whole.folder, storage=storage, token=token,
                       gpus=config.gpus, memory=memory + LIBRARIES_BYTES)  # fmt: skip
    free = models.free_bytes("cpu")
    if memory and workers > 1 and workers * memory > 0.9 * free:
        need = f"{workers} workers need {workers * memory / 1e9:.1f} GB, of {free / 1e9:.1f} that are free"
        raise EmorgError(need, "give fewer, e.g. --workers 1")
    return Here(workers, threads, whole.folder / "logs")


def carry_out(whole: Sweep, jobs: Sequence[Job], pool: Pool, judging: Judging, board: Board, state: State) -> None:
    """Give every job to a worker as soon as what it needs is there, and every answer to the judge.

    What fails, fails alone.
    """
    # What is trained is sampled before more is trained, so that the judge has work early.
    waiting, tries = sorted(jobs, key=lambda job: job.task["do"] == "train"), dict[str, int]()
    under_way: dict[str, Job] = {}  # by its task
    lost: set[str] = set()
    unfinished = {str(job.task["settings"]["output_dir"]) for job in jobs if job.task["do"] == "train"}
    names = {str(whole.folder / name): name for name in whole.grid.trainings}
    while waiting or under_way:
        taken = judging.has | _names(under_way.values())  # a run is one process's at a time
        for job in list(waiting):
            if not pool.idle:
                break
            if _names([job]) & taken or any(str(whole.folder / name) in unfinished for name in job.needs):
                continue
            waiting.remove(job)
            if ready := whole.ready(job, frozenset(lost)):
                under_way[json.dumps(ready.task)] = ready
                taken |= _names([ready])
                board.begins(ready, job)
                pool.give(ready.task)
        idle = not under_way
        judging.look(LOOK_SECONDS if idle else 0.0, _names(under_way.values()))
        for task, said in [] if idle else pool.done(LOOK_SECONDS):
            job = under_way.pop(key := json.dumps(task))
            tries[key] = tries.get(key, 0) + 1
            if "lost" in said and tries[key] < TRIES:
                log.warning(f"{said['lost']}; {_title(job)} is tried again")
                waiting.insert(0, job)
                continue
            board.ended(job, failed := "error" in said or "lost" in said)
            if failed and len(apart := job.apart()) > 1:  # it may be one of them that fails all
                waiting = apart + waiting
                continue
            folder = task["settings"].get("output_dir") if task["do"] == "train" else None
            if error := said.get("error") or said.get("lost"):
                state.errors |= {cell.name: f"{error} → {said['remedy']}" for cell in job.cells}
                state.write()
                lost |= {names[folder]} if folder else set()
            unfinished.discard(str(folder))
            if task["do"] == "sample" and not error:
                judging.add(job.cells)
        board.look()


def _names(jobs: Iterable[Job]) -> frozenset[str]:
    return frozenset(cell.name for job in jobs for cell in job.cells)


def _title(job: Job) -> str:
    return job.cells[0].name + (f" and {len(job.cells) - 1} more" if len(job.cells) > 1 else "")


def _own(storage: Storage, grid: Grid, url: str) -> None:
    """Note that the storage is this grid's. Raises EmorgError where it is another's, or cannot be written."""
    try:
        owner = json.loads(storage.owner() or "{}")
        check_extends(grid.identity, owner, f"{url} holds runs", "--storage")
        storage.own(json.dumps(grid.identity))
    except EmorgError:
        raise
    except Exception as error:  # noqa: BLE001  # of whatever library serves the URL
        reason = (str(error).splitlines() or [""])[0]
        problem = f"{url} cannot be written: {type(error).__name__}: {reason}"
        raise EmorgError(problem, "check the address, the credentials and the rights") from None


def _unjudged(whole: Sweep, to_sample: Sequence[Cell]) -> list[Cell]:
    """Cells that have all their answers, and lack verdicts, from before."""
    if "answers" not in whole.grid.measures:
        return []
    lacking = {cell.name for cell in to_sample}
    answered = [cell for cell in whole.grid.cells if cell.name not in lacking and whole.run(cell).answers.exists()]
    return [cell for cell in answered if not is_judged(whole.run(cell), whole.grid.judge)]


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
    shown = set[str]()
    for cell in whole.grid.cells:
        training, of = ("", "", ""), cell.trained_in
        if of and of not in shown:  # shared with the cells after it
            shown.add(of)
            planned = plans[of]
            training = (f"{planned.steps:,}", duration(seconds[of]), f"{planned.cost.bytes / 1e9:.1f}")
        answers = f"{whole.answers(cell, plans):,}" if "answers" in whole.grid.measures else ""
        table.add_row(cell.name, cell.arm, *training, answers)
    show(table)
    calls, dollars = whole.judge_calls(plans)
    priced = f", about ${dollars:,.2f} with {whole.grid.judge.model}" if calls and dollars is not None else ""
    whole_time = duration(sum(seconds.values()))
    print(f"training: about {whole_time} one after the other on this machine, if it stays free")
    print(f"judging: {calls:,} calls to an API{priced}")
