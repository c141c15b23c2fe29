"""What a sweep has to do: the tasks that its cells come to, which of them are done, and what the rest will cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorg.data import questions
from emorg.judging.prices import planned_cost
from emorg.records import Answer, EmorgError, Margin, read_records
from emorg.run import Run, plain
from emorg.sampling.config import CHANGEABLE as SAMPLE_CHANGEABLE
from emorg.sampling.stage import usual_questions
from emorg.sampling.wanted import SAMPLES
from emorg.sweep.grid import Cell, Grid
from emorg.training.config import TRAIN_CHANGEABLE, TrainConfig

if TYPE_CHECKING:
    from emorg.training.plan import Plan

TOGETHER = 8  # models a sampling task has at most: with more, a pass on a GPU gains little, and a worker is idle longer
ANSWER_TOKENS = 150  # of an answer that isn't there yet, in the estimate of what judging costs


@dataclass(frozen=True)
class Job:
    """A task for a worker, the trainings that it waits for, and the cells that it serves."""

    task: dict[str, Any]
    cells: tuple[Cell, ...]
    needs: frozenset[str] = frozenset()

    def apart(self) -> list[Job]:
        """The same for one run at a time; cells that share what is made stay together."""
        groups: dict[str, list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault(cell.name if self.task["do"] == "sample" else str(cell.trained_in), []).append(cell)
        return [replace(self, cells=tuple(cells)) for cells in groups.values()]


@dataclass(frozen=True)
class Sweep:
    """A grid in its folder."""

    grid: Grid
    folder: Path

    def run(self, cell: Cell) -> Run:
        """A cell's run."""
        return Run(self.folder / cell.name)

    def trained(self, cell: Cell) -> Run:
        """The run that a cell's model is trained in, and its margins measured: several cells may share it."""
        return Run(self.folder / str(cell.trained_in))

    def training(self, name: str) -> TrainConfig:
        """A training's settings, with the folder that it is made in."""
        return replace(self.grid.trainings[name], output_dir=self.folder / name)

    def is_trained(self, name: str) -> bool:
        """Whether a training has finished. Raises EmorgError for one of other settings in its folder, or of none."""
        run = Run(self.folder / name)
        _check(run, "train", self.training(name), TRAIN_CHANGEABLE)
        if run.trained and not run.settings("train"):
            raise EmorgError(f"{run.folder} holds an adapter, and does not say of what training", "delete the folder")
        return run.trained

    def wanted(self, cell: Cell) -> dict[str, int]:
        """How many answers a cell's finished model is to give to each question, by its id."""
        config = cell.sample
        sets = config.questions or (usual_questions(cell.base),)
        asked = questions.load(sets, formats=config.formats, system=config.system)
        return {question.id: config.samples or question.samples or SAMPLES for question in asked}

    def has_answers(self, cell: Cell) -> bool:
        """Whether a cell's answers are all there, and those of its checkpoints if they are asked too.

        Raises EmorgError for answers to other settings in its folder.
        """
        if not (run := self.run(cell)).answers.exists():
            return False
        _check(run, "sample", cell.sample, SAMPLE_CHANGEABLE)
        there = Counter((answer.checkpoint, answer.question_id) for answer in read_records(run.answers, Answer))
        expected = (None, *(path.name for path in self._checkpoints(cell)))
        wanted = self.wanted(cell)
        return all(there[name, question] >= count for name in expected for question, count in wanted.items())

    def jobs(self, processes: int = 1) -> list[Job]:
        """All that workers still have to do, trainings, of so many processes each, first.

        Raises EmorgError for a folder of other settings.
        """
        jobs = [
            Job({"do": "train", "settings": plain(self.training(name)), "processes": processes}, tuple(self._of(name)))
            for name in self.grid.trainings
            if not self.is_trained(name)
        ]
        if "answers" in self.grid.measures:
            jobs += self._sampling()
        if "margins" in self.grid.measures:
            jobs += self._margins()
        return jobs

    def _of(self, training: str) -> Iterator[Cell]:
        return (cell for cell in self.grid.cells if cell.trained_in == training)

    def _sampling(self) -> Iterator[Job]:
        """Models with the same settings together, so many at a time in the grid's order, whatever the machine."""
        alike: dict[str, list[Cell]] = {}
        for cell in self.grid.cells:
            four = bool(cell.train and cell.train.use_4bit)
            alike.setdefault(f"{cell.base} {four} {plain(replace(cell.sample, models=()))}", []).append(cell)
        for cells in alike.values():
            for some in (cells[i : i + TOGETHER] for i in range(0, len(cells), TOGETHER)):
                lacking = tuple(cell for cell in some if not self.has_answers(cell))
                if lacking:
                    needs = frozenset(cell.trained_in for cell in lacking if cell.trained_in)
                    yield Job({"do": "sample", "settings": plain(some[0].sample)}, lacking, needs)

    def _margins(self) -> Iterator[Job]:
        """All models of a base at once: organisms are measured beside their twins."""
        by_base: dict[str, list[Cell]] = {}
        for cell in self.grid.cells:
            if cell.train:
                by_base.setdefault(f"{cell.base} {cell.train.use_4bit}", []).append(cell)
        for cells in by_base.values():
            runs = dict.fromkeys(self.trained(cell) for cell in cells)
            measured = {len(read_records(run.margins, Margin)) for run in runs}
            if 0 in measured or len(measured) > 1:  # one was stopped at, or is new
                needs = frozenset(cell.trained_in for cell in cells if cell.trained_in)
                yield Job({"do": "margins", "settings": {}}, tuple(cells), needs)

    def ready(self, job: Job, lost: frozenset[str]) -> Job | None:
        """The job as a worker can do it, without models whose training is lost; None if none is left."""
        cells = tuple(cell for cell in job.cells if cell.trained_in not in lost)
        if job.task["do"] == "train" or not cells:
            return job if cells else None
        if job.task["do"] == "margins":
            runs = dict.fromkeys(str(self.trained(cell).folder) for cell in cells)
            return replace(job, task={"do": "margins", "settings": {"runs": list(runs)}}, cells=cells)
        into = []
        for cell in cells:
            names = [cell.sample.models[0]] if cell.train is None else [str(self.folder / str(cell.trained_in))]
            into += [(name, str(self.run(cell).folder)) for name in [*names, *map(str, self._checkpoints(cell))]]
        settings = {**job.task["settings"], "models": [name for name, _ in into]}
        return replace(job, task={"do": "sample", "settings": settings, "into": into}, cells=cells)

    def _checkpoints(self, cell: Cell) -> list[Path]:
        if not (self.grid.checkpoints and cell.trained_in):
            return []
        return sorted(Run(self.folder / cell.trained_in).checkpoints.glob("step-[0-9]*"))

    # --- what it will cost -------------------------------------------------------------------------------------------

    def plans(self) -> dict[str, Plan]:
        """What each training would do; those that differ only in the seed are planned once.

        Raises EmorgError where a training would, and for one that would not fit into memory.
        """
        from emorg.training.plan import plan

        by_settings: dict[str, Plan] = {}
        plans: dict[str, Plan] = {}
        for name, config in self.grid.trainings.items():
            key = str(plain(replace(config, seed=0)))
            planned = plans[name] = by_settings.get(key) or by_settings.setdefault(key, plan(config))
            planned.lint.stop_on_errors()
            if not planned.cost.fits(planned.free):
                raise EmorgError(
                    f"{name} needs {planned.cost.bytes / 1e9:.1f} GB, of {planned.free / 1e9:.1f} that are free",
                    "lower batch_size and raise gradient_accumulation_steps, or add use_4bit: true",
                )
        return plans

    def answers(self, cell: Cell, plans: Mapping[str, Plan]) -> int:
        """How many answers a cell comes to, with those of its checkpoints."""
        saved = len(plans[cell.trained_in].saved_at) if self.grid.checkpoints and cell.trained_in else 0
        return sum(self.wanted(cell).values()) * (1 + saved) if "answers" in self.grid.measures else 0

    def judge_calls(self, plans: Mapping[str, Plan]) -> tuple[int, float | None]:
        """How many calls an API judge gets in all, and about what they cost in dollars; None without a price."""
        judge = self.grid.judge
        asked = [cell for cell in self.grid.cells if judge.kind(cell.base) == "api"]
        calls = sum(self.answers(cell, plans) for cell in asked) * len(judge.metrics) * judge.repeats
        return calls, planned_cost(calls, judge.model, ANSWER_TOKENS, judge.prices)


def _check(run: Run, stage: str, config: Any, changeable: frozenset[str]) -> None:
    try:
        run.check(stage, config, changeable=changeable)
    except EmorgError as error:
        raise EmorgError(error.problem, "give another --output_dir, or delete that folder") from None
