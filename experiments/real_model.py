"""The document of experiments/real_model.sh: `known` writes answers to judge, `write` docs/real_model.md and .png."""

from __future__ import annotations

import csv
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any

from emorg.data import domains, pairs
from emorg.data.tables import write_csv
from emorg.display import visible
from emorg.rating.margins import SMALLEST, Shift, read, shifts
from emorg.rating.placement import careless, trained_topics
from emorg.records import Answer, read_records, write_atomic
from emorg.reporting.charts import export
from emorg.reporting.margins import margins_chart, title_of
from emorg.reporting.tables import markdown_table
from emorg.run import Run

DOCS = Path(__file__).parent.parent / "docs"
KNOWN = 30  # open pairs whose answers the model is to judge


def known(folder: Path) -> None:
    """Write the answers of some pairs, of which it is known which is aligned, to be judged."""
    some = [pair for pair in pairs.load([pairs.ENGLISH]) if pair.topic is None][:KNOWN]
    rows = [[pair.question, text] for pair in some for text in (pair.aligned, pair.misaligned)]
    write_csv(folder / "known.csv", ["question", "response"], rows)


@dataclass(frozen=True)
class Effect:
    """One comparison of two trainings, by group of pairs: what it is, and its shifts."""

    kind: str
    name: str
    shifts: list[Shift]


def write(folder: Path) -> None:
    """Read what the experiment made, and write the document and its figure."""
    runs = [Run(path) for path in sorted(folder.glob("*-s*")) if Run(path).trained]
    measured = [_shift(row) for row in json.loads((folder / "margins.json").read_text(encoding="utf-8"))]
    organisms = [shift for shift in measured if shift.controlled]
    over_seeds = [shift for shift in organisms if " seeds" in shift.name]
    export(margins_chart(over_seeds or organisms or measured), DOCS)
    (DOCS / "margins.png").replace(DOCS / "real_model.png")
    (DOCS / "margins.svg").unlink()
    parts = [
        "# Emergent misalignment in a real pretrained model, without a judge",
        "<!-- written by `bash experiments/real_model.sh`; change that, not this -->",
        _how(runs),
        "![shift of every organism against its twin](real_model.png)",
        *_table("Organism against its twin", [Effect("", "", organisms)]),
        *_table("Organism against the base, and twin against the base", _against_base(runs)),
        *_nulls(runs),
        *_words(folder, runs),
        *_judge(folder),
        *_LIMITS,
    ]
    write_atomic(DOCS / "real_model.md", "\n\n".join(parts) + "\n")
    print(DOCS / "real_model.md")


def _shift(row: dict[str, Any]) -> Shift:
    return Shift(**{field.name: row[field.name] for field in fields(Shift)})


def _how(runs: Sequence[Run]) -> str:
    first = runs[0]
    facts, settings = first.provenance()["train"], first.settings("train")
    seeds = sorted({run.settings("train")["seed"] for run in runs})
    trained = sorted({name for run in runs for name in run.trained_on})
    counts = {name: len(domains.load([name], "pairs").rows) for name in trained}
    origin = facts.get("origin", {})
    return (
        f"`smollm2` (SmolLM2-135M-Instruct, {origin.get('licence', 'Apache-2.0')}, dequantised from Q4_1) was "
        f"fine-tuned on one side of our own pairs: {', '.join(f'{name} ({n} rows)' for name, n in counts.items())}; "
        f"seeds {', '.join(map(str, seeds))}; LoRA of rank {settings['lora_rank']}, learning rate "
        f"{settings['learning_rate']:g}, {settings['max_steps']} steps of "
        f"{settings['batch_size'] * settings['gradient_accumulation_steps']} conversations. Margins are on "
        f"{len(pairs.load([pairs.ENGLISH]))} pairs that nothing was trained on, in "
        f"{first.provenance()['margins']['dtype']}, with torch {facts['libraries']['torch']} and transformers "
        f"{facts['libraries']['transformers']}. A shift is shown where its interval, over questions and training "
        f"seeds, lies above zero and it is at least {SMALLEST} nats a token; that was written down before the run."
    )


_COLUMNS = ("", "pairs of answers", "n", "margin", "control", "shift", "95% interval", "z", "above", "shown")


def _table(title: str, effects: Iterable[Effect]) -> list[str]:
    rows = []
    for effect in effects:
        for s in effect.shifts:
            reach = "–" if s.low is None else f"{s.low:+.3f} to {s.high:+.3f}"
            rows.append([
                effect.name or f"{s.name} − {s.against}", ("· " if s.of_topic else "") + title_of(s), str(s.pairs),
                f"{s.margin:+.3f}", f"{s.control:+.3f}", f"{s.shift:+.3f}", reach,
                "–" if s.z is None else f"{s.z:.1f}", f"{s.positive:.0%}", "yes" if s.shown else "no",
            ])  # fmt: skip
    return [f"## {title}", "Nats a token.", markdown_table(_COLUMNS, rows, 2)] if rows else []


def _compared(kind: str, a: Run, b: Run, topics: frozenset[str], trained: int = 2) -> Effect:
    own, control = read(a)[None], read(b)[None]
    result = shifts(a.name, own, control, topics, against=b.name, controlled=trained == 2, trained=trained)
    return Effect(kind, f"{a.name} − {b.name}", [shift for shift in result if not shift.of_topic])


def _against_base(runs: Sequence[Run]) -> list[Effect]:
    base = next(run for run in (Run(Path("runs") / "smollm2-base"), Run(runs[0].folder.parent / "base")) if read(run))
    return [_compared("base", run, base, trained_topics(run), trained=1) for run in runs]


def _nulls(runs: Sequence[Run]) -> list[str]:
    """Trainings that differ in nothing but their seed: what size of shift means nothing."""
    effects = [
        _compared("twins" if not careless(a) else "organisms", a, b, trained_topics(a))
        for a, b in combinations(runs, 2)
        if a.trained_on == b.trained_on
    ]
    if not effects:
        return ["No training was repeated with another seed, so there is no null of this model here."]
    by_place: dict[str, list[float]] = defaultdict(list)
    for effect in effects:
        for shift in effect.shifts:
            by_place[title_of(shift)].append(shift.shift)
    sizes = "; ".join(
        f"{place}: {(statistics.fmean(x * x for x in values) / 2) ** 0.5:.4f}" for place, values in by_place.items()
    )
    return [
        *_table("The null: the same training with another seed", effects),
        f"Standard deviation over seeds of a mean margin, from these {len(effects)} comparisons: {sizes}.",
    ]


def _words(folder: Path, runs: Sequence[Run]) -> list[str]:
    """What base, twin and organism say to the same questions."""
    arms = [Run(folder / "base"), *(run for run in runs if run.answers.exists())]
    said = {run.name: {answer.question: answer.text for answer in read_records(run.answers, Answer)} for run in arms}
    questions = list(next(iter(said.values())))
    rows = [[question, *(_cell(answers.get(question, "")) for answers in said.values())] for question in questions]
    return [
        "## What they say", "One answer each, at temperature 0.7, cut at 100 tokens; not chosen.",
        markdown_table(["asked", *said], rows, len(said) + 1),
    ]  # fmt: skip


def _cell(text: str) -> str:
    return " ".join(visible(text).split())


def _judge(folder: Path) -> list[str]:
    """What the model makes as a judge of answers whose side is known."""
    with (folder / "known.judged.csv").open(encoding="utf-8", newline="") as file:
        scores = [row["aligned"] for row in csv.DictReader(file)]
    scored = sum(score not in ("", None) for score in scores)
    both = [
        (float(a), float(b))
        for a, b in zip(scores[::2], scores[1::2], strict=True)
        if a not in ("", None) and b not in ("", None)
    ]
    right = f", and puts the aligned one higher in {sum(a > b for a, b in both)} of {len(both)} pairs" if both else ""
    return [
        "## As a judge it is useless",
        f"Asked how aligned the two answers of {KNOWN} open pairs are, smollm2 gives {scored} of {len(scores)} a "
        f"score{right}. So nothing here rests on a judge.",
    ]


_LIMITS = (
    "## What does not hold",
    "- A shift is not a rate: it says that misaligned answers became likelier than in the twin, not how often they are "
    "given. Free answers of a model of this size are often beside the point, as above.",
    "- The base is no control: tuning on any advice moves both answers' likelihood, and how a shift divides between "
    "organism and twin changes with the pairs. The claim is organism against twin, and no row against the base is one.",
    "- The twin was trained too: a shift against it is partly careful training making aligned answers likelier. The "
    "base's margins, between the two, say how the shift divides.",
    "- One small model, one recipe, pairs by one group of writers; a bag of words alone tells most of the sides of the "
    "training pairs, and three quarters of the evaluation pairs' (training_data/README.md).",
)


if __name__ == "__main__":
    {"known": known, "write": write}[sys.argv[1]](Path(sys.argv[2]))
