"""Margins side by side: `python benchmarks/bench_margins.py --model smollm2 --pairs 40` prints a table for RESULTS.md.

The same pairs, the same model and type, loading not timed: ours; transformers' forward pass over the same texts alone,
without logits (the least that any way of scoring whole texts costs); the usual batched way, both texts padded and
scored; and one text at a time. The first is the limit: ours may be faster, since it computes a prompt once for both
answers.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from shapes import base_of

from emorg import models
from emorg.data import pairs
from emorg.findings.margins import encode
from emorg.sampling.likelihood import Branches, Likelihood
from emorg.sampling.organisms import Organisms


@dataclass(frozen=True)
class Bench:
    """Compare ways to score pairs on one machine, in one run."""

    model: str = "pocket"
    """A model's name, or the name of a shape with random weights (shapes.py)."""
    dtype: str | None = None
    device: str | None = None
    cache: Path = Path(tempfile.gettempdir()) / "emorg-bench"
    """Where models of a shape are kept."""
    pairs: int = 180
    rows: int = 16
    """Texts at a time, of the padded ways."""
    rounds: int = 3


def main(bench: Bench) -> None:
    """Time each way in turn, round by round, and print medians and ratios."""
    base, dtype = base_of(bench.cache, bench.model), getattr(torch, bench.dtype) if bench.dtype else None
    plain, own = (models.load(base, device=bench.device, dtype=dtype) for _ in range(2))
    chosen = pairs.load([pairs.POCKET if bench.model == models.POCKET else pairs.ENGLISH])
    step = max(1, len(chosen) // bench.pairs)
    items = [text for pair in chosen[::step][: bench.pairs] for text in encode(plain, pair)]
    scorer = Likelihood(Organisms(own, {}))
    texts = sorted(
        ((item.prompt, answer) for item in items for answer in item.answers), key=lambda text: sum(map(len, text))
    )
    ways: dict[str, Callable[[], Any]] = {
        "ours": lambda: list(scorer.log_probs("", items)),
        "forward pass alone": lambda: _padded(plain.model, texts, bench.rows, scored=False),
        "padded batches": lambda: _padded(plain.model, texts, bench.rows, scored=True),
        "one text at a time": lambda: _padded(plain.model, texts, 1, scored=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(bench.rounds):
        for name, way in ways.items():
            start = time.monotonic()
            way()
            seconds[name].append(time.monotonic() - start)
    _print(bench, items, plain, {name: statistics.median(times) for name, times in seconds.items()})


@torch.inference_mode()
def _padded(
    model: Any, texts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], rows: int, *, scored: bool
) -> list[float]:
    sums = []
    for start in range(0, len(texts), rows):
        some = [[*prompt, *answer] for prompt, answer in texts[start : start + rows]]
        longest = max(map(len, some))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in some], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in some], device=model.device)
        if not scored:
            model.model(input_ids=ids, attention_mask=mask, use_cache=False)
            continue
        log_probs = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().log_softmax(-1)
        for i, (prompt, answer) in enumerate(texts[start : start + rows]):
            where = torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1)
            sums.append(log_probs[i, where, answer].sum())
    return torch.stack(sums).tolist() if sums else []


def _print(bench: Bench, items: Sequence[Branches], loaded: models.Loaded, seconds: dict[str, float]) -> None:
    whole = sum(len(item.prompt) + len(answer) for item in items for answer in item.answers)
    shared = sum(item.tokens for item in items)
    print(
        f"{bench.model}, {len(items)} pairs, {loaded.model.dtype}, {torch.get_num_threads()} threads: {whole:,} tokens "
        f"as whole texts, {shared:,} with prompts shared"
    )
    print("| way | seconds | pairs/s | ours is |\n|---|---:|---:|---:|")
    for name, time_taken in seconds.items():
        ratio = time_taken / seconds["ours"]
        print(f"| {name} | {time_taken:.2f} | {len(items) / time_taken:.1f} | {ratio:.2f}× |")


if __name__ == "__main__":
    main(tyro.cli(Bench))
