"""What a sweep shows while it runs: a live table of its cells in a terminal, a line for each change elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from emorg.display import duration, make_table
from emorg.progress import log
from emorg.run import Run
from emorg.runs import em_text
from emorg.sweep.forecast import NOUNS as DOING
from emorg.sweep.forecast import Forecast
from emorg.sweep.grid import Cell
from emorg.sweep.plan import Job, Sweep

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

DONE = {"train": "trained", "sample": "sampled", "margins": "measured"}
ROWS = 30  # of the table in a terminal, those under way first


class Board:
    """How far each cell is, by its name."""

    def __init__(self, whole: Sweep, errors: dict[str, str], forecast: Forecast | None = None):
        self._whole, self._errors, self._forecast = whole, errors, forecast
        self._states: dict[str, str] = {cell.name: self._there(cell) for cell in whole.grid.cells}
        self._em: dict[str, str] = {}
        self._live: Live | None = None
        self._begun = time.monotonic()

    def _there(self, cell: Cell) -> str:
        if cell.trained_in and not self._whole.is_trained(cell.trained_in):
            return "waits"
        if "answers" not in self._whole.grid.measures or self._whole.has_answers(cell):
            return "done"
        return "trained" if cell.train else "waits"

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw the table while the work within goes on, where someone looks."""
        if not sys.stderr.isatty():
            yield
            return
        from rich.console import Console
        from rich.live import Live

        with Live(self._table(), console=Console(stderr=True), auto_refresh=False) as self._live:
            try:
                yield
            finally:
                self._live = None

    def begins(self, job: Job, planned: Job) -> None:
        """A job is with a worker, as it is by now of what was planned."""
        if self._forecast:
            self._forecast.begins(job, planned)
        for cell in job.cells:
            self._set(cell, DOING[job.task["do"]])

    def ended(self, job: Job, failed: bool) -> None:
        """A job's worker is done with it."""
        for cell in job.cells:
            self._set(cell, "failed" if failed else DONE[job.task["do"]])
        if self._forecast:
            self._forecast.ended(job, failed=failed)
            if not self._live and (left := self._left()):
                log.info(left)

    def answered(self, cells: Sequence[Cell]) -> None:
        """Cells whose answers wait for verdicts."""
        for cell in cells:
            self._set(cell, "sampled")

    def judged(self, cells: Sequence[Cell]) -> None:
        """Cells that have their verdicts, as far as they have answers."""
        for cell in cells:
            if (run := self._whole.run(cell)).verdicts.exists():
                self._em[cell.name] = em_text(run)
                self._set(cell, "done")

    def look(self) -> None:
        """Draw it as it is now."""
        if self._live:
            self._live.update(self._table(), refresh=True)

    def summarise(self, paid: str, lacking: int) -> None:
        """Say what the sweep came to and what was paid, how many cells lack verdicts, and which failed and why."""
        names = [cell.name for cell in self._whole.grid.cells]
        failed = [name for name in names if name in self._errors]
        took = ", ".join(filter(None, (duration(time.monotonic() - self._begun), paid)))
        print(f"{self._whole.folder}: {len(names) - len(failed)} of {len(names)} cells are there, in {took}")
        if lacking:
            print(f"{lacking} of them lack verdicts; the same command judges what is left")
        for name in failed:
            print(f"failed: {name}: {self._errors[name]}")
        if failed:
            print("the same command tries them again; logs/ has what their workers said")

    def _set(self, cell: Cell, state: str) -> None:
        if self._states[cell.name] != state:
            self._states[cell.name] = state
            if not self._live:
                em = f", EM {self._em[cell.name]}" if self._em.get(cell.name) else ""
                log.info(f"{cell.name}: {state}{em}")

    def _table(self) -> Table:
        counts = {state: list(self._states.values()).count(state) for state in dict.fromkeys(self._states.values())}
        title = ", ".join(f"{count} {state}" for state, count in counts.items())
        passed = ", ".join(filter(None, (duration(time.monotonic() - self._begun), self._left())))
        table = make_table(f"{title}; {passed}", ("cell", "state", "step", "loss", "EM %"), left=2)
        busy = [cell for cell in self._whole.grid.cells if self._states[cell.name] in DOING.values()]
        others = [cell for cell in self._whole.grid.cells if cell not in busy]
        for cell in [*busy, *others][:ROWS]:
            state = self._states[cell.name]
            table.add_row(cell.name, state, *self._step(cell, state), self._em.get(cell.name, ""))
        if (left_out := len(self._states) - ROWS) > 0:
            table.caption = f"and {left_out} more"
        return table

    def _left(self) -> str:
        return self._forecast.left(lambda name: self._last(name).get("step", 0)) if self._forecast else ""

    def _step(self, cell: Cell, state: str) -> tuple[str, str]:
        """The last step and its loss of a training under way."""
        last = self._last(cell.name) if state == "training" else {}
        return (f"{last['step']:,}", f"{last['loss']:.3f}") if last else ("", "")

    def _last(self, name: str) -> dict[str, Any]:
        """The last line of a run's metrics; nothing while it is being written."""
        metrics = Run(self._whole.folder / name).metrics
        try:
            last: dict[str, Any] = json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])
        except (OSError, ValueError, IndexError):
            return {}
        return last
