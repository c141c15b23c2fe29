"""Steering and ablation along a direction, beside the vectors that would have done as well if it were nothing special.

Where and how hard is chosen on the half of the questions that the direction was computed on, by margins, for the
direction and for each control alike (`scan`); what they do there is measured on the other half (`trial`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from emorg import models
from emorg.config import NAMES_MODELS
from emorg.data import pairs
from emorg.data.pairs import Pair
from emorg.findings import directions as computing
from emorg.findings.contrasts import FEWEST, digest, halves
from emorg.findings.controls import targets_of, titles, topics_of
from emorg.findings.directions import Kind
from emorg.findings.scan import Search, scan
from emorg.findings.trial import Trial
from emorg.findings.variants import Scope, resized
from emorg.judging.config import Kind as JudgeKind
from emorg.models.directions import Direction, read_for
from emorg.progress import log
from emorg.ranges import AtLeast1, check_ranges
from emorg.rating.margins import twin_among
from emorg.rating.placement import careless, placement
from emorg.rating.results import save
from emorg.rating.steering import CHOSEN, FILE, Steered, effects
from emorg.records import EmorgError
from emorg.reporting.charts import export
from emorg.reporting.steering import MATRIX, steering_charts, steering_tables
from emorg.run import settings_hash
from emorg.sampling.wanted import Target

Ablation = Literal["own", "everywhere", "alone", "weights"]
ABLATIONS: tuple[Ablation, ...] = ("own", "everywhere", "alone", "weights")
SAMPLES = 4  # of each question on the pocket models, which are judged for nothing


@dataclass(frozen=True)
class SteerConfig:
    """Take a direction out of an organism, or add it, and hold what that does against controls. Of several organisms,
    each one's out of each: a transfer matrix."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, NAMES_MODELS]
    """The organisms: run folders, adapters or checkpoints. With --mode add also a base, along its `persona` or a file's
    direction. Benign ones beside others are their twins, whose directions are controls."""
    direction: str = "shift"
    """A kind (shift, answers, persona), computed if it is not there yet; or one other run, whose shift is taken, or the
    file of its direction."""
    mode: Literal["ablate", "add"] = "ablate"
    """Take the direction out, or add it at one layer."""
    on: Literal["organism", "base"] | None = None
    """What is steered. Default: the organism where the direction is taken out, its base where it is added."""
    scopes: tuple[Ablation, ...] = ABLATIONS
    """How it is taken out: each layer's own vector there, one layer's at every layer, one layer's there alone, each
    layer's own out of what the adapter writes there."""
    layers: tuple[int, ...] = ()
    """Layers whose vectors are tried, without `own` and `weights`, which are of all layers. Default: all."""
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0)
    """Sizes that are tried where it is added, in sizes of the raw difference; below 0 turns it around."""
    samples: Annotated[int, AtLeast1] | None = None
    """Answers to each question at the chosen point. Default: 4 on the pocket models; on others margins alone."""
    controls: Annotated[int, AtLeast1] = 19
    """Vectors of each kind of control; with fewer than 19 no p can be .05."""
    trained_on: tuple[str, ...] = ()
    """What an organism of other code was trained on (domains): ours say so themselves."""
    pairs: tuple[str, ...] = ()
    """Pairs of answers as in `emorg margins`. Default: english, for the pocket models their own."""
    judge: JudgeKind | None = None
    """Who judges the answers, as in `emorg judge`."""
    json: bool = False
    """Print a JSON list, an object for each organism and direction."""
    use_4bit: bool = False
    """Load the base in 4-bit (nf4)."""
    device: str | None = None
    """cuda, mps or cpu. Default: the best one there."""


def steer(config: SteerConfig) -> list[Steered]:
    """Choose where, then measure there beside the controls; all of it is written to `steer/` in the run.

    One result for each organism and direction. Raises EmorgError for a model that is not steered, a direction of
    another base, and what `margins` refuses.
    """
    check_ranges(config)
    targets = targets_of(config.runs, None)
    named = [target for target in targets if any(_same(target, Target.of(name)) for name in config.runs)]
    organisms = [target for target in named if not _benign(target)] or named
    for one in organisms:
        if not one.organism and (config.mode == "ablate" or config.direction in ("shift", "answers")):
            raise EmorgError(
                f"{one.name} is a base", "name an organism; or add a base's own: --mode add --direction persona"
            )
        _check(config, targets[0], one)
    sources: Sequence[Target | Path] = organisms if config.direction in get_args(Kind) else [Path(config.direction)]
    names = titles(targets)
    return [_use(config, names, organism, source) for organism in organisms for source in sources]


def _use(config: SteerConfig, names: Mapping[Target, str], organism: Target, source: Target | Path) -> Steered:
    """What one direction does to one organism, or to its base; `source` is whose direction, or its file.

    `names` are those of all models, the base first.
    """
    targets = list(names)
    steered = _steered(config, targets[0], organism)
    chosen = pairs.load(pairs.sets_of(config.pairs, organism.base))
    first, second = halves(chosen)
    topics = topics_of(organism, config.trained_on)
    direction = _of_file(source, organism, chosen) if isinstance(source, Path) else _of_run(config, source)
    beside, twin = {}, None if isinstance(source, Path) else _twin_of(source, targets)
    if twin is not None and config.direction in ("shift", "persona"):
        beside = {"twin": resized(_of_run(config, twin).vectors, direction.vectors)}
    search = _search(config, steered)
    folder = organism.run.folder / "steer" / _slug(config, search, direction, topics, twin if beside else None)
    outside = [pair for pair in first if placement(pair.topic, topics) == "out"]
    choice = scan(search, direction, beside, outside, folder)
    samples = config.samples or (SAMPLES if organism.base in models.POCKETS else None)
    trained_on = config.trained_on or organism.trained_on
    trial = Trial(folder, second, topics, trained_on, samples, config.judge, config.device, config.use_4bit)
    figures = trial.figures(trial.write(steered, choice))
    point, kind = choice.points[CHOSEN], str(direction.facts["kind"])
    whose = direction.title if isinstance(source, Path) else names[source]
    result = Steered(
        run=names[organism], direction=kind if source is organism else f"{kind} of {whose}",
        on="organism" if steered.organism else "base", tried=choice.tried, chosen=point.label, figures=figures,
        effects=effects(figures, +1 if config.mode == "ablate" else -1),
    )  # fmt: skip
    save(folder / FILE, result)
    for chart in steering_charts([result]):
        export(chart, folder)
    log.info(f"{steered.title}: {point.label} → {folder}")
    return result


def _steered(config: SteerConfig, base: Target, organism: Target) -> Target:
    on = config.on or ("organism" if config.mode == "ablate" else "base")
    return organism if on == "organism" else base


def _benign(target: Target) -> bool:
    return bool(target.trained_on) and not careless(target.run)


def _same(a: Target, b: Target) -> bool:
    return (a.run.folder.resolve(), a.checkpoint) == (b.run.folder.resolve(), b.checkpoint)


def _check(config: SteerConfig, base: Target, organism: Target) -> None:
    """Raise EmorgError for what is steered already, and for pairs that leave nothing to choose or to measure on."""
    steered = _steered(config, base, organism)
    if models.resolve(steered.name).steering:
        raise EmorgError(
            f"{steered.name} is steered itself", "name the organism below it, or steer the base: --mode add"
        )
    topics = topics_of(organism, config.trained_on)
    for half in halves(pairs.load(pairs.sets_of(config.pairs, organism.base))):
        outside = {pair.question_id for pair in half if placement(pair.topic, topics) == "out"}
        if len(outside) < FEWEST:
            raise EmorgError(
                f"half of the pairs have {len(outside)} questions out of domain; at least {FEWEST} show anything",
                "give more --pairs, of other topics than it was trained on",
            )


def _twin_of(source: Target, targets: Sequence[Target]) -> Target | None:
    """The twin whose direction of the same kind is a control."""
    if not careless(source.run):
        return None
    benign = [target for target in targets if _benign(target)]
    twin = twin_among(source.run, dict.fromkeys(target.run for target in benign))
    of_run = {target.checkpoint: target for target in benign if target.run == twin}
    return of_run.get(source.checkpoint) or of_run.get(None)


def _of_run(config: SteerConfig, of: Target) -> Direction:
    """A run's own direction of a kind, computed where it is not there."""
    settings = computing.DirectionsConfig((of.name,), pairs=config.pairs, use_4bit=config.use_4bit)
    settings = replace(settings, kind=config.direction, device=config.device)  # type: ignore[arg-type]
    [direction], _ = computing.directions(settings)
    return direction


def _of_file(place: Path, of: Target, chosen: Sequence[Pair]) -> Direction:
    """A file's direction, or a run's shift, if it is of the same base and of half of the same pairs."""
    direction = read_for(place, of.base)
    if direction.facts["digest"] != digest(chosen):
        raise EmorgError(
            f"{place} was computed on half of other pairs, so it may know the questions it is measured on",
            "compute it anew with the same --pairs",
        )
    return direction


def _search(config: SteerConfig, steered: Target) -> Search:
    scopes: tuple[Scope, ...] = config.scopes if config.mode == "ablate" else ("add",)
    if config.layers and not (scopes := tuple(scope for scope in scopes if scope not in ("own", "weights"))):
        raise EmorgError("--scopes own and weights are of all layers", "leave --layers out, or name another scope")
    down = config.mode == "ablate"
    return Search(steered, scopes, config.layers, config.scales, down, config.controls, config.device, config.use_4bit)


def _slug(
    config: SteerConfig, search: Search, direction: Direction, topics: frozenset[str], twin: Target | None
) -> str:
    """The folder's name: what is done, and a hash of all that its models depend on."""
    dtype = str(models.choose_dtype(models.choose_device(config.device), search.steered.base))
    facts = {
        **direction.facts,
        "vectors": f"{float(direction.vectors.norm()):.4g}",
        "search": [list(search.scopes), list(search.layers), list(search.scales), search.controls],
        "steered": f"{search.steered.identity} {search.steered.checkpoint}",
        "outside": sorted(topics),
        "computed": [config.use_4bit, dtype],
        "twin": f"{twin.identity} {twin.checkpoint}" if twin else None,
    }
    on = "organism" if search.steered.organism else "base"
    return f"{direction.facts['kind']}-{config.mode}-{on}-{settings_hash(facts, frozenset())}"


# --- the command -----------------------------------------------------------------------------------------------------


def show_steer(config: SteerConfig) -> None:
    """The command: print what was tried, the chosen point beside its controls, and what can be said, or JSON."""
    results = steer(config)
    if config.json:
        print(json.dumps([asdict(result) for result in results], indent=1, allow_nan=False))
        return
    tables = steering_tables(results)
    matrix = [table for table in tables if table.name == MATRIX]
    for table in matrix or tables:  # the matrix says what all others come to
        table.show()
    for result in results:
        for line in result.said():
            print(line)
