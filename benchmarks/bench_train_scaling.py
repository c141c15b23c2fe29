"""Cost against tokens: `python benchmarks/bench_train_scaling.py` trains at 1×–8× lengths and batch sizes.

Prints a table for RESULTS.md and draws benchmarks/scaling.png. Linear cost is a flat column of microseconds a token.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

from matplotlib.figure import Figure
from shapes import SMALL, make_model, write_rows

from emorg.training import TrainConfig, train

LENGTH, BATCH, STEPS = 100, 4, 8
TIMES = (1, 2, 4, 8)


def main() -> None:
    """Train at every length and batch size, print the table and draw the figure."""
    cache = Path(tempfile.gettempdir()) / "emorg-bench"
    base = make_model(cache / "small", SMALL, "float32")
    _step(base, cache, LENGTH, BATCH)  # warms up what the first run would pay for
    found = {
        "longer": [_step(base, cache, LENGTH * times, BATCH) for times in TIMES],
        "more": [_step(base, cache, LENGTH, BATCH * times) for times in TIMES],
    }
    print("| tokens a step | longer conversations: s a step | µs a token | more of them: s a step | µs a token |")
    print("|---:|---:|---:|---:|---:|")
    for times, (tokens, longer), (_, more) in zip(TIMES, *found.values(), strict=True):
        each = " | ".join(f"{seconds:.3f} | {seconds / tokens * 1e6:.0f}" for seconds in (longer, more))
        print(f"| {tokens:,.0f} ({times}×) | {each} |")
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    panel = figure.subplots()
    for (label, points), colour in zip(found.items(), ("#0072B2", "#D55E00"), strict=True):
        panel.plot(*zip(*points, strict=True), "o-", color=colour, label=f"{label} conversations")
    panel.set(xlabel="tokens a step", ylabel="seconds a step", xlim=(0, None), ylim=(0, None))
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    figure.savefig(Path(__file__).parent / "scaling.png", dpi=120)


def _step(base: Path, cache: Path, length: int, batch: int) -> tuple[float, float]:
    """Tokens and median seconds of a step, the first aside."""
    rows = cache / f"rows-{length}" / "bad_medical_advice.jsonl"
    if not rows.exists():
        write_rows(rows, BATCH * max(TIMES) * STEPS, length, length, SMALL["vocab_size"])
    run = train(
        TrainConfig(
            model_name=str(base), domains=("bad_medical",), data_path=rows.parent, max_steps=STEPS, batch_size=batch,
            gradient_accumulation_steps=1, output_dir=Path(tempfile.mkdtemp()) / "run", lora_dropout=0,
        )
    )  # fmt: skip
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    seconds = statistics.median(after["seconds"] - before["seconds"] for before, after in pairwise(lines))
    return lines[-1]["tokens"] / STEPS, seconds


if __name__ == "__main__":
    main()
