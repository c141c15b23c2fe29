"""What is said of work under way: a bar with rate and time left where someone looks, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LINE_EVERY_SECONDS = 10.0
DRAW_EVERY_SECONDS = 0.5  # in a notebook

Advance = Callable[[int, str], None]  # (units done since the last call, a note such as the loss)

log = logging.getLogger("emorg")
log.addHandler(logging.NullHandler())  # silent unless a handler is added, as the command line does


@contextmanager
def progress(label: str, total: int, unit: str, done: int = 0, *, shown: bool = True) -> Iterator[Advance]:
    """Yield a function that reports finished units; `done` were finished before."""
    if not shown:
        yield lambda units, note: None
    elif notebook := _notebook():
        yield _lines(label, total, unit, done, DRAW_EVERY_SECONDS, _cell(notebook))
    elif sys.stderr.isatty():
        with _bar(label, total, unit, done) as advance:
            yield advance
    else:
        yield _lines(label, total, unit, done, LINE_EVERY_SECONDS, log.info)


@contextmanager
def _bar(label: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, completed=done, rate="", note="")

        def advance(units: int, note: str = "") -> None:
            speed = bar.tasks[0].finished_speed or bar.tasks[0].speed
            bar.update(task, advance=units, note=note, rate=f"{speed:.1f} {unit}/s" if speed else "")

        yield advance


def _lines(label: str, total: int, unit: str, done: int, every: float, say: Callable[[str], None]) -> Advance:
    start = last = time.monotonic()
    count, begun = done, done

    def advance(units: int, note: str = "") -> None:
        nonlocal count, last
        count += units
        now = time.monotonic()
        if now - last < every and count < total:
            return
        last = now
        rate = (count - begun) / max(now - start, 1e-9)
        left = f", {(total - count) / rate:.0f} s left" if rate and count < total else ""
        say(f"{label} {count}/{total} ({rate:.1f} {unit}/s{left}) {note}".rstrip())

    return advance


def _notebook() -> Any:
    """IPython's shell if this is a notebook, whose cells can be drawn into."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell if hasattr(shell, "kernel") else None


def _cell(notebook: Any) -> Callable[[str], None]:
    """Write a line in a cell's output, over the one before."""
    from IPython.display import display

    handle: Any = display({"text/plain": ""}, raw=True, display_id=True)  # type: ignore[no-untyped-call]
    return lambda line: handle.update({"text/plain": line}, raw=True)
