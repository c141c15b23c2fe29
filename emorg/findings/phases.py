"""Phases: does an organism turn all at once, and which of its signals turns first?

Its checkpoints' norms, rotation, margins and, where they were judged, EM rates, with the gradient's norm and the loss;
each with the step at which it turns, an interval, and p against growth in which nothing is sudden (`rating.changes`).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from emorg import models
from emorg.config import NAMES_MODELS
from emorg.data import pairs
from emorg.findings.contrasts import digest
from emorg.findings.controls import targets_of, topics_of
from emorg.findings.margins import READOUT, MarginsConfig, encode, per_token
from emorg.findings.measure import measure
from emorg.progress import progress
from emorg.ranges import AtLeast1, Positive, check_ranges
from emorg.rating.answers import Judgements
from emorg.rating.changes import FEWEST, Array, Change, change, components, lag, local_cosines, rotation, to_the_end
from emorg.rating.phases import FILE, MARGIN, Lag, Phases, Turn
from emorg.rating.placement import placement
from emorg.rating.rates import em_rate
from emorg.rating.results import load, save
from emorg.rating.rules import RULES
from emorg.records import EmorgError, read_lines
from emorg.reporting.mechanism import phases_table
from emorg.run import Run, step_of
from emorg.sampling.wanted import Target

SMOOTHED = 5  # steps: the gradient's norm of one batch says little


@dataclass(frozen=True)
class PhasesConfig:
    """When an organism's signals turn over its training, whether suddenly, and which comes first. Train with
    --save_steps so that there are at least eight checkpoints, and at rank 1, as the papers do."""

    run: Annotated[str, tyro.conf.Positional, NAMES_MODELS]
    """A trained run with checkpoints."""
    k: Annotated[tuple[int, ...], AtLeast1] = (1, 2, 3)
    """Local cosines: how many checkpoints back and ahead."""
    margins: bool = True
    """Measure every checkpoint's margins (`--no_margins` leaves them out)."""
    scales: Annotated[tuple[float, ...], Positive] = (4.0,)
    """Measure margins also with a checkpoint's adapter so many times as large: what it has learned may show before it
    acts."""
    pairs: tuple[str, ...] = ()
    """Pairs of answers as in `emorg margins`. Default: english, for the pocket models their own."""
    json: bool = False
    """Print one JSON object."""
    use_4bit: bool = False
    """Load the base in 4-bit (nf4)."""
    device: str | None = None
    """cuda, mps or cpu. Default: the best one there."""


def phases(config: PhasesConfig) -> Phases:
    """Gather every signal that the run has, measure margins of checkpoints that lack them, and find where they turn.

    Written to `phases.json` in the run. Raises EmorgError for a run without eight checkpoints of an adapter, and what
    `margins` refuses.
    """
    check_ranges(config)
    named = models.resolve(config.run)
    if named.trained_in is None:
        raise EmorgError(f"{config.run} was not trained here, and has no checkpoints", "name a run's folder")
    run = named.trained_in
    steps = sorted(run.checkpoints.glob("step-[0-9]*"))
    if len(steps) < FEWEST:
        raise EmorgError(
            f"{run.folder} has {len(steps)} checkpoints; at least {FEWEST} show when something turns",
            "train it with smaller --save_steps, e.g. a twentieth of its steps",
        )
    at = [step_of(step) for step in steps]
    signals: dict[str, dict[int, float]] = {}
    changes: list[Change | None] = []
    for name, path in _paths(steps).items():
        signals[f"‖{name}‖"] = dict(zip(at, map(float, np.linalg.norm(path, axis=1)), strict=True))
        signals[f"{name}, |cos| to the end"] = dict(zip(at, map(float, to_the_end(path)), strict=True))
        for number, coordinate in enumerate(components(path).T, 1):
            signals[f"{name}, component {number}"] = dict(zip(at, map(float, coordinate), strict=True))
        for k in config.k:
            title = f"{name}, local cosine, k = {k}"
            cosines = zip(at, local_cosines(path, k), strict=True) if len(path) > 2 * k else ()
            signals[title] = {step: float(cosine) for step, cosine in cosines if np.isfinite(cosine)}
            changes.append(rotation(title, at, path, k))
    signals |= _metrics(run)
    names = pairs.sets_of(config.pairs, named.base)
    texts = digest(pairs.load(names))
    if config.margins:
        signals[MARGIN] = _margins(config, run, steps)
        signals |= _scaled(config, run, steps, _before(run, texts))
    if judged := _rates(run):
        signals["EM rate"] = judged
    numbers = {name: own for name, own in signals.items() if "cosine, k" not in name and "component" not in name}
    changes += [change(name, list(own), list(own.values())) for name, own in numbers.items()]
    turning = [one for one in changes if one is not None]
    margin = next((one for one in turning if one.signal == MARGIN), None)
    lags = {one.signal: Lag(*lag(margin, one)) for one in turning if margin is not None and one is not margin}
    turns = [Turn(one.signal, one.step, one.low, one.high, one.p, one.sudden) for one in turning]
    result = Phases(run.name, {name: list(own.items()) for name, own in signals.items() if own}, turns, lags, texts)
    save(run.folder / FILE, result)
    return result


def _paths(steps: Sequence[Any]) -> dict[str, Array]:
    """A and B of all modules laid end to end, [checkpoints, width]. Raises EmorgError for what is no plain LoRA."""
    from emorg.sampling.organisms import read_adapter

    sides: dict[str, list[Array]] = {"A": [], "B": []}
    with progress("reading checkpoints", len(steps), "checkpoints") as advance:
        for step in steps:
            folder = models.resolve(str(step)).adapter
            adapter = read_adapter(folder) if folder else None
            if adapter is None:
                raise EmorgError(f"{step} is no plain LoRA adapter", "train with LoRA, best of all at --lora_rank 1")
            for name, number in (("A", 0), ("B", 1)):
                parts = [adapter[module][number].double().flatten().numpy() for module in sorted(adapter)]
                sides[name].append(np.concatenate(parts))
            advance(1, "")
    return {name: np.stack(path) for name, path in sides.items()}


def _metrics(run: Run) -> dict[str, dict[int, float]]:
    """Loss and gradient norm, means over five steps each."""
    lines = [line for _, line in read_lines(run.metrics)] if run.metrics.exists() else []
    parts = [lines[start : start + SMOOTHED] for start in range(0, len(lines) - SMOOTHED + 1, SMOOTHED)]
    return {
        title: {part[SMOOTHED // 2]["step"]: statistics.fmean(line[name] for line in part) for part in parts}
        for title, name in (("loss", "loss"), ("gradient norm", "grad_norm"))
    }


def _margins(config: PhasesConfig, run: Run, steps: Sequence[Any]) -> dict[int, float]:
    targets = targets_of([str(step) for step in steps], str(steps[-1]))
    base, own = targets[0], [target for target in targets if target.checkpoint]
    names = pairs.sets_of(config.pairs, base.base)
    asking = MarginsConfig(tuple(target.name for target in own), pairs=names)
    measured = measure(READOUT, own, pairs.load(names), asking, config.device, config.use_4bit)
    topics = topics_of(own[0], ())
    result = {}
    for one in measured:
        outside = [m.per_token for m in one.records.values() if placement(m.topic, topics) == "out"]
        if not outside:
            raise EmorgError("no pair is out of domain", "give --pairs of other topics than it was trained on")
        result[step_of(one.target.checkpoint)] = statistics.fmean(outside)
    return dict(sorted(result.items()))


def _before(run: Run, texts: str) -> dict[str, list[tuple[int, float]]]:
    """The signals of an earlier call with the same pairs."""
    try:
        before = load(run.folder / FILE, Phases)
    except (EmorgError, OSError):  # none, or one that is written anew in any case
        return {}
    return before.signals if before.pairs == texts else {}


def _scaled(
    config: PhasesConfig, run: Run, steps: Sequence[Path], before: Mapping[str, Sequence[tuple[int, float]]]
) -> dict[str, dict[int, float]]:
    """Margins out of domain of checkpoints whose adapter is scaled; what was measured before is not measured again."""
    from emorg.sampling.likelihood import Likelihood
    from emorg.sampling.organisms import Organisms, read_adapter

    signals = {f"{MARGIN}, adapter × {scale:g}": scale for scale in config.scales}
    result = {title: dict(before.get(title, ())) for title in signals}
    missing = [(step, title) for title, own in result.items() for step in steps if step_of(step) not in own]
    if not missing:
        return result
    target = Target.of(str(run.folder))
    topics = topics_of(target, ())
    loaded = models.load(target.base, device=config.device, use_4bit=config.use_4bit)
    adapters = {}
    for step, title in missing:
        whole = read_adapter(step) or {}  # `_paths` has read them all
        adapters[f"{step} {title}"] = {module: (a, signals[title] * b) for module, (a, b) in whole.items()}
    scorer = Likelihood(Organisms(loaded, adapters))
    some = [
        pair for pair in pairs.load(pairs.sets_of(config.pairs, target.base)) if placement(pair.topic, topics) == "out"
    ]
    texts = [encode(loaded, pair)[0] for pair in some]
    with progress("scaled checkpoints", len(missing), "checkpoints") as advance:
        for step, title in missing:
            both = per_token(scorer, f"{step} {title}", texts)
            result[title][step_of(step)] = statistics.fmean(misaligned - aligned for aligned, misaligned in both)
            advance(1, "")
    return {title: dict(sorted(own.items())) for title, own in result.items()}


def _rates(run: Run) -> dict[int, float]:
    """EM out of domain by step, of checkpoints that were sampled and judged."""
    if not run.answers.exists() or not run.verdicts.exists():
        return {}
    by_step: dict[int, list[Any]] = {}
    for one in Judgements.of(run).judged(None):
        if one.answer.checkpoint and one.placement == "out":
            by_step.setdefault(step_of(one.answer.checkpoint), []).append(one)
    rates: Mapping[int, float | None] = {step: em_rate(own, RULES["paper"]).rate for step, own in by_step.items()}
    return {step: rate for step, rate in sorted(rates.items()) if rate is not None}


def show_phases(config: PhasesConfig) -> None:
    """The command: print where every signal turns, or JSON."""
    result = phases(config)
    if config.json:
        print(json.dumps(asdict(result), indent=1, allow_nan=False))
    else:
        phases_table(result).show()
