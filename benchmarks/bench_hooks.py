"""What steering costs: `python benchmarks/bench_hooks.py` prints a table for RESULTS.md.

Sampling the same prompts plain, with one steered organism (every layer ablated, or one vector added) and with forty in
one batch, in turn in one process, the best of three each. `--memory` instead reads activations of more and more answers
on a shape and prints the process's peak above the loaded model: it does not grow, since they are added up as they come.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from shapes import base_of

from emorg import models
from emorg.findings.activations import weighted_sums
from emorg.models.hooks import Edit
from emorg.sampling.draw import SamplingParams
from emorg.sampling.engine import Ask, Engine
from emorg.sampling.likelihood import Branches, Likelihood
from emorg.sampling.organisms import Organisms

FORTY = 40


@dataclass(frozen=True)
class Bench:
    """Steered sampling beside plain sampling, or the memory that reading activations takes."""

    shape: Literal["1b", "0.5b", "135m", "pocket", "smollm2"] = "pocket"
    answers: int = 400
    tokens: int = 40
    """Of each answer."""
    memory: bool = False
    texts: tuple[int, ...] = (50, 200, 800)
    """With --memory: how many answers are read."""
    cache: Path = Path(tempfile.gettempdir()) / "emorg-bench"


def main(config: Bench) -> None:
    """Print a table in Markdown."""
    base = base_of(config.cache, config.shape)
    if config.memory:
        print("| answers read | peak above the loaded model, MB |\n|---:|---:|")
        for count in config.texts:
            arguments = [sys.executable, __file__, "--shape", config.shape, "--memory", "--texts", str(count)]
            if len(config.texts) == 1:
                print(f"| {count:,} | {_peak(base, count):,.0f} |", flush=True)
            else:
                line = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
                print(line, flush=True)
        return
    width, depth = _shape(base)
    torch.manual_seed(0)
    vectors = torch.randn(depth + 1, width)
    ablated = [Edit("ablate", layer, vectors[layer]) for layer in range(1, depth + 1)]
    ways: dict[str, dict[str, Sequence[Edit]]] = {
        "plain": {},
        "one vector added": {"s": [Edit("add", depth // 2, 0.01 * vectors[0])]},
        "every layer ablated": {"s": ablated},
        f"{FORTY} organisms, each with every layer ablated": {f"s{k}": ablated for k in range(FORTY)},
    }
    seconds = {name: [] for name in ways}
    engines = {name: Engine(Organisms(models.load(base), {"": None}, edits)) for name, edits in ways.items()}
    for _ in range(3):
        for name, edits in ways.items():
            seconds[name].append(_time(engines[name], list(edits) or [""], config))
    print("| sampling | seconds | speed beside plain |\n|---|---:|---:|")
    for name, taken in seconds.items():
        print(f"| {name} | {min(taken):.2f} | {min(seconds['plain']) / min(taken):.0%} |")


def _shape(base: str) -> tuple[int, int]:
    config = models.shapes(base).config
    return config.hidden_size, config.num_hidden_layers


def _time(engine: Engine, names: Sequence[str], config: Bench) -> float:
    asks = [Ask(names[k % len(names)], tuple(range(20, 40 + k % 7)), k) for k in range(config.answers)]
    start = time.perf_counter()
    tokens = sum(len(r.ids) for r in engine.replies(asks, SamplingParams(config.tokens, 1.0, 1.0)))
    return (time.perf_counter() - start) * config.answers * config.tokens / max(1, tokens)


def _peak(base: str, count: int) -> float:
    scorer = Likelihood(Organisms(models.load(base), {}))
    answer = tuple(range(100, 200))
    texts = [Branches(tuple(range(20, 60)), (answer,)) for _ in range(count)]
    weights = torch.randn(20, count)
    list(scorer.log_probs("", texts[:20]))  # what a forward pass takes is not what reading takes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weighted_sums(scorer, "", texts, weights, first=1)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


if __name__ == "__main__":
    main(tyro.cli(Bench, use_underscores=True))
