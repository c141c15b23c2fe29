"""The user's cache of models that were converted here: a folder a model, which is whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from emorg.records import EmorgError

ORIGIN = "origin.json"


def root() -> Path:
    """Where the models lie: under $EMORG_CACHE, or in emorg/ of the user's cache, wherever the system has that."""
    if own := os.environ.get("EMORG_CACHE"):
        return Path(own).expanduser() / "models"
    usual = "~/Library/Caches" if sys.platform == "darwin" else os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(usual).expanduser() / "emorg" / "models"


def whole(name: str) -> Path | None:
    """A model's folder; None where it is not there, or a file of it is missing or of another size than was written."""
    folder = root() / name
    try:
        sizes = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["bytes"]
        return folder if all((folder / file).stat().st_size == size for file, size in sizes.items()) else None
    except (OSError, ValueError, KeyError):
        return None


def origin(folder: Path) -> dict[str, Any]:
    """What is recorded of a model's source, licence and making."""
    facts: dict[str, Any] = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    return {name: value for name, value in facts.items() if name != "bytes"}


def once(name: str, make: Callable[[Path], Mapping[str, Any]]) -> Path:
    """A model's folder; if it is not whole, `make` fills a new one and returns its origin. Only one process does.

    Raises EmorgError if the cache cannot be written, and what `make` raises, of which nothing is left behind.
    """
    from filelock import FileLock

    if there := whole(name):
        return there
    folder = root() / name
    new = folder.with_name(f".{name}.new")
    lock = FileLock(folder.with_name(f".{name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise EmorgError(f"{folder.parent}: {error.strerror}", "set EMORG_CACHE to a folder that takes files") from None
    try:
        if there := whole(name):  # another process has just been at it
            return there
        shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
        new.mkdir()
        facts = make(new)
        sizes = {path.name: path.stat().st_size for path in sorted(new.iterdir())}
        (new / ORIGIN).write_text(json.dumps({**facts, "bytes": sizes}, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        os.replace(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        lock.release()
    return folder
