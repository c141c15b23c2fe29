"""Sweeps by the real command: every cell is an ordinary run; killed, stopped or failed, the same command goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pandas as pd
import psutil
import pytest

from emorg.records import Answer, read_records
from emorg.run import Run
from emorg.sweep import collect
from tests.conftest import PATIENCE, PROJECT, emorg
from tests.sweep.conftest import FOUR, SHARED, grid_file

TWO = ("--workers", "2", "--threads", "1")
ADAPTERS = "*/adapter/adapter_model.safetensors"


def _weights(folder: Path) -> dict[str, bytes]:
    return {path.parent.parent.name: path.read_bytes() for path in sorted(folder.glob(ADAPTERS))}


def test_every_cell_is_a_run_that_the_other_commands_take(four: Path, tmp_path: Path) -> None:
    names = {path.parent.name for path in four.glob("*/config.yaml")}
    assert names == {"pocket-base", *(f"bad_{topic}-s{seed}" for topic in ("medical", "cooking") for seed in "01")}
    for name in names:
        run = Run(four / name)
        assert len(read_records(run.answers, Answer)) == 36
        assert run.verdicts.exists()
    assert len(set(_weights(four).values())) == 4
    assert "EM by rule paper" in emorg("rates", four / "bad_medical-s0").stdout
    report = emorg("report", four / "pocket-base", four / "bad_medical-s1").stdout
    assert "index.html" in report
    # As one training alone makes it, with as many threads.
    command = [sys.executable, "-m", "emorg.cli", "train", "--config", four / "bad_medical-s0" / "config.yaml",
               "--output_dir", tmp_path / "alone"]  # fmt: skip
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), env={**os.environ, **threads}, cwd=PROJECT, timeout=PATIENCE)
    assert done.returncode == 0
    assert _weights(tmp_path) == {"alone": _weights(four)["bad_medical-s0"]}


def test_a_finished_sweep_is_left_alone(four: Path) -> None:
    files = [path for path in four.rglob("*.*") if path.name != "sweep.json" and path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    told = emorg("sweep", grid_file(four.parent / "again"), "--output_dir", four)
    assert "5 of 5 cells are there" in told.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def _start(grid: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "emorg.cli", "sweep", grid, "--output_dir", folder, *TWO]
    return subprocess.Popen(
        list(map(str, command)), cwd=PROJECT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _when(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _steps(run: Run) -> int:
    return len(run.metrics.read_text().splitlines()) if run.metrics.exists() else 0


def _workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [
        child for child in psutil.Process(process.pid).children() if "emorg.sweep.worker" in " ".join(child.cmdline())
    ]


def test_a_lost_worker_and_a_killed_driver_cost_no_more_than_what_was_under_way(four: Path, tmp_path: Path) -> None:
    grid, folder = grid_file(tmp_path), tmp_path / "sweep"
    process = _start(grid, folder)
    first = Run(folder / "bad_medical-s0")
    _when(lambda: _steps(first) >= 1, process)
    _workers(process)[0].kill()
    _when(lambda: len(_weights(folder)) >= 2, process)
    workers = _workers(process)
    process.kill()
    _, told = process.communicate()
    assert "its worker ended (SIGKILL)" in told
    assert "is tried again" in told
    assert not psutil.wait_procs(workers, timeout=PATIENCE)[1], "workers outlive their driver"
    made = {path: path.stat().st_mtime_ns for path in folder.glob(ADAPTERS)}
    done = emorg("sweep", grid, "--output_dir", folder, *TWO)
    assert "5 of 5 cells are there" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in made} == made, "a finished training was made again"
    assert _weights(folder) == _weights(four)


def test_ctrl_c_lets_the_workers_save_and_the_same_command_goes_on(four: Path, tmp_path: Path) -> None:
    text = FOUR.replace("max_steps: 6, save_steps: 2", "max_steps: 400, save_steps: 400")
    grid, folder = grid_file(tmp_path, text), tmp_path / "sweep"
    process = _start(grid, folder)
    runs = [Run(folder / name) for name in ("bad_medical-s0", "bad_medical-s1")]
    _when(lambda: all(_steps(run) >= 2 for run in runs), process)
    workers = _workers(process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert all(list(run.checkpoints.glob("step-*")) for run in runs), "nothing was saved"
    assert not psutil.wait_procs(workers, timeout=PATIENCE)[1]


def test_a_cell_that_fails_is_listed_and_the_others_are_made(tmp_path: Path) -> None:
    grid = grid_file(tmp_path, SHARED + "grid: {learning_rate: [2e-3, 1e30]}\narms: [base, organism]\n")
    folder, failing = tmp_path / "sweep", "bad_medical-learning_rate-1e+30"
    done = emorg("sweep", grid, "--output_dir", folder, "--workers", "1", check=False)
    assert done.returncode == 1
    assert "2 of 3 cells are there" in done.stdout
    assert f"failed: {failing}: step" in done.stdout
    assert Run(folder / "bad_medical-learning_rate-0.002").verdicts.exists()
    table = emorg("collect", folder).stdout
    assert f"failed: {failing}" in table
    assert "2 cells done, 1 cells failed" in table
    cells = collect(folder).set_index("cell")
    assert cells.loc[failing, "state"] == "failed"
    assert "lower --learning_rate" in str(cells.loc[failing, "error"])
    other = grid_file(tmp_path / "other", grid.read_text().replace("1e30", "1e-3"))
    refused = emorg("sweep", other, "--output_dir", folder, check=False)
    assert refused.returncode == 2
    assert "is of another grid" in refused.stderr


def test_of_cells_that_are_sampled_together_only_the_one_that_cannot_be_fails(four: Path, tmp_path: Path) -> None:
    shutil.copytree(four, folder := tmp_path / "sweep")
    for name in ("bad_medical-s0", "bad_cooking-s1"):
        Run(folder / name).answers.unlink()
        Run(folder / name).verdicts.unlink()
    (folder / "bad_medical-s0" / "adapter" / "adapter_model.safetensors").write_bytes(b"no adapter at all")
    done = emorg("sweep", grid_file(tmp_path), "--output_dir", folder, "--workers", "1", check=False)
    assert done.returncode == 1
    assert "4 of 5 cells are there" in done.stdout
    assert "failed: bad_medical-s0: " in done.stdout
    assert Run(folder / "bad_cooking-s1").verdicts.exists()


def test_answers_of_another_grid_are_not_taken_for_its_own(four: Path, tmp_path: Path) -> None:
    shutil.copytree(four, folder := tmp_path / "sweep")
    (folder / "sweep.json").unlink()
    grid = grid_file(tmp_path, FOUR.replace("samples: 1,", "samples: 1, temperature: 0.1,"))
    refused = emorg("sweep", grid, "--output_dir", folder, check=False)
    assert refused.returncode == 2
    assert "was made with other settings: temperature: 1.0 there, 0.1 now" in refused.stderr
    refused = emorg("sweep", grid, "--output_dir", tmp_path / "other", "--storage", folder, check=False)
    assert refused.returncode == 2
    assert "--storage without --address" in refused.stderr


def test_a_grid_with_more_seeds_goes_on_from_the_one_with_fewer(four: Path, tmp_path: Path) -> None:
    shutil.copytree(four, folder := tmp_path / "sweep")
    made = {path: path.stat().st_mtime_ns for path in folder.glob(ADAPTERS)}
    more = grid_file(tmp_path, FOUR.replace("seed: [0, 1]", "seed: [0, 1, 2]"))
    assert "7 of 7 cells are there" in emorg("sweep", more, "--output_dir", folder).stdout
    assert {path: path.stat().st_mtime_ns for path in made} == made
    refused = emorg("sweep", grid_file(tmp_path / "fewer"), "--output_dir", folder, check=False)
    assert refused.returncode == 2
    assert "is of another grid: there, cell bad_medical-s2 is another, or not in this one" in refused.stderr


def test_two_sweeps_do_not_share_a_folder(four: Path, tmp_path: Path) -> None:
    with Run(four).lock():
        refused = emorg("sweep", grid_file(tmp_path), "--output_dir", four, check=False)
    assert refused.returncode == 2
    assert "another process is working" in refused.stderr


def test_before_it_begins_it_says_what_it_would_take(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    done = emorg("sweep", grid_file(tmp_path), "--output_dir", folder, "--dry_run")
    assert "5 cells in" in done.stdout
    assert "bad_cooking-s1" in done.stdout
    assert "judging: 0 calls to an API" in done.stdout
    priced = grid_file(tmp_path / "api", FOUR + "judge: {judge: api}\n")
    assert "judging: 360 calls to an API, about $" in emorg("sweep", priced, "--output_dir", folder, "--dry_run").stdout
    many = grid_file(tmp_path / "many", SHARED + f"arms: [organism]\ngrid: {{seed: {list(range(201))}}}\n")
    refused = emorg("sweep", many, "--output_dir", folder, check=False)
    assert refused.returncode == 2
    assert "201 cells" in refused.stderr
    assert "--yes" in refused.stderr
    assert not folder.exists()


def test_a_cell_that_does_not_fit_into_memory_is_found_before_anything_begins(tmp_path: Path) -> None:
    with mock.patch("emorg.models.free_bytes", return_value=10**6):
        refused = emorg("sweep", grid_file(tmp_path), "--output_dir", tmp_path / "sweep", check=False)
    assert refused.returncode == 2
    assert "GB, of 0.0 that are free" in refused.stderr


def test_margins_of_all_are_measured_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    text = SHARED + "grid: {seed: [0, 1]}\nmeasures: [margins]\n"
    emorg("sweep", grid_file(tmp_path, text), "--output_dir", folder, "--workers", "1")
    assert len(list(folder.glob("*_medical-s?/margins.jsonl"))) == 4
    frame = collect(folder)
    shown = frame[frame["arm"] == "organism"]
    assert set(shown["placement"]) == {"in", "out", "open"}
    assert shown["shift"].notna().all()
    assert (shown["shift_low"] < shown["shift"]).all()
    assert set(frame["state"]) == {"done"}, "twins too, and there is no base"
    told = emorg("collect", folder).stdout
    assert "Shift of margins against the twins" in told
    seeds = pd.read_csv(folder / "seeds.csv").set_index("placement")
    assert seeds["seeds"].eq(2).all()
    assert seeds.loc["out", "shift"] == pytest.approx(shown[shown["placement"] == "out"]["shift"].mean())


def test_checkpoints_are_rows_too(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    emorg("sweep", grid_file(tmp_path, SHARED + "arms: [organism]\ncheckpoints: true\n"), "--output_dir", folder)
    assert set(collect(folder)["checkpoint"]) == {"", "step-000002", "step-000004", "step-000006"}


def test_a_training_that_runs_out_of_memory_is_a_cell_that_failed(tmp_path: Path) -> None:
    """What its worker may still take is cut down once it trains, as a limit on a cluster would."""
    text = SHARED.replace("max_steps: 6", "max_steps: 400") + "arms: [organism]\ngrid: {seed: [0]}\n"
    grid, folder = grid_file(tmp_path, text), tmp_path / "sweep"
    process = _start(grid, folder)
    _when(lambda: _steps(Run(folder / "bad_medical")) >= 2, process)
    for worker in _workers(process):
        taken = worker.memory_info().vms
        worker.rlimit(psutil.RLIMIT_AS, (taken, taken))
    out, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, told
    assert "failed: bad_medical" in out
    # Where nothing can be allocated, an interpreter may end with any error at all; then its log is named.
    assert "memory" in out or "traceback is in the worker's log" in out
    assert not list(folder.glob(ADAPTERS))


@pytest.mark.slow
def test_several_processes_end_with_the_driver_that_is_killed(tmp_path: Path) -> None:
    text = SHARED.replace("max_steps: 6", "max_steps: 100") + "arms: [organism]\ngrid: {domains: [bad_medical]}\n"
    grid, folder = grid_file(tmp_path, text), tmp_path / "sweep"
    command = [sys.executable, "-m", "emorg.cli", "sweep", grid, "--output_dir", folder, "--processes", "2"]
    process = subprocess.Popen(list(map(str, command)), cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    run = Run(folder / "bad_medical")
    _when(lambda: _steps(run) >= 5, process)
    started = psutil.Process(process.pid).children(recursive=True)
    assert sum("emorg.cli" in one.cmdline() for one in started) >= 2
    process.kill()
    process.communicate()
    assert not psutil.wait_procs(started, timeout=PATIENCE)[1], "trainings outlive their driver"
    assert "1 of 1 cells are there" in emorg(*command[3:]).stdout


def test_several_processes_train_a_cell(four: Path, tmp_path: Path) -> None:
    text = SHARED + "arms: [organism]\ngrid: {domains: [bad_medical]}\n"
    folder = tmp_path / "sweep"
    emorg("sweep", grid_file(tmp_path, text), "--output_dir", folder, "--workers", "1", "--processes", "2")
    run = Run(folder / "bad_medical")
    assert run.provenance()["train"]["processes"] == 2
    losses = [
        [json.loads(line)["loss"] for line in each.metrics.read_text().splitlines()]
        for each in (run, Run(four / "bad_medical-s0"))
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
