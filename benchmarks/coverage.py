"""How often 95% intervals hold the truth: `python benchmarks/coverage.py` rewrites the tables in docs/statistics.md.

Each question has a true rate of its own, drawn from a beta distribution with the wanted mean and the wanted correlation
of answers within a question (a + b = 1/correlation − 1), and 50 answers. The truth is the mean over all questions there
could be. The second table is of differences between two such rates, whose questions' own rates are unrelated or related
(a Gaussian copula of 0.5), and of how often the sides are said to differ.
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
from scipy.special import ndtr
from scipy.stats import beta

from emorg.rating.compare import differ, differences
from emorg.rating.intervals import INTERVALS, cluster_bootstrap

RATES = (0.01, 0.03, 0.10, 0.40)
ICCS = (0.05, 0.1, 0.3)
QUESTIONS = (8, 20, 50)
PAGE = Path(__file__).parent.parent / "docs" / "statistics.md"
PAIRS = (
    (0.0, 0.0), (0.0, 0.01), (0.0, 0.03), (0.0, 0.1), (0.0, 0.4), (0.01, 0.01), (0.01, 0.1), (0.03, 0.03), (0.03, 0.1),
    (0.1, 0.1), (0.1, 0.4), (0.4, 0.4),
)  # fmt: skip
RELATED = 0.5


@dataclass(frozen=True)
class Coverage:
    """Simulate the coverage of every interval."""

    simulations: int = 2000
    """Experiments in each cell; a coverage of 95% is then known to ±1 point."""
    differences: int = 5000
    """Experiments in each cell of differences."""
    only: tuple[Literal["rates", "differences"], ...] = ("rates", "differences")
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


def _rates(config: Coverage) -> Iterator[str]:
    names = list(INTERVALS)
    yield "| rate | correlation | questions | " + " | ".join(f"{name} | width" for name in names) + " |"
    yield "|---:|---:|---:|" + "---:|---:|" * len(names)
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
        yield f"| {100 * rate:g}% | {icc:g} | {questions} | " + " | ".join(cells) + " |"


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
