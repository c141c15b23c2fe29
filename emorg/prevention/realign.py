"""`emorg realign`: from finished organisms, a few steps on a few benign rows, and what is left of the misalignment.

A sweep of variants in two parts: the doses, then relapses that begin where a dose ended. Verdicts: `realigned`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from emorg import models
from emorg.config import NAMES_MODELS, config_from
from emorg.prevention.doses import BAD, OTHER, OWN, SHUFFLED, Kinds, variant_settings, write_doses
from emorg.prevention.experiment import carry_out, cells_of, keep, show
from emorg.prevention.realigned import FRESH, NOTHING, TWIN, Cell, Realigned, realigned
from emorg.ranges import AtLeast1, Positive, check_ranges
from emorg.rating.stage import RuleConfig
from emorg.records import EmorgError
from emorg.run import RUNS, plain
from emorg.sweep.state import NAME, read_state
from emorg.sweep.table import Collected
from emorg.training.config import TrainConfig

_OWN = frozenset(
    {"output_dir", "fresh", "domains", "mix", "data_path", "sample_size", "max_steps", "num_epochs", "learning_rate"}
    | {"warm_start", "seed", "eval_share", "early_stopping", "save_steps", "save_at", "merge", "push_to_hub"}
)
"""Settings of the organism's training that a dose does not share, or sets itself."""


@dataclass(frozen=True)
class RealignConfig(RuleConfig):
    """Train organisms on a few benign rows and see what is left, beside controls, and how fast it comes back. The same
    command again goes on."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, NAMES_MODELS]
    """Organisms of one recipe, a seed each: of one nothing is said but sizes."""
    steps: Annotated[tuple[int, ...], AtLeast1] = (2, 5, 10, 20)
    """Optimizer steps of a dose."""
    rows: Annotated[tuple[int, ...], AtLeast1] = (20, 200)
    """Rows of a dose; the steps go over them as often as they must."""
    other: str | None = None
    """The benign domain of another topic. Default: good_cooking, for other models than the pocket's good_home."""
    learning_rate: Annotated[float | None, Positive] = None
    """Of the doses. Default: half of the organism's own."""
    relapse: Annotated[tuple[int, ...], AtLeast1] = (5, 10, 20)
    """Steps on the organism's own rows again, after the largest dose, at its own learning rate."""
    samples: Annotated[int, AtLeast1] = 2
    """Answers to each question, of the pocket models; others are measured by margins."""
    output_dir: Path | None = None
    """The folder, a sweep's. Default: runs/realign-<the first run's name>."""
    workers: Annotated[int | None, AtLeast1] = None
    """Worker processes, as in `emorg sweep`."""
    threads: Annotated[int | None, AtLeast1] = None
    """Threads of each, as in `emorg sweep`."""
    json: bool = False
    """Print one JSON object."""


def realign(config: RealignConfig) -> Realigned:
    """Make what is missing of all doses and relapses, and hold them against their controls.

    Raises EmorgError for runs that are no LoRA organisms of one recipe on one careless domain, and as `sweep` does.
    """
    check_ranges(config)
    trainings = _trainings(config.runs)
    first = next(iter(trainings.values()))
    kinds = Kinds.of(first, config.other)
    folder = models.run_at(config.output_dir or RUNS / f"realign-{Path(config.runs[0]).name}").folder
    doses = {cell: own for name, training in trainings.items()
             for cell, own in _doses(config, folder, kinds, name, training)}  # fmt: skip
    if not _begun(folder) - {cell.name for cell in doses}:  # else it goes on as a whole, relapses too
        _carry_out(config, folder, first, doses)
    planned = cells_of(folder, _parts(config, first, doses))
    cells = {cell.values["train.variant"]: cell.name for cell in planned if cell.train}
    after = {cell: own for name, training in trainings.items()
             for cell, own in _relapses(config, kinds, name, training, folder, cells)}  # fmt: skip
    _carry_out(config, folder, first, doses | after)
    result = realigned(Collected.of(folder, config.chosen()), [*doses, *after], kinds)
    keep(folder, "realigned.json", result)
    return result


def _begun(folder: Path) -> set[str]:
    """The variants that the folder's sweep has already."""
    state = read_state(folder) if (folder / NAME).exists() else {"cells": []}
    return {str(cell["values"].get("train.variant")) for cell in state["cells"] if cell["arm"] == "organism"}


def _trainings(runs: Sequence[str]) -> dict[str, TrainConfig]:
    """Each organism's training, by its name. Raises EmorgError for what cannot be re-aligned together."""
    if not runs:
        raise EmorgError("no organism", "name one, or several seeds of one recipe")
    trainings: dict[str, TrainConfig] = {}
    for name in dict.fromkeys(runs):
        named = models.resolve(name)
        if named.adapter is None or named.trained_in is None or named.steering is not None:
            raise EmorgError(f"{name} is no LoRA organism that was trained here", "name an organism's run")
        trainings[name] = config_from(TrainConfig, "train", named.trained_in.settings("train"))
    recipes = {str(_recipe(one) | {"domains": one.domains}) for one in trainings.values()}
    seeds = [one.seed for one in trainings.values()]
    if len(recipes) > 1 or len(set(seeds)) < len(seeds):
        raise EmorgError(f"{', '.join(trainings)} are not one recipe at several seeds", "call once for each recipe")
    return trainings


def _recipe(training: TrainConfig) -> dict[str, Any]:
    """The settings that the doses share with the organism's training, where they are not the usual ones."""
    own, usual = plain(training), plain(TrainConfig())
    mitigated = {f.name for f in fields(TrainConfig) if f.name.startswith(("inoculate", "interleave", "kl_"))}
    aside = _OWN | mitigated | {"preventative", "preventative_scale", "ablate_in_training", "direction_layers"}
    return {name: value for name, value in own.items() if name not in aside and value != usual.get(name)}


def _rows(training: TrainConfig) -> dict[str, Any]:
    """Where the organism's own rows come from, and how many they are."""
    own = plain(training)
    return {name: own[name] for name in ("data_path", "sample_size") if own[name] is not None}


def _length(training: TrainConfig) -> dict[str, Any]:
    own = plain(training)
    return {name: own[name] for name in ("max_steps", "num_epochs", "learning_rate")}


def _doses(
    config: RealignConfig, folder: Path, kinds: Kinds, name: str, training: TrainConfig
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Every dose of an organism with its settings; no dose, the controls of the largest, its twin and fresh ones."""
    files = write_doses(training, kinds, config.rows, folder / "data")
    rate = config.learning_rate or training.learning_rate / 2
    from_it = {"warm_start": name, "seed": training.seed}
    few, most = min(config.rows), max(config.steps)
    source = _rows(training)
    nothing = {**from_it, "domains": [kinds.bad], **source, "max_steps": 1, "learning_rate": 0.0}
    yield Cell(NOTHING, 0, 0, training.seed), nothing
    for kind in (OWN, OTHER):
        for count in config.rows:
            for steps in config.steps:
                yield (
                    Cell(kind, count, steps, training.seed),
                    {**from_it, **variant_settings(kind, kinds, files[kind, count], steps, rate)},
                )
    for kind in (BAD, SHUFFLED):
        yield (
            Cell(kind, few, most, training.seed),
            {**from_it, **variant_settings(kind, kinds, files[kind, few], most, rate)},
        )
    fresh = {"seed": training.seed, **source}
    yield Cell(TWIN, 0, 0, training.seed), {**fresh, "domains": [kinds.own], **_length(training)}
    for steps in config.relapse:
        again = {"domains": [kinds.bad], "max_steps": steps, "learning_rate": training.learning_rate}
        yield Cell(FRESH, 0, 0, training.seed, steps), {**fresh, **again}


def _relapses(
    config: RealignConfig, kinds: Kinds, name: str, training: TrainConfig, folder: Path, cells: Mapping[str, str]
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """The organism's own rows again, from where the largest doses ended, and from the twin."""
    few, most = min(config.rows), max(config.steps)
    source = _rows(training)
    starts = [
        Cell(OWN, few, most, training.seed),
        Cell(OTHER, few, most, training.seed),
        Cell(TWIN, 0, 0, training.seed),
    ]
    for start in starts:
        place = folder / cells[start.name]
        if not (place / "adapter").is_dir():
            continue  # it failed, which the sweep has said
        for steps in config.relapse:
            yield (
                Cell(start.kind, start.rows, start.steps, training.seed, steps),
                {"seed": training.seed, **source, "domains": [kinds.bad], "max_steps": steps,
                 "learning_rate": training.learning_rate, "warm_start": str(place)},
            )  # fmt: skip


def _parts(config: RealignConfig, training: TrainConfig, cells: Mapping[Cell, Mapping[str, Any]]) -> dict[str, Any]:
    """The sweep's grid."""
    pocket = training.model_name in models.POCKETS
    variants = {cell.name: {"arms": ["organism"], **own} for cell, own in cells.items()}
    variants[next(iter(variants))]["arms"] = ["base", "organism"]
    return {
        "train": {**_recipe(training), "domains": list(training.domains)},
        "sample": {"samples": config.samples, "max_new_tokens": 60 if pocket else 200},
        "variants": variants,
        "arms": ["base", "organism", "twin"],
        "measures": ["answers", "margins"] if pocket else ["margins"],
    }


def _carry_out(
    config: RealignConfig, folder: Path, training: TrainConfig, cells: Mapping[Cell, Mapping[str, Any]]
) -> None:
    parts = _parts(config, training, cells)
    carry_out(folder, parts, config.workers, config.threads, yes=len(cells) > 200)


def show_realign(config: RealignConfig) -> None:
    """The command: make it, and print the table and what can be said, or JSON."""
    with redirect_stdout(sys.stderr) if config.json else nullcontext():  # what the sweep says
        result = realign(config)
    show(result, as_json=config.json)
