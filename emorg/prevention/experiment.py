"""A sweep whose grid a command writes itself: carried out, and what it came to kept in its folder and shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol

import yaml

from emorg.progress import log
from emorg.rating.results import save
from emorg.records import EmorgError, write_atomic
from emorg.reporting.charts import export
from emorg.reporting.plot import Chart
from emorg.reporting.tables import Table
from emorg.sweep.grid import Cell
from emorg.sweep.grid_file import read
from emorg.sweep.run import SweepConfig, sweep


class Result(Protocol):
    """What an experiment came to, a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def tables(self) -> Sequence[Table]: ...

    def charts(self) -> Sequence[Chart]: ...

    def said(self) -> Sequence[str]: ...


def cells_of(folder: Path, parts: Mapping[str, Any]) -> tuple[Cell, ...]:
    """The cells of a grid that is not, or not yet, the folder's."""
    file = folder / ".cells.yaml"
    write_atomic(file, yaml.safe_dump(dict(parts), allow_unicode=True, sort_keys=False))
    try:
        return read(str(file)).cells
    finally:
        file.unlink()


def carry_out(
    folder: Path, parts: Mapping[str, Any], workers: int | None, threads: int | None, *, yes: bool = False
) -> None:
    """Make what is missing of a grid, as `sweep` does; a folder whose sweep refuses it keeps the grid that it had."""
    file = folder / "grid.yaml"
    before = file.read_text(encoding="utf-8") if file.exists() else None
    write_atomic(file, yaml.safe_dump(dict(parts), allow_unicode=True, sort_keys=False))
    try:
        if not sweep(SweepConfig(str(file), output_dir=folder, workers=workers, threads=threads, yes=yes)):
            log.warning("not all of it could be made: what failed is not in the table; the same command tries again")
    except EmorgError:
        if before is not None:
            write_atomic(file, before)
        raise


def keep(folder: Path, file: str, result: Result) -> None:
    """Write a result, its figures and its tables."""
    save(folder / file, result)
    (folder / "figures").mkdir(exist_ok=True)
    for chart in result.charts():
        export(chart, folder / "figures")
    for table in result.tables():
        table.write(folder / "tables")


def show(result: Result, *, as_json: bool) -> None:
    """Print the tables and what can be said, or one JSON object."""
    if as_json:
        print(json.dumps(asdict(result), indent=1, allow_nan=False))
        return
    for table in result.tables():
        table.show()
    for line in result.said():
        print(line)
