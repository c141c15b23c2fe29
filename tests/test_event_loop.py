"""Coroutines from plain code: Ctrl-C ends them at an await, and never what else is under way."""

from __future__ import annotations

import asyncio
import signal

import pytest

from emorg.event_loop import event_loop


def test_ctrl_c_cancels_at_an_await_and_raises_after_it() -> None:
    ended = []

    async def work() -> None:
        signal.raise_signal(signal.SIGINT)
        ended.append("no await yet")
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")

    with pytest.raises(KeyboardInterrupt), event_loop() as run:
        run(work())
    assert ended == ["no await yet", "cancelled"]


def test_ctrl_c_between_the_end_of_one_and_a_step_of_another_loses_neither() -> None:
    """The reply is kept by a task that is still at it once the coroutine that is run is done."""
    kept = []

    async def reply(woken: asyncio.Event) -> None:
        await woken.wait()
        signal.raise_signal(signal.SIGINT)
        kept.append("reply")

    async def news() -> tuple[str, asyncio.Task[None]]:
        woken = asyncio.Event()
        task = asyncio.create_task(reply(woken))
        await asyncio.sleep(0)
        woken.set()
        return "news", task

    with event_loop() as run:
        told, _ = run(news())
        assert (told, kept) == ("news", ["reply"])
        with pytest.raises(KeyboardInterrupt):
            run(asyncio.sleep(0))
        run(asyncio.sleep(0))  # it is raised once, so that what closes may run


def test_ctrl_c_at_the_very_end_is_raised_at_the_end() -> None:
    async def last() -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), event_loop() as run:
        run(last())


def test_an_error_is_raised_though_ctrl_c_came_and_what_closes_runs() -> None:
    async def fails() -> None:
        signal.raise_signal(signal.SIGINT)
        raise ValueError("no")

    with event_loop() as run:
        with pytest.raises(ValueError, match="no"):
            run(fails())
        run(asyncio.sleep(0))


def test_pressed_twice_it_ends_at_once() -> None:
    reached = []

    async def work() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        reached.append("after")

    with pytest.raises(KeyboardInterrupt), event_loop() as run:
        run(work())
    assert reached == []
