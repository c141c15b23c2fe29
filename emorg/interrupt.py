"""Ctrl-C: during imports it ends the command in one line, and long work may first save what it has."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NOTE = "interrupted; run the same command again to go on from here"
EXIT_CODE = 130
_SHOW_CURSOR = "\x1b[?25h"  # which a progress bar hides


def listen(name: str) -> None:
    """From now on leave at once where an import is under way, as nothing is written then; elsewhere as Python does.

    `name` is the command's. A process that was started deaf to Ctrl-C, such as one under nohup, stays so.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                cursor = _SHOW_CURSOR if sys.stderr.isatty() else ""
                os.write(2, f"{cursor}\n{name}: {NOTE}\n".encode())
                os._exit(EXIT_CODE)
            frame = frame.f_back
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, on_signal)


@contextmanager
def deferred(tell: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Leave the first Ctrl-C to the work within, which asks what is yielded whether it came; the second ends at once.

    `tell` is called at the first, to say so. Where Ctrl-C is nobody's, or another thread's, all stays as it is.
    """
    usual, pressed = signal.getsignal(signal.SIGINT), list[int]()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if pressed:
            usual(number, frame)  # type: ignore[misc,operator]
        else:
            pressed.append(number)
            tell()

    ours = callable(usual) and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, on_signal)
    try:
        yield lambda: bool(pressed)
    finally:
        if ours:
            signal.signal(signal.SIGINT, usual)
