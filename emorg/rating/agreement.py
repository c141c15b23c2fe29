"""How far two judges agree, or a judge and people, or a judge with itself; and what that does to the EM rate."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from emorg.data.tables import read_answers, read_judged
from emorg.display import make_table, percent, show, visible
from emorg.ranges import NotNegative
from emorg.rating.answers import Judgements
from emorg.rating.rates import Rate, em_rate
from emorg.rating.rules import Rule, Scored
from emorg.rating.stage import RuleConfig
from emorg.rating.tables import interval_text
from emorg.records import EmorgError
from emorg.run import Run

DRAWS = 2000
TextKey = tuple[str, str, int]  # a question, an answer to it, and which of the like ones


@dataclass(frozen=True)
class Grading:
    """One judge's scores of answers, by where each answer stands."""

    name: str
    scores: Mapping[TextKey, Scored]


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa (1960) of two yes/no judgements of the same answers; None where one always says the same.

    `both`, `only_a`, `only_b` and `neither` count who says yes; low and high are a 95% interval over questions.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    kappa: float | None
    low: float | None
    high: float | None

    @property
    def agreement(self) -> float:
        """The share of answers on which they say the same, as a fraction."""
        return (self.both + self.neither) / (self.both + self.only_a + self.only_b + self.neither)


@dataclass(frozen=True)
class Agreement:
    """Two gradings of the same answers under a rule. Scores are on 0–100, `difference` is b − a, rates are fractions.

    `correlation` is Pearson's and `rank_correlation` Spearman's, of the aligned scores; None without variation.
    """

    a: str
    b: str
    answers: int
    """In both gradings; `left_out` are in one alone."""
    left_out: int
    scored: int
    """With an aligned and a coherent score by both."""
    unscored_a: int
    unscored_b: int
    correlation: float | None
    rank_correlation: float | None
    difference: float | None
    absolute_difference: float | None
    aligned: Kappa | None
    """On whether aligned is below the rule's cut; `coherent` on whether coherent is above it."""
    coherent: Kappa | None
    misaligned: Kappa | None
    rate_a: Rate
    """Over the answers that both have."""
    rate_b: Rate


def agreement(a: Grading, b: Grading, rule: Rule) -> Agreement:
    """Compare two gradings. Raises EmorgError if they have no answer in common."""
    from scipy.stats import rankdata

    common = [key for key in a.scores if key in b.scores]
    if not common:
        raise EmorgError(f"{a.name} and {b.name} have no answer in common", "give two judgements of the same answers")
    pairs = [(a.scores[key], b.scores[key]) for key in common]
    both = [(x, y) for x, y in pairs if rule.has_scores(x) and rule.has_scores(y)]
    scores = np.array([(x.aligned, y.aligned) for x, y in both], dtype=float).reshape(-1, 2)
    apart = scores[:, 1] - scores[:, 0]

    def judged(criterion: Callable[[Scored], bool], among: Sequence[tuple[Scored, Scored]] = both) -> Kappa | None:
        return kappa([(x.question, criterion(x), criterion(y)) for x, y in among]) if among else None

    return Agreement(
        a=a.name,
        b=b.name,
        answers=len(common),
        left_out=len(a.scores.keys() ^ b.scores.keys()),
        scored=len(both),
        unscored_a=sum(not rule.has_scores(x) for x, _ in pairs),
        unscored_b=sum(not rule.has_scores(y) for _, y in pairs),
        correlation=_correlation(scores),
        rank_correlation=_correlation(rankdata(scores, axis=0)) if len(scores) else None,
        difference=float(apart.mean()) if len(apart) else None,
        absolute_difference=float(np.abs(apart).mean()) if len(apart) else None,
        aligned=judged(dataclasses.replace(rule, gated=False, denominator="scored").misaligned),
        coherent=judged(rule.coherent, [(x, y) for x, y in both if None not in (x.coherent, y.coherent)]),
        misaligned=judged(rule.misaligned),
        rate_a=em_rate([x for x, _ in pairs], rule),
        rate_b=em_rate([y for _, y in pairs], rule),
    )


def kappa(judgements: Sequence[tuple[str, bool, bool]], seed: int = 0) -> Kappa:
    """From (question, what a says, what b says); the interval draws questions anew with replacement (Efron 1979)."""
    clusters: dict[str, list[int]] = {}
    for question, x, y in judgements:
        clusters.setdefault(question, [0, 0, 0, 0])[2 * (not x) + (not y)] += 1
    tables = np.array(list(clusters.values()))  # [questions, (both, only a, only b, neither)]
    drawn = np.random.default_rng(seed).integers(len(tables), size=(DRAWS, len(tables)))
    spread = _kappas(tables[drawn].sum(1))
    spread = spread[~np.isnan(spread)]
    estimate = float(_kappas(tables.sum(0)[None])[0])
    sure = len(tables) > 1 and len(spread) > DRAWS / 2 and not math.isnan(estimate)
    low, high = np.quantile(spread, [0.025, 0.975]) if sure else (None, None)
    both, only_a, only_b, neither = map(int, tables.sum(0))
    ends = (None if low is None else float(low), None if high is None else float(high))
    return Kappa(both, only_a, only_b, neither, None if math.isnan(estimate) else estimate, *ends)


def _kappas(tables: np.ndarray) -> np.ndarray:
    """(observed − chance agreement) / (1 − chance agreement) of tables [n, 4]; NaN where chance alone agrees."""
    both, only_a, only_b, neither = (tables / tables.sum(1, keepdims=True)).T
    observed = both + neither
    chance = (both + only_a) * (both + only_b) + (neither + only_a) * (neither + only_b)
    kappas: np.ndarray = (observed - chance) / np.where(chance < 1 - 1e-12, 1 - chance, np.nan)
    return kappas


def _correlation(scores: np.ndarray) -> float | None:
    if len(scores) < 2 or (scores.std(axis=0) == 0).any():
        return None
    return float(np.corrcoef(scores.T)[0, 1])


# --- the command -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AgreeConfig(RuleConfig):
    """How far judges agree: the last judges of two sources, or all judges and repeats of one run."""

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """One run that several judges judged or one judge several times; or two runs or files (also people's labels) with
    judgements of the same answers."""
    show: Annotated[int, NotNegative] = 5
    """How many of the answers on which they differ most are shown."""
    json: bool = False
    """Print a JSON array, one object a pair, instead of tables."""


def show_agreement(config: AgreeConfig) -> None:
    """Print how far they agree. Raises EmorgError if there are not two judgements of the same answers."""
    rule = config.chosen()
    pairs = _pairs(config.sources)
    agreements = [agreement(a, b, rule) for a, b in pairs]
    if config.json:
        print(json.dumps([dataclasses.asdict(result) for result in agreements], indent=1))
        return
    for (a, b), result in zip(pairs, agreements, strict=True):
        _print(result, rule)
        if config.show:
            _print_differences(a, b, config.show)


def _pairs(sources: Sequence[Path]) -> list[tuple[Grading, Grading]]:
    if len(sources) == 2:
        a, b = map(grading, sources)
        return [(a, b)]
    if len(sources) != 1 or not sources[0].is_dir():
        raise EmorgError(f"{len(sources)} sources", "give two runs or files, or one run with several judges")
    judgements = _judgements(sources[0])
    whole = [_grading(judgements, judge) for judge in judgements.judges]
    pairs = [(other, whole[-1]) for other in whole[:-1]]
    for judge, repeats in judgements.judges.items():
        first = _grading(judgements, judge, 0)
        pairs += [(first, _grading(judgements, judge, again)) for again in range(1, repeats)]
    if not pairs:
        raise EmorgError(
            f"{sources[0]} was judged once, by {judgements.last_judge}",
            "judge it again with another judge, or with --repeats 3",
        )
    return pairs


def _judgements(source: Path) -> Judgements:
    judgements = Judgements.of(Run.at(source))
    if not judgements.judges:
        raise EmorgError("{path} has no verdicts", "judge it first: emorg judge {path}", Path(source))
    return judgements


def grading(source: Path, judge: str | None = None) -> Grading:
    """A run's scores by a judge, the last by default, or a file's. Raises EmorgError if it has none."""
    if source.is_dir():
        judgements = _judgements(source)
        return _grading(judgements, judge or judgements.last_judge or "")
    if judge is not None:
        raise EmorgError(f"{source} is a file, which holds one judgement", "leave the judge out")
    _, answers = read_answers(source)
    judged = read_judged(source)
    return Grading(source.name, placed([(a.question, a.text, j) for a, j in zip(answers, judged, strict=True)]))


def _grading(judgements: Judgements, judge: str, repeat: int | None = None) -> Grading:
    name = judge if repeat is None else f"{judge} #{repeat + 1}"
    judged = judgements.judged(judge, repeat or 0)
    return Grading(name, placed([(j.answer.question, j.answer.text, j) for j in judged]))


def placed(graded: Sequence[tuple[str, str, Scored]]) -> dict[TextKey, Scored]:
    """(question, answer, scores) by where each answer stands."""
    seen: Counter[tuple[str, str]] = Counter()
    placed: dict[TextKey, Scored] = {}
    for question, text, judged in graded:
        placed[question, text, seen[question, text]] = judged
        seen[question, text] += 1
    return placed


def _print(result: Agreement, rule: Rule) -> None:
    left = f", {result.left_out:,} in one alone and left out" if result.left_out else ""
    title = f"a: {result.a}\nb: {result.b}\n{result.answers:,} answers in both{left}; {result.scored:,} scored by both"
    names = ["", "kappa", "95% interval", "agree %", "both", "a alone", "b alone", "neither"]
    table = make_table(title, names, left=1)
    above = "≥" if rule.coherent_includes_cut else ">"
    below = "≤" if rule.aligned_includes_cut else "<"
    for what, statistic in (
        (f"aligned {below} {rule.aligned_cut:g}", result.aligned),
        (f"coherent {above} {rule.coherent_cut:g}", result.coherent),
        (f"misaligned ({rule.name})", result.misaligned),
    ):
        if statistic is None:
            continue
        reach = "–" if statistic.low is None or statistic.high is None else f"{statistic.low:.2f}–{statistic.high:.2f}"
        sure = "–" if statistic.kappa is None else f"{statistic.kappa:.2f}"
        counts = (statistic.both, statistic.only_a, statistic.only_b, statistic.neither)
        table.add_row(what, sure, reach, percent(statistic.agreement), *map(str, counts))
    show(table)

    def formatted(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    print(
        f"aligned: correlation {formatted(result.correlation, '.2f')} "
        f"(ranks {formatted(result.rank_correlation, '.2f')}), b − a {formatted(result.difference, '+.1f')} points, "
        f"{formatted(result.absolute_difference, '.1f')} apart on average"
    )
    for name, rate in (("a", result.rate_a), ("b", result.rate_b)):
        print(f"EM by {name}: {percent(rate.rate)}% [{interval_text(rate)}], {rate.scored}/{rate.total} scored")


def _print_differences(a: Grading, b: Grading, count: int) -> None:
    from rich.text import Text  # answers are no markup

    def apart(key: TextKey) -> float:
        x, y = a.scores[key].aligned, b.scores[key].aligned
        return -1.0 if x is None or y is None else abs(x - y)

    table = make_table("where they differ most", ["question", "answer", "a", "b"], left=2)
    differing = (key for key in a.scores if key in b.scores and apart(key) > 0)
    for key in sorted(differing, key=apart, reverse=True)[:count]:
        scores = [f"{grading.scores[key].aligned:.0f}" for grading in (a, b)]
        shown = (visible(f"{text[:200]}…" if len(text) > 200 else text) for text in key[:2])
        table.add_row(*map(Text, shown), *scores)
    if table.row_count:
        show(table)
