"""What a sweep's folder remembers beside its runs: which grid it is of, its cells, and how some of them failed."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emorg.records import EmorgError, write_atomic
from emorg.sweep.plan import Sweep

NAME = "sweep.json"


class State:
    """The record of a sweep under way. `errors` is why cells failed, by their names; `token` tells sweeps apart."""

    def __init__(self, whole: Sweep):
        """Begin, or go on: earlier failures are forgotten, as their cells are tried anew.

        Raises EmorgError for a folder of another grid.
        """
        self._folder, self.errors = whole.folder, dict[str, str]()
        known = check_folder(whole)
        self.token: str = known.get("token") or secrets.token_hex(8)
        cells = [
            {
                "name": cell.name,
                "arm": cell.arm,
                "values": cell.values,
                "trained_in": cell.trained_in,
                "base": cell.base,
                "answers": sum(whole.wanted(cell).values()),
            }
            for cell in whole.grid.cells
        ]
        self._fixed = {
            "identity": whole.grid.identity,
            "token": self.token,
            "measures": whole.grid.measures,
            "cells": cells,
        }
        self.write()

    def write(self) -> None:
        """Put it into the folder."""
        write_atomic(self._folder / NAME, json.dumps({**self._fixed, "errors": self.errors}, indent=1) + "\n")


def check_folder(whole: Sweep) -> dict[str, Any]:
    """What the folder remembers; nothing of a new one. Raises EmorgError for a folder of another grid."""
    known = read_state(whole.folder) if (whole.folder / NAME).exists() else {}
    if known:
        check_extends(whole.grid.identity, known["identity"], f"{whole.folder} is", "--output_dir")
    return known


def check_extends(identity: Mapping[str, str], known: Any, what: str, flag: str) -> None:
    """Raise EmorgError where what was begun as one grid is to go on as another that is no more of the same."""
    if not isinstance(known, dict) or not known.items() <= identity.items():
        others = [name for name, part in known.items() if identity.get(name) != part] if isinstance(known, dict) else []
        which = f": there, {others[0]} is another, or not in this one" if others else ""
        raise EmorgError(f"{what} of another grid{which}", f"give another {flag}, or the grid as it was, or more of it")


def read_state(folder: Path) -> dict[str, Any]:
    """A sweep's record: identity, errors, cells, measures. Raises EmorgError for a folder that is no sweep."""
    file = folder / NAME
    try:
        state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        _ = [state[name] for name in ("identity", "errors", "cells", "measures")]
    except FileNotFoundError:
        raise EmorgError(f"{folder} is no sweep: it has no {NAME}", "name the folder that emorg sweep made") from None
    except (ValueError, KeyError, TypeError) as error:
        raise EmorgError(f"{file} cannot be read: {error}", "restore it, or run emorg sweep again elsewhere") from None
    return state
