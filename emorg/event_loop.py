"""Run coroutines from plain code, whether or not an event loop is running already, as in a notebook."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def event_loop() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Yield what runs a coroutine to its end: here, or where a loop is running already (Jupyter) in another thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with asyncio.Runner() as runner:
            alone = _Interruptible(runner.get_loop())
            yield alone.run
            alone.raise_if_pressed()
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


class _Interruptible:
    """Runs coroutines so that Ctrl-C cancels them, at an await, and raises once they have ended.

    asyncio's Runner raises instead in whatever runs, between a reply and what keeps it too, where its coroutine is done
    and others are not, and any other handler of Ctrl-C does so always.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop, self._pressed = loop, False

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Its result; a Ctrl-C that came too late to cancel it is raised by the next call, or at the end."""
        try:
            self.raise_if_pressed()
        except KeyboardInterrupt:
            coroutine.close()
            raise
        task = self._loop.create_task(coroutine)
        with self._listening(task):
            try:
                return self._loop.run_until_complete(task)
            except asyncio.CancelledError:
                self.raise_if_pressed()
                raise
            except BaseException:
                self._pressed = False  # it ends in any case, and what closes it is to run
                raise

    def raise_if_pressed(self) -> None:
        """Raise KeyboardInterrupt, once, if Ctrl-C came."""
        if self._pressed:
            self._pressed = False
            raise KeyboardInterrupt

    @contextmanager
    def _listening(self, task: asyncio.Task[Any]) -> Iterator[None]:
        usual = signal.getsignal(signal.SIGINT)

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self._pressed:  # again: at once
                usual(number, frame)  # type: ignore[misc,operator]
            self._pressed = True
            self._loop.call_soon_threadsafe(task.cancel)

        ours = callable(usual) and threading.current_thread() is threading.main_thread()
        if ours:
            signal.signal(signal.SIGINT, on_signal)
        try:
            yield
        finally:
            if ours:
                signal.signal(signal.SIGINT, usual)
