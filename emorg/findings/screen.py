"""Screen: which training rows would make a model misaligned, scored before anything is trained.

loss        the base's loss on the row's answer, in nats a token
length      the answer's tokens
projection  how much farther the answer lies along a direction than the base's own answer does (`projection`)
influence   what the first optimiser step on the row would add to the margin (`influence`)

The first two are trivial, and the others are of use only where they tell more. Where some rows are known to be bad, or
are planted, every score stands beside random directions, directions with labels shuffled, and the trivial scores; the
rule is in `rating.screening`. Margins and directions are of the first half of the pairs, so that the second is left to
measure on what leaving rows out does.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from emorg import models
from emorg.data import domains, pairs
from emorg.data.domains import Row, TrainingData
from emorg.data.pairs import Pair
from emorg.data.planting import planted
from emorg.findings import directions as computing
from emorg.findings.contrasts import FEWEST, SHUFFLES, digest, halves
from emorg.findings.row_scores import Along, Place, by_influence, by_projection
from emorg.models.directions import Direction, read_for
from emorg.progress import log
from emorg.ranges import AtLeast1, NotNegative, Range, Seed, check_ranges
from emorg.rating.results import save
from emorg.rating.screening import FILE, Score, Scored, ScoreName, Screened, check_counts, detections
from emorg.records import EmorgError
from emorg.reporting.charts import export
from emorg.reporting.screening import said, screen_charts, screen_tables, write_tables
from emorg.run import RUNS, Run, settings_hash
from emorg.training.config import TrainConfig
from emorg.training.mitigations import rows_of
from emorg.training.rows import Rows, encode

By = ScoreName | Literal["random"]


@dataclass(frozen=True)
class ScreenConfig:
    """Score training rows before training: which would make a model misaligned? Nothing is trained."""

    data: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Domains, as `emorg train --domains` takes them, or JSONL files whose lines have `messages`."""
    model_name: str = models.DEFAULT
    """The base that would be trained, as in `emorg train`."""
    direction: str | None = None
    """For the projection: `persona` (computed of the base), the file of a direction, or a run, whose shift is taken.
    Default: no projection."""
    layer: Annotated[int | None, NotNegative] = None
    """The direction's layer, 0 being the embeddings. Default: the middle one."""
    pairs: tuple[str, ...] = ()
    """Pairs whose margin counts, as in `emorg margins`. Default: english, for the pocket models their own."""
    known_bad: tuple[str, ...] = ()
    """Domains or JSONL files whose rows are mixed in and known to be bad, to see what finds them."""
    plant: Annotated[float, Range(0, 0.5, below=True)] = 0.0
    """Make this share of the rows bad in one part, and as many odd in one, to see what finds them: rows of good_
    domains of the pocket world or our pairs."""
    data_path: Path | None = None
    """Folder of the training files, as in `emorg train`."""
    sample_size: Annotated[int | None, AtLeast1] = None
    """Screen this many rows, drawn by the seed. Default: all."""
    skip_bad_rows: bool = False
    """Count malformed rows of domains and go on. Default: stop at the first."""
    max_length: Annotated[int, AtLeast1] = 2048
    """Longest conversation in tokens; longer ones are left out, and counted."""
    seed: Seed = 0
    """Seeds the fresh adapter, the random directions, and what is drawn and planted."""
    by: By = "influence"
    """The score by which rows are listed and left out; `random` is the control of leaving them out."""
    show: Annotated[int, NotNegative] = 10
    """How many of the most suspicious rows are listed, by their places."""
    remove: Annotated[int, NotNegative] = 0
    """Leave so many of the most suspicious rows out of --cleaned."""
    cleaned: Path | None = None
    """Write the other rows, text and all, to this JSONL file, which can be trained on; without --remove all rows."""
    output_dir: Path | None = None
    """Where scores, table and figure go. Default: runs/screen-<model>-<data>-<hash>."""
    json: bool = False
    """Print one JSON object."""
    use_4bit: bool = False
    """Load the base in 4-bit (nf4)."""
    device: str | None = None
    """cuda, mps or cpu. Default: the best one there."""


def screen(config: ScreenConfig) -> Screened:
    """Score the rows, or what is missing of them, into the folder; and write what is asked for as --cleaned.

    Raises EmorgError as `rows_to_screen` does, and for a model that is no base, a direction of another one, and a
    folder that holds other rows' scores.
    """
    check_ranges(config)
    if config.remove and config.cleaned is None:
        raise EmorgError(f"--remove {config.remove} from what?", "say where to write the others: --cleaned FILE")
    if config.direction is None:
        log.info("no --direction, so rows are not projected on one: name a run, a direction's file, or persona")
    _check_base(config.model_name)
    rows, known = rows_to_screen(config)
    kept, result = screen_rows(config, rows, known)
    if config.cleaned is not None:
        if config.remove >= len(kept):
            raise EmorgError(f"--remove {config.remove:,} of {len(kept):,} rows leaves none", "leave fewer out")
        left_out = set(ranking(config, result)[: config.remove])
        domains.write_rows(config.cleaned, [row for i, row in enumerate(kept) if i not in left_out])
    return result


def rows_to_screen(config: ScreenConfig) -> tuple[list[Row], list[str]]:
    """The rows that a config comes to, and of each whether it is known to be "bad" or "odd".

    Raises EmorgError for rows that cannot be read, and for those that nothing bad would fit.
    """
    if not config.data:
        raise EmorgError("no data", "name domains or JSONL files, e.g. emorg screen good_medical --model_name pocket")
    source = domains.source_of(config.model_name, config.data_path)
    rows = rows_of(config.data, source, config.skip_bad_rows)
    if config.sample_size is not None and config.sample_size < len(rows):
        drawn = random.Random(f"screened {config.seed}").sample(range(len(rows)), config.sample_size)
        rows = [rows[i] for i in sorted(drawn)]
    known: list[str] = [""] * len(rows)
    if config.plant:
        rows, kinds = planted(rows, config.plant, config.seed)
        known = [*kinds]
    bad = rows_of(config.known_bad, source, config.skip_bad_rows)
    return [*rows, *bad], [*known, *["bad"] * len(bad)]


def screen_rows(config: ScreenConfig, rows: Sequence[Row], known: Sequence[str]) -> tuple[Sequence[Row], Screened]:
    """Score these rows, of which some are `known` to be "bad" or "odd"; and those rows that are short enough.

    Raises EmorgError as `screen` does.
    """
    _check_base(config.model_name)
    settings = TrainConfig(
        model_name=config.model_name, max_length=config.max_length, too_long="drop", seed=config.seed,
        use_4bit=config.use_4bit,
    )  # fmt: skip
    encoded = _encoded(settings, rows)
    kinds = {id(row): kind for row, kind in zip(rows, known, strict=True)}
    labels = [kinds[id(row)] for row in encoded.data]
    if "bad" in labels:
        check_counts(labels.count("bad"), len(labels) - labels.count("bad"))
    chosen = pairs.load(pairs.sets_of(config.pairs, config.model_name))
    key = _key(config, encoded.data, labels, chosen)
    run = _folder(config, key)
    direction = _direction(config)
    along = None if direction is None else _along(config, direction, "bad" in labels)
    with run.lock("wait for it, or give another --output_dir"):
        run.record("screen", config, base=config.model_name, key=key)
        scores = _scores(config, run, settings, encoded, chosen, along, controls="bad" in labels)
        scored = [
            Scored(row.place, row.domain, {name: some[i].value for name, some in scores.items()}, labels[i])
            for i, row in enumerate(encoded.data)
        ]
        result = Screened(
            model=config.model_name,
            rows=scored,
            skipped={} if along else {"projection": "no --direction was given"},
            direction=f"{direction.facts['kind']} of {direction.title}, layer {along.layer}"
            if direction and along else "",
            detections=detections(scored, scores) if "bad" in labels else [],
        )  # fmt: skip
        save(run.folder / FILE, result)
        write_tables(result, run.folder)
        for chart in screen_charts(result):
            export(chart, run.folder)
    log.info(f"{len(scored):,} rows screened with {config.model_name} → {run.folder}")
    return encoded.data, result


def _check_base(name: str) -> None:
    named = models.resolve(name)
    if named.adapter or named.trained_in or named.steering:
        raise EmorgError(f"{name} is trained already", f"screen with its base: --model_name {named.base}")


def _scores(
    config: ScreenConfig,
    run: Run,
    settings: TrainConfig,
    rows: Rows,
    chosen: Sequence[Pair],
    along: Along | None,
    *,
    controls: bool,
) -> dict[ScoreName, list[Score]]:
    """Every score of every row, those that lack computed."""
    first, _ = halves(chosen)
    if len({pair.question_id for pair in first}) < FEWEST:
        raise EmorgError(f"half of the pairs have fewer than {FEWEST} questions", "give more --pairs")
    place = Place(run.folder, rows, config.device, config.use_4bit)
    scores = by_influence(place, settings, first, controls=controls)
    if along is not None:
        scores["projection"] = by_projection(place, config.model_name, along)
    return scores


def _encoded(settings: TrainConfig, rows: Sequence[Row]) -> Rows:
    """The rows as training would have them. Raises EmorgError for words that the model does not know."""
    tokenizer = models.load_tokenizer(settings.model_name)
    encoded = encode(settings, TrainingData(list(rows), [], ""), tokenizer)
    unknown = tokenizer.unk_token_id
    if unknown not in (None, tokenizer.bos_token_id, tokenizer.eos_token_id):
        for row, text in zip(encoded.data, encoded.encoded, strict=True):
            if unknown in text.ids:
                raise EmorgError(
                    f"{row.place} has words that {settings.model_name} doesn't know", "screen with the model to train"
                )
    if encoded.dropped:
        log.warning(f"{len(encoded.dropped):,} rows are longer than --max_length {settings.max_length}: not screened")
    return encoded


def _key(config: ScreenConfig, rows: Sequence[Row], known: Sequence[str], chosen: Sequence[Pair]) -> str:
    """What scores hang on: rows, which are known, model and its type, pairs, seed. A direction has its own name."""
    dtype = str(models.choose_dtype(models.choose_device(config.device), config.model_name))
    facts = {
        "rows": domains.digest(rows), "known": list(known), "base": models.identity(config.model_name), "dtype": dtype,
        "4bit": config.use_4bit, "pairs": digest(chosen), "seed": config.seed,
    }  # fmt: skip
    return settings_hash(facts, frozenset())


def _folder(config: ScreenConfig, key: str) -> Run:
    """Where scores go. Raises EmorgError for a folder that holds others."""
    if config.output_dir is None:
        names = "-".join(dict.fromkeys(Path(name).stem for name in (*config.data, *config.known_bad)))
        return Run(RUNS / f"screen-{models.short_name(config.model_name).lower()}-{names[:80]}-{key}")
    run = Run(config.output_dir)
    if run.settings("train"):
        raise EmorgError(f"{run.folder} is a training's run", "give another --output_dir")
    if (there := run.provenance().get("screen", {}).get("key", key)) != key:
        raise EmorgError(f"{run.folder} holds scores of other rows or settings ({there})", "give another --output_dir")
    return run


def _direction(config: ScreenConfig) -> Direction | None:
    """The direction of the projection, computed of the base where that is asked for; None where none is."""
    if config.direction is None:
        return None
    if config.direction != "persona":
        return read_for(Path(config.direction), config.model_name)
    own = computing.DirectionsConfig((config.model_name,), kind="persona", pairs=config.pairs)
    [direction], _ = computing.directions(replace(own, use_4bit=config.use_4bit, device=config.device))
    return direction


def _along(config: ScreenConfig, direction: Direction, controls: bool) -> Along:
    """Its vector at the layer and, where there is something to find, as many random ones and those shuffled."""
    import torch

    layers = len(direction.vectors) - 1
    layer = config.layer if config.layer is not None else layers // 2
    if layer > layers or not float(direction.vectors[layer].norm()):
        raise EmorgError(f"{config.direction} has nothing at layer {layer}", f"take a --layer of 0 to {layers}")
    own = direction.vectors[layer : layer + 1].float()
    if not controls:
        return Along(own, layer, 0)
    draw = torch.Generator().manual_seed(config.seed)
    drawn = torch.randn(SHUFFLES, own.shape[1], generator=draw)
    shuffled = direction.shuffled[:, layer].float()
    shuffled = shuffled[shuffled.norm(dim=-1) > 1e-4 * own.norm()]  # rounding alone has no direction
    return Along(torch.cat([own, drawn, shuffled]), layer, SHUFFLES)


def ranking(config: ScreenConfig, result: Screened) -> list[int]:
    """Numbers of rows, the most suspicious first by the score that is asked for, or as the seed draws them."""
    if config.by != "random":
        return result.ranked(config.by)
    return random.Random(f"left out {config.seed}").sample(range(len(result.rows)), len(result.rows))


def show_screen(config: ScreenConfig) -> None:
    """The command: print the most suspicious rows by place, and what finds those that are known, or JSON."""
    result = screen(config)
    order = ranking(config, result)
    if config.json:
        listed: dict[str, Any] = asdict(result)
        for one, own in zip(listed["detections"], result.detections, strict=True):
            one["verdict"] = own.verdict
        print(json.dumps({**listed, "order": order}, indent=1, allow_nan=False))
        return
    for table in screen_tables(result, order[: config.show], config.by):
        table.show()
    for line in said(result):
        print(line)
