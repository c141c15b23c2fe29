"""`emorg prevent`: mitigations side by side, as a sweep whose variants they are, and what they came to.

A mitigation may need the plain organism: its direction, or its losses. So variants that do are trained once the others
are there, in the same sweep.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from emorg import models
from emorg.findings.directions import DirectionsConfig, directions
from emorg.findings.hidden import HiddenConfig, hidden
from emorg.models.directions import Direction, direction_file, write
from emorg.presets import preset_path
from emorg.prevention.comparison import PLAIN, Comparison, needs_plain, read_comparison
from emorg.prevention.experiment import carry_out, cells_of, keep, show
from emorg.prevention.measured import first_organisms, prevented
from emorg.prevention.table import Prevented
from emorg.ranges import AtLeast1
from emorg.rating.stage import RuleConfig
from emorg.records import EmorgError
from emorg.run import RUNS, Run
from emorg.sweep.state import NAME, read_state
from emorg.sweep.table import Collected

GRIDS = Path(__file__).parent / "grids"


@dataclass(frozen=True)
class PreventConfig(RuleConfig):
    """Train mitigations side by side, at several strengths and seeds, and say which keeps what is trained and stops
    what is not, beside its control. The same command again goes on."""

    grid: Annotated[str, tyro.conf.Positional] = "pocket"
    """A grid with variants (docs/sweeps.md), of which one is `plain`, and `controls`; or one of this package's: pocket,
    pocket2, smollm2 (by margins)."""
    output_dir: Path | None = None
    """The folder, a sweep's. Default: runs/prevent-<the grid's name>."""
    workers: Annotated[int | None, AtLeast1] = None
    """Worker processes, as in `emorg sweep`."""
    threads: Annotated[int | None, AtLeast1] = None
    """Threads of each, as in `emorg sweep`."""
    ask_otherwise: bool = False
    """Ask each variant's first organism in other ways too, as `emorg hidden` does: what no longer shows may be hidden.
    It takes as long again."""
    json: bool = False
    """Print one JSON object."""


def prevent(config: PreventConfig) -> Prevented:
    """Make what is missing, and hold every variant against the plain one, the base, the twin and its control.

    Raises EmorgError for what is no comparison (`read_comparison`), and as `sweep` does.
    """
    path = preset_path(config.grid, GRIDS)
    comparison = read_comparison(path, GRIDS)
    folder = models.run_at(config.output_dir or RUNS / f"prevent-{path.stem}").folder
    parts = comparison.parts
    if comparison.needs_plain:
        plain = _plain(folder, comparison)
        parts = comparison.filled(_words(plain))
        if not plain.trained:
            whole_before = (folder / NAME).exists() and _holds_all(folder, comparison)
            carry_out(folder, parts if whole_before else comparison.first(), config.workers, config.threads)
        _direct(plain, comparison)
    carry_out(folder, parts, config.workers, config.threads)
    collected = Collected.of(folder, config.chosen())
    if config.ask_otherwise:
        hidden(HiddenConfig(tuple(str(run.folder) for run in first_organisms(collected).values())))
    result = prevented(collected, comparison.controls)
    keep(folder, "prevented.json", result)
    return result


def _plain(folder: Path, comparison: Comparison) -> Run:
    """The plain organism's run that directions are of: the one they are there of already, or the first."""
    cells = cells_of(folder, comparison.first())
    own = [Run(folder / c.name) for c in cells if c.arm == "organism" and c.values.get("train.variant") == PLAIN]
    if not own:
        raise EmorgError(f"the variant {PLAIN} has no organism", f"let its arms be organism too: {PLAIN}: {{}}")
    return next((run for run in own if direction_file(run, "shift").exists()), own[0])


def _holds_all(folder: Path, comparison: Comparison) -> bool:
    """Whether the folder's sweep has the variants that need the plain organism, so that it goes on as a whole."""
    begun = {cell["values"].get("train.variant") for cell in read_state(folder)["cells"]}
    return any(name in begun for name, own in comparison.variants.items() if needs_plain(own))


def _words(plain: Run) -> dict[str, str]:
    """What stands for something of the plain organism's, as paths that do not hang on how its folder was named."""
    here, files = Path.cwd(), {"shift": direction_file(plain, "shift"), "random": direction_file(plain, "random")}
    paths = {PLAIN: plain.folder, **files}
    whole = {name: Path(os.path.abspath(path)) for name, path in paths.items()}
    return {name: str(path.relative_to(here) if path.is_relative_to(here) else path) for name, path in whole.items()}


def _direct(plain: Run, comparison: Comparison) -> None:
    """Compute the directions that variants name, once the plain organism is there."""
    if not plain.trained:
        raise EmorgError(f"the plain organism {plain.folder} is not there", "see its error in logs/, and try again")
    if comparison.directed:
        [direction], _ = directions(DirectionsConfig((str(plain.folder),)))
        write(direction_file(plain, "random"), turned(direction))


def turned(direction: Direction, seed: int = 0) -> Direction:
    """The control of what rests on a direction: its vectors turned together, at random.

    So they are as long at every layer, and as alike between layers, and point anywhere.
    """
    import torch

    width = direction.vectors.shape[-1]
    drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
    rotation = torch.linalg.qr(drawn).Q
    facts = {**direction.facts, "kind": "random"}
    return Direction(direction.title, direction.vectors.float() @ rotation, direction.shuffled, None, facts)


def show_prevent(config: PreventConfig) -> bool:
    """The command: make it, and print the table and what can be said, or JSON; False if some of it is missing."""
    with redirect_stdout(sys.stderr) if config.json else nullcontext():  # what the sweep says
        result = prevent(config)
    show(result, as_json=config.json)
    return not result.missing
