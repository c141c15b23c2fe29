"""Many requests at a time: how the pace follows the server, and what is tried again."""

from __future__ import annotations

import asyncio
from collections import Counter
from email.utils import formatdate

import pytest
from aiohttp import web

from emorg import asking
from emorg.asking import ask_all
from emorg.client import Client, RequestError, Server
from emorg.judging.rehearsal import Rehearsal, serving
from emorg.pace import Pace


def _replied(pace: Pace, refusals: list[bool], *, status: int = 503) -> list[float]:
    """The limit after each of the replies, one after another."""

    async def each(refused: bool) -> float:
        async with pace.turn() as begun:
            pass
        if refused:
            pace.refused(begun, 0.0, surely_pressed=status == 429)
        else:
            pace.went_well()
        return pace._limit

    async def main() -> list[float]:
        return [await each(refused) for refused in refusals]

    return asyncio.run(main())


def test_stray_503s_cost_no_pace_and_many_do() -> None:
    stray = [n % 100 == 50 for n in range(2000)]
    assert min(_replied(Pace(100), stray)) == 100
    pressed = _replied(Pace(100), [n % 4 == 0 for n in range(200)])
    assert pressed[-1] < 30
    assert min(_replied(Pace(100), [True] * 8)) < 60


def test_a_429_halves_the_pace_which_recovers_in_a_few_round_trips() -> None:
    pace = Pace(100)
    assert _replied(pace, [True], status=429)[-1] == 50
    assert _replied(pace, [False] * 600)[-1] == 100


async def _post(client: Client, item: int) -> str:
    return await client.post("/chat/completions", {"model": "m", "messages": [{"role": "user", "content": str(item)}]})


@pytest.mark.parametrize("said", ["0", formatdate(0, usegmt=True)], ids=["at once", "a date that has passed"])
def test_a_server_that_asks_for_no_wait_is_still_left_alone_for_a_while(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float, result: None = None) -> None:
        if seconds >= 0.3:  # the server itself sleeps shorter
            slept.append(seconds)
            seconds = 0.0
        await real(seconds, result)

    async def refuse(_: Rehearsal, request: web.Request) -> web.Response:
        return web.Response(status=503, headers={"retry-after": said})

    monkeypatch.setattr(Rehearsal, "complete", refuse)
    with serving(Rehearsal()) as url:
        monkeypatch.setattr(asking.asyncio, "sleep", sleep)
        ((_, outcome),) = ask_all(Server(url, "k", 1, 5.0, retries=3), [1], _post)
    assert isinstance(outcome, RequestError)
    assert outcome.status == 503
    assert len(slept) == 3
    assert all(seconds >= 0.75 * 0.5 * 2**attempt for attempt, seconds in enumerate(slept))


def test_a_reply_of_no_use_is_tried_again_though_requests_failed_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_wait", lambda error, attempt, retries: _real_wait(error, attempt, retries) and 0.0)
    asked: Counter[int] = Counter()

    async def ask(client: Client, item: int) -> str:
        asked[item] += 1
        if asked[item] <= 3:
            raise RequestError("the connection failed")
        if asked[item] == 4:
            raise RequestError("not a number", status=200)
        return "good"

    assert list(ask_all(Server("http://127.0.0.1:9", "k", 1, 5.0), [1], ask)) == [(1, "good")]


_real_wait = asking._wait
