"""Run coroutines from plain code, whether or not an event loop is running already, as in a notebook."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def event_loop() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Yield what runs a coroutine to its end: here, or where a loop is running already (Jupyter) in another thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with asyncio.Runner() as runner:

            def alone(coroutine: Coroutine[Any, Any, Any]) -> Any:
                with _asyncios_ctrl_c():
                    return runner.run(coroutine)

            yield alone
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        ended, tasks = threading.Event(), list[asyncio.Task[Any]]()

        def start() -> None:
            tasks.append(loop.create_task(coroutine))
            tasks[0].add_done_callback(lambda _: ended.set())

        loop.call_soon_threadsafe(start)
        try:
            ended.wait()
        finally:
            if not ended.is_set():  # interrupted: it is to have ended before anything else is run
                loop.call_soon_threadsafe(lambda: tasks[0].cancel())
                ended.wait()
        return tasks[0].result()

    try:
        yield run
    finally:
        run(loop.shutdown_asyncgens())
        run(loop.shutdown_default_executor())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def _asyncios_ctrl_c() -> Iterator[None]:
    """Let a Runner end its coroutine at Ctrl-C, which it does only where the handler is Python's own.

    Another handler raises wherever it comes, between a reply and what keeps it too; a Runner cancels, at an await.
    """
    usual = signal.getsignal(signal.SIGINT)
    ours = callable(usual) and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, usual)
