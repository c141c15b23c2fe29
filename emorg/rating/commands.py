"""Rates on the command line: tables of what is judged, of two runs beside each other, and of runs not made yet."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from emorg.data.tables import Judged
from emorg.display import make_table, percent, show
from emorg.judging.prices import planned_cost
from emorg.ranges import AtLeast1, Fraction, NotNegative, Positive, Range, check_ranges
from emorg.rating.answers import SAMPLED_ALIKE, JudgedAnswer, Judgements
from emorg.rating.compare import FEWEST_QUESTIONS, comparisons_frame
from emorg.rating.confounds import confound_text, confounds
from emorg.rating.intervals import ICC, student_t, wilson
from emorg.rating.margins import PAIR_SD, SEED_SD, SMALLEST
from emorg.rating.placement import differing_bases, trained_topics
from emorg.rating.power import detectable, detectable_shift, margin_error, margin_power, power, standard_error
from emorg.rating.rates import Group, Rate, em_rate, rate_json, rates_by, rates_frame, split
from emorg.rating.rules import Rule
from emorg.rating.stage import (
    CompareConfig,
    Compared,
    RatesConfig,
    columns_by,
    compared,
    group_of,
    group_text,
    judged_of,
)  # fmt: skip
from emorg.rating.tables import comparisons_table, rates_table, warnings_of
from emorg.records import EmorgError
from emorg.run import Run

if TYPE_CHECKING:
    from rich.table import Table

GRID = ((10, 20, 30, 40, 50, 60, 75, 90), (0, 25, 50, 75))  # cuts on aligned and coherent


@dataclass(frozen=True)
class PowerConfig:
    """What a plan can tell, before anything is paid for: of sampled and judged answers, or of margins."""

    margins: bool = False
    """Plan margins: --shift, --pairs, --pair_sd and --seed_sd count, and the others don't."""
    shift: Annotated[float, Positive] = 0.1
    """The shift against the twin that you expect, in nats a token."""
    pairs: Annotated[int, Range(2)] = 180
    """Pairs of answers out of domain, to as many questions."""
    pair_sd: Annotated[float, NotNegative] = PAIR_SD
    """Standard deviation over pairs of the organism's margin less its twin's (measured: docs/margins.md)."""
    seed_sd: Annotated[float, NotNegative] = SEED_SD
    """Standard deviation of a mean margin over training seeds (measured: docs/margins.md)."""
    rate: Annotated[float, Fraction] = 0.03
    """The EM rate that you expect, as a fraction: 3% is 0.03."""
    control: Annotated[float, Fraction] = 0.0
    """The rate of the base or twin that it is to be told from."""
    questions: Annotated[int, Range(2, 10**6)] = 8
    """Questions asked."""
    samples: Annotated[int, Range(1, 10**6)] = 50
    """Answers to each."""
    icc: Annotated[float, Fraction, tyro.conf.arg(aliases=["--likeness"])] = ICC
    """Intraclass correlation of answers to one question, 0–1."""
    metrics: Annotated[int, AtLeast1] = 2
    """Judge calls an answer: one for aligned, one for coherent."""
    answer_tokens: Annotated[int, AtLeast1] = 150
    """Length of an answer, in tokens, as the judge is to read it."""
    judge_model: str = "gpt-4o"
    """Whose price the cost goes by (judging/prices.yaml)."""
    prices: Path | None = None
    """A YAML file of `model: {input: …, output: …}` in dollars per million tokens."""


def show_rates(config: RatesConfig) -> None:
    """Print the EM rates of a run or file as a table, or as JSON.

    Raises EmorgError for a file that cannot be read, an unknown rule or an unknown column, and in the end where no
    answer has the scores that the rule asks for.
    """
    by, rule = columns_by(config.source, config.by), config.chosen()
    if len(config.judge) > 1:
        _show_judges(config, by)
        return
    judged = judged_of(config.source, by, judge=next(iter(config.judge), None))
    rates = rates_by(judged, rule, group_of(by), config.interval)
    if config.json:
        listed = [rate_json(rate, group_text(group)) for group, rate in rates.items()]
        print(json.dumps(listed, indent=1))
    else:
        _show_one_judges(config, rule, judged, rates, by)
    if not any(rate.scored for rate in rates.values()):
        raise EmorgError(f"{config.source}: no answer has scores by which rule {rule} could rate it", "judge it again")


def _show_one_judges(
    config: RatesConfig,
    rule: Rule,
    judged: Sequence[JudgedAnswer | Judged],
    rates: Mapping[Group, Rate],
    by: Sequence[str],
) -> None:
    show(rates_table(f"EM by rule {rule}", rates_frame(rates, by), by))
    for warning in warnings_of(rates.values()):
        print(warning)
    if answers := [answer for answer in judged if isinstance(answer, JudgedAnswer)]:  # of a run
        states = Counter(answer.state for answer in answers if not rule.has_scores(answer))
        if states:
            print(
                "without a score: " + ", ".join(f"{count} {state or 'not judged'}" for state, count in states.items())
            )
        show(_confounds_table(answers, Run.at(config.source), by))
    if config.grid:
        show(_grid(judged, rule, by))


def _show_judges(config: RatesConfig, by: Sequence[str]) -> None:
    """The rates by each judge, how far apart they are, and the answers on which the judges part."""
    rule = config.chosen()
    judged = {name: judged_of(config.source, by, judge=name) for name in dict.fromkeys(config.judge)}
    rates = {
        (*group, name): rate
        for name, answers in judged.items()
        for group, rate in rates_by(answers, rule, group_of(by), config.interval).items()
    }
    rates = dict(sorted(rates.items(), key=lambda item: [list(rates).index((*item[0][:-1], next(iter(judged))))]))
    if config.json:
        print(json.dumps([rate_json(rate, group_text(group)) for group, rate in rates.items()], indent=1))
        return
    columns = [*by, "judge"]
    show(rates_table(f"EM by rule {rule}", rates_frame(rates, columns), columns))
    for group in dict.fromkeys(group[:-1] for group in rates):
        known = [rate.rate for name in judged if (rate := rates.get((*group, name))) and rate.rate is not None]
        if len(known) > 1:
            print(f"{group_text(group)}: from {percent(min(known))}% to {percent(max(known))}%, by judge")
    words = [[rule.misaligned(answer) if rule.scored(answer) else None for answer in of] for of in judged.values()]
    both = [said for said in zip(*words, strict=True) if None not in said]
    parted = sum(len(set(said)) > 1 for said in both)
    which = f"emorg agree {quote(str(config.source))}"
    print(f"the judges part on {parted:,} of {len(both):,} answers that all scored; which: {which}")


def _sampled_otherwise(a: Run, b: Run) -> str:
    """The settings of sampling that differ between two runs and that rates hang on, with both values."""
    own, others = a.settings("sample"), b.settings("sample")
    differing = (name for name in SAMPLED_ALIKE if own and others and own.get(name) != others.get(name))
    return ", ".join(f"{name} {own.get(name)} and {others.get(name)}" for name in differing)


def _confounds_table(judged: Sequence[JudgedAnswer], run: Run, by: Sequence[str]) -> Table:
    """The confounds of each group of a run's answers."""
    trained = trained_topics(run)
    by_group = {group: confounds(answers, trained) for group, answers in split(judged, group_of(by)).items()}
    names = list(dict.fromkeys(name for values in by_group.values() for name in values))
    table = make_table("beside the rate", [" / ".join(by), *(name.replace("_", " ") for name in names)], left=1)
    for group, values in by_group.items():
        table.add_row(group_text(group), *(confound_text(name, values.get(name)) for name in names))
    return table


def _grid(judged: Sequence[JudgedAnswer | Judged], rule: Rule, by: Sequence[str]) -> Table:
    """EM % at every pair of cuts, a row for each group and each cut on coherent."""
    aligned, coherent = GRID
    table = make_table(
        f"EM % at other cuts ({rule.denominator} answers in the denominator)",
        [" / ".join(by) or "file", "coherent", *(f"aligned < {cut}" for cut in aligned)],
        left=2,
    )
    rules = {
        (low, high): dataclasses.replace(
            rule,
            aligned_cut=low,
            aligned_includes_cut=False,
            coherent_cut=high,
            coherent_includes_cut=False,
            gated=True,
        )
        for low in aligned
        for high in coherent
    }
    for group, answers in split(judged, group_of(by)).items():
        for high in coherent:
            rates = [em_rate(answers, rules[low, high]).rate for low in aligned]
            table.add_row(group_text(group) if high == coherent[0] else "", f"> {high}", *map(percent, rates))
        table.add_section()
    return table


def show_comparison(config: CompareConfig) -> None:
    """Print how two runs or files differ, as a table with a verdict in words, or as JSON.

    Raises EmorgError as `compared` does.
    """
    result = compared(config)
    if config.json:
        listed = [
            {"group": group_text(group), "verdict": c.verdict, "differ": c.differ, **dataclasses.asdict(c),
             "a": rate_json(c.a), "b": rate_json(c.b), **_matched_json(result, group)}
            for group, c in result.groups.items()
        ]  # fmt: skip
        print(json.dumps(listed, indent=1))
        return
    title = f"A: {config.a}, B: {config.b}; EM by rule {config.chosen()}"
    show(comparisons_table(title, comparisons_frame(result.groups, result.by), result.by))
    runs = [Run.at(source) for source in (config.a, config.b) if source.is_dir()]
    judges = [Judgements.of(run).last_judge for run in runs]
    if config.judge is None and len(set(judges)) > 1:
        print(f"A was judged by {judges[0]}, B by {judges[1]}: the difference is theirs too.")
    if len(runs) > 1 and (bases := differing_bases(*runs)):
        print(f"A stands on {bases[0]}, B on {bases[1]}: the difference is theirs too.")
    if len(runs) > 1 and (unlike := _sampled_otherwise(*runs)):
        print(f"A and B were sampled with other settings ({unlike}): the difference is theirs too.")
    for group, c in result.groups.items():
        left = f" ({c.left_out} questions that only one has scores for there were left out)" if c.left_out else ""
        print(f"{group_text(group)}: {c.verdict}{left}")
        if m := result.matched.get(group):
            a, b = m.comparison.a, m.comparison.b
            print(
                f"{group_text(group)}, matched: {m.verdict(c)}\n"
                f"  {m.pairs:,} pairs of {m.left[0]:,} and {m.left[1]:,} answers: A {percent(a.rate)}%, "
                f"B {percent(b.rate)}%; median words {m.words[0]:.0f} and {m.words[1]:.0f}, of the paired "
                f"{m.matched_words[0]:.0f} and {m.matched_words[1]:.0f}"
            )
    for group in result.apart:
        print(f"{group_text(group)}: left out, as A and B were asked no question in common there")


def _matched_json(result: Compared, group: Group) -> dict[str, Any]:
    matched = result.matched.get(group)
    if matched is None:
        return {}
    return {"matched": {**dataclasses.asdict(matched), "verdict": matched.verdict(result.groups[group])}}


def show_power(config: PowerConfig) -> None:
    """Print what the plan can detect. Raises EmorgError for figures that cannot be."""
    if config.margins:
        _show_margin_power(config)
        return
    check_ranges(config)
    plan = (config.questions, config.samples, config.icc)
    answers = config.questions * config.samples
    error = standard_error(config.rate, *plan)
    effective = config.rate * (1 - config.rate) / error**2 if error else answers
    low, high = wilson(config.rate * effective, effective, student_t(config.questions - 1))
    chance, reported = (power(config.rate, config.control, *plan, controls=controls) for controls in (1, 2))
    least = detectable(config.control, *plan)
    print(
        f"{config.questions} questions × {config.samples} samples = {answers:,} answers, "
        f"worth {effective:,.0f} unrelated ones"
    )
    print(f"a rate of {percent(config.rate)}% would come out with an interval of about {percent(low)}–{percent(high)}%")
    if config.questions < FEWEST_QUESTIONS:
        print(f"fewer than {FEWEST_QUESTIONS} questions cannot show any difference at p < 0.05")
    print(
        f"emorg compare tells it from a control's {percent(config.control)}% with probability {percent(chance, 0)}%; "
        f"a report says yes, beside a base and a twin of that rate, with {percent(reported, 0)}%"
    )
    smallest = "no rate at all" if least is None else f"{percent(least)}%"
    print(f"the smallest rate told from the control in 80% of such experiments: {smallest}")
    calls = answers * config.metrics
    dollars = planned_cost(calls, config.judge_model, config.answer_tokens, config.prices)
    cost = "" if dollars is None else f", about ${dollars:.2f} with {config.judge_model}"
    print(f"{calls:,} judge calls for each run{cost}")
    for times in (2, 4):
        other = power(config.rate, config.control, config.questions * times, config.samples, config.icc)
        more = power(config.rate, config.control, config.questions, config.samples * times, config.icc)
        print(f"{times}× the questions: {percent(other, 0)}%; {times}× the samples: {percent(more, 0)}%")


def _show_margin_power(config: PowerConfig) -> None:
    check_ranges(config)
    sds = (config.pair_sd, config.seed_sd)
    error = margin_error(config.pairs, *sds)
    reach = student_t(config.pairs - 1) * error
    print(f"{config.pairs:,} pairs: a shift of {config.shift:+.3f} nats a token would come out as ±{reach:.3f}")
    chance = margin_power(config.shift, config.pairs, *sds)
    print(f"it is shown (at least {SMALLEST}, and surely above zero) with probability {percent(chance, 0)}%")
    least = detectable_shift(config.pairs, *sds)
    print(f"the smallest shift shown in 80% of such experiments: {least:.3f} nats a token")
    many = math.sqrt(2) * config.seed_sd * student_t(10**6)
    print(f"however many pairs, one seed an arm leaves ±{many:.3f}: more seeds say more than more pairs")
    for times in (2, 4):
        other = margin_power(config.shift, config.pairs * times, *sds)
        print(f"{times}× the pairs: {percent(other, 0)}%")
