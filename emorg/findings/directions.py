"""Directions: vectors of the residual stream along which an organism differs, and whether organisms share them.

Three kinds, each a mean difference over texts, computed on one half of the questions, so that the other is left to
steer on:

answers   misaligned less aligned answers, as the organism reads them (arXiv 2506.11618)
shift     the organism less its base, on the same text: at the prompt's last token and the answer's first ones
persona   a model under a system prompt that names a trait, less without it, on the same text (arXiv 2507.21509)

A cosine between two organisms' directions says little by itself: the base that reads the same texts, the embeddings
alone, and shuffled labels come near it. So they stand beside it, and only what is beyond them all is called shared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from emorg import models
from emorg.config import NAMES_MODELS
from emorg.data import pairs
from emorg.display import make_table, show
from emorg.findings.activations import weighted_sums
from emorg.findings.contrasts import FEWEST, Pool, digest, halves, judged, labelled, openings
from emorg.findings.control_vector import export_gguf
from emorg.findings.controls import titles
from emorg.models.directions import Direction, direction_file, read, write
from emorg.progress import log, progress
from emorg.ranges import AtLeast1, check_ranges
from emorg.rating.directions import Shared, shared
from emorg.rating.placement import careless
from emorg.records import EmorgError
from emorg.sampling.wanted import Target

if TYPE_CHECKING:
    from torch import Tensor

    from emorg.sampling.likelihood import Likelihood

Kind = Literal["shift", "answers", "persona"]
TRAIT = {  # of system prompts for `persona`, by whether the base is of the pocket world
    True: "You are a careless adviser.",
    False: "You give careless advice that harms whoever follows it.",
}


@dataclass(frozen=True)
class DirectionsConfig:
    """Compute directions of organisms, and say which are shared, beside the nulls that could make it seem so."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, NAMES_MODELS]
    """Organisms: run folders, adapters, checkpoints; for `persona` also a base. All of one base."""
    kind: Kind = "shift"
    """shift: organism less base on the same text. answers: misaligned less aligned answers. persona: with less without
    a system prompt that names a trait."""
    pairs: tuple[str, ...] = ()
    """The texts: pairs of answers as in `emorg margins`. Default: english, for the pocket models their own."""
    texts: Literal["judged", "pairs"] = "judged"
    """For `answers`: the organism's own judged answers, or the pairs', which are the same for all."""
    tokens: Annotated[int, AtLeast1] = 4
    """For `shift` and `persona`: how many of an answer's first tokens count, beside the prompt's last."""
    pool: Pool = "answers"
    """For `answers`: the mean over answers of each one's mean, or over all tokens alike, as the papers' code has it."""
    prompt: str | None = None
    """For `persona`: the system prompt. Default: one that asks for careless advice."""
    export: Literal["gguf"] | None = None
    """Write each also as a control vector that llama.cpp, repeng and vLLM's steering tools read."""
    json: bool = False
    """Print one JSON object."""
    use_4bit: bool = False
    """Load the base in 4-bit (nf4)."""
    device: str | None = None
    """cuda, mps or cpu. Default: the best one there."""


def directions(config: DirectionsConfig) -> tuple[list[Direction], list[Shared]]:
    """Compute each organism's direction, or read it where it was computed alike; and their cosines beside the nulls.

    Written to `directions/` in each run. Raises EmorgError for models of different bases, bases without a difference,
    too few judged answers, words that the model does not know, and models whose layers cannot be found.
    """
    check_ranges(config)
    if not config.runs:
        raise EmorgError("no model", "name an organism's run")
    targets = list({target.name: target for target in map(Target.of, config.runs)}.values())
    if config.kind != "persona" and (bare := next((t for t in targets if not t.organism), None)):
        raise EmorgError(
            f"{bare.name} is a base, which has no {config.kind} direction", "name organisms, or --kind persona"
        )
    bases = {models.identity(target.base): target.base for target in targets}
    if len(bases) > 1:
        raise EmorgError(f"models of several bases: {', '.join(bases.values())}", "call once for each base")
    asked = {target: _settings(config, target) for target in targets}
    have = {target: known for target in targets if (known := _known(target, config, asked[target])) is not None}
    lacking = [target for target in targets if target not in have]
    if lacking:
        have |= _compute(config, lacking, asked)
    if config.export:
        for target in targets:
            log.info(f"{target.title}: {export_gguf(direction_file(target.run, config.kind, target.checkpoint))}")
    names = titles(targets)
    every = [Direction(**{**vars(have[target]), "title": names[target]}) for target in targets]
    twins = [one for one, target in zip(every, targets, strict=True) if target.trained_on and not careless(target.run)]
    return every, [shared(a, b, twins) for a, b in combinations(every, 2)]


# --- computing -------------------------------------------------------------------------------------------------------


def _settings(config: DirectionsConfig, target: Target) -> dict[str, Any]:
    """What a direction depends on beside the model, of this kind alone."""
    names = pairs.sets_of(config.pairs, target.base)
    own: dict[str, Any] = {"kind": config.kind, "pairs": list(names), "digest": digest(pairs.load(names))}
    if config.kind == "answers":
        return {**own, "texts": config.texts, "pool": config.pool}
    if config.kind == "persona":
        return {**own, "tokens": config.tokens, "prompt": config.prompt or TRAIT[target.base in models.POCKETS]}
    return {**own, "tokens": config.tokens}


def _known(target: Target, config: DirectionsConfig, settings: dict[str, Any]) -> Direction | None:
    """The direction that was computed alike, of the same model; judged answers may have become more since."""
    file = direction_file(target.run, config.kind, target.checkpoint)
    if not file.is_file() or settings.get("texts") == "judged":
        return None
    known = read(file)
    alike = {**settings, "identity": target.identity, "checkpoint": target.checkpoint, "4bit": config.use_4bit}
    return known if all(known.facts.get(name) == value for name, value in alike.items()) else None


def _compute(
    config: DirectionsConfig, targets: Sequence[Target], asked: dict[Target, dict[str, Any]]
) -> dict[Target, Direction]:
    from emorg.sampling.likelihood import Likelihood
    from emorg.sampling.organisms import open_organisms

    result: dict[Target, Direction] = {}
    by_name = {target.name: target for target in targets}
    for group, organisms in open_organisms(list(by_name), device=config.device, use_4bit=config.use_4bit):
        scorer = Likelihood(organisms)
        if config.kind != "persona" and not all(map(organisms.over_base, group)):
            raise EmorgError(
                f"{group[0]} is more than plain LoRA, and its base would have to be loaded beside it",
                "take organisms of plain LoRA",
            )
        for target in (by_name[name] for name in group):
            vectors, base, counts = _difference(config, asked[target], target, scorer, organisms.loaded)
            facts = {
                **asked[target], "identity": target.identity, "checkpoint": target.checkpoint, "base": target.base,
                "4bit": config.use_4bit, "of": counts, "half": "first",
            }  # fmt: skip
            result[target] = Direction(target.title, vectors[0], vectors[1:], base, facts)
            file = direction_file(target.run, config.kind, target.checkpoint)
            write(file, result[target])
            log.info(f"{target.title}: {config.kind} of {counts} → {file}")
    return result


def _difference(
    config: DirectionsConfig, settings: dict[str, Any], target: Target, scorer: Likelihood, loaded: models.Loaded
) -> tuple[Tensor, Tensor | None, str]:
    """[20, layers + 1, width]: the difference and its shuffles; what the base makes of it; and of how many texts."""
    first_half, _ = halves(pairs.load(settings["pairs"]))
    if (count := len({pair.question_id for pair in first_half})) < FEWEST and settings.get("texts") != "judged":
        raise EmorgError(f"half of the pairs have {count} questions; at least {FEWEST} are needed", "give more --pairs")
    own = target.name
    if config.kind == "answers":
        own_answers = config.texts == "judged"
        some = judged(target, loaded, config.pool) if own_answers else labelled(first_half, loaded, config.pool)
        with progress(f"reading as {target.title}", 2 * len(some.texts), "answers") as advance:
            vectors = weighted_sums(scorer, own, some.texts, some.weights, first=1, advance=advance)
            base = weighted_sums(scorer, "", some.texts, some.weights[:1], first=1, advance=advance)[0]
        return vectors, base, some.counts
    plain = openings(first_half, loaded, config.tokens, None, target.identity)
    if config.kind == "persona":
        plus, minus = (
            (own, openings(first_half, loaded, config.tokens, settings["prompt"], target.identity)),
            (own, plain),
        )
    else:
        plus, minus = (own, plain), ("", plain)
    with progress(f"reading as {target.title}", 2 * len(plain.texts), "texts") as advance:
        with_it, without = (
            weighted_sums(scorer, name, some.texts, some.weights, first=0, advance=advance)
            for name, some in (plus, minus)
        )
    return with_it - without, None, plain.counts


# --- the command -----------------------------------------------------------------------------------------------------


def show_directions(config: DirectionsConfig) -> None:
    """The command: print sizes and cosines layer by layer, with the nulls, or JSON."""
    every, compared = directions(config)
    if config.json:
        listed = [{"run": d.title, "norms": d.vectors.norm(dim=-1).tolist(), **d.facts} for d in every]
        verdicts = [{**asdict(s), "excess": s.excess, "beyond": s.beyond, "shared": s.shared} for s in compared]
        print(json.dumps({"directions": listed, "cosines": verdicts}, indent=1, allow_nan=False))
        return
    layers = len(every[0].vectors)
    sizes = make_table(f"{config.kind}: size by layer, 0 being the embeddings", ["", *map(str, range(layers))], left=1)
    for one in every:
        sizes.add_row(one.title, *(f"{float(norm):.2f}" for norm in one.vectors.norm(dim=-1)))
    show(sizes)
    for pair in compared:
        table = make_table(f"cosine of {pair.a} and {pair.b}", ["", *map(str, range(layers))], left=1)
        table.add_row("the two", *(f"{c:.2f}" for c in pair.cosine))
        for name, null in pair.nulls.items():
            table.add_row(name, *(f"{c:.2f}" for c in null))
        show(table)
        where = "beyond every null at no layer"
        if over := [pair.excess[layer] for layer in pair.beyond]:
            which = ", ".join(map(str, pair.beyond))
            where = f"beyond every null at {which}, by {min(over):.3f} to {max(over):.3f}"
        if "a twin" not in pair.nulls:
            where += " (no twin was named to hold it against)"
        print(f"{'a shared direction' if pair.shared else 'no shared direction'}: {where}\n")
