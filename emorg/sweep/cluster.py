"""A sweep's workers on a Ray cluster: actors that work in their machine's scratch and keep what they made elsewhere."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from emorg.records import EmorgError, write_atomic
from emorg.sweep.storage import open_storage
from emorg.sweep.worker import Task, answer

REACH_SECONDS = 10.0


class Worker:
    """What an actor does with a task of the driver, whose paths lie in `folder` there and in scratch here."""

    def __init__(self, folder: str, storage: str, token: str):
        self._folder, self._storage = folder, open_storage(storage)
        self._scratch = Path(tempfile.gettempdir()) / f"emorg-{os.getuid()}-{token}"

    def do(self, task: Task) -> dict[str, Any]:
        """Fetch what the task needs, carry it out, and keep what it made: `worker.answer`'s answer."""
        here = _moved(task, self._folder, str(self._scratch))
        names, begun = sorted(_names(task, self._folder)), time.time() - 1
        there = self._storage.names()
        for name in names:
            if name in there and (task["do"] != "train" or not (self._scratch / name).exists()):
                self._storage.get(name, self._scratch / name)
        said = answer(here)
        for name in names:
            self._keep(self._scratch / name, begun, known=name in there, whole=not said)
        return said

    def _keep(self, run: Path, begun: float, *, known: bool, whole: bool) -> None:
        """Put what changed of a run into the storage; of one that is not there yet all of it, once it is whole."""
        config = run / "config.yaml"
        if config.exists():  # as if it had been made where the driver has it
            write_atomic(config, config.read_text(encoding="utf-8").replace(str(self._scratch), self._folder))
        files = [path for path in run.rglob("*") if path.is_file()]
        if known or whole:
            self._storage.put(run, [path for path in files if not known or path.stat().st_mtime >= begun])

    def tidy(self) -> None:
        """Forget the scratch."""
        shutil.rmtree(self._scratch, ignore_errors=True)


class Cluster:
    """Ray actors with so many CPUs and GPUs and so much memory each; what they made is fetched into `folder`."""

    def __init__(
        self,
        address: str,
        workers: int,
        threads: int,
        *,
        folder: Path,
        storage: str,
        token: str,
        gpus: float,
        memory: float,
    ):
        """Raises EmorgError without Ray, and for a cluster that cannot be reached."""
        try:
            ray: Any = import_module("ray")
        except ImportError:
            raise EmorgError("Ray is not installed", "pip install 'emorg[sweep]'") from None
        self._ray, self._folder, self._storage = ray, folder, open_storage(storage)
        _reach(address)
        try:
            if not ray.is_initialized():
                known = {"num_cpus": workers * threads, "include_dashboard": False} if address == "local" else {}
                ray.init(address=address, log_to_driver=False, logging_level="ERROR", **known)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise EmorgError(f"no Ray cluster at {address}: {reason}", "start one: ray start --head") from None
        environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        options = {"num_cpus": threads, "num_gpus": gpus, "memory": memory, "runtime_env": {"env_vars": environment}}
        actor: Any = ray.remote(Worker).options(**options)
        self._begin: Callable[[], Any] = lambda: actor.remote(str(self._folder), storage, token)
        self._actors: dict[int, Any] = {number: self._begin() for number in range(workers)}
        self._under_way: dict[Any, tuple[int, Task]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Let the actors go. What an interrupted one was at is done again, from its last checkpoint on that machine."""
        for actor in self._actors.values():
            if kind is None:
                self._ray.wait([actor.tidy.remote()], timeout=10)
            self._ray.kill(actor)
        self._ray.shutdown()

    @property
    def idle(self) -> int:
        """How many actors have nothing to do."""
        return len(self._actors) - len(self._under_way)

    def give(self, task: Task) -> None:
        """Hand a task to an idle actor."""
        busy = {number for number, _ in self._under_way.values()}
        number = next(number for number in self._actors if number not in busy)
        self._under_way[self._actors[number].do.remote(dict(task))] = number, task

    def done(self, wait: float) -> list[tuple[Task, dict[str, Any]]]:
        """The tasks that ended within so many seconds, each with what `worker.answer` says of it, or `lost`."""
        if not self._under_way:
            return []
        ended = []
        ready, _ = self._ray.wait(list(self._under_way), num_returns=1, timeout=wait)
        for reference in ready:
            number, task = self._under_way.pop(reference)
            try:
                said = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as error:
                reason = str(error.cause if error.cause is not None else error).splitlines()
                said = {"error": f"its worker cannot keep runs: {reason[-1] if reason else type(error).__name__}",
                        "remedy": "see that every machine can write to the storage"}  # fmt: skip
            except self._ray.exceptions.RayError as error:
                said = {"lost": f"its worker was lost ({type(error).__name__})", "remedy": "run it again"}
                self._actors[number] = self._begin()
            for name in _names(task, str(self._folder)) & self._storage.names():
                self._storage.get(name, self._folder / name)
            ended.append((task, said))
        return ended


def _reach(address: str) -> None:
    """Raise EmorgError for an address at which nothing answers, for which Ray itself waits minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
        except OSError as error:
            reason = error.strerror or "no answer"
            raise EmorgError(f"no Ray cluster at {address}: {reason}", "start one: ray start --head") from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


def _names(task: Task, folder: str) -> set[str]:
    """The runs of the sweep that a task speaks of."""
    return {Path(text).relative_to(folder).parts[0] for text in _texts(task) if text.startswith(folder + os.sep)}


def _moved(value: Any, folder: str, to: str) -> Any:
    """A task with the paths in one folder as paths in another."""
    if isinstance(value, str):
        return to + value.removeprefix(folder) if value.startswith(folder + os.sep) else value
    if isinstance(value, Mapping):
        return {name: _moved(part, folder, to) for name, part in value.items()}
    return [_moved(part, folder, to) for part in value] if isinstance(value, list | tuple) else value
