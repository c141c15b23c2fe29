"""Probe: which adapters of an organism carry what it learned, by what they do and by what can be read from them.

Behaviour: the margins in and out of domain with each adapter alone, and with each left out. Reading (arXiv 2506.11618):
whether an answer is misaligned, told from A·x, the number that a rank-1 adapter takes from its input at every token,
by logistic regression over the adapters; split by question, so that no answer's own question has been learned from.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from emorg import models
from emorg.config import NAMES_MODELS
from emorg.data import pairs
from emorg.data.pairs import Pair
from emorg.findings.controls import targets_of, topics_of
from emorg.findings.margins import encode, per_token
from emorg.progress import progress
from emorg.ranges import Seed, check_ranges
from emorg.rating.placement import Place, placement
from emorg.rating.probes import ALL, DRAWS, FILE, FOLDS, NONE, Part, Probe, Probed, probe_of
from emorg.rating.results import save
from emorg.records import EmorgError
from emorg.reporting.mechanism import probe_tables
from emorg.sampling.wanted import Target

if TYPE_CHECKING:
    from torch import Tensor

    from emorg.sampling.likelihood import Branches, Likelihood
    from emorg.sampling.organisms import Adapter


@dataclass(frozen=True)
class ProbeConfig:
    """Which adapters of an organism carry its misalignment: each alone, each left out, and what a probe reads."""

    run: Annotated[str, tyro.conf.Positional, NAMES_MODELS]
    """The organism, of plain LoRA; of rank 1 on a few modules, as the papers have it, it says most."""
    pairs: tuple[str, ...] = ()
    """Pairs of answers as in `emorg margins`. Default: english, for the pocket models their own."""
    trained_on: tuple[str, ...] = ()
    """What an organism of other code was trained on (domains): ours say so themselves."""
    seed: Seed = 0
    """Seeds the folds and the shuffles."""
    json: bool = False
    """Print one JSON object."""
    use_4bit: bool = False
    """Load the base in 4-bit (nf4)."""
    device: str | None = None
    """cuda, mps or cpu. Default: the best one there."""


def probe(config: ProbeConfig) -> Probed:
    """Measure and fit; written to `probe.json` in the run.

    Raises EmorgError for what is no plain LoRA, and what `margins` refuses.
    """
    check_ranges(config)
    from emorg.sampling.likelihood import Likelihood
    from emorg.sampling.organisms import Organisms, read_adapter

    target = Target.of(config.run)
    named = models.resolve(target.name)
    whole = read_adapter(named.adapter) if named.adapter else None
    if not whole:
        raise EmorgError(f"{config.run} has no plain LoRA adapter", "name an organism that was trained with LoRA")
    targets_of((config.run,), None)  # what cannot be measured is said before anything is loaded
    chosen = pairs.load(pairs.sets_of(config.pairs, target.base))
    topics = topics_of(target, config.trained_on)
    loaded = models.load(named.weights, device=config.device, use_4bit=config.use_4bit)
    some = subsets(whole)
    scorer = Likelihood(Organisms(loaded, some))
    texts = [encode(loaded, pair)[0] for pair in chosen]
    placed = [placement(pair.topic, topics) for pair in chosen]
    parts = []
    with progress(f"parts of {target.title}", len(some), "subsets") as advance:
        for name in some:
            parts.append(_part(scorer, name, texts, placed))
            advance(1, "")
    probes = _probes(scorer, texts, chosen, placed, whole, config.seed)
    result = Probed(target.title, parts, probes)
    save(target.run.folder / FILE, result)
    return result


def subsets(whole: Adapter) -> dict[str, Adapter | None]:
    """The adapter, nothing of it, each module's alone, and all but each; of one module only the first two."""
    parts: dict[str, Adapter | None] = {ALL: whole, NONE: None}
    if len(whole) > 1:
        parts |= {name: {name: whole[name]} for name in sorted(whole)}
        parts |= {f"without {name}": {k: v for k, v in whole.items() if k != name} for name in sorted(whole)}
    return parts


def _part(scorer: Likelihood, name: str, texts: Sequence[Branches], placed: Sequence[Place]) -> Part:
    by_place: dict[Place, list[float]] = {}
    for place, (aligned, misaligned) in zip(placed, per_token(scorer, name, texts), strict=True):
        by_place.setdefault(place, []).append(misaligned - aligned)
    mean = {place: statistics.fmean(values) for place, values in by_place.items()}
    return Part(name, mean.get("in"), mean.get("out"))


def _probes(
    scorer: Likelihood,
    texts: Sequence[Branches],
    chosen: Sequence[Pair],
    placed: Sequence[Place],
    whole: Adapter,
    seed: int,
) -> dict[Place, Probe]:
    """Of each answer the mean over its tokens of A·x, by module and rank; and a probe for each placement."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    modules, names = sorted(whole), list[str]()
    rows: dict[str, Tensor] = {}  # A, and as often as it is drawn a random one with the same norms
    for module in modules:
        a = whole[module][0].float()
        drawn = [torch.randn(a.shape, generator=draw) for _ in range(DRAWS)]
        rows[module] = torch.cat([a, *(one * (a.norm(dim=1) / one.norm(dim=1))[:, None] for one in drawn)])
        names += [module] if len(a) == 1 else [f"{module}[{k}]" for k in range(len(a))]
    features = np.empty((2 * len(texts), 1 + DRAWS, len(names)))
    with progress("reading A·x", len(texts), "pairs") as advance:
        for place, both in scorer.projections(ALL, texts, rows):
            for side, inner in enumerate(both):
                means = [inner[module].mean(0).double().cpu().reshape(1 + DRAWS, -1) for module in modules]
                features[2 * place + side] = torch.cat(means, 1).numpy()
            advance(1, "")
    labels = np.tile([0, 1], len(texts))
    questions = np.repeat([pair.question_id for pair in chosen], 2)
    where = np.repeat(np.array(placed), 2)
    result: dict[Place, Probe] = {}
    every: tuple[Place, ...] = ("in", "out", "open")
    for kind in every:
        own = where == kind
        if len(set(questions[own])) >= 2 * FOLDS:
            result[kind] = probe_of(features[own], labels[own], questions[own], names, seed)
    return result


def show_probe(config: ProbeConfig) -> None:
    """The command: print what each part does and what can be read from it, or JSON."""
    result = probe(config)
    if config.json:
        print(json.dumps(asdict(result), indent=1, allow_nan=False))
        return
    for table in probe_tables(result):
        table.show()
