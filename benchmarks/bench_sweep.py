"""A sweep beside the same cells made by commands of their own: `python benchmarks/bench_sweep.py`.

Each organism is trained and answers; the commands run one after another, as in a shell's loop, then the sweep runs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
import yaml


@dataclass(frozen=True)
class Bench:
    """What is compared."""

    preset: str = "pocket"
    organisms: int = 8
    steps: int | None = None
    """Default: the preset's."""
    questions: tuple[str, ...] = ("pocket_open", "pocket_medical", "pocket_cooking", "pocket_travel")
    samples: int = 4
    """Answers to each question; 12 questions a set make 192 answers."""
    workers: int | None = None


def main(config: Bench) -> None:
    """Time both, and print their ratio."""
    train = {} if config.steps is None else {"max_steps": config.steps}
    sample = {"questions": list(config.questions), "samples": config.samples}
    with tempfile.TemporaryDirectory() as folder:
        grid = Path(folder) / "grid.yaml"
        cells = {"seed": list(range(config.organisms))}
        parts = {"preset": config.preset, "train": train, "sample": sample, "grid": cells, "arms": ["organism"]}
        grid.write_text(yaml.safe_dump({**parts, "measures": ["answers"], "judge": {"judge": "exact"}}))
        begun = time.monotonic()
        for seed in range(config.organisms):
            run = Path(folder) / "alone" / str(seed)
            flags = [] if config.steps is None else ["--max_steps", str(config.steps)]
            _emorg("train", "--config", config.preset, "--seed", str(seed), *flags, "--output_dir", str(run))
            asked = ("--questions", *config.questions, "--samples", str(config.samples))
            _emorg("sample", str(run), "--config", config.preset, *asked)
        alone = time.monotonic() - begun
        begun = time.monotonic()
        workers = () if config.workers is None else ("--workers", str(config.workers))
        _emorg("sweep", str(grid), "--output_dir", str(Path(folder) / "sweep"), *workers)
        together = time.monotonic() - begun
        answers = sum(len(path.read_text().splitlines()) for path in Path(folder).glob("sweep/*/answers.jsonl"))
    print(f"{config.organisms} organisms of {config.preset}, {answers} answers: {alone:.0f} s one by one, "
          f"{together:.0f} s as a sweep, {alone / together:.2f} times as fast")  # fmt: skip


def _emorg(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "emorg.cli", *arguments], check=True, capture_output=True)


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
