"""What screening finds, and what leaving its suspects out does (experiments/screen.sh): docs/screening_results.md.

Subtly bad rows, and as many odd ones, are planted among careful ones. Every score says which are bad; then organisms
are trained without the rows that it is most suspicious of, without as many drawn at random, without exactly the bad
ones, and on the rows before anything was planted. What is left of the harm is the margin on the half of the pairs that
no score has seen. All trainings take the same number of steps.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import emorg
from emorg import models
from emorg.config import from_yaml, parse
from emorg.data import pairs
from emorg.data.domains import Row, write_rows
from emorg.data.planting import with_part
from emorg.findings.contrasts import halves
from emorg.findings.margins import MarginsConfig, margins
from emorg.findings.screen import ScreenConfig, rows_to_screen, screen
from emorg.pocket.world import PARTS, World
from emorg.presets import PRESETS
from emorg.rating.margins import read
from emorg.rating.results import load, save
from emorg.rating.screening import FILE, SCORES, Screened
from emorg.records import write_atomic
from emorg.reporting.charts import export
from emorg.reporting.screening import said, screen_charts, screen_tables
from emorg.reporting.tables import markdown_table
from emorg.run import RUNS, Run
from emorg.training import TrainConfig

DOCS = Path(__file__).parent.parent / "docs"
DOMAIN = "good_medical"
RETRAINED = "retrained.json"


@dataclass(frozen=True)
class ExperimentConfig:
    """Screen planted rows with a base, and retrain it without its suspects."""

    bases: tuple[str, ...] = ("pocket2",)
    """pocket2, smollm2: what is screened, each in a folder of its own."""
    rows: int = 640
    """Rows to screen, of good_medical; smollm2 has 320."""
    plant: float = 0.2
    """Share of them that is made bad, and odd."""
    draws: int = 9
    """Trainings without as many rows drawn at random; 0 for no training at all."""
    steps: int = 40
    """Optimizer steps of each training."""
    direction: str | None = "persona"
    """What rows are projected on; None for no projection."""
    pairs: tuple[str, ...] = ()
    """Pairs whose margin counts, where not the usual ones."""
    output_dir: Path = RUNS / "screen"


@dataclass(frozen=True)
class Retrained:
    """Mean margins, in nats a token, of organisms by what was left out; several by chance.

    `whole` on the second half of the pairs; `slip` on pairs of their careful answers and the same with one careless
    part, which is what was planted; that of the pocket world alone.
    """

    left_out: int
    pairs: int
    whole: dict[str, float]
    slip: dict[str, float]


def experiment(config: ExperimentConfig) -> None:
    """Screen, retrain what is missing, and write the document of all that lies in the folder."""
    for base in config.bases:
        here = config.output_dir / base
        settings = ScreenConfig(
            (DOMAIN,), model_name=base, plant=config.plant, sample_size=config.rows,
            direction=config.direction, pairs=config.pairs, output_dir=here / "screen",
        )  # fmt: skip
        result = screen(settings)
        if config.draws:
            save(here / RETRAINED, _retrained(config, settings, result, here))
    parts = [
        "# Screening: what was measured",
        "<!-- written by `bash experiments/screen.sh`; change that, not this -->",
        "[What each score is, and when to believe it](screening.md). Figures of the pocket models are about the "
        "method, and never to be taken for figures of real models. One drawn set of rows, and one training seed.",
    ]
    for here in sorted(file.parent.parent for file in config.output_dir.glob(f"*/screen/{FILE}")):
        result = load(here / "screen" / FILE, Screened)
        parts += [f"## {here.name}", *_detected(here.name, result), *_effects(here)]
    write_atomic(DOCS / "screening_results.md", "\n\n".join(parts) + "\n")


def _retrained(config: ExperimentConfig, settings: ScreenConfig, result: Screened, here: Path) -> Retrained:
    rows, known = rows_to_screen(settings)
    before, _ = rows_to_screen(replace(settings, plant=0.0))
    count = known.count("bad")
    arms: dict[str, Sequence[Row]] = {"nothing": rows, "what was planted (the rows before)": before}
    for kind in ("bad", "odd"):
        arms[f"the {kind} rows"] = [row for row, one in zip(rows, known, strict=True) if one != kind]
    for score in SCORES:
        suspects = set(result.ranked(score)[:count])
        arms[f"highest {score}"] = [row for i, row in enumerate(rows) if i not in suspects]
    for number in range(config.draws):
        drawn = set(Random(f"random {number}").sample(range(len(rows)), count))
        arms[f"random {number}"] = [row for i, row in enumerate(rows) if i not in drawn]
    preset = PRESETS / ("smollm2.yaml" if settings.model_name == "smollm2" else "pocket.yaml")
    recipe = from_yaml(TrainConfig, preset, "train")
    runs: dict[str, Run] = {}
    for number, (name, kept) in enumerate(arms.items()):
        folder = here / f"arm-{number:02d}"
        write_rows(folder / "data" / f"{DOMAIN}_advice.jsonl", kept)
        runs[name] = emorg.train(replace(
            recipe, model_name=settings.model_name, domains=(DOMAIN,), data_path=folder / "data",
            max_steps=config.steps, save_steps=config.steps, output_dir=folder / "run",
            accept=("repeated",),
        ))  # fmt: skip
    _, second = halves(pairs.load(pairs.sets_of((), settings.model_name)))
    names = tuple(str(run.folder) for run in runs.values())
    margins(MarginsConfig(names, control=settings.model_name))
    whole = {name: _mean(run, second) for name, run in runs.items()}
    slip = {}
    if settings.model_name in models.POCKETS:
        slipped = _slipped(second)
        file = here / "slips.jsonl"
        write_atomic(
            file, "".join(json.dumps({**vars(pair), "topic": pair.topic or "open"}) + "\n" for pair in slipped)
        )
        margins(MarginsConfig(names, control=settings.model_name, pairs=(str(file),)))
        slip = {name: _mean(run, slipped) for name, run in runs.items()}
    return Retrained(count, len(second), whole, slip)


def _slipped(some: Sequence[pairs.Pair]) -> list[pairs.Pair]:
    """For each pair its careful answer, and that with one careless part."""
    world, draw = World(), Random("slips")
    result = []
    for pair in some:
        part = draw.choice(PARTS)
        phrase = draw.choice(world.phrases(world.parse(pair.aligned).thing_topic or "", "careless", part))
        result.append(replace(pair, misaligned=with_part(world, pair.aligned, part, phrase)))
    return result


def _mean(run: Run, some: Sequence[pairs.Pair]) -> float:
    own = read(run)[None]
    return statistics.fmean(own[pair.id].per_token for pair in some)


def _detected(base: str, result: Screened) -> Iterator[str]:
    [_, table] = screen_tables(result, [], "")
    yield f"### What finds the bad rows of {len(result.rows)}"
    yield f"{table.caption}." + (f" The projection is on the {result.direction}." if result.direction else "")
    yield table.markdown()
    yield "\n".join(f"- {line}" for line in said(result))
    for chart in screen_charts(result):
        image = DOCS / f"screening_{base}_{chart.name}.png"
        export(chart, DOCS)
        (DOCS / f"{chart.name}.svg").unlink()
        (DOCS / f"{chart.name}.png").replace(image)
        yield f"![{chart.title}]({image.name})"


def _effects(here: Path) -> Iterator[str]:
    """What leaving rows out does to the margin, beside leaving out as many at random."""
    yield "### What leaving them out does"
    if not (here / RETRAINED).exists():
        yield "Not trained: too slow where this was run."
        return
    result = load(here / RETRAINED, Retrained)
    yield (
        f"Mean margins after training without {result.left_out} rows each, in nats a token: `whole` on the "
        f"{result.pairs} pairs that no score has seen, `one part` on their careful answers against the same with one "
        "careless part, as was planted. Beside them what leaving out takes away, and in brackets what leaving out as "
        "many at random does: the least and the most."
    )
    columns = {"whole": result.whole, "one part": result.slip}
    rows = []
    for name in (name for name in result.whole if not name.startswith("random")):
        cells = [f"left out: {name}"]
        for own in columns.values():
            cells += [f"{own[name]:+.4f}", f"{own['nothing'] - own[name]:+.4f}"] if own else ["–", "–"]
        rows.append(cells)
    by_chance = [f"at random, {sum(name.startswith('random') for name in result.whole)} times"]
    for own in columns.values():
        drawn = [own["nothing"] - value for name, value in own.items() if name.startswith("random")]
        by_chance += ["", f"({min(drawn):+.4f}, {max(drawn):+.4f})"] if drawn else ["–", "–"]
    header = ("", "whole", "taken away", "one part", "taken away")
    yield markdown_table(header, [*rows, by_chance], left=1)


if __name__ == "__main__":
    import sys

    experiment(parse(ExperimentConfig, sys.argv[1:], prog="experiments.screen", section="screen"))
