"""Requests to an OpenAI-compatible server, at the pace that it bears.

Through aiohttp itself: the openai client takes 1–2 ms of a core for a call, more than all else that a call costs.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from emorg.pace import Pace
from emorg.records import EmorgError

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

RETRIES = 8  # with the waits between them a minute and a half, or as long as the server asks for
REFUSED = (403, 404)  # may be of one request alone: a web firewall dislikes what an answer says
MOST_BYTES = 8 * 2**20  # of a reply, unpacked; 2,000 tokens with 20 likeliest each are 3 MB
SHORTEST_KEY = 8  # letters; a shorter one ("none", "x") is a local server's, and a word of many replies


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

    def __post_init__(self) -> None:
        """Raises EmorgError for what is no address or no key, without repeating either's secrets."""
        try:
            where = urlsplit(self.url)
            host, secret = where.hostname, where.username is not None or where.password is not None
        except ValueError:
            host, secret = None, False
        if host is None or where.scheme not in ("http", "https"):
            shown = self.url.rpartition("@")[2]
            raise EmorgError(f"{shown!r} is no server's address", "give one such as http://127.0.0.1:8000/v1")
        if secret:
            raise EmorgError(
                f"the address of the server at {host} holds a user name or password",
                "leave them out of it; a key goes into OPENAI_API_KEY, or SERVER_API_KEY for sampling",
            )
        if not self.key.isascii() or not self.key.isprintable():
            raise EmorgError(
                f"the key for {host} holds a line end or letters that no key has",
                "write it again, on one line, into .env or the environment",
            )


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
                    text = await self._text(response)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise RequestError(f"{type(error).__name__}: {error}".rstrip(": ")[:300]) from None
        if response.status < 400:
            self._pace.went_well()
            return text
        wait = _wait_asked_for(response.headers)
        if response.status in (429, 503):
            self._pace.refused(begun, wait or 0.0, surely_pressed=response.status == 429)
        message, code = _error_in(text)
        raise RequestError(message[:300], status=response.status, code=code, wait=wait)

    async def _text(self, response: ClientResponse) -> str:
        """A reply's text, without the key, which some servers repeat. Raises RequestError for one without end."""
        whole = bytearray()
        async for part in response.content.iter_any():  # unpacked as it comes
            whole += part
            if len(whole) > MOST_BYTES:
                response.close()
                status = response.status if response.status >= 400 else 200
                raise RequestError(f"a reply of more than {MOST_BYTES >> 20} MB", status=status)
        text = whole.decode("utf-8", "replace")
        return text.replace(self._key, "…") if len(self._key) >= SHORTEST_KEY else text


@asynccontextmanager
async def connected(server: Server) -> AsyncGenerator[Client]:
    """A client of the server, while it is needed."""
    import aiohttp
    import truststore

    where = urlsplit(server.url)
    # The proxy is looked up here once: trust_env would do it, in a thread, for every request.
    proxy = None if proxy_bypass(where.hostname or "") else getproxies().get(where.scheme)
    trusted = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the system's certificates, wherever it has them
    session = aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {server.key}", "Content-Type": "application/json", **server.headers},
        timeout=aiohttp.ClientTimeout(total=server.timeout),
        connector=aiohttp.TCPConnector(limit=0, ssl=trusted),
        proxy=proxy,
    )
    async with session:
        yield Client(server, session)


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
            return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
        except (ValueError, KeyError, OverflowError):  # also of a time zone beyond all
            return None
    return None
