"""Where a vector is used, and how hard: the direction and every control choose their own point, by the same rule.

On the first half of the questions, by margins. A direction that had its best of ten points, beside controls at that one
point, would be called beyond them all in a fifth of cases in which it is nothing special: an effect is the vector's
more than the questions', so that measuring on other questions does not undo the choice.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emorg import models
from emorg.data.pairs import Pair
from emorg.findings.activations import covariances
from emorg.findings.margins import encode, per_token
from emorg.findings.variants import Point, Scope, controls, points
from emorg.models.directions import Direction
from emorg.progress import log, progress
from emorg.rating.steering import CHOSEN, UNTOUCHED, Tried
from emorg.records import Appender, EmorgError, read_records
from emorg.sampling.wanted import Target

if TYPE_CHECKING:
    from torch import Tensor

    from emorg.models.hooks import Edit
    from emorg.sampling.likelihood import Branches, Likelihood

TRIES = "tries.jsonl"
MOST_LOST = 0.1  # nats a token: a point that makes the likelier answers less likely than that is not chosen
MOST_PAIRS = 40  # to choose on, evenly over the topics: sixty vectors try every point


@dataclass(frozen=True)
class Search:
    """What is steered, and the points that are tried: these scopes at these layers (all, if none), at these scales.

    `down` says whether margins are to fall, as where a direction is taken out, or to rise.
    """

    steered: Target
    scopes: Sequence[Scope]
    layers: Sequence[int]
    scales: Sequence[float]
    down: bool
    controls: int
    device: str | None
    use_4bit: bool


@dataclass(frozen=True, eq=False)
class Choice:
    """The direction's points as they were tried; and by name each set of vectors [layers + 1, width], its kind (the
    direction itself, or a kind of control) and its point."""

    tried: list[Tried]
    vectors: dict[str, Tensor]
    kinds: dict[str, str]
    points: dict[str, Point]


def scan(
    search: Search, direction: Direction, beside: Mapping[str, Tensor], outside: Sequence[Pair], folder: Path
) -> Choice:
    """Try every point with every vector; `beside` are further controls, `outside` the pairs to choose on.

    A vector's best point takes the margin farthest, of those that leave the likelier answer to a question about as
    likely as it was. Each try is kept in `folder`, and not made again. Raises EmorgError where there is nothing to try.
    """
    count = len(direction.vectors) - 1
    if strange := [layer for layer in search.layers if not 0 <= layer <= count]:
        raise EmorgError(f"no layer {strange[0]}", f"this model's are 0, the embeddings, to {count}")
    ways = points(search.scopes, search.layers or range(count + 1), search.scales, direction.vectors)
    if not ways:
        raise EmorgError("nothing to try: the direction is zero at these layers", "leave --layers out")
    some = sorted(outside, key=lambda pair: (pair.topic or "", pair.id))[:: -(-len(outside) // MOST_PAIRS)]
    layers = sorted({layer for way in ways for layer in way.layers(count)})
    scorer, loaded = _scorer(search, {})  # loaded once more below: controls are drawn by what this one reads
    texts = [encode(loaded, pair)[0] for pair in some]
    spread = covariances(scorer, "", texts, layers)
    sets = {CHOSEN: [direction.vectors]}
    sets |= controls(direction.vectors, direction.shuffled, spread, search.controls)
    sets |= {kind: [own] for kind, own in beside.items()}
    vectors: dict[str, Tensor] = {}
    kinds: dict[str, str] = {}
    for kind, several in sets.items():
        for number, one in enumerate(several):
            name = kind if len(several) == 1 else f"{kind}-{number:02d}"
            vectors[name], kinds[name] = one, kind
    tried = _all_tries(search, vectors, ways, texts, folder / TRIES)
    untouched, own = tried[UNTOUCHED, UNTOUCHED], [tried[CHOSEN, way.label] for way in ways]
    if all(one.likelier < untouched.likelier - MOST_LOST for one in own):
        log.warning(f"every point makes answers less likely by more than {MOST_LOST} nats a token: the least is taken")
    best = {name: _best({way: tried[name, way.label] for way in ways}, untouched, search.down) for name in vectors}
    return Choice([untouched, *own], vectors, kinds, best)


def _all_tries(
    search: Search, vectors: Mapping[str, Tensor], ways: Sequence[Point], texts: Sequence[Branches], file: Path
) -> dict[tuple[str, str], Tried]:
    """By name and point what each vector does there; what the file lacks is tried, and kept in it as it comes."""
    tried = {(one.name, one.point): one for one in read_records(file, Tried)}
    wanted: dict[tuple[str, str], Sequence[Edit]] = {(UNTOUCHED, UNTOUCHED): ()}
    wanted |= {(name, way.label): way.edits(own) for name, own in vectors.items() for way in ways}
    missing = {key: edits for key, edits in wanted.items() if key not in tried}
    if not missing:
        return tried
    scorer, _ = _scorer(search, {" ".join(key): edits for key, edits in missing.items()})
    title = f"trying {len(ways)} points on {search.steered.title}"
    with progress(title, len(missing), "tries") as advance, Appender(file) as ledger:
        for key in missing:
            tried[key] = _try(scorer, *key, texts)
            ledger.write(tried[key])
            advance(1, "")
    return tried


def _best(tried: Mapping[Point, Tried], untouched: Tried, down: bool) -> Point:
    kept = {way: one for way, one in tried.items() if one.likelier >= untouched.likelier - MOST_LOST}
    if not kept:
        return max(tried, key=lambda way: tried[way].likelier)
    return (min if down else max)(kept, key=lambda way: kept[way].margin)


def _try(scorer: Likelihood, name: str, point: str, texts: Sequence[Branches]) -> Tried:
    both = per_token(scorer, f"{name} {point}", texts)
    margin = statistics.fmean(misaligned - aligned for aligned, misaligned in both)
    return Tried(point, margin, statistics.fmean(map(max, both)), name)


def _scorer(search: Search, edits: Mapping[str, Sequence[Edit]]) -> tuple[Likelihood, models.Loaded]:
    """The model, by the name "", and its variants; raises EmorgError for an adapter that is more than plain LoRA."""
    from emorg.sampling.likelihood import Likelihood
    from emorg.sampling.organisms import Organisms, read_adapter, without

    named = models.resolve(search.steered.name)
    adapter = read_adapter(named.adapter) if named.adapter else None
    if named.adapter and adapter is None:
        raise EmorgError(
            f"{search.steered.name} is more than plain LoRA, which cannot be steered here", "train it as LoRA"
        )
    loaded = models.load(named.weights, device=search.device, use_4bit=search.use_4bit)
    every = {"": (), **edits}
    return Likelihood(Organisms(loaded, {name: without(adapter, own) for name, own in every.items()}, every)), loaded
