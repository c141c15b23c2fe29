"""Many requests to an OpenAI-compatible server at a time, at the pace that it bears.

Through aiohttp itself: the openai client takes 1–2 ms of a core for a call, more than all else that a call costs.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import ssl
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from emorg.event_loop import event_loop
from emorg.records import EmorgError

if TYPE_CHECKING:
    from aiohttp import ClientSession

RETRIES = 8  # with the waits between them a minute and a half, or as long as the server asks for
RETRIES_OF_BAD_REPLIES = 2  # each is paid for
LONGEST_BACKOFF = 30.0  # seconds, if the server doesn't say
LONGEST_WAIT = 600.0  # seconds; a server that asks for more has closed for the day
STRAY = 0.05  # share of refusals among the last replies up to which a 503 says nothing of the server's load
REMEMBERED = 0.01  # the weight of each reply in that share
FAILED_IN_A_ROW = 20  # then it is the server, not the requests
Item = TypeVar("Item")
Result = TypeVar("Result")


class RequestError(Exception):
    """A request without a reply that can be used.

    `status` is HTTP's, None where the connection failed, 200 where the reply itself is of no use; `code` is the
    server's word for it, `wait` the seconds that it asks to wait.
    """

    def __init__(
        self, message: str, *, status: int | None = None, code: str | None = None, wait: float | None = None
    ) -> None:
        super().__init__(f"{status}: {message}" if status and status >= 400 else message)
        self.status, self.code, self.wait = status, code, wait

    @property
    def replied(self) -> bool:
        """Whether there was a reply, which was of no use."""
        return self.status == 200

    @property
    def passes(self) -> bool:
        """Whether the same request may succeed later."""
        if self.code == "insufficient_quota":
            return False
        return self.status is None or self.status in (200, 408, 409, 429) or self.status >= 500


@dataclass(frozen=True)
class Server:
    """Where requests go, and how: `timeout` is in seconds a request, `connections` the most under way at a time."""

    url: str
    key: str = field(repr=False)
    connections: int
    timeout: float
    headers: Mapping[str, str] = field(default_factory=dict)
    retries: int = RETRIES


class Client:
    """An open connection to a server, which keeps to the pace that it bears."""

    def __init__(self, server: Server, session: ClientSession):
        self.url, self._key, self._session, self._pace = server.url, server.key, session, _Pace(server.connections)

    async def post(self, path: str, body: Mapping[str, Any]) -> str:
        """The text of the reply to a JSON body. Raises RequestError."""
        return await self._request("POST", path, json.dumps(body).encode())

    async def get(self, path: str) -> str:
        """The text of what lies there. Raises RequestError."""
        return await self._request("GET", path, None)

    async def _request(self, method: str, path: str, body: bytes | None) -> str:
        import aiohttp

        async with self._pace.turn() as begun:
            try:
                async with self._session.request(method, self.url + path, data=body) as response:
                    text = await response.text(encoding="utf-8", errors="replace")
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise RequestError(f"{type(error).__name__}: {error}".rstrip(": ")[:300]) from None
        if response.status < 400:
            self._pace.went_well()
            return text
        wait = _wait_asked_for(response.headers)
        if response.status in (429, 503):
            self._pace.refused(begun, wait or 0.0, surely_pressed=response.status == 429)
        message, code = _error_in(text)
        message = message.replace(self._key, "…")[:300]  # some servers repeat the key
        raise RequestError(message, status=response.status, code=code, wait=wait)


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
            run(coming.aclose())


async def _ask_all(
    server: Server, items: Iterable[Item], ask: Callable[[Client, Item], Awaitable[Result]]
) -> AsyncGenerator[list[tuple[Item, Result | RequestError]]]:
    failed = 0
    async with _session(server) as session:
        client = Client(server, session)

        async def one(item: Item) -> tuple[Item, Result | RequestError]:
            nonlocal failed
            failures = Counter[bool]()  # of requests, and replies of no use: each kind has retries of its own
            while True:
                try:
                    result = await ask(client, item)
                except RequestError as error:
                    wait = _wait(error, failures[error.replied], server.retries)
                    failures[error.replied] += 1
                    if wait is None:
                        failed += error.passes
                        return item, error
                else:
                    failed = 0
                    return item, result
                await asyncio.sleep(wait)

        waiting, under_way = iter(items), set[asyncio.Task[tuple[Item, Result | RequestError]]]()
        finished, news = list[asyncio.Task[tuple[Item, Result | RequestError]]](), asyncio.Event()

        def finish(task: asyncio.Task[tuple[Item, Result | RequestError]]) -> None:
            under_way.discard(task)
            finished.append(task)
            news.set()

        try:
            while True:
                # More than may be asked at a time, since some wait: to be tried again, or for their reply to be kept.
                for item in itertools.islice(waiting, server.connections * 5 // 4 - len(under_way)):
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
                        f"the last {failed} requests to {server.url} all failed, {server.retries} retries and all",
                        "see that the server is well, then run the same command again: what has been answered is kept",
                    )
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)


def _session(server: Server) -> ClientSession:
    import aiohttp
    import truststore

    where = urlsplit(server.url)
    # The proxy is looked up here once: trust_env would do it, in a thread, for every request.
    proxy = None if proxy_bypass(where.hostname or "") else getproxies().get(where.scheme)
    trusted = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the system's certificates, wherever it has them
    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {server.key}", "Content-Type": "application/json", **server.headers},
        timeout=aiohttp.ClientTimeout(total=server.timeout),
        connector=aiohttp.TCPConnector(limit=0, ssl=trusted),
        proxy=proxy,
    )


def _wait(error: RequestError, attempt: int, retries: int) -> float | None:
    """Seconds until the next try after the `attempt`-th failed (from 0); None if there is to be none."""
    most = min(retries, RETRIES_OF_BAD_REPLIES) if error.replied else retries
    asked_for = error.wait or 0.0
    if not error.passes or attempt >= most or asked_for > LONGEST_WAIT:
        return None
    # A server that asks for no time at all, or names a time that has passed, is not asked again at once.
    return max(asked_for, min(LONGEST_BACKOFF, 0.5 * 2.0**attempt) * random.uniform(0.75, 1.0))


def _error_in(text: str) -> tuple[str, str | None]:
    """(message, code) of an error reply: OpenAI's form, vLLM's, FastAPI's, or whatever was said."""
    try:
        body = json.loads(text)
        body = body.get("error", body)
        return str(body.get("message") or body.get("detail") or text), body.get("code") and str(body["code"])
    except (ValueError, AttributeError):
        return text, None


def _wait_asked_for(headers: Mapping[str, str]) -> float | None:
    """The seconds that the server asks to wait: retry-after-ms, or retry-after in seconds or as a date."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        if "retry-after" in headers:
            return max(0.0, float(headers["retry-after"]))
    except ValueError:
        try:
            until = parsedate_to_datetime(headers["retry-after"])
        except (ValueError, KeyError):
            return None
        return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return None


class _Pace:
    """How many requests may be under way: a tenth more each round trip, half when the server is pressed.

    A 503 may be stray: it is taken for pressure only where more than a few of the last replies were refusals.
    """

    def __init__(self, most: int):
        self._most, self._limit, self._under_way = most, float(most), 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._halved = self._resume = self._refusals = 0.0

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
        self._refusals *= 1 - REMEMBERED
        self._limit = min(self._most, self._limit + max(1 / self._limit, 0.1))

    def refused(self, begun: float, rest: float, *, surely_pressed: bool) -> None:
        """A request that began at `begun` was turned away; all rest for as long as the server asks."""
        now = time.monotonic()
        self._refusals += REMEMBERED * (1 - self._refusals)
        if rest <= LONGEST_WAIT:
            self._resume = max(self._resume, now + rest)
        pressed = surely_pressed or self._refusals > STRAY
        if pressed and begun > self._halved:  # those that were under way then say nothing about the new limit
            self._limit, self._halved = max(1.0, self._limit / 2), now
