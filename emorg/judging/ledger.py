"""The ledger: every reply of a judge in full, on disk before it is used, so that nothing is asked twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from emorg.records import EmorgError

_VERSION = 1
_TABLE = """
CREATE TABLE IF NOT EXISTS replies (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, endpoint TEXT NOT NULL, model TEXT NOT NULL, prompt_sha256 TEXT NOT NULL,
    parameters TEXT NOT NULL, repeat INTEGER NOT NULL, asked_at REAL NOT NULL, seconds REAL NOT NULL, fault TEXT,
    body TEXT NOT NULL
)"""
_ONCE = "CREATE UNIQUE INDEX IF NOT EXISTS good ON replies (key) WHERE fault IS NULL"
_BUSY = 60.0  # seconds to wait for another process's write
_AT_ONCE = 500  # keys in one query


@dataclass(frozen=True)
class Request:
    """What a judge is asked. The same again has the same key; `repeat` tells wanted repetitions apart."""

    endpoint: str
    model: str
    prompt: str
    parameters: str
    """JSON, with sorted names."""
    repeat: int = 0

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.prompt}]

    @cached_property
    def key(self) -> str:
        text = json.dumps([self.endpoint, self.model, self.messages, self.parameters, self.repeat])
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """The JSON that a judge replied with, whole, and how long it took; `fault` says why it is of no use."""

    request: Request
    body: str
    seconds: float
    fault: str | None = None


class Ledger:
    """An SQLite file of replies, that several processes may share. Raises EmorgError for what SQLite cannot do."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Self:
        with self._readable_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Commits run in a thread, so that requests go on meanwhile, and in a notebook the requests do too; but one
            # thread at a time has each connection.
            self._reading, self._writing = (
                sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
                for _ in range(2)
            )
            self._writing.execute("PRAGMA journal_mode = TRUNCATE")  # WAL is not for network disks
            version = self._writing.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise EmorgError(f"{self.path} is of a newer emorg", "update emorg, or give another --ledger")
            if version < _VERSION:
                for statement in (_TABLE, _ONCE, f"PRAGMA user_version = {_VERSION}"):
                    self._writing.execute(statement)
        self._waiting: list[tuple[Entry, asyncio.Future[None]]] = []
        self._committer: asyncio.Task[None] | None = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._reading.close()
        self._writing.close()

    def find(self, keys: Sequence[str]) -> dict[str, str]:
        """The bodies of the good replies to these keys."""
        bodies: dict[str, str] = {}
        with self._readable_errors():
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                rows = self._reading.execute(
                    f"SELECT key, body FROM replies WHERE fault IS NULL AND key IN ({marks})", some
                )
                bodies.update(rows)
        return bodies

    def served(self, endpoint: str, model: str) -> set[str]:
        """The names under which the endpoint's good replies came."""
        with self._readable_errors():
            rows = self._reading.execute(
                "SELECT DISTINCT json_extract(body, '$.model') FROM replies "
                "WHERE json_valid(body) AND fault IS NULL AND endpoint = ? AND model = ?",
                (endpoint, model),
            )
            return {str(name) for (name,) in rows}

    def keep(self, replies: Sequence[Entry]) -> None:
        """Commit replies; of two good ones to the same request the first stays."""
        now = time.time()
        columns = "key, endpoint, model, prompt_sha256, parameters, repeat, asked_at, seconds, fault, body"
        for start in range(0, len(replies), _AT_ONCE):
            some = replies[start : start + _AT_ONCE]
            # One statement, so one transaction, and one wait for the interpreter where requests are going on beside it.
            rows = ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"] * len(some))
            values = [
                value
                for r in some
                for value in (
                    r.request.key, r.request.endpoint, r.request.model,
                    hashlib.sha256(r.request.prompt.encode()).hexdigest(), r.request.parameters, r.request.repeat,
                    now - r.seconds, r.seconds, r.fault, r.body,
                )
            ]  # fmt: skip
            with self._readable_errors():
                self._writing.execute(f"INSERT OR IGNORE INTO replies ({columns}) VALUES {rows}", values)

    async def keep_soon(self, reply: Entry) -> None:
        """Return once the reply is committed, with all that came meanwhile in one transaction."""
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((reply, kept))
        if self._committer is None or self._committer.done():
            self._committer = asyncio.create_task(self._commit())
        await kept

    async def _commit(self) -> None:
        while self._waiting:
            some, self._waiting = self._waiting, []
            error: EmorgError | None = None
            try:
                await asyncio.to_thread(self.keep, [reply for reply, _ in some])
            except EmorgError as raised:
                error = raised
            for _, kept in some:
                if not kept.done():
                    kept.set_exception(error) if error else kept.set_result(None)

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            code = error.sqlite_errorcode & 0xFF  # the rest of it says more than is needed
            if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                remedy = "free some space and run the same command again: what is in the ledger is not paid again"
            elif code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                remedy = "another process holds it; try again when it has finished"
            else:
                remedy = "give another --ledger, in a folder that can be written"
            raise EmorgError(f"{self.path}: {error}", remedy) from None
        except sqlite3.DatabaseError as error:
            raise EmorgError(
                f"{self.path} is not a ledger: {error}", "move it away, or give another --ledger"
            ) from None
        except OSError as error:
            raise EmorgError(f"{self.path}: {error.strerror}", "give another --ledger") from None


def canonical(parameters: dict[str, Any]) -> str:
    """Parameters as a request's key holds them."""
    return json.dumps(parameters, sort_keys=True)
