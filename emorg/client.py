"""Many requests to an OpenAI-compatible server at a time, at the pace that it bears.

Through aiohttp itself: the openai client takes 1–2 ms of a core for a call, more than all else that a call costs.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import ssl
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from emorg.event_loop import event_loop
from emorg.pace import LONGEST_WAIT, Pace
from emorg.records import EmorgError

if TYPE_CHECKING:
    from aiohttp import ClientSession

RETRIES = 8  # with the waits between them a minute and a half, or as long as the server asks for
RETRIES_OF_BAD_REPLIES = 2  # each is paid for
LONGEST_BACKOFF = 30.0  # seconds, if the server doesn't say
REFUSED = (403, 404)  # may be of one request alone: a web firewall dislikes what an answer says
GRACE = 5.0  # seconds that what is being answered is waited for when all else ends
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
        self.url, self._key, self._session, self._pace = server.url, server.key, session, Pace(server.connections)

    async def post(self, path: str, body: Mapping[str, Any]) -> str:
        """The text of the reply to a JSON body. Raises RequestError."""
        return await self._request("POST", path, json.dumps(body).encode())

    async def get(self, path: str) -> str:
        """The text of what lies there. Raises RequestError."""
        return await self._request("GET", path, None)

    def close(self) -> None:
        """Let nobody ask any more; those that wait for their turn are cancelled."""
        self._pace.close()

    def stay_open(self) -> None:
        """Raise CancelledError if nobody may ask any more."""
        self._pace.stay_open()

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
            with suppress(RuntimeError):  # interrupted again, while it was ending
                run(coming.aclose())


async def _ask_all(
    server: Server, items: Iterable[Item], ask: Callable[[Client, Item], Awaitable[Result]]
) -> AsyncGenerator[list[tuple[Item, Result | RequestError]]]:
    async with _session(server) as session:
        crowd = _Crowd(server, Client(server, session), ask)
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
