"""Where answers come from and verdicts go: a run's folder, or any CSV or JSONL file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from emorg.data.tables import read_answers, read_table, write_table
from emorg.progress import log
from emorg.records import Answer, AnswerKey, Appender, EmorgError, Verdict, read_records
from emorg.run import RUNS, Run, not_there

Known = dict[tuple[AnswerKey, str, int], Verdict]  # by answer, metric and repeat
LEDGER = "ledger.sqlite"


class RunSource:
    """A run, whose verdicts are appended as they come."""

    def __init__(self, run: Run):
        """Raises EmorgError if the run has no answers."""
        if not run.answers.exists():
            if not run.folder.exists():
                raise not_there(run.folder)
            raise EmorgError("{path} has no answers", "sample it first: emorg sample {path}", run.folder)
        self.run, self.name, self.place = run, run.name, str(run.folder)
        self.ledger = run.folder.resolve().parent / LEDGER
        self.base: str | None = run.provenance().get("sample", {}).get("base")

    def __enter__(self) -> Self:
        self._lock = self.run.lock()
        self._lock.__enter__()
        self.answers = read_records(self.run.answers, Answer)
        return self

    def turn(self, ledger: Path | None) -> AbstractContextManager[None]:
        """A run is one process's anyway."""
        return nullcontext()

    def known(self, judge: str) -> Known:
        """What this judge has said already; a failed request is nothing said."""
        verdicts = read_records(self.run.verdicts, Verdict)
        return {(v.key, v.metric, v.repeat): v for v in verdicts if v.judge == judge and v.state != "api_error"}

    @contextmanager
    def writing(self, settings: Any, judge: str) -> Iterator[Appender]:
        """What takes the verdicts; the run notes who judged."""
        self.run.record("judge", settings, judge=judge)
        with Appender(self.run.verdicts) as out:
            yield out

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.__exit__(kind, error, at)


class FileSource:
    """A CSV or JSONL file, which is left as it is; its rows with their scores go to NAME.judged.csv, whole."""

    base = None

    def __init__(self, path: Path, output: Path | None = None):
        """Raises EmorgError for a file that cannot be read or has no answers."""
        self.name, self.place = path.name, str(path)
        self.ledger = RUNS / LEDGER
        self._rows, self.answers = read_answers(path)
        self.output = output or path.with_name(f"{path.stem}.judged{path.suffix}")

    def __enter__(self) -> Self:
        return self

    @contextmanager
    def turn(self, ledger: Path | None) -> Iterator[None]:
        """Judge the file while no other process does: the next one finds it all in the ledger, and pays nothing."""
        folder = (ledger or self.ledger).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EmorgError(f"{folder}: {error.strerror}", "give another --ledger") from None
        name = hashlib.sha256(str(Path(self.place).resolve()).encode()).hexdigest()[:16]
        lock = FileLock(folder / f".{name}.lock")  # it goes with its process, however that ends
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info(f"{self.name}: another process is judging it; this one goes on when that has ended")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def known(self, judge: str) -> Known:
        """Nothing, as the ledger knows what has been paid. Raises EmorgError over a file that is not this judge's."""
        if self.output.exists():
            judges = {str(row.get("judge") or "nobody known") for _, row in read_table(self.output)}
            if judges - {judge}:
                raise EmorgError(
                    f"{self.output} is there, with scores by {' and '.join(sorted(judges))}",
                    f"write those by {judge} to another file: --output NAME{self.output.suffix}",
                )
        return {}

    @contextmanager
    def writing(self, settings: Any, judge: str) -> Iterator[_Scores]:
        scores = _Scores()
        yield scores
        rows = [{**row, **scores.columns(answer, judge)} for row, answer in zip(self._rows, self.answers, strict=True)]
        write_table(self.output, rows)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass


class _Scores:
    """Verdicts of a file's answers, as columns beside them."""

    def __init__(self) -> None:
        self._verdicts: dict[AnswerKey, list[Verdict]] = {}

    def write(self, verdict: Verdict) -> None:
        self._verdicts.setdefault(verdict.key, []).append(verdict)

    def columns(self, answer: Answer, judge: str) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for verdict in sorted(self._verdicts.get(answer.key, ()), key=lambda v: (v.repeat, v.metric)):
            name = verdict.metric + (f"_{verdict.repeat + 1}" if verdict.repeat else "")
            columns |= {name: verdict.score, f"{name}_state": verdict.state}
        return {**columns, "judge": judge}
