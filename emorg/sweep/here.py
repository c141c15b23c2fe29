"""A sweep's workers on this machine: processes that hold what they imported and loaded, a task at a time each."""

from __future__ import annotations

import json
import os
import selectors
import signal
import sys
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from types import TracebackType
from typing import IO, Any, Self

from emorg.sweep.worker import Task

TRIES = 3  # of a task whose worker was lost
GRACE = 120.0  # seconds that an interrupted worker has for the step under way and its checkpoint


class Here:
    """Worker processes with so many threads each, whose words go to files `name` in `logs`; a lost one is replaced."""

    def __init__(self, workers: int, threads: int, logs: Path, name: str = "worker"):
        self._threads, self._logs, self._name = threads, logs, name
        logs.mkdir(parents=True, exist_ok=True)
        self._tasks: dict[int, Task | None] = {}
        self._processes: dict[int, Popen[str]] = {}
        self._ready = selectors.DefaultSelector()
        for number in range(workers):
            self._start(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Let the workers go: interrupted ones save what they have first; a second Ctrl-C ends them at once."""
        try:
            if kind is KeyboardInterrupt:
                for number, process in self._processes.items():
                    if self._tasks[number] is not None:
                        process.send_signal(signal.SIGINT)
                for number, process in self._processes.items():
                    if self._tasks[number] is not None:
                        process.wait(GRACE)
        except (KeyboardInterrupt, TimeoutExpired):
            pass
        finally:
            for process in self._processes.values():
                _end(process)
            self._ready.close()

    @property
    def idle(self) -> int:
        """How many workers have nothing to do."""
        return sum(task is None for task in self._tasks.values())

    def give(self, task: Task) -> None:
        """Hand a task to an idle worker."""
        number = next(number for number, given in self._tasks.items() if given is None)
        self._tasks[number] = task
        pipe = self._processes[number].stdin
        assert pipe is not None
        with suppress(BrokenPipeError):  # it just ended, which `done` tells
            pipe.write(json.dumps(task) + "\n")
            pipe.flush()

    def done(self, wait: float) -> list[tuple[Task, dict[str, Any]]]:
        """The tasks that ended within so many seconds, each with what `worker.answer` says of it, or `lost`."""
        ended = []
        for key, _ in self._ready.select(wait):
            number: int = key.data
            pipe = self._processes[number].stdout
            assert pipe is not None
            line, task = pipe.readline(), self._tasks[number]
            self._tasks[number] = None
            if not line:
                ended_by = self._processes[number].wait()
                name = signal.Signals(-ended_by).name if ended_by < 0 else f"exit code {ended_by}"
                self._ready.unregister(pipe)
                _end(self._processes[number])
                self._start(number)
                said = {"lost": f"its worker ended ({name}), as where memory runs out", "remedy": "run it again"}
            else:
                said = json.loads(line)
            if task is not None:
                ended.append((task, said))
        return ended

    def _start(self, number: int) -> None:
        threads = str(self._threads)
        with (self._logs / f"{self._name}-{number + 1}.log").open("a", encoding="utf-8") as words:
            process = Popen(
                [sys.executable, "-c", "from emorg.sweep.worker import main; main()"],
                stdin=PIPE,
                stdout=PIPE,
                stderr=words,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C in a terminal is the driver's alone
                env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            )
        pipe: IO[str] | None = process.stdout
        assert pipe is not None
        self._processes[number], self._tasks[number] = process, None
        self._ready.register(pipe, selectors.EVENT_READ, number)


def _end(process: Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()
