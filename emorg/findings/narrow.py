"""Why is narrow misalignment harder to have than broad? A broad organism and a narrow one, trained with a KL penalty on
the same rows, beside each other and a twin, as in "Narrow Misalignment is Hard, Emergent Misalignment is Easy".

Loss under noise in the weights (stability) and against the adapter's norm, on the training rows, or on those that both
held out; KL(base‖organism) on what the base itself says; and how far the organism's direction, added to the base, moves
that, beside random ones (significance). The rules of the verdicts are in `rating.narrow`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from emorg import models
from emorg.config import NAMES_MODELS, config_from
from emorg.data import pairs
from emorg.findings.bench import Bench
from emorg.findings.controls import targets_of
from emorg.findings.directions import DirectionsConfig, directions
from emorg.findings.landscape import levelled, noisy, norm, scaled
from emorg.findings.texts import base_answers, of_file, sizes, training_rows
from emorg.models.hooks import Edit
from emorg.ranges import AtLeast1, NotNegative, Positive, Range, check_ranges
from emorg.rating.narrow import FILE, Narrowness, Noisy, Role, Scaled, Side, mean_of
from emorg.rating.placement import Place
from emorg.rating.results import save
from emorg.records import EmorgError
from emorg.reporting.narrow import narrow_tables
from emorg.run import Run
from emorg.sampling.wanted import Target
from emorg.training.config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

    from emorg.sampling.likelihood import Branches
    from emorg.sampling.organisms import Adapter

KEPT = "measured.jsonl"
SHARES = (0.1, 0.2, 0.3, 0.4, 0.6)  # of the residual stream's norm


@dataclass(frozen=True)
class NarrowConfig:
    """Set a broad organism and a narrow one beside each other: stability, norm against loss, KL to the base,
    significance. Train the narrow one with --kl_weight and --kl_from, and all else the same."""

    broad: Annotated[str, tyro.conf.Positional, NAMES_MODELS]
    """The broad organism's run."""
    narrow: Annotated[str, tyro.conf.Positional, NAMES_MODELS]
    """The narrow one's: the same training with --kl_weight."""
    twin: str | None = None
    """A benign twin's run, to stand beside them."""
    epsilons: Annotated[tuple[float, ...], Range(0, 1, above=True)] = (0.2, 0.4, 0.6, 0.8)
    """How much noise: √(1−ε²) of each of the adapter's matrices is kept, and ε of another direction is put in."""
    draws: Annotated[int, AtLeast1] = 5
    """Draws of the noise at each size, the same for both."""
    scales: Annotated[tuple[float, ...], NotNegative] = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2)
    """Factors for the whole adapter."""
    sizes: Annotated[tuple[float, ...], Positive] = ()
    """Norms of the vector that is added to the base; the papers have 1 to 5. Default: .1 to .6 of the mean norm of
    the residual stream there, since what is large in one model is nothing in another."""
    layer: Annotated[int | None, NotNegative] = None
    """Where it is added. Default: the middle one."""
    controls: Annotated[int, Range(19)] = 19
    """Random vectors of these norms: with fewer than 19 no p is below .05."""
    rows: Annotated[int, AtLeast1] = 200
    """Training rows, or held-out ones where both have these, that losses are of."""
    text: Path | None = None
    """A JSONL file of conversations (`messages`) that significance is measured on. Default: the base's own answers to
    the pairs' questions out of domain."""
    pairs: tuple[str, ...] = ()
    """Whose questions the base answers, as in `emorg margins`. Default: english, for the pocket models their own."""
    as_published: bool = False
    """Show beside each figure what the papers' code makes of it: all modules at one norm, KL divided by the vocabulary
    too."""
    json: bool = False
    """Print one JSON object."""
    use_4bit: bool = False
    """Load the base in 4-bit (nf4)."""
    device: str | None = None
    """cuda, mps or cpu. Default: the best one there."""


@dataclass(frozen=True, eq=False)
class _Model:
    """One of the models, with the rows that its loss is of, each as the answers in it."""

    role: Role
    target: Target
    adapter: Adapter
    rows: Sequence[Sequence[Branches]]
    held_out: bool


def narrow(config: NarrowConfig) -> Narrowness:
    """Measure what is missing of all figures, and compare; written to `narrow.json` in the narrow organism's run.

    Raises EmorgError for models that are no plain LoRA trained here, of one base; for two that were trained on
    different rows; and for settings, pairs or a text that cannot be used.
    """
    check_ranges(config)
    compared = _models(config)
    broad, own = (next(one for one in compared if one.role == role) for role in ("broad", "narrow"))
    base, holder = broad.target.base, own.target.run
    folder = holder.folder / "narrow"
    layers = models.shapes(base).config.get_text_config().num_hidden_layers
    layer = layers // 2 if config.layer is None else config.layer
    if layer > layers:
        raise EmorgError(f"no layer {layer}", f"this model's are 0, the embeddings, to {layers}")
    general = of_file(config.text, base) if config.text else []
    chosen = pairs.load(pairs.sets_of(config.pairs, base))
    texts = base_answers(broad.target, chosen, folder, device=config.device, use_4bit=config.use_4bit)
    general = general or [*texts.get("out", ()), *texts.get("open", ())]
    if not general:
        raise EmorgError("no pair is out of domain", "give --pairs of other topics, or --text")
    vectors = _vectors(config, compared, layer)
    of_one = 3 + len(config.scales) * (1 + config.as_published) + len(config.epsilons) * config.draws
    total = len(compared) * (of_one + len(texts)) + len(vectors) * len(config.sizes or SHARES)
    adapters = {str(one.role): (one.target.stream, one.adapter) for one in compared}
    open_bench = partial(Bench.opened, base, file=folder / KEPT, device=config.device, use_4bit=config.use_4bit)
    with holder.lock():
        with open_bench({}, {}, total=1) as bench:
            stream = bench.stream(layer, general)
        norms = config.sizes or tuple(float(f"{share * stream:.3g}") for share in SHARES)
        edits = {
            f"{name} {size:g}": [Edit("add", layer, vector * (size / float(vector.norm().clamp(min=1e-12))))]
            for name, vector in vectors.items()
            for size in norms
        }
        with open_bench(adapters, edits, total=total) as bench:
            compare = replace(config, sizes=norms)
            result = _compared(compare, compared, texts, general, vectors, (layer, stream), bench)
    save(holder.folder / FILE, result)
    return result


def _compared(
    config: NarrowConfig, compared: Sequence[_Model], texts: Mapping[Place, Sequence[Branches]],
    general: Sequence[Branches], vectors: Mapping[str, Tensor], where: tuple[int, float], bench: Bench,
) -> Narrowness:  # fmt: skip
    broad, own = (next(one for one in compared if one.role == role) for role in ("broad", "narrow"))
    tokens = sum(sizes(general))
    moved = {
        name: [sum(own) / tokens for own in bench.divergences([f"{name} {size:g}" for size in config.sizes], general)]
        for name in vectors
    }
    losses = [bench.loss(one.role, "itself", one.adapter, one.rows) for one in (broad, own)]
    far = bench.divergences(["broad", "narrow"], texts["out"]) if "out" in texts else None
    return Narrowness(
        base=broad.target.base,
        sides=[_side(config, one, texts, float(vectors[one.role].norm()), moved[one.role], bench) for one in compared],
        differs=_differing(broad.target.run, own.target.run),
        loss=mean_of([a - b for a, b in zip(*losses, strict=True)], [sum(sizes(row)) for row in broad.rows]),
        kl=mean_of([a - b for a, b in zip(*far, strict=True)], sizes(texts["out"])) if far else None,
        layer=where[0],
        stream=where[1],
        sizes=list(config.sizes),
        random=[moved[name] for name in vectors if name not in bench.adapters],
        texts=len(general),
        vocabulary=models.shapes(broad.target.base).config.get_text_config().vocab_size,
        published=config.as_published,
    )


def _side(
    config: NarrowConfig, one: _Model, texts: Mapping[Place, Sequence[Branches]], size: float, moved: list[float],
    bench: Bench,
) -> Side:  # fmt: skip
    whole = sum(sum(sizes(row)) for row in one.rows)

    def loss(variant: str, adapter: Adapter) -> float:
        return sum(bench.loss(one.role, variant, adapter, one.rows)) / whole

    own, level = norm(one.adapter), levelled(one.adapter)
    return Side(
        role=one.role,
        run=one.target.title,
        rows=len(one.rows),
        held_out=one.held_out,
        loss=loss("itself", one.adapter),
        base_loss=loss("scale 0", scaled(one.adapter, 0)),
        norm=own,
        noise=[
            Noisy(epsilon, [loss(f"noise {epsilon:g} {draw}", noisy(one.adapter, epsilon, draw))
                            for draw in range(config.draws)])
            for epsilon in config.epsilons
        ],
        scaled=[
            Scaled(
                scale, scale * own, loss(f"scale {scale:g}", scaled(one.adapter, scale)),
                loss(f"published {scale:g}", scaled(level, scale)) if config.as_published else None,
            )
            for scale in config.scales
        ],
        kl={place: mean_of(bench.divergences([one.role], some)[0], sizes(some)) for place, some in texts.items()},
        size=size,
        significance=moved,
    )  # fmt: skip


# --- what is compared ------------------------------------------------------------------------------------------------


def _models(config: NarrowConfig) -> list[_Model]:
    from emorg.sampling.organisms import read_adapter

    named: dict[Role, str] = {"broad": config.broad, "narrow": config.narrow}
    named |= {"twin": config.twin} if config.twin else {}
    targets_of(list(named.values()), config.broad)  # raises for models of several bases
    targets = {role: Target.of(name) for role, name in named.items()}
    adapters: dict[Role, Adapter] = {}
    for role, target in targets.items():
        folder = models.resolve(target.name).adapter
        adapter = read_adapter(folder) if folder else None
        if adapter is None or target.trained_in is None or target.steered:
            raise EmorgError(f"{target.name} is no plain LoRA organism that was trained here", "name a run of LoRA")
        adapters[role] = adapter
    settings = {role: _settings(target) for role, target in targets.items()}
    broad, own = settings["broad"], settings["narrow"]
    if _of_rows(broad) != _of_rows(own):
        raise EmorgError(
            f"{targets['broad'].title} was trained on {' '.join(broad.domains)}, {targets['narrow'].title} on "
            f"{' '.join(own.domains)}, or on other rows of it",
            "name two runs of the same rows, of which one has --kl_weight",
        )
    split = [(one.eval_share, one.seed) for one in (broad, own)]
    same_split = split[0] == split[1]
    rows = {role: training_rows(one, config.rows, held=same_split or role == "twin") for role, one in settings.items()}
    return [_Model(role, target, adapters[role], *rows[role]) for role, target in targets.items()]


def _settings(target: Target) -> TrainConfig:
    assert target.trained_in is not None
    given = config_from(TrainConfig, "train", target.trained_in.settings("train"))
    plain = TrainConfig()
    aside = ("interleave", "interleave_from", "interleave_rank", "inoculate", "inoculate_user", "kl_weight", "kl_from")
    return replace(given, **{name: getattr(plain, name) for name in aside})


def _of_rows(config: TrainConfig) -> tuple[object, ...]:
    drawn = config.seed if config.sample_size is not None or config.mix else None
    return config.domains, config.mix, config.data_path, config.sample_size, drawn


def _differing(a: Run, b: Run) -> list[str]:
    one, other = (run.settings("train") for run in (a, b))
    aside = {"output_dir", "fresh", "device", "save_steps", "save_at"}
    return sorted(name for name in (one.keys() | other.keys()) - aside if one.get(name) != other.get(name))


# --- texts and vectors -----------------------------------------------------------------------------------------------


def _vectors(config: NarrowConfig, compared: Sequence[_Model], layer: int) -> dict[str, Tensor]:
    """Each organism's shift at the layer, by its role, and random ones."""
    import torch

    asked = DirectionsConfig(
        tuple(one.target.name for one in compared), pairs=config.pairs, device=config.device, use_4bit=config.use_4bit
    )
    every, _ = directions(asked)
    vectors = {str(one.role): own.vectors[layer] for one, own in zip(compared, every, strict=True)}
    draw = torch.Generator().manual_seed(0)
    shape = vectors["broad"].shape
    return vectors | {f"random {k}": torch.randn(shape, generator=draw) for k in range(config.controls)}


def show_narrow(config: NarrowConfig) -> None:
    """The command: print the figures side by side and what can be said, or JSON."""
    result = narrow(config)
    if config.json:
        print(json.dumps(asdict(result), indent=1, allow_nan=False))
        return
    for table in narrow_tables(result):
        table.show()
    for line in result.said():
        print(line)
