"""`emorg prevent`: mitigations side by side, as a sweep whose variants they are, and what they came to.

A mitigation may need the plain organism: its direction, or its losses. So variants that do are trained once the others
are there, in the same sweep.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from emorg import models
from emorg.findings.directions import DirectionsConfig, directions
from emorg.models.directions import Direction, direction_file, write
from emorg.presets import preset_path, read_yaml
from emorg.prevention.measured import PLAIN, prevented
from emorg.prevention.table import Prevented
from emorg.progress import log
from emorg.ranges import AtLeast1
from emorg.rating.results import save
from emorg.rating.stage import RuleConfig
from emorg.records import EmorgError, did_you_mean, write_atomic
from emorg.reporting.charts import export
from emorg.run import RUNS, Run
from emorg.sweep.grid_file import read
from emorg.sweep.run import SweepConfig, sweep
from emorg.sweep.table import Collected

GRIDS = Path(__file__).parent / "grids"
OF_PLAIN = {"preventative": ("shift", "random"), "ablate_in_training": ("shift", "random"), "interleave_rank": (PLAIN,)}
"""Settings, and the words of theirs that stand for something of the plain organism's."""


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
    json: bool = False
    """Print one JSON object."""


def prevent(config: PreventConfig) -> Prevented:
    """Make what is missing, and hold every variant against the plain one, the base, the twin and its control.

    Raises EmorgError for a grid without a plain variant, for a control that is no variant, and as `sweep` does.
    """
    path = preset_path(config.grid, GRIDS)
    _, parts = read_yaml(path, GRIDS)
    parts, controls = checked(path, parts)
    folder = models.run_at(config.output_dir or RUNS / f"prevent-{path.stem}").folder
    variants = parts["variants"]
    if any(map(_needs_plain, variants.values())):
        first = {**parts, "variants": {name: own for name, own in variants.items() if not _needs_plain(own)}}
        plain = _plain(_written(folder / "plain.yaml", first), folder)
        if not plain.trained:
            _sweep(config, folder, first)
        parts = {**parts, "variants": _filled(plain, variants)}
    _sweep(config, folder, parts)
    result = prevented(Collected.of(folder, config.chosen()), controls)
    save(folder / "prevented.json", result)
    (folder / "figures").mkdir(exist_ok=True)
    for chart in result.charts():
        export(chart, folder / "figures")
    for table in result.tables():
        table.write(folder / "tables")
    return result


def checked(path: Path, parts: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The grid without its `controls`, and these."""
    variants = parts.get("variants") if isinstance(parts, dict) else None
    if not isinstance(variants, dict) or PLAIN not in variants or not all(
        isinstance(own, dict | None) for own in variants.values()
    ):  # fmt: skip
        raise EmorgError(f"{path} has no variant `{PLAIN}`", "write variants: and under it plain: {}, KL 1: {…}, …")
    controls = parts.get("controls") or {}
    for name in (*controls, *controls.values()):
        if name not in variants:
            raise EmorgError(f"{path}: no variant {name!r}{did_you_mean(str(name), variants)}", "controls are variants")
    return {name: part for name, part in parts.items() if name != "controls"}, dict(controls)


def _needs_plain(settings: Mapping[str, Any] | None) -> bool:
    return any((settings or {}).get(name) in words for name, words in OF_PLAIN.items())


def _sweep(config: PreventConfig, folder: Path, parts: Mapping[str, Any]) -> None:
    file = str(_written(folder / "grid.yaml", parts))
    if not sweep(SweepConfig(file, output_dir=folder, workers=config.workers, threads=config.threads)):
        log.warning("not all of it could be made: what failed is not in the table; the same command tries again")


def _written(file: Path, parts: Mapping[str, Any]) -> Path:
    write_atomic(file, yaml.safe_dump(dict(parts), allow_unicode=True, sort_keys=False))
    return file


def _plain(grid: Path, folder: Path) -> Run:
    """The first plain organism's run, which may not be there yet."""
    own = [c for c in read(str(grid)).cells if c.arm == "organism" and c.values.get("train.variant") == PLAIN]
    if not own:
        raise EmorgError(f"the variant {PLAIN} has no organism", f"let its arms be organism too: {PLAIN}: {{}}")
    return Run(folder / own[0].name)


def _filled(run: Run, variants: Mapping[str, Any]) -> dict[str, Any]:
    """The variants with what stands for something of the plain organism's in its place."""
    if not run.trained:
        raise EmorgError(f"the plain organism {run.folder} is not there", "see its error in logs/, and try again")
    words = {PLAIN: str(run.folder)}
    needed = {settings.get(name) for settings in variants.values() if settings for name in OF_PLAIN}
    if needed & {"shift", "random"}:
        [direction], _ = directions(DirectionsConfig((str(run.folder),)))
        words |= {"shift": str(direction_file(run, "shift")), "random": str(_random(run, direction))}
    return {
        name: {key: words.get(value, value) if key in OF_PLAIN else value for key, value in (settings or {}).items()}
        for name, settings in variants.items()
    }


def _random(run: Run, direction: Direction) -> Path:
    """A direction of the same size at each layer and of any direction, as the control of what rests on one."""
    import torch

    file = direction_file(run, "random")
    drawn = torch.randn(direction.vectors.shape, generator=torch.Generator().manual_seed(0))
    sizes = direction.vectors.norm(dim=-1, keepdim=True)
    vectors = drawn / drawn.norm(dim=-1, keepdim=True) * sizes
    write(file, Direction(direction.title, vectors, direction.shuffled, None, {**direction.facts, "kind": "random"}))
    return file


def show_prevent(config: PreventConfig) -> None:
    """The command: make it, and print the table and what can be said, or JSON."""
    with redirect_stdout(sys.stderr) if config.json else nullcontext():  # what the sweep says
        result = prevent(config)
    if config.json:
        print(json.dumps(asdict(result), indent=1, allow_nan=False))
        return
    for table in result.tables():
        table.show()
    for line in result.said():
        print(line)
