"""The simulation of docs/scale.md: the sweep's own scheduler with workers that are not there."""

import re
import subprocess
import sys
from pathlib import Path

SCALE = Path(__file__).parents[2] / "benchmarks" / "scale.py"


def hours(*flags: str) -> list[float]:
    """Of each row that the command prints."""
    command = [sys.executable, str(SCALE), "--organisms", "12", "--train_seconds", "3600", "--sample_seconds", "0"]
    quiet = ["--start_seconds", "0", "--calls", "0", "--lost_an_hour", "0", "--slow", "0"]
    done = subprocess.run([*command, *quiet, *flags], capture_output=True, text=True, check=True, timeout=120)
    return [float(row) for row in re.findall(r"^\| [\d,]+ \| ([\d.]+) \|", done.stdout, re.MULTILINE)]


def test_it_takes_what_the_tasks_take_on_so_many_workers():
    assert hours("--workers", "1", "5", "12") == [12, 3, 1]


def test_the_judge_works_beside_the_workers_and_slow_workers_take_three_times_as_long():
    judged = hours("--workers", "12", "4", "--calls", "100", "--calls_a_minute", "5")  # four hours in all
    assert judged == [5, 6]  # the first answers are there after one hour, and after two, when eight are trained
    assert hours("--workers", "4", "--slow", "1") == [9]
