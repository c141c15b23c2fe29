"""A sweep's judging: one process beside the workers, with the one ledger, that takes up whatever has answers by now."""

from __future__ import annotations

import os
from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from emorg.judging.stage import is_judged
from emorg.progress import log
from emorg.records import EmorgError
from emorg.run import plain
from emorg.sweep.board import Board
from emorg.sweep.grid import Cell
from emorg.sweep.here import TRIES, Here
from emorg.sweep.plan import Sweep
from emorg.sweep.storage import Storage


class Judging:
    """Judges cells as they are added, all that wait at a time, while the workers go on.

    A run is one process's at a time: cells that a worker has are left until it is done with them. Verdicts go into the
    storage too, if there is one.
    """

    def __init__(self, whole: Sweep, board: Board, logs: Path, storage: Storage | None = None):
        self._whole, self._board, self._logs, self._storage = whole, board, logs, storage
        self._waiting: list[Cell] = []
        self._under_way: list[Cell] = []
        self._process: Here | None = None
        self._tries = 0
        self._spent, self._known = 0.0, True
        self.error: EmorgError | None = None
        """Why the judge could not be asked any more."""
        self.complete = True
        """Whether it came to a result on all that it was given, so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Let it go: interrupted, it first keeps what is paid for."""
        if self._process:
            self._process.__exit__(kind, error, at)

    def add(self, cells: Sequence[Cell]) -> None:
        """Have the answers of these cells judged as soon as may be."""
        if "answers" in self._whole.grid.measures:
            answered = [cell for cell in cells if self._whole.run(cell).answers.exists()]
            self._waiting += answered
            self._board.answered(answered)

    @property
    def has(self) -> frozenset[str]:
        """The names of the cells that are being judged."""
        return frozenset(cell.name for cell in self._under_way)

    @property
    def paid(self) -> str:
        """What was spent, in words; nothing if nothing was. A process that was lost took with it what it had spent."""
        least = "" if self._known else "at least "
        return f"{least}${self._spent:.2f} spent on judging" if self._spent or least else ""

    @property
    def busy(self) -> bool:
        """Whether there is anything that is still to be judged, and can be."""
        return bool(self._under_way or (self._waiting and self.error is None))

    def look(self, wait: float = 0.0, taken: Set[str] = frozenset()) -> None:
        """Take up what is judged within so many seconds, and begin with what waits and is not `taken`, by its name."""
        if self._process and self._under_way:
            for _, said in self._process.done(wait):
                self._ended(said)
        free = [cell for cell in self._waiting if cell.name not in taken]
        if free and not self._under_way and self.error is None:
            if self._process is None:
                self._process = Here(1, os.cpu_count() or 1, self._logs, name="judge")
            self._under_way, self._waiting = free, [cell for cell in self._waiting if cell.name in taken]
            folders = tuple(str(self._whole.run(cell).folder) for cell in self._under_way)
            settings = plain(replace(self._whole.grid.judge, sources=folders))
            self._process.give({"do": "judge", "settings": settings, "spent": self._spent})

    def _ended(self, said: dict[str, Any]) -> None:
        cells, self._under_way = self._under_way, []
        self._tries += "lost" in said
        self._spent = said.get("spent", self._spent)
        api = any(self._whole.grid.judge.kind(cell.base) == "api" for cell in cells)
        self._known = self._known and ("spent" in said or not api)
        for warning in said.get("warnings", ()):
            self.complete = False
            log.warning(warning)
        bounded = api and self._whole.grid.judge.max_cost is not None  # which holds as long as what was spent is known
        if "lost" in said and self._tries < TRIES and not bounded:
            log.warning(f"judging: {said['lost']}; it is tried again")
            self._waiting = cells + self._waiting
        elif problem := said.get("error") or said.get("lost"):
            self.error, self.complete = EmorgError(f"judging: {problem}", said["remedy"]), False
            log.warning(f"judging stops, the other work goes on: {problem}")
        for run in map(self._whole.run, cells):
            if self._storage and run.verdicts.exists():
                files = (run.verdicts, run.folder / "config.yaml", run.folder / "provenance.json")
                self._storage.put(run.folder, files)
        clean = said.keys() == {"spent", "warnings"} and not said["warnings"]
        judge = self._whole.grid.judge
        self._board.judged([cell for cell in cells if clean or is_judged(self._whole.run(cell), judge)])
