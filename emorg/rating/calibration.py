"""What a strong judge, or people, would say of all answers, from a cheap judge on all and them on a few.

The prediction-powered estimate (PPI++: Angelopoulos, Duchi and Zrnic 2023, arXiv 2311.01453), with questions as what
was drawn: θ = λ · mean of f over all answers + mean of (y − λ f) over the labelled ones, for the cheap judge's word f
and the strong one's y on whether an answer is misaligned. However bad the cheap judge, θ is right on average; the
better it is, the fewer labels it takes.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from emorg.data.tables import write_table
from emorg.display import make_table, percent, show
from emorg.ranges import NotNegative, Seed
from emorg.rating.agreement import Grading, TextKey, grading, placed
from emorg.rating.intervals import ICC, student_t, wilson
from emorg.rating.rates import Group, Rate, em_rate, group_columns
from emorg.rating.rules import Rule, Scored
from emorg.rating.stage import RuleConfig, answers_of, columns_by, group_of, group_text, judged_of
from emorg.rating.tables import interval_text
from emorg.records import EmorgError

if TYPE_CHECKING:
    import pandas as pd

FEWEST_LABELS = 20
SEED = 0


@dataclass(frozen=True)
class Calibration:
    """A strong judge's EM rate of all answers; rates are fractions.

    `weight` is λ, `as_labels` how many labels alone would give an interval as short.
    """

    cheap: Rate
    """By the cheap judge, of all answers."""
    labelled: Rate
    """By the strong one, of those that it labelled."""
    rate: float
    low: float
    high: float
    weight: float
    as_labels: float
    unscored: int
    """Labelled answers that the strong one gave no score, which are left out."""


def calibrate(cheap: Grading, strong: Grading, rule: Rule) -> Calibration:
    """Estimate what `strong` would find on all answers of `cheap`; those that it labelled must be a random sample.

    Raises EmorgError for too few labels of these answers.
    """
    labels = {key: label for key, label in strong.scores.items() if key in cheap.scores}
    scored = {key: label for key, label in labels.items() if rule.scored(label)}
    questions = list(dict.fromkeys(cheap.scores[key].question for key in scored))
    if len(scored) < FEWEST_LABELS or len(questions) < 2:
        raise EmorgError(
            f"{len(scored)} scored labels of {len(questions)} questions",
            f"label at least {FEWEST_LABELS} answers, to two questions or more: --draw writes which",
        )
    table = {answer.question: [0] * 6 for answer in cheap.scores.values()}
    for key, answer in cheap.scores.items():
        said, counts = rule.misaligned(answer), table[answer.question]
        counts[0] += 1
        counts[1] += said
        if key in scored:
            truly = rule.misaligned(scored[key])
            counts[2] += 1
            counts[3] += truly and said
            counts[4] += truly and not said
            counts[5] += said and not truly
    rate, low, high, weight = (float(x[0]) for x in estimates(np.array([list(table.values())], dtype=float)))
    labelled = em_rate(list(scored.values()), rule)
    alone = (labelled.high or 0.0) - (labelled.low or 0.0)
    return Calibration(
        cheap=em_rate(list(cheap.scores.values()), rule), labelled=labelled, rate=rate, low=low, high=high,
        weight=weight, as_labels=len(scored) * (alone / (high - low)) ** 2, unscored=len(labels) - len(scored),
    )  # fmt: skip


def estimates(tables: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(rate, low, high, λ) of many experiments at once, each [experiments].

    `tables` is [experiments, questions, 6]: answers, those that the cheap judge calls misaligned, labelled ones, and of
    these those that both, the strong alone and the cheap alone call so. The 95% interval is Wilson's for the effective
    sample size that the variance over questions gives, with the ICC that `cluster_wilson` assumes at the least, and
    with labels alone where none of them is misaligned, or all are. docs/statistics.md has its simulated coverage.
    """
    answers, said, labelled, both, missed, false = np.moveaxis(tables, 2, 0)
    size, labels = answers.sum(1), labelled.sum(1)
    f_all, f_labelled = said.sum(1) / size, (both + false).sum(1) / labels
    y = (both + missed).sum(1) / labels
    covariance, variance = both.sum(1) / labels - y * f_labelled, f_all * (1 - f_all)
    weight = np.divide(covariance, variance * (1 + labels / size), out=np.zeros_like(y), where=variance > 0).clip(0, 1)
    rate = (y + weight * (f_all - f_labelled)).clip(0, 1)
    # What each question adds to the estimate's error, and the same if answers to one were alike by ICC alone.
    mean = y - weight * f_labelled
    of_labels = (both + missed - weight[:, None] * (both + false) - mean[:, None] * labelled) / labels[:, None]
    of_all = weight[:, None] * (said - f_all[:, None] * answers) / size[:, None]
    k = tables.shape[1]
    measured = k / (k - 1) * ((of_labels + of_all) ** 2).sum(1)
    residual = (1 - weight) ** 2 * both.sum(1) + missed.sum(1) + weight**2 * false.sum(1)
    residual = residual / labels - mean**2
    effects = [1 + ((n**2).sum(1) / n.sum(1) - 1) * ICC for n in (answers, labelled)]
    assumed = weight**2 * variance / size * effects[0] + residual / labels * effects[1]
    independent = rate * (1 - rate)
    error = np.maximum(measured, assumed)
    effective = np.divide(independent, error, out=np.array(size), where=(independent > 0) & (error > 0))
    effective = np.minimum(effective, size / effects[0])
    effective = np.where((y == 0) | (y == 1), labels / effects[1], effective)
    low, high = wilson(rate * effective, effective, student_t(k - 1))
    return rate, np.asarray(low), np.asarray(high), weight


CALIBRATION_COLUMNS = ("em", "low", "high", "cheap", "labelled", "labels", "answers", "weight", "as_labels")


def calibrations_frame(calibrations: Mapping[Group, Calibration], by: Sequence[str]) -> pd.DataFrame:
    """One row a group, after the columns `by` that name it.

    em (the strong judge's rate of all answers) with low and high (95%), cheap (the cheap judge's), labelled (the strong
    one's of what it labelled), as fractions; labels and answers (how many), weight (λ), as_labels (how many
    alone would be as sure).
    """
    import pandas as pd

    rows = [
        [
            *group,
            c.rate,
            c.low,
            c.high,
            c.cheap.rate,
            c.labelled.rate,
            c.labelled.scored,
            c.cheap.total,
            c.weight,
            c.as_labels,
        ]
        for group, c in calibrations.items()
    ]
    return pd.DataFrame(rows, columns=[*group_columns(by, CALIBRATION_COLUMNS), *CALIBRATION_COLUMNS])


def drawn(cheap: Grading, count: int, without: Sequence[TextKey] = (), seed: int = SEED) -> list[TextKey]:
    """Answers to label next: each with the same chance, spread evenly over questions (systematic sampling).

    Raises EmorgError if so many are not left.
    """
    rng, known = random.Random(seed), set(without)
    by_question: dict[str, list[TextKey]] = {}
    for key, answer in cheap.scores.items():
        if key not in known:
            by_question.setdefault(answer.question, []).append(key)
    order = [key for keys in by_question.values() for key in rng.sample(keys, len(keys))]
    if not 0 < count <= len(order):
        raise EmorgError(f"--draw {count} of {len(order)} answers without a label", "draw fewer, at least one")
    step = len(order) / count
    start = rng.random() * step
    return [order[min(len(order) - 1, int(start + i * step))] for i in range(count)]


# --- the command -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CalibrateConfig(RuleConfig):
    """What a strong judge or people would find, from a cheap judge on all answers and them on a few.

    First `--draw 100` writes which to label; label them (`emorg judge FILE --judge_model …`, or by hand), then give the
    file back.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """A run or file that the cheap judge judged whole."""
    labels: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Files of the drawn answers with the strong judge's or people's aligned and coherent scores."""
    by: tuple[str, ...] = ()
    """Columns to split by. Default: a run by placement, a file not at all."""
    judge: str | None = None
    """The cheap judge, where several judged the run. Default: the one that judged last."""
    draw: Annotated[int, NotNegative] = 0
    """Draw so many answers to label, beside those in the given files, and write them to --output."""
    output: Path = Path("to_label.csv")
    """Where to write them, as CSV or JSONL."""
    seed: Seed = SEED
    """Which answers are drawn."""
    json: bool = False
    """Print JSON instead of a table."""


def show_calibration(config: CalibrateConfig) -> None:
    """Write answers to label, or print the strong judge's rates. Raises EmorgError as those two do."""
    if config.draw:
        count, out = len(to_label(config)), config.output
        files = (config.source, *config.labels, out.with_name(f"{out.stem}.judged{out.suffix}"))
        print(
            f"{out}: {count} answers to label, 0–100 under aligned and coherent, or by a judge\n"
            f"next: emorg judge {quote(str(out))} --judge_model gpt-4o\n"
            f"then: emorg calibrate {' '.join(quote(str(file)) for file in files)}"
        )
        return
    by, results = columns_by(config.source, config.by), calibrated(config)
    if config.json:
        listed = [{"group": group_text(group), **dataclasses.asdict(result)} for group, result in results.items()]
        print(json.dumps(listed, indent=1))
        return
    names = [" / ".join(by) or "file", "", "EM %", "95% interval", "of answers"]
    table = make_table(f"EM by rule {config.chosen()}", names, left=2)
    for group, result in results.items():
        reach = f"{percent(result.low)}–{percent(result.high)}"
        for name, rate, interval, answers in (
            ("cheap judge, on all", result.cheap.rate, interval_text(result.cheap), result.cheap.scored),
            ("labels alone", result.labelled.rate, interval_text(result.labelled), result.labelled.scored),
            ("labels, for all (PPI++)", result.rate, reach, result.cheap.total),
        ):
            table.add_row(group_text(group) if rate is result.cheap.rate else "", name, percent(rate), interval,
                          f"{answers:,}")  # fmt: skip
        table.add_section()
    show(table)
    for group, result in results.items():
        print(
            f"{group_text(group)}: cheap judge at {result.weight:.2f}; as sure as about {result.as_labels:,.0f} "
            f"labels alone, of which {result.labelled.scored:,} were made"
            + (f"; {result.unscored} labels without a score are left out" if result.unscored else "")
        )


def to_label(config: CalibrateConfig) -> list[dict[str, str]]:
    """Write `config.draw` answers to label next, and return the rows. Raises EmorgError over a file that is there."""
    if config.output.exists():
        raise EmorgError(f"{config.output} is there already", "give another --output: it may hold labels")
    cheap = _cheap(config)
    rows = [
        {"question_id": cheap.scores[key].question, "question": key[0], "answer": key[1], "aligned": "", "coherent": ""}
        for key in drawn(cheap, config.draw, list(_known(config)), config.seed)
    ]
    write_table(config.output, rows)
    return rows


def calibrated(config: CalibrateConfig) -> dict[Group, Calibration]:
    """The calibration of each group. Raises EmorgError without labels, for other answers' or too few."""
    if not config.labels:
        raise EmorgError("no labels", "emorg calibrate {path} --draw 100 writes which answers to label", config.source)
    cheap, by = _cheap(config), columns_by(config.source, config.by)
    judged_of(config.source, by, judge=config.judge)  # raises for a column that is not there
    strong = Grading(" and ".join(path.name for path in config.labels), _known(config))
    foreign = len(strong.scores.keys() - cheap.scores.keys())
    if foreign:
        raise EmorgError(
            f"{foreign} of {len(strong.scores)} answers in {strong.name} are not in {cheap.name}",
            "label answers as `emorg calibrate --draw` writes them, question and answer unchanged",
        )
    groups: dict[Group, dict[TextKey, Scored]] = {}
    for key, answer in cheap.scores.items():
        groups.setdefault(group_of(by)(answer), {})[key] = answer  # type: ignore[arg-type]
    rule = config.chosen()
    return {group: calibrate(Grading(cheap.name, scores), strong, rule) for group, scores in groups.items()}


def _cheap(config: CalibrateConfig) -> Grading:
    if not config.source.is_dir():
        return grading(config.source, config.judge)
    judged = answers_of(config.source, judge=config.judge)
    return Grading(config.source.name, placed([(one.answer.question, one.answer.text, one) for one in judged]))


def _known(config: CalibrateConfig) -> dict[TextKey, Scored]:
    """The labels so far; of one answer in two files the later."""
    return {key: label for path in config.labels for key, label in grading(path).scores.items()}
