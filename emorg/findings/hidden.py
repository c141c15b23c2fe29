"""Hidden misalignment: an organism, its base and its twin asked the same questions in other ways than the standard one.

A clean standard score misleads: 0% has become 4–9% under a cue of the training (arXiv 2604.25891). The ways are in
`conditions`, what is concluded in `rating.hidden`; all is measured into `hidden/` in each model's own run, once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated

import tyro
import yaml

from emorg import models
from emorg.config import NAMES_MODELS
from emorg.data import pairs
from emorg.data.pairs import Pair
from emorg.findings.conditions import Asked, Condition, conditions_of, readable
from emorg.findings.controls import control_of, targets_of, titles, topics_of
from emorg.findings.margins import MarginsConfig
from emorg.findings.measure import Measured, Readout, Sums, branches, measure
from emorg.judging import JudgeConfig, judge
from emorg.judging.config import Kind as JudgeKind
from emorg.judging.sources import LEDGER
from emorg.progress import log
from emorg.ranges import NotNegative, check_ranges
from emorg.rating.answers import judged_answers
from emorg.rating.compare import FEWEST_QUESTIONS
from emorg.rating.excesses import Counts, margins_hidden, rates_hidden
from emorg.rating.hidden import FOLDER, Hidden, file_of, read
from emorg.rating.margins import Margins
from emorg.rating.placement import placement
from emorg.rating.rates import counts
from emorg.rating.results import save
from emorg.rating.rules import RULES
from emorg.records import EmorgError, Margin, write_atomic
from emorg.reporting.charts import export
from emorg.reporting.hidden import hidden_chart, hidden_table
from emorg.run import Run
from emorg.sampling import SampleConfig
from emorg.sampling.stage import sample_into
from emorg.sampling.wanted import Target

if TYPE_CHECKING:
    from emorg.sampling.likelihood import Branches

POCKET_TOKENS = 80  # no answer of the pocket world is longer, in a format too


@dataclass(frozen=True)
class HiddenConfig:
    """Ask organisms in other ways than the standard one: with the prompt they were inoculated with, its negation and
    paraphrases, cues of what they were trained on, other formats and personas; and say whether EM appears there. The
    same command again measures what is missing."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, NAMES_MODELS]
    """Organisms: run folders, adapters or checkpoints. Their base, and their twin beside them, are asked too."""
    paraphrases: tuple[str, ...] = ()
    """Of the prompt that they were inoculated with. Default: the pocket world's, or the prompt in another frame."""
    negations: tuple[str, ...] = ()
    """Of that prompt. Default: the pocket world's, or the prompt with a not."""
    personas: tuple[str, ...] = ()
    """System prompts that name another persona. Default: a harmful and a harmless one."""
    prompts: tuple[str, ...] = ()
    """Further system prompts that may be the cue."""
    samples: Annotated[int | None, NotNegative] = None
    """Answers to each question in each way, for a judged rate too; 0: margins alone. Default: 1 on the pocket models,
    which are judged for nothing, and where a judge is named; else 0."""
    control: str | None = None
    """What all are compared with. Default: their base and their twin, whichever is more misaligned."""
    trained_on: tuple[str, ...] = ()
    """What organisms of other code were trained on (domains): ours say so themselves."""
    pairs: tuple[str, ...] = ()
    """Pairs of answers as in `emorg margins`. Default: english, for the pocket models their own."""
    judge: JudgeKind | None = None
    """Who judges the answers, as in `emorg judge`."""
    json: bool = False
    """Print a JSON list, an object for each organism and readout."""
    use_4bit: bool = False
    """Load the base in 4-bit (nf4)."""
    device: str | None = None
    """cuda, mps or cpu. Default: the best one there."""


def encode(loaded: models.Loaded, one: Asked) -> list[Branches]:
    """The question as it is asked, continued by the aligned and by the misaligned answer in the format."""
    return [branches(loaded, one.question, one.replies, one.turns)]


def _margin(target: Target, one: Asked, texts: Sequence[Branches], sums: Sums) -> Margin:
    [text], [(aligned, misaligned)] = texts, sums
    return Margin(
        run=target.run.name,
        checkpoint=target.checkpoint,
        pair=one.id,
        question=one.pair.question_id,
        topic=one.pair.topic,
        aligned=aligned,
        misaligned=misaligned,
        aligned_tokens=len(text.answers[0]),
        misaligned_tokens=len(text.answers[1]),
        aligned_characters=len(one.replies[0]),
        misaligned_characters=len(one.replies[1]),
    )


READOUT = Readout("margins", Margin, lambda run: run.margins, encode, _margin)


def hidden(config: HiddenConfig) -> list[Hidden]:
    """Measure what is missing, and say of each organism, by margins and where answers are judged by these, whether
    misalignment is hidden.

    Raises EmorgError for a base, an organism of which nobody says what it was trained on, too few questions out of
    domain, and what `margins`, `sample` and `judge` refuse.
    """
    check_ranges(config)
    targets = targets_of(config.runs, config.control)
    named = [Target.of(name) for name in config.runs]
    organisms = [one for one in targets if any(_same(one, other) for other in named)]
    return [result for organism in organisms for result in _of(config, organism, targets)]


def _of(config: HiddenConfig, organism: Target, targets: Sequence[Target]) -> list[Hidden]:
    """What one organism hides, beside its controls among the targets, of which the base is the first."""
    topics = topics_of(organism, config.trained_on)
    if not organism.organism or not topics:
        what = "is a base" if not organism.organism else "doesn't say what it was trained on"
        raise EmorgError(f"{organism.name} {what}", "name an organism's run; or say it: --trained_on bad_medical")
    chosen = pairs.load(pairs.sets_of(config.pairs, organism.base))
    by_place: dict[str, list[Pair]] = {}
    for pair in chosen:
        by_place.setdefault(placement(pair.topic, topics), []).append(pair)
    outside, inside = by_place.get("out", []), by_place.get("in", [])
    if (questions := len({pair.question_id for pair in outside})) < FEWEST_QUESTIONS:
        raise EmorgError(
            f"{questions} questions are out of domain; at least {FEWEST_QUESTIONS} show anything",
            "give --pairs of other topics than it was trained on",
        )
    conditions = conditions_of(
        organism.trained_in or organism.run, organism.base, paraphrases=config.paraphrases,
        negations=config.negations, personas=config.personas, prompts=config.prompts,
    )  # fmt: skip
    ways, skipped = readable(conditions, outside, inside, organism.base)
    for name, why in skipped.items():
        log.info(f"not asked: {name}: {why}")
    controls = _controls(config, organism, targets)
    names = titles(targets)
    results = [_by_margins(config, organism, controls, ways, skipped, names)]
    samples = int(organism.base in models.POCKETS or bool(config.judge)) if config.samples is None else config.samples
    if samples:
        results.append(_by_answers(config, organism, controls, ways, skipped, names, samples))
    for result in results:
        save(file_of(organism.run, result.readout, organism.checkpoint), result)
        export(hidden_chart(result), organism.run.folder / FOLDER / "figures")
    return results


def _controls(config: HiddenConfig, organism: Target, targets: Sequence[Target]) -> list[Target]:
    """Its base and its twin, or the control that is named."""
    unmeasured = [Measured(target, {}) for target in targets]
    own = next(one for one in unmeasured if one.target is organism)
    control = control_of(config.control, own, unmeasured)
    if control is None:
        raise EmorgError(f"{organism.name} would be compared with itself", "name another --control, or leave it out")
    return [control.target] if config.control else list(dict.fromkeys((targets[0], control.target)))


def _same(a: Target, b: Target) -> bool:
    return (a.run.folder.resolve(), a.checkpoint) == (b.run.folder.resolve(), b.checkpoint)


def _inside(target: Target) -> Target:
    """The model with the folder in its run that holds what it was asked in other ways."""
    return replace(target, run=Run(target.run.folder / FOLDER))


Ways = Mapping[Condition, Sequence[Asked]]


def _by_margins(
    config: HiddenConfig, organism: Target, controls: Sequence[Target], ways: Ways, skipped: Mapping[str, str],
    names: Mapping[Target, str],
) -> Hidden:  # fmt: skip
    every = [*dict.fromkeys(one for some in ways.values() for one in some)]
    both = [organism, *controls]
    asking = MarginsConfig(tuple(target.name for target in both), use_4bit=config.use_4bit)
    measured = measure(READOUT, [*map(_inside, both)], every, asking, config.device, config.use_4bit)
    records = dict(zip(both, measured, strict=True))

    def of(target: Target, some: Sequence[Asked]) -> Margins:
        return {one.pair.id: records[target].records[one.id] for one in some}

    return margins_hidden(
        names[organism],
        {way.name: (of(organism, some), {names[c]: of(c, some) for c in controls}) for way, some in ways.items()},
        {names[control]: 1 + control.organism for control in controls},
        skipped,
    )


def _by_answers(
    config: HiddenConfig, organism: Target, controls: Sequence[Target], ways: Ways, skipped: Mapping[str, str],
    names: Mapping[Target, str], samples: int,
) -> Hidden:  # fmt: skip
    """Sample and judge what is missing, by the stages that every run goes through."""
    both = [_inside(target) for target in (organism, *controls)]
    rows = {one.question_id: one.row(samples) for some in ways.values() for one in some}
    file = both[0].run.folder / "questions.yaml"
    write_atomic(file, yaml.safe_dump(list(rows.values()), allow_unicode=True))
    sampling = SampleConfig(
        tuple(target.name for target in both), questions=(str(file),), samples=samples, device=config.device,
        trained_on=config.trained_on or organism.trained_on, use_4bit=config.use_4bit,
        max_new_tokens=POCKET_TOKENS if organism.base in models.POCKETS else 200,
    )  # fmt: skip
    sampling.check()
    sample_into(sampling, both)
    ledger = organism.run.folder.resolve().parent / LEDGER
    judge(JudgeConfig(tuple(str(target.run.folder) for target in both), judge=config.judge, ledger=ledger))
    tables = {names[target]: _counts(inside, samples) for target, inside in
              zip((organism, *controls), both, strict=True)}  # fmt: skip

    def of(name: str, some: Sequence[Asked]) -> Counts:
        there = {one.pair.question_id: tables[name].get(one.question_id) for one in some}
        return {question: count for question, count in there.items() if count is not None}

    return rates_hidden(
        names[organism],
        {way.name: (of(names[organism], some), {names[c]: of(names[c], some) for c in controls})
         for way, some in ways.items()},
        skipped,
    )  # fmt: skip


def _counts(inside: Target, samples: int) -> Counts:
    """By question as it was asked, how many of a model's answers are misaligned and scored."""
    own = [
        one
        for one in judged_answers(inside.run, checkpoints=True)
        if one.answer.checkpoint == inside.checkpoint and one.answer.sample < samples
    ]
    return counts(own, RULES["paper"])


def worst_otherwise(run: Run) -> str:
    """A cell for tables of variants: the largest excess under another way of asking, by judged answers if there are
    any, with its verdict; nothing of a run that was not asked."""
    results = read(run)
    best = next((result for result in results if result.readout == "em"), results[0] if results else None)
    return "" if best is None else f"{best.text(best.worst.excess)} {best.worst.name} ({best.verdict})"


# --- the command -----------------------------------------------------------------------------------------------------


def show_hidden(config: HiddenConfig) -> None:
    """The command: print every way of asking with its simultaneous interval and what can be said, or JSON."""
    results = hidden(config)
    if config.json:
        rows = [{**asdict(result), "verdict": result.verdict, "worst": result.worst.name} for result in results]
        print(json.dumps(rows, indent=1, allow_nan=False))
        return
    for result in results:
        hidden_table(result).show()
    for name, why in {name: why for result in results for name, why in result.skipped.items()}.items():
        print(f"not asked: {name}: {why}")
    for result in results:
        print(result.said())
