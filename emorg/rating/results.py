"""What an analysis came to, as a JSON file in its run that later commands and the report read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from emorg.records import EmorgError, write_atomic

Result = TypeVar("Result")


def save(file: Path, result: Any) -> None:
    """Write a dataclass, with all that is in it."""
    write_atomic(file, json.dumps(asdict(result), indent=1, allow_nan=False) + "\n")


def load(file: Path, kind: type[Result]) -> Result:
    """Read what `save` wrote. Raises EmorgError for a file that is not whole."""
    try:
        return TypeAdapter(kind).validate_json(file.read_bytes())
    except ValueError as error:
        problem = f"{file} cannot be read: {str(error).splitlines()[0]}"
        raise EmorgError(problem, "delete it, and run the command again that wrote it") from None
