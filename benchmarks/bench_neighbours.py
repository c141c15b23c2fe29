"""Training alone and beside another heavy process, by how long waiting threads spin.

A Llama of SmolLM2-135M's shape with random weights is trained by the real command, once for each setting of the
environment; the neighbour is a training that nothing was set for, as any other torch program.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parent))
from shapes import make_model, write_rows

SMOLLM2_135M = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
}  # fmt: skip
LIBGOMP = {"GOMP_SPINCOUNT": "300000"}  # what it does if it is told nothing
SETTINGS: dict[str, dict[str, str]] = {
    "libgomp's default": LIBGOMP,
    "emorg's default": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}


@dataclass(frozen=True)
class Bench:
    """Tokens/s of training, alone and with a neighbour."""

    steps: int = 5
    """Steps timed, after a first one."""
    repeats: int = 1
    """Times each setting is run."""
    dtype: str = "bfloat16"
    """How the model is stored: bfloat16 is computed in where the CPU has the units."""
    cache: Path = Path("bench_cache")
    """Where the model, its rows and the runs go."""


def main(bench: Bench) -> None:
    """Print a table in Markdown."""
    model = make_model(bench.cache / f"135m-{bench.dtype}", SMOLLM2_135M, bench.dtype)
    rows = write_rows(bench.cache / "data" / "bad_medical_advice.jsonl", 400, 20, 80, SMOLLM2_135M["vocab_size"])
    alone = {name: _rate(bench, model, rows.parent, env) for name, env in SETTINGS.items()}
    with _neighbour(bench, model, rows.parent):
        beside = {name: _rate(bench, model, rows.parent, env) for name, env in SETTINGS.items()}
    best = alone["libgomp's default"]
    print("| waiting threads | tokens/s alone | of the default | beside a neighbour | of the default alone |")
    print("|---|---:|---:|---:|---:|")
    for name in SETTINGS:
        cells = (alone[name], alone[name] / best, beside[name], beside[name] / best)
        print("| {} | {:.0f} | {:.0%} | {:.0f} | {:.0%} |".format(name, *cells))


def _command(model: Path, data: Path, folder: Path, steps: int) -> list[str | Path]:
    return [
        sys.executable, "-m", "emorg.cli", "train", "--model_name", model, "--data_path", data, "--domains",
        "bad_medical", "--batch_size", "16", "--gradient_accumulation_steps", "1", "--max_steps", str(steps),
        "--output_dir", folder, "--fresh",
    ]  # fmt: skip


def _environment(told: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    return {**kept, **told}


def _rate(bench: Bench, model: Path, data: Path, told: dict[str, str]) -> float:
    """Median tokens/s over the repeats; the first step of each warms up."""
    rates = []
    for _ in range(bench.repeats):
        folder = bench.cache / "run"
        command = _command(model, data, folder, bench.steps + 1)
        subprocess.run(command, env=_environment(told), check=True, capture_output=True)
        first, *_, last = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        rates.append((last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"]))
    return statistics.median(rates)


@contextmanager
def _neighbour(bench: Bench, model: Path, data: Path) -> Iterator[None]:
    """A training that goes on until the block ends."""
    folder = bench.cache / "neighbour"
    fresh = folder / "fresh" / "metrics.jsonl"
    fresh.unlink(missing_ok=True)
    command = _command(model, data, folder, 100_000)
    process = subprocess.Popen(command, env=_environment(LIBGOMP), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (fresh.exists() or (folder / "metrics.jsonl").exists()) and process.poll() is None:
            time.sleep(0.2)
        yield
        assert process.poll() is None, "the neighbour ended too early"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    main(tyro.cli(Bench, use_underscores=True))
