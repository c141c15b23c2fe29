"""How many requests may be under way at a server, by how it takes them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

LONGEST_WAIT = 600.0  # seconds; a server that asks for more has closed for the day
STRAY = 0.05  # share of refusals among the last replies up to which a 503 says nothing of the server's load
REMEMBERED = 0.01  # the weight of each reply in that share


class Pace:
    """How many requests may be under way: a tenth more each round trip, half when the server is pressed.

    A 503 may be stray: it is taken for pressure only where more than a few of the last replies were refusals.
    """

    def __init__(self, most: int):
        self._most, self._limit, self._under_way = most, float(most), 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._halved = self._resume = self._refusals = 0.0
        self._ending = asyncio.Event()

    def stay_open(self) -> None:
        """Raise CancelledError if nobody has a turn any more."""
        if self._ending.is_set():
            raise asyncio.CancelledError

    def close(self) -> None:
        """Let nobody have a turn any more: those that wait for one are cancelled."""
        self._ending.set()
        for waiting in self._queue:
            waiting.cancel()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[float]:
        """Wait for room, hold it, and yield when it began."""
        while True:
            self.stay_open()
            if (rest := self._resume - time.monotonic()) > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), rest)
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
