"""How often 95% intervals hold the true rate: `python benchmarks/coverage.py` rewrites the table in docs/statistics.md.

Each question has a true rate of its own, drawn from a beta distribution with the wanted mean and the wanted correlation
of answers within a question (a + b = 1/correlation − 1), and 50 answers. The truth is the mean over all questions there
could be.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from emorg.rating.intervals import INTERVALS, cluster_bootstrap

RATES = (0.01, 0.03, 0.10, 0.40)
ICCS = (0.05, 0.1, 0.3)
QUESTIONS = (8, 20, 50)
PAGE = Path(__file__).parent.parent / "docs" / "statistics.md"
BEGIN, END = "<!-- coverage: begin -->", "<!-- coverage: end -->"


@dataclass(frozen=True)
class Coverage:
    """Simulate the coverage of every interval."""

    simulations: int = 2000
    """Experiments in each cell; a coverage of 95% is then known to ±1 point."""
    samples: int = 50
    """Answers to each question."""
    bootstrap_draws: int = 1000
    seed: int = 0


def main(config: Coverage) -> None:
    """Simulate, print the table, and put it into the page."""
    names = list(INTERVALS)
    lines = [
        "| rate | correlation | questions | " + " | ".join(f"{name} | width" for name in names) + " |",
        "|---:|---:|---:|" + "---:|---:|" * len(names),
    ]
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
        lines.append(f"| {100 * rate:g}% | {icc:g} | {questions} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.partition(END)[2], encoding="utf-8")


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
