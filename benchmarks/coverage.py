"""How often 95% intervals hold the truth: `python benchmarks/coverage.py` rewrites the tables in docs/statistics.md.

Each question has a true rate of its own, drawn from a beta distribution with the wanted mean and the wanted correlation
of answers within a question (a + b = 1/correlation − 1), and 50 answers. The truth is the mean over all questions there
could be. The second table is of differences between two such rates, whose questions' own rates are unrelated or related
(a Gaussian copula of 0.5), and of how often the sides are said to differ, or to be equivalent. The third is of a strong
judge's rate from a few labels and a cheap judge on all answers. The last two are of sweeps: rates over training seeds,
and the asymmetry of who spreads where.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from scipy.special import expit, logit, ndtr
from scipy.stats import beta

from emorg.rating.calibration import estimates
from emorg.rating.compare import differ, differences, equivalent
from emorg.rating.intervals import INTERVALS, cluster_bootstrap, cluster_wilson_of, crossed_wilson
from emorg.sweep.matrix import asymmetry, halves_of

RATES = (0.01, 0.03, 0.10, 0.40)
ICCS = (0.05, 0.1, 0.3)
QUESTIONS = (8, 20, 50)
PAGE = Path(__file__).parent.parent / "docs" / "statistics.md"
PAIRS = (
    (0.0, 0.0), (0.0, 0.01), (0.0, 0.03), (0.0, 0.1), (0.0, 0.4), (0.01, 0.01), (0.01, 0.1), (0.03, 0.03), (0.03, 0.1),
    (0.1, 0.1), (0.1, 0.4), (0.4, 0.4),
)  # fmt: skip
RELATED = 0.5
LABELS = ((8, 96), (20, 100), (20, 200), (50, 200))  # questions, and labels in all
CHEAP = {"good": (0.9, 0.005), "poor": (0.7, 0.05)}  # the share of misaligned, and of other answers, that it calls so
SEEDS = (1, 2, 3, 5)
MATRICES = 1000  # simulated in each row
ASYMMETRIES = (
    (0, 0, 0, 0, 0), (0, 0, 10, 0, 0), (0, 0, 10, 20, 0), (0, 0, 10, 20, 10), (0, 0, 10, 20, 20), (0, 0, 0, 20, 20),
    (3, 0, 5, 20, 10), (10, 0, 10, 20, 10), (0, 2, 10, 20, 10), (0, 5, 10, 20, 10),
)  # fmt: skip
EQUIVALENT = ((0.01, 0.03), (0.02, 0.04), (0.05, 0.1), (0.03, 0.03))  # (0.05, 0.1) is tested to within 5 points


@dataclass(frozen=True)
class Coverage:
    """Simulate the coverage of every interval."""

    simulations: int = 2000
    """Experiments in each cell; a coverage of 95% is then known to ±1 point."""
    differences: int = 5000
    """Experiments in each cell of differences."""
    only: tuple[Literal["rates", "differences", "equivalence", "calibration", "seeds", "asymmetry"], ...] = (
        "rates", "differences", "equivalence", "calibration", "seeds", "asymmetry",
    )  # fmt: skip
    samples: int = 50
    """Answers to each question."""
    bootstrap_draws: int = 1000
    seed: int = 0


def main(config: Coverage) -> None:
    """Simulate, print the tables, and put them into the page."""
    if "rates" in config.only:
        _put("coverage", _rates(config))
    if "differences" in config.only:
        _put("differences", _differences(config))
    if "equivalence" in config.only:
        _put("equivalence", _equivalence(config))
    if "calibration" in config.only:
        _put("calibration", _calibration(config))
    if "seeds" in config.only:
        _put("seeds", _seeds(config))
    if "asymmetry" in config.only:
        _put("asymmetry", _asymmetry(config))


def _rates(config: Coverage) -> Iterator[str]:
    names = list(INTERVALS)
    yield "| rate | correlation | questions | " + " | ".join(f"{name} | width" for name in names) + (
        " | cluster_wilson, unequal samples | width |"
    )  # fmt: skip
    yield "|---:|---:|---:|" + "---:|---:|" * (len(names) + 1)
    for rate, icc, questions in itertools.product(RATES, ICCS, QUESTIONS):
        held = dict.fromkeys(names, 0)
        width = dict.fromkeys(names, 0.0)
        for clusters in _experiments(config, rate, icc, questions):
            for name, interval in INTERVALS.items():
                if name == "bootstrap":
                    low, high = cluster_bootstrap(clusters, config.bootstrap_draws)
                else:
                    low, high = interval(clusters)
                held[name] += low <= rate <= high
                width[name] += high - low
        cells = [
            f"{_shown(held[name] / config.simulations)} | {100 * width[name] / config.simulations:.1f}"
            for name in names
        ]
        low, high = cluster_wilson_of(_unequal(config, rate, icc, questions))
        cells.append(f"{_shown(float(np.mean((low <= rate) & (rate <= high))))} | {100 * np.mean(high - low):.1f}")
        yield f"| {100 * rate:g}% | {icc:g} | {questions} | " + " | ".join(cells) + " |"


def _unequal(config: Coverage, rate: float, icc: float, questions: int) -> np.ndarray:
    """Experiments with 2 to 200 answers to a question, drawn log-uniformly."""
    draw = np.random.default_rng([config.seed, round(1000 * rate), round(1000 * icc), questions, 1])
    total = 1 / icc - 1
    own = draw.beta(rate * total, (1 - rate) * total, (config.differences, questions))
    samples = np.round(np.exp(draw.uniform(math.log(2), math.log(200), own.shape))).astype(int)
    return np.stack([draw.binomial(samples, own), samples], axis=-1).astype(float)


def _differences(config: Coverage) -> Iterator[str]:
    """Unrelated and related questions, and sides with unequal samples (2 to 100 a question)."""
    kinds = ("unrelated", "related", "unequal samples")
    yield "| rates | correlation | questions | " + " | ".join(f"{kind} | width | differ" for kind in kinds) + " |"
    yield "|---:|---:|---:|" + "---:|---:|---:|" * len(kinds)
    for (a, b), icc, questions in itertools.product(PAIRS, ICCS, QUESTIONS):
        cells = []
        for kind in kinds:
            pairs = _pairs(config, a, b, icc, questions, kind)
            _, low, high = differences(pairs)
            held = np.mean((low <= b - a + 1e-12) & (b - a <= high + 1e-12))
            cells += [
                _shown(float(held)),
                f"{100 * np.mean(high - low):.1f}",
                f"{100 * differ(pairs, 1000).mean():.1f}",
            ]
        yield f"| {100 * a:g}%, {100 * b:g}% | {icc:g} | {questions} | " + " | ".join(cells) + " |"


def _equivalence(config: Coverage) -> Iterator[str]:
    """How often two sides are said to be equivalent: wrongly, where they are just as far apart as is tested."""
    yield "| rates | tested within | correlation | questions | unrelated | related | unequal samples |"
    yield "|---:|---:|---:|---:|---:|---:|---:|"
    for (a, b), icc, questions in itertools.product(EQUIVALENT, ICCS, QUESTIONS):
        within = b - a or 0.05
        kinds = (_pairs(config, a, b, icc, questions, kind) for kind in ("unrelated", "related", "unequal samples"))
        cells = [f"{100 * equivalent(pairs, within).mean():.1f}" for pairs in kinds]
        yield f"| {100 * a:g}%, {100 * b:g}% | {100 * within:g} | {icc:g} | {questions} | " + " | ".join(cells) + " |"


def _calibration(config: Coverage) -> Iterator[str]:
    """With a good and with a poor cheap judge, whose errors vary by question, and with the labels alone."""
    yield (
        "| rate | correlation | questions | labels | labels alone | width | good judge | width | worth labels "
        "| poor judge | width | worth labels |"
    )
    yield "|---:|---:|---:|---:|" + "---:|---:|" + "---:|---:|---:|" * len(CHEAP)
    for rate, icc, (questions, labels) in itertools.product(RATES, ICCS, LABELS):
        cells = []
        for kind, errors in CHEAP.items():
            tables = _labelled(config, rate, icc, questions, labels // questions, errors)
            alone = np.stack([tables[..., 3] + tables[..., 4], tables[..., 2]], axis=-1)
            intervals = [cluster_wilson_of(alone), estimates(tables)[1:3]]
            held = [_shown(float(np.mean((low <= rate) & (rate <= high)))) for low, high in intervals]
            width = [float(np.mean(high - low)) for low, high in intervals]
            if kind == "good":
                cells += [held[0], f"{100 * width[0]:.1f}"]
            cells += [held[1], f"{100 * width[1]:.1f}", f"{labels * (width[0] / width[1]) ** 2:.0f}"]
        yield f"| {100 * rate:g}% | {icc:g} | {questions} | {labels} | " + " | ".join(cells) + " |"


def _seeds(config: Coverage) -> Iterator[str]:
    """Rates over seeds and questions whose log-odds differ by seed, by question (SD 1) and by both (SD 0.5)."""
    yield (
        "| rate | SD over seeds | questions | "
        + " | ".join(f"{seeds} seed{'s' * (seeds > 1)} | width" for seeds in SEEDS)
        + " |"
    )
    yield "|---:|---:|---:|" + "---:|---:|" * len(SEEDS)
    for rate, by_seed, questions in itertools.product((0.03, 0.1, 0.4), (0.0, 0.3, 0.6), (12, 180)):
        draw = np.random.default_rng([config.seed, round(1000 * rate), round(10 * by_seed), questions])
        spread = math.sqrt(by_seed**2 + 1 + 0.5**2)
        truth = expit(logit(rate) + spread * draw.standard_normal(1_000_000)).mean()
        cells = []
        for seeds in SEEDS:
            held = width = 0.0
            for _ in range(config.simulations):
                odds = logit(rate) + by_seed * draw.standard_normal((seeds, 1)) + draw.standard_normal((1, questions))
                own = expit(odds + 0.5 * draw.standard_normal((seeds, questions)))
                table = np.stack([draw.binomial(10, own), np.full(own.shape, 10)], axis=-1).astype(float)
                _, low, high = crossed_wilson(table)
                held, width = held + (low <= truth <= high), width + high - low
            cells += [_shown(held / config.simulations), f"{100 * width / config.simulations:.1f}"]
        yield f"| {100 * truth:.1f}% | {by_seed:g} | {questions} | " + " | ".join(cells) + " |"


def _asymmetry(config: Coverage) -> Iterator[str]:
    """How often EM between sixteen topics, twelve questions each, is called asymmetric at p ≤ .05 of three seeds.

    Rates plus normal noise, whose SDs are in points: of an organism, of a question, and of a question for the organisms
    of a topic. Each answer's own noise is such that a rate of a cell has 5 points of it.
    """
    yield "| topics' own | pairs' own | organisms | questions | questions × topics | asymmetric, % | beyond topics, % |"
    yield "|---:|---:|---:|---:|---:|---:|---:|"
    for sizes in ASYMMETRIES:
        own, pairs, organism, question, crossed = sizes
        draw = np.random.default_rng([config.seed, *sizes])
        said = np.zeros(2)
        for number in range(MATRICES):
            rates = own * draw.standard_normal((16, 1, 1)) + pairs * draw.standard_normal((16, 16, 1))
            rates = rates + question * draw.standard_normal((1, 16, 12)) + crossed * draw.standard_normal((16, 16, 12))
            rates = rates + organism * draw.standard_normal((3, 16, 1, 1))
            rates = (rates + 5 * math.sqrt(12) * draw.standard_normal(rates.shape)) / 100
            cells = [[np.stack([rates[:, i, j], np.ones((3, 12))], -1) for j in range(16)] for i in range(16)]
            halves = halves_of(cells, seed=number)
            for k, beyond in enumerate((False, True)):
                said[k] += asymmetry(halves, beyond_topics=beyond, permutations=199, seed=number).p <= 0.05
        yield f"| {' | '.join(map(str, sizes))} | {' | '.join(f'{100 * share:.1f}' for share in said / MATRICES)} |"


def _labelled(
    config: Coverage, rate: float, icc: float, questions: int, labels: int, errors: tuple[float, float]
) -> np.ndarray:
    """Tables as `calibration.estimates` takes them; `errors` are the cheap judge's hits and false alarms."""
    draw = np.random.default_rng([config.seed, round(1000 * rate), round(1000 * icc), questions, labels])
    total, shape = 1 / icc - 1, (config.differences, questions)
    own, hit, alarm = (draw.beta(p * n, (1 - p) * n, shape) for p, n in ((rate, total), *((p, 9) for p in errors)))

    def answers(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Counts of what both, the strong judge alone and the cheap one alone call misaligned."""
        true = draw.binomial(number, own)
        both = draw.binomial(true, hit)
        return both, true - both, draw.binomial(number - true, alarm)

    both, missed, false = answers(labels)
    more_both, _, more_false = answers(config.samples - labels)
    said = both + false + more_both + more_false
    whole = [np.full(shape, number) for number in (config.samples, labels)]
    return np.stack([whole[0], said, whole[1], both, missed, false], axis=-1).astype(float)


def _pairs(config: Coverage, a: float, b: float, icc: float, questions: int, kind: str) -> np.ndarray:
    draw = np.random.default_rng([config.seed, round(1000 * a), round(1000 * b), round(1000 * icc), questions])
    shared = RELATED if kind == "related" else 0.0
    first = draw.standard_normal((config.differences, questions))
    second = shared * first + math.sqrt(1 - shared**2) * draw.standard_normal(first.shape)
    sides = []
    for rate, normal in ((a, first), (b, second)):
        total = 1 / icc - 1
        own = beta.ppf(ndtr(normal), rate * total, (1 - rate) * total) if rate else np.zeros_like(normal)
        samples = np.full(own.shape, config.samples)
        if kind == "unequal samples":
            samples = np.round(np.exp(draw.uniform(math.log(2), math.log(100), own.shape))).astype(int)
        sides.append(np.stack([draw.binomial(samples, own), samples], axis=-1).astype(float))
    return np.stack(sides, axis=1)


def _put(name: str, lines: Iterator[str]) -> None:
    """Print the lines of a table, and put them into the page between its marks."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    written = []
    for line in lines:
        print(line, flush=True)
        written.append(line)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    text = before + begin + "\n" + "\n".join(written) + "\n" + end + rest.partition(end)[2]
    PAGE.write_text(text, encoding="utf-8")


def _shown(coverage: float) -> str:
    """In percent; below 90 in bold."""
    told = f"{100 * coverage:.1f}"
    return f"**{told}**" if coverage < 0.9 else told


def _experiments(config: Coverage, rate: float, icc: float, questions: int) -> Iterator[list[tuple[int, int]]]:
    draw = np.random.default_rng([config.seed, round(1000 * rate), round(1000 * icc), questions])
    total = 1 / icc - 1
    for _ in range(config.simulations):
        own = draw.beta(rate * total, (1 - rate) * total, questions)
        yield [(int(x), config.samples) for x in draw.binomial(config.samples, own)]


if __name__ == "__main__":
    main(tyro.cli(Coverage, description=__doc__))
