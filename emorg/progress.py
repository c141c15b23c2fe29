"""Progress of long work: a bar with rate and time left in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_SECONDS = 10.0

Advance = Callable[[int, str], None]  # (units done since the last call, a note such as the loss)


@contextmanager
def progress(label: str, total: int, unit: str, done: int = 0, *, shown: bool = True) -> Iterator[Advance]:
    """Yield a function that reports finished units; `done` were finished before."""
    if not shown:
        yield lambda units, note: None
    elif sys.stderr.isatty():
        with _bar(label, total, unit, done) as advance:
            yield advance
    else:
        yield _lines(label, total, unit, done)


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


def _lines(label: str, total: int, unit: str, done: int) -> Advance:
    start = last = time.monotonic()
    count, begun = done, done

    def advance(units: int, note: str = "") -> None:
        nonlocal count, last
        count += units
        now = time.monotonic()
        if now - last < LINE_EVERY_SECONDS and count < total:
            return
        last = now
        rate = (count - begun) / max(now - start, 1e-9)
        left = f", {(total - count) / rate:.0f} s left" if rate and count < total else ""
        print(f"{label} {count}/{total} ({rate:.1f} {unit}/s{left}) {note}".rstrip(), file=sys.stderr, flush=True)

    return advance
