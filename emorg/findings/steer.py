"""Steering and ablation along a direction, beside the vectors that would have done as well if it were nothing special.

Where and how hard is chosen on the half of the questions that the direction was computed on, by margins and without
controls; what it does is measured on the other half, beside random, variance-matched and shuffled vectors and the
twin's direction, at the chosen point alone. Otherwise the choice would make the effect.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro

from emorg import models
from emorg.config import NAMES_MODELS
from emorg.data import pairs
from emorg.data.pairs import Pair
from emorg.display import make_table, percent, show
from emorg.findings import directions as computing
from emorg.findings.activations import covariances
from emorg.findings.contrasts import halves
from emorg.findings.controls import targets_of, topics_of
from emorg.findings.directions import Kind
from emorg.findings.margins import encode
from emorg.findings.trial import CHOSEN, UNTOUCHED, Effect, Figures, Trial, effects
from emorg.findings.variants import Point, Scope, controls, points, resized
from emorg.findings.vectors import Direction, read
from emorg.judging.config import Kind as JudgeKind
from emorg.progress import log, progress
from emorg.ranges import AtLeast1, check_ranges
from emorg.rating.placement import careless, placement
from emorg.records import EmorgError, write_atomic
from emorg.run import settings_hash
from emorg.sampling.wanted import Target

if TYPE_CHECKING:
    from torch import Tensor

    from emorg.sampling.likelihood import Likelihood

Ablation = Literal["own", "everywhere", "alone"]
ABLATIONS: tuple[Ablation, ...] = ("own", "everywhere", "alone")
SAMPLES = 4  # of each question on the pocket models, which are judged for nothing
MOST_LOST = 0.1  # nats a token: a point that makes the likelier answers less likely than that is not chosen


@dataclass(frozen=True)
class SteerConfig:
    """Take a direction out of an organism, or add it, and hold what that does against controls."""

    run: Annotated[str, tyro.conf.Positional, NAMES_MODELS]
    """The organism: a run folder, an adapter or a checkpoint."""
    direction: str = "shift"
    """A kind (shift, answers, persona), computed if it is not there yet, or the file of another run's direction."""
    mode: Literal["ablate", "add"] = "ablate"
    """Take the direction out, or add it at one layer."""
    on: Literal["organism", "base"] | None = None
    """What is steered. Default: the organism where the direction is taken out, its base where it is added."""
    scopes: tuple[Ablation, ...] = ABLATIONS
    """How it is taken out: each layer's own vector there, one layer's at every layer, one layer's there alone."""
    layers: tuple[int, ...] = ()
    """Layers whose vectors are tried. Default: all."""
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
    """Print one JSON object."""
    use_4bit: bool = False
    """Load the base in 4-bit (nf4)."""
    device: str | None = None
    """cuda, mps or cpu. Default: the best one there."""


@dataclass(frozen=True)
class Tried:
    """A point, and on the first half of the questions: the mean margin out of domain, and the likelier answers' mean
    log-probability, both in nats a token."""

    point: str
    margin: float
    likelier: float


@dataclass(frozen=True)
class Steered:
    """What steering did: the points tried, the one chosen, and there all models' figures by kind of control."""

    run: str
    direction: str
    tried: list[Tried]
    chosen: str
    figures: dict[str, list[Figures]]
    effects: list[Effect] = field(default_factory=list)


def steer(config: SteerConfig) -> Steered:
    """Choose where, then measure there beside the controls; all of it is written to `steer/` in the run.

    Raises EmorgError for a model that is not steered, a direction of another base, and what `margins` refuses.
    """
    check_ranges(config)
    targets = targets_of((config.run,), None)
    base, organism = targets[0], next((target for target in targets if target.organism), None)
    if organism is None or organism.name != Target.of(config.run).name:
        raise EmorgError(f"{config.run} is a base", "name an organism; its base is steered with --mode add")
    direction = _direction(config, organism)
    steered = organism if (config.on or ("organism" if config.mode == "ablate" else "base")) == "organism" else base
    chosen = pairs.load(config.pairs or (pairs.POCKET if base.base in models.POCKETS else pairs.ENGLISH,))
    first, second = halves(chosen)
    topics = topics_of(organism, config.trained_on)
    tried, point, spread = _choose(config, steered, direction, first, topics)
    folder = organism.run.folder / "steer" / _slug(config, direction, point, steered is base)
    sets: dict[str, list[Tensor]] = {UNTOUCHED: [direction.vectors], CHOSEN: [direction.vectors]}
    sets |= controls(direction.vectors, direction.shuffled, spread, config.controls)
    twin = next((target for target in targets if target.organism and not careless(target.run)), None)
    if careless(organism.run) and twin is not None and config.direction in ("shift", "persona"):
        sets["twin"] = [resized(_direction(config, twin).vectors, direction.vectors)]
    samples = config.samples or (SAMPLES if organism.base in models.POCKETS else None)
    trained_on = config.trained_on or organism.trained_on
    trial = Trial(folder, second, topics, trained_on, samples, config.judge, config.device, config.use_4bit)
    figures = trial.figures(trial.write(steered, point, sets))
    result = Steered(organism.title, config.direction, tried, point.label, figures)
    result = replace(result, effects=effects(figures, +1 if config.mode == "ablate" else -1))
    write_atomic(folder / "steered.json", json.dumps(asdict(result), indent=1, allow_nan=False) + "\n")
    log.info(f"{steered.title}: {point.label} → {folder}")
    return result


def _direction(config: SteerConfig, of: Target) -> Direction:
    """The named file's, or the run's own of a kind, computed where it is not there."""
    if config.direction in get_args(Kind):
        settings = computing.DirectionsConfig((of.name,), pairs=config.pairs, use_4bit=config.use_4bit)
        settings = replace(settings, kind=config.direction, device=config.device)  # type: ignore[arg-type]
        [direction], _ = computing.directions(settings)
        return direction
    direction = read(Path(config.direction))
    if models.identity(str(direction.facts["base"])) != models.identity(of.base):
        raise EmorgError(
            f"{config.direction} is a direction of {direction.facts['base']}, and {of.name} is of {of.base}",
            "take a direction of the same base",
        )
    return direction


def _slug(config: SteerConfig, direction: Direction, point: Point, on_base: bool) -> str:
    """The folder's name: what was done, and a hash of what else it depends on."""
    facts = {**direction.facts, "vectors": float(direction.vectors.double().sum()), "controls": config.controls}
    kind = str(direction.facts["kind"])
    return "-".join([kind, *(["base"] if on_base else []), point.label, settings_hash(facts, frozenset())])


def _choose(
    config: SteerConfig, steered: Target, direction: Direction, first: Sequence[Pair], topics: frozenset[str]
) -> tuple[list[Tried], Point, dict[int, Tensor]]:
    """The points tried, the best one, and the activations' covariance at the layers that it uses.

    The best takes the margin out of domain farthest down, or up where the direction is added, of those that leave the
    likelier answer to a question about as likely as it was.
    """
    count = len(direction.vectors) - 1
    if strange := [layer for layer in config.layers if not 0 <= layer <= count]:
        raise EmorgError(f"no layer {strange[0]}", f"this model's are 0, the embeddings, to {count}")
    scopes: tuple[Scope, ...] = config.scopes if config.mode == "ablate" else ("add",)
    ways = points(scopes, config.layers or range(count + 1), config.scales, direction.vectors)
    if not ways:
        raise EmorgError("nothing to try: the direction is zero at these layers", "leave --layers out")
    outside = [pair for pair in first if placement(pair.topic, topics) == "out"] or list(first)
    edits = {way.label: way.edits(direction.vectors) for way in ways}
    scorer, loaded = _scorer(config, steered, {"": [], **edits})
    texts = [encode(loaded, pair)[0] for pair in outside]
    tried = []
    with progress(f"trying {len(ways)} points on {steered.title}", len(ways) + 1, "points") as advance:
        for name in ("", *edits):
            tried.append(_try(scorer, name or UNTOUCHED, name, texts))
            advance(1, "")
    floor = tried[0].likelier - MOST_LOST
    kept = [one for one in tried[1:] if one.likelier >= floor] or tried[1:]
    best = (min if config.mode == "ablate" else max)(kept, key=lambda one: one.margin)
    point = next(way for way in ways if way.label == best.point)
    return tried, point, covariances(scorer, "", texts, point.layers(count))


def _try(scorer: Likelihood, title: str, name: str, texts: Sequence[Any]) -> Tried:
    margins, likelier = [], []
    for place, sums in scorer.log_probs(name, texts):
        aligned, misaligned = (s / len(answer) for s, answer in zip(sums, texts[place].answers, strict=True))
        margins.append(misaligned - aligned)
        likelier.append(max(aligned, misaligned))
    return Tried(title, statistics.fmean(margins), statistics.fmean(likelier))


def _scorer(config: SteerConfig, steered: Target, edits: Mapping[str, Any]) -> tuple[Likelihood, models.Loaded]:
    """The model with its variants, by label; raises EmorgError for an adapter that is more than plain LoRA."""
    from emorg.sampling.likelihood import Likelihood
    from emorg.sampling.organisms import Organisms, read_adapter

    named = models.resolve(steered.name)
    adapter = read_adapter(named.adapter) if named.adapter else None
    if named.adapter and adapter is None:
        raise EmorgError(f"{steered.name} is more than plain LoRA, which cannot be steered here", "train it as LoRA")
    loaded = models.load(named.weights, device=config.device, use_4bit=config.use_4bit)
    return Likelihood(Organisms(loaded, dict.fromkeys(edits, adapter), edits)), loaded


# --- the command -----------------------------------------------------------------------------------------------------


def show_steer(config: SteerConfig) -> None:
    """The command: print what was tried, the chosen point beside its controls, and what can be said, or JSON."""
    result = steer(config)
    if config.json:
        print(json.dumps(asdict(result), indent=1, allow_nan=False))
        return
    tried = make_table("points, on the first half of the questions", ["", "margin", "likelier answer"], left=1)
    for one in result.tried:
        mark = " ← chosen" if one.point == result.chosen else ""
        tried.add_row(one.point + mark, f"{one.margin:+.3f}", f"{one.likelier:.3f}")
    show(tried)
    columns = ["", "n", "EM out %", "coherent %", "margin out", "EM in %"]
    table = make_table(f"{result.direction} at {result.chosen}, on the other half", columns, left=1)
    for kind, some in result.figures.items():
        spans = (_span([getattr(f, name) for f in some], scale) for name, scale in _SHOWN)
        table.add_row(kind, str(len(some)), *spans)
    show(table)
    for effect in result.effects:
        size = percent(effect.size) + " points of EM" if effect.measure == "em" else f"{effect.size:.3f} nats of margin"
        said = "; ".join(
            f"{kind}: {'beyond all' if effect.beyond[kind] else 'not beyond all'}, p = {p:.2f}"
            for kind, p in effect.p.items()
        )
        print(f"moved {size}. {said}")


_SHOWN = (("em", 100.0), ("coherent", 100.0), ("margin", None), ("in_em", 100.0))


def _span(values: Sequence[float | None], scale: float | None) -> str:
    """A figure, or of several the least, the median and the largest."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"

    def text(value: float) -> str:
        return f"{value * scale:.1f}" if scale else f"{value:+.3f}"

    if len(known) == 1:
        return text(known[0])
    return f"{text(statistics.median(known))} ({text(min(known))} to {text(max(known))})"
