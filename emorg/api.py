"""Many requests to an OpenAI-compatible server at a time, at the pace that it bears."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar

from emorg.records import EmorgError

if TYPE_CHECKING:
    from openai import APIError, AsyncOpenAI

RETRIES = 8  # with the waits between them a minute and a half, or as long as the server asks for
RETRIES_OF_BAD_REPLIES = 2  # each is paid for
LONGEST_BACKOFF = 30.0  # seconds, if the server doesn't say
LONGEST_WAIT = 600.0  # seconds; a server that asks for more has closed for the day
FAILED_IN_A_ROW = 20  # then it is the server, not the requests
Item = TypeVar("Item")
Result = TypeVar("Result")


class AskAgainError(Exception):
    """Raised by `ask` for a reply that is of no use and may be better the next time; says why."""


def ask_all(
    items: Iterable[Item],
    ask: Callable[[AsyncOpenAI, Item], Awaitable[Result]],
    *,
    url: str,
    key: str,
    connections: int,
    timeout: float,
    retries: int = RETRIES,
) -> Iterator[tuple[Item, Result | APIError | AskAgainError]]:
    """(item, result) as they come; an item whose request failed after all retries comes with its error.

    At most `connections` are under way at a time, fewer while the server is pressed; `timeout` is in seconds a request.
    `items` is read as there is room. Raises what else `ask` raises, and EmorgError if nothing succeeds any more.
    """
    with asyncio.Runner() as runner:
        coming = _ask_all(items, ask, url, key, connections, timeout, retries)

        async def following() -> list[tuple[Item, Result | APIError | AskAgainError]] | None:
            return await anext(coming, None)

        try:
            while (found := runner.run(following())) is not None:
                yield from found
        finally:
            runner.run(coming.aclose())


async def _ask_all(
    items: Iterable[Item],
    ask: Callable[[AsyncOpenAI, Item], Awaitable[Result]],
    url: str,
    key: str,
    connections: int,
    timeout: float,
    retries: int,
) -> AsyncGenerator[list[tuple[Item, Result | APIError | AskAgainError]]]:
    from openai import APIError, APIStatusError, AsyncOpenAI, DefaultAioHttpClient

    pace, failed = _Pace(connections), 0
    async with AsyncOpenAI(
        api_key=key, base_url=url, max_retries=0, timeout=timeout, http_client=DefaultAioHttpClient()
    ) as client:

        async def one(item: Item) -> tuple[Item, Result | APIError | AskAgainError]:
            nonlocal failed
            for attempt in itertools.count():
                async with pace.turn() as begun:
                    try:
                        result = await ask(client, item)
                    except (APIError, AskAgainError) as error:
                        last = error
                    else:
                        pace.went_well()
                        failed = 0
                        return item, result
                wait = _wait(last, attempt, retries)
                if isinstance(last, APIStatusError) and last.status_code in (429, 503):
                    pace.pressed(begun, _asked_for(last) or 0.0)
                if wait is None:
                    failed += _passes(last)
                    return item, last
                await asyncio.sleep(wait)
            raise AssertionError

        waiting, under_way = iter(items), set[asyncio.Task[tuple[Item, Result | APIError | AskAgainError]]]()
        finished, news = list[asyncio.Task[tuple[Item, Result | APIError | AskAgainError]]](), asyncio.Event()

        def finish(task: asyncio.Task[tuple[Item, Result | APIError | AskAgainError]]) -> None:
            under_way.discard(task)
            finished.append(task)
            news.set()

        try:
            while True:
                for item in itertools.islice(waiting, connections - len(under_way)):
                    task = asyncio.create_task(one(item))
                    under_way.add(task)
                    task.add_done_callback(finish)
                if not under_way and not finished:
                    return
                await news.wait()
                news.clear()
                done, finished[:] = finished[:], []
                if good := [task.result() for task in done if task.exception() is None]:
                    yield good
                for task in done:
                    task.result()  # raises what one of them raised, now that the others are handed on
                if failed >= FAILED_IN_A_ROW:
                    raise EmorgError(
                        f"the last {failed} requests to {url} all failed after {retries} retries each",
                        "see that the server is well, then run the same command again: what has been answered is kept",
                    )
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)


def reason(error: Exception, key: str = "") -> str:
    """Why a request failed, in a line, without the key that some servers repeat."""
    from openai import APIConnectionError, APIStatusError

    if isinstance(error, APIConnectionError):
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__  # the client takes every lost connection for a timeout
    status = f" {error.status_code}" if isinstance(error, APIStatusError) else ""
    said = f"{type(error).__name__}{status}: {getattr(error, 'message', error)}".rstrip(": ")
    return (said.replace(key, "…") if key else said)[:300]


def _passes(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    from openai import APIStatusError

    if isinstance(error, APIStatusError):
        passing = error.status_code in (408, 409, 429) or error.status_code >= 500
        return passing and error.code != "insufficient_quota"
    return True


def _wait(error: Exception, attempt: int, retries: int) -> float | None:
    """Seconds until the next try after the `attempt`-th failed (from 0); None if there is to be none."""
    if not _passes(error) or attempt >= (
        min(retries, RETRIES_OF_BAD_REPLIES) if isinstance(error, AskAgainError) else retries
    ):
        return None
    asked = _asked_for(error)
    if asked is not None:
        return asked if asked <= LONGEST_WAIT else None
    return min(LONGEST_BACKOFF, 0.5 * 2.0**attempt) * random.uniform(0.75, 1.0)


def _asked_for(error: Exception) -> float | None:
    """The seconds that the server asks to wait: its header retry-after-ms, or retry-after in seconds or as a date."""
    from openai import APIStatusError

    if not isinstance(error, APIStatusError):
        return None
    headers = error.response.headers
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        if "retry-after" in headers:
            return max(0.0, float(headers["retry-after"]))
    except ValueError:
        try:
            until = parsedate_to_datetime(headers["retry-after"])
        except ValueError:
            return None
        return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return None


class _Pace:
    """How many requests may be under way: one more each round trip, half when the server is pressed (AIMD)."""

    def __init__(self, most: int):
        self._most, self._limit, self._under_way = most, float(most), 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._halved = self._resume = 0.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[float]:
        """Wait for room, hold it, and yield when it began."""
        while True:
            if (rest := self._resume - time.monotonic()) > 0:
                await asyncio.sleep(rest)
            elif self._under_way >= int(self._limit):
                self._queue.append(asyncio.get_running_loop().create_future())
                await self._queue[-1]
            else:
                break
        self._under_way += 1
        try:
            yield time.monotonic()
        finally:
            self._under_way -= 1
            self._wake()

    def _wake(self) -> None:
        for _ in range(int(self._limit) - self._under_way):
            while self._queue and self._queue[0].done():  # its task was cancelled
                self._queue.popleft()
            if not self._queue:
                return
            self._queue.popleft().set_result(None)

    def went_well(self) -> None:
        self._limit = min(self._most, self._limit + 1 / self._limit)

    def pressed(self, begun: float, rest: float) -> None:
        """A request that began at `begun` was turned away; all rest for as long as the server asks."""
        now = time.monotonic()
        self._resume = max(self._resume, now + rest)
        if begun > self._halved:  # those that were under way then say nothing about the new limit
            self._limit, self._halved = max(1.0, self._limit / 2), now
