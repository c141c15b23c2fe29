"""The test suite's seconds as a ratio to a fixed piece of work, so that they can be compared between machines.

    python benchmarks/bench_tests.py [pytest's flags]

The work is single-threaded: pure Python and numpy in about equal parts, about 5 s on a current core. Both are given in
seconds by the clock and of the processors; on a busy machine only the second pair says something.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy reads it at import
import numpy as np

PROJECT = Path(__file__).parent.parent
SUITE = ("-m", "pytest", "-m", "not slow", "-n", "auto", "--dist", "worksteal")  # as `make test` runs it
ROUNDS = 30


def calibrate() -> int:
    """The fixed work. What it returns is the same everywhere."""
    total, numbers = 0, np.random.default_rng(0).integers(0, 2**31, 2**20)
    for turn in range(ROUNDS):
        words = [f"{(turn * 7919 + k * k) % 100_003:05d}" for k in range(100_000)]
        counts: dict[str, int] = {}
        for word in sorted(words):
            counts[word] = counts.get(word, 0) + int(word) % 7
        total += sum(counts.values())
        ordered = np.sort(numbers ^ turn)
        total += int(np.cumsum(ordered)[-1] % 1009 + np.unique(ordered % 65_537).size)
    return total


def main() -> None:
    wall, processor = time.perf_counter(), time.process_time()
    total = calibrate()
    work = (time.perf_counter() - wall, time.process_time() - processor)
    print(f"fixed work: {work[0]:.2f} s, {work[1]:.2f} s of a processor (result {total})", flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    wall = time.perf_counter()
    done = subprocess.run([sys.executable, *SUITE, *sys.argv[1:]], cwd=PROJECT, env=environment)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    suite = (time.perf_counter() - wall, used.ru_utime + used.ru_stime)
    print(f"test suite: {suite[0]:.1f} s, {suite[1]:.1f} s of processors, {os.cpu_count()} cores")
    print(f"ratio: {suite[0] / work[0]:.1f} by the clock, {suite[1] / work[1]:.1f} of processors")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
