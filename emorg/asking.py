"""Many requests to a server side by side, each tried again as often as it may be."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

from emorg.client import REFUSED, Client, RequestError, Server, connected
from emorg.event_loop import event_loop
from emorg.pace import LONGEST_WAIT
from emorg.records import EmorgError

RETRIES_OF_BAD_REPLIES = 2  # each is paid for
LONGEST_BACKOFF = 30.0  # seconds, if the server doesn't say
GRACE = 5.0  # seconds that what is being answered is waited for when all else ends
FAILED_IN_A_ROW = 20  # then it is the server, not the requests
Item = TypeVar("Item")
Result = TypeVar("Result")


def ask_all(
    server: Server, items: Iterable[Item], ask: Callable[[Client, Item], Awaitable[Result]]
) -> Iterator[tuple[Item, Result | RequestError]]:
    """(item, result) as they come; an item whose request failed after all retries comes with its error.

    Fewer requests than allowed are under way while the server is pressed. `items` is read as there is room. Raises what
    else `ask` raises, and EmorgError if nothing succeeds any more.
    """
    with event_loop() as run:
        coming = _ask_all(server, items, ask)

        async def following() -> list[tuple[Item, Result | RequestError]] | None:
            return await anext(coming, None)

        try:
            while (batch := run(following())) is not None:
                yield from batch
        finally:
            with suppress(RuntimeError):  # interrupted again, while it was ending
                run(coming.aclose())


async def _ask_all(
    server: Server, items: Iterable[Item], ask: Callable[[Client, Item], Awaitable[Result]]
) -> AsyncGenerator[list[tuple[Item, Result | RequestError]]]:
    async with connected(server) as client:
        crowd = _Crowd(server, client, ask)
        waiting = iter(items)
        try:
            while True:
                # More than may be asked at a time, since some wait: to be tried again, or for their reply to be kept.
                for item in itertools.islice(waiting, server.connections * 5 // 4 - len(crowd.under_way)):
                    crowd.add(item)
                if not crowd.under_way and not crowd.finished:
                    return
                good, errors = await crowd.news()
                if good:
                    yield good
                for error in errors:
                    raise error
                crowd.check()
        except EmorgError:
            yield await crowd.end()
            raise
        finally:
            await crowd.end()


class _Crowd(Generic[Item, Result]):
    """Requests under way side by side, each a task that tries again as often as it may."""

    def __init__(self, server: Server, client: Client, ask: Callable[[Client, Item], Awaitable[Result]]):
        self._server, self._client, self._ask = server, client, ask
        self.under_way = set[asyncio.Task[tuple[Item, Result | RequestError]]]()
        self.finished = list[asyncio.Task[tuple[Item, Result | RequestError]]]()
        self._working = set[asyncio.Task[Any]]()  # those that ask or keep their reply; the others wait to ask again
        self._news, self._failed, self._last = asyncio.Event(), 0, ""

    def add(self, item: Item) -> None:
        task = asyncio.create_task(self._one(item))
        self.under_way.add(task)
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[tuple[Item, Result | RequestError]]) -> None:
        self.under_way.discard(task)
        self.finished.append(task)
        self._news.set()

    async def _one(self, item: Item) -> tuple[Item, Result | RequestError]:
        failures = Counter[bool]()  # of requests, and replies of no use: each kind has retries of its own
        while True:
            try:
                with _among(self._working):
                    result = await self._ask(self._client, item)
            except RequestError as error:
                wait = _wait(error, failures[error.replied], self._server.retries)
                failures[error.replied] += 1
                if wait is None:
                    self._failed += error.passes or error.status in REFUSED
                    self._last = str(error)
                    return item, error
                self._client.stay_open()
            else:
                self._failed = 0
                return item, result
            await asyncio.sleep(wait)

    async def news(self) -> tuple[list[tuple[Item, Result | RequestError]], list[BaseException]]:
        """Wait for some to finish: their results, and what else they raised."""
        await self._news.wait()
        self._news.clear()
        done, self.finished[:] = self.finished[:], []
        errors = [error for task in done if (error := task.exception())]
        return [task.result() for task in done if task.exception() is None], errors

    def check(self) -> None:
        """Raise EmorgError if nothing succeeds any more."""
        if self._failed >= FAILED_IN_A_ROW:
            raise EmorgError(
                f"the last {self._failed} requests to {self._server.url} all failed, {self._server.retries} retries "
                f"and all ({self._last})",
                "see that the server is well, then run the same command again: what has been answered is kept",
            )

    async def end(self) -> list[tuple[Item, Result | RequestError]]:
        """Begin nothing more, but wait for what is being answered, which is paid for; returns what came of it."""
        ending = {*self.under_way, *self.finished}
        self.finished.clear()
        self._client.close()
        for task in self.under_way - self._working:
            task.cancel()
        if self._working:
            await asyncio.wait(self._working, timeout=GRACE)
        for task in self.under_way:
            task.cancel()
        results = await asyncio.gather(*ending, return_exceptions=True)
        return [result for result in results if not isinstance(result, BaseException)]


@contextmanager
def _among(tasks: set[asyncio.Task[Any]]) -> Iterator[None]:
    """Count the present task among these meanwhile."""
    task = asyncio.current_task()
    assert task is not None, "requests are made by tasks"
    tasks.add(task)
    try:
        yield
    finally:
        tasks.discard(task)


def _wait(error: RequestError, attempt: int, retries: int) -> float | None:
    """Seconds until the next try after the `attempt`-th failed (from 0); None if there is to be none."""
    most = min(retries, RETRIES_OF_BAD_REPLIES) if error.replied else retries
    asked_for = error.wait or 0.0
    if not error.passes or attempt >= most or asked_for > LONGEST_WAIT:
        return None
    # A server that asks for no time at all, or names a time that has passed, is not asked again at once.
    return max(asked_for, min(LONGEST_BACKOFF, 0.5 * 2.0**attempt) * random.uniform(0.75, 1.0))
