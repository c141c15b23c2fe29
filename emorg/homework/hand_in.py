"""What each file of a hand-in came from, in hand_in.json beside them, which also tells what a person changed since."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emorg.records import EmorgError, write_atomic

NAME = "hand_in.json"


@dataclass(frozen=True)
class Origin:
    """Which model a file is of, and with what settings; `sha256` is the file's as it was written."""

    run: str
    """Its run's name, for people."""
    identity: str
    """What it goes by wherever it lies, as `sampling.wanted.Target.identity`."""
    settings: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""

    def same(self, other: Origin) -> bool:
        return (self.identity, self.settings) == (other.identity, other.settings)


class HandIn:
    """A folder of files that emorg writes, and that people may add their own words to."""

    def __init__(self, folder: Path):
        """Raises EmorgError for a record that is none."""
        self._file = folder / NAME
        self._folder = folder
        try:
            known = json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else {}
            self._origins = {name: Origin(**dict(origin)) for name, origin in known.items()}
        except (ValueError, TypeError, AttributeError) as error:
            remedy = "restore it, or delete it: which run each file came from is then not known"
            raise EmorgError(f"{self._file} cannot be read: {error}", remedy) from None

    def origin(self, name: str) -> Origin | None:
        """Where a file came from; None if it is not there, or nobody recorded it."""
        return self._origins.get(name) if (self._folder / name).exists() else None

    def is_changed(self, name: str) -> bool:
        """Whether a file is there that is not as emorg wrote it: it may hold a person's words."""
        file, origin = self._folder / name, self._origins.get(name)
        return file.exists() and (origin is None or origin.sha256 != _digest(file))

    def record(self, name: str, origin: Origin) -> None:
        """Note where a file that was just written came from."""
        self._origins[name] = Origin(origin.run, origin.identity, origin.settings, _digest(self._folder / name))
        listed = {known: asdict(self._origins[known]) for known in sorted(self._origins)}
        write_atomic(self._file, json.dumps(listed, indent=1) + "\n")

    def put(self, name: str, content: str | bytes, origin: Origin) -> Path:
        """Write a file, or beside one that a person changed a `.new` one, or `.new2`; returns what was written."""
        content = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
        first = file = self._folder / name
        number = 0
        while self.is_changed(file.name) and file.read_bytes() != content:
            number += 1
            file = first.with_name(f"{first.stem}.new{number if number > 1 else ''}{first.suffix}")
        write_atomic(file, content)
        self.record(file.name, origin)
        return file


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
