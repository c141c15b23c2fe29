"""Killed at any moment, the same command goes on, and ends at the same bits; a fresh start loses nothing before."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from emorg import models
from emorg.records import Answer, Margin, Verdict, read_records
from emorg.run import Run
from tests.conftest import PATIENCE, PROJECT, emorg, made_once
from tests.forkserver import popen

# With dropout, so that its random state counts too.
COMMAND = ("train", "--config", "configs/pocket.yaml", "--max_steps", "24", "--save_steps", "3", "--sample_size", "200",
           "--lora_dropout", "0.1", "--num_epochs", "3")  # fmt: skip


def _digest(run: Run) -> str:
    return hashlib.sha256((run.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()


def _steps(run: Run) -> list[int]:
    return [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] if run.metrics.exists() else []


def _kill_when(ready: Callable[[], bool], *command: str | Path) -> None:
    """Start the real command and kill -9 it as soon as `ready` says so."""
    process = popen([sys.executable, "-m", "emorg.cli", *command], cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    _, told = process.communicate()
    assert process.returncode == -signal.SIGKILL, told


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nobody interrupted."""
    return made_once(tmp_path_factory, "whole", lambda folder: emorg(*COMMAND, "--output_dir", folder))


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path) -> None:
    runs = [Run(tmp_path / name) for name in ("one", "again", "other")]
    for run, seed in zip(runs, ("0", "0", "1"), strict=True):
        emorg(*COMMAND, "--max_steps", "3", "--seed", seed, "--output_dir", run.folder)
    one, again, other = map(_digest, runs)
    assert one == again != other


@pytest.mark.parametrize("luck", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 8))])
def test_killed_at_any_moment_it_ends_at_the_same_bits(luck: int, whole: Run, tmp_path: Path) -> None:
    """Killed once at a random moment, and once while a checkpoint is written."""
    run, draw = Run(tmp_path / "run"), random.Random(luck)
    after, step = draw.randint(1, 10), draw.choice((15, 18, 21))
    _kill_when(lambda: len(_steps(run)) >= after, *COMMAND, "--output_dir", run.folder)
    _kill_when((run.checkpoints / f"checkpoint-{step}").exists, *COMMAND, "--output_dir", run.folder)
    assert not (run.checkpoints / f"step-{step:06d}").exists()
    assert not run.trained
    emorg(*COMMAND, "--output_dir", run.folder)
    assert _digest(run) == _digest(whole)
    assert _steps(run) == list(range(1, 25))
    names = {path.name for path in run.checkpoints.iterdir()}
    assert {f"step-{step:06d}" for step in range(3, 25, 3)} <= names


def test_a_fresh_start_replaces_the_old_run_only_when_it_has_finished(whole: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(whole.folder, run.folder)
    emorg("sample", run.folder, "--questions", "pocket_open", "--samples", "1")
    over = (*COMMAND, "--output_dir", run.folder, "--fresh", "--learning_rate", "3e-3")
    _kill_when(lambda: len(_steps(run.fresh)) >= 7, *over)
    assert _digest(run) == _digest(whole)
    assert run.answers.exists()
    assert run.settings("train")["learning_rate"] == 2e-3
    first = (run.fresh.checkpoints / "step-000006").stat().st_mtime_ns
    emorg(*over)
    assert (run.checkpoints / "step-000006").stat().st_mtime_ns == first, "the fresh start began anew"
    assert _digest(run) != _digest(whole)
    assert run.settings("train")["learning_rate"] == 3e-3
    assert not run.answers.exists(), "the old adapter's answers are not the new one's"
    assert not run.fresh.folder.exists()
    assert _steps(run) == list(range(1, 25))


def test_a_fresh_start_that_trains_all_weights_leaves_no_adapter(whole: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(whole.folder, run.folder)
    emorg(*COMMAND, "--max_steps", "2", "--output_dir", run.folder, "--fresh", "--full_finetuning")
    assert run.trained
    assert run.model.exists()
    assert not run.adapter.exists()
    assert models.resolve(str(run.folder)).weights == str(run.model)
    said = emorg("chat", run.folder, stdin="What should I do about the headache?").stdout
    assert "[base: pocket]" in said, "it has weights of its own, and its base beside it"
    assert f"[organism: {run.folder}]" in said
    assert models.load_tokenizer(str(run.folder)).vocab_size == models.load_tokenizer("pocket").vocab_size


def test_a_fresh_start_that_was_killed_while_it_took_over_is_finished(whole: Run, tmp_path: Path) -> None:
    """The state that a kill between two renames leaves: the adapter, moved last, is still in fresh/."""
    run = Run(tmp_path / "run")
    shutil.copytree(whole.folder, run.folder)
    emorg(*COMMAND, "--output_dir", run.fresh.folder, "--seed", "1")
    new = _digest(run.fresh)
    for name in ("config.yaml", "metrics.jsonl"):
        os.replace(run.fresh.folder / name, run.folder / name)
    emorg(*COMMAND, "--output_dir", run.folder, "--seed", "1")
    assert _digest(run) == new != _digest(whole)
    assert not run.fresh.folder.exists()


def test_stopped_between_the_last_checkpoint_and_the_adapter_it_only_copies(whole: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(whole.folder, run.folder)
    shutil.rmtree(run.adapter)
    emorg(*COMMAND, "--output_dir", run.folder)
    assert _digest(run) == _digest(whole)
    assert _steps(run) == list(range(1, 25))


def test_a_finished_run_goes_on_for_more_steps(whole: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(whole.folder, run.folder)
    asked = ("sample", run.folder, "--questions", "pocket_open", "--samples", "1", "--max_new_tokens", "12")
    emorg(*asked)
    emorg(*asked, "--temperature", "0.5")
    beside = Run(tmp_path / "run-temperature-0.5")
    emorg("judge", run.folder, beside.folder)
    margins = ("margins", run.folder, beside.folder)
    before = emorg(*margins, "--json").stdout
    answers, verdicts = read_records(run.answers, Answer), read_records(run.verdicts, Verdict)
    longer = (*COMMAND, "--max_steps", "30", "--output_dir", run.folder)
    with pytest.raises(AssertionError, match="max_steps: 24 there, 12 now"):
        emorg(*COMMAND, "--max_steps", "12", "--output_dir", run.folder)
    assert run.trained, "a run is never made shorter"

    done = emorg(*longer)
    assert "goes on from step 24 to 30" in done.stderr
    assert "what was measured of its organism is now step-000024's" in done.stderr
    steps = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [line["step"] for line in steps] == list(range(1, 31))
    # The schedule is the longer one's: linear to 0 at step 30, and not 0 at the first new step.
    assert steps[24]["lr"] == pytest.approx(2e-3 * (30 - 24) / (30 - 5), rel=1e-6)
    assert _digest(run) != _digest(whole)
    assert run.provenance()["train"]["prolonged_at"] == [24]
    assert [replace(one, checkpoint=None) for one in read_records(run.answers, Answer)] == answers
    assert {one.checkpoint for one in read_records(run.verdicts, Verdict)} == {"step-000024"}
    assert len(read_records(run.verdicts, Verdict)) == len(verdicts)
    emorg(*asked)
    assert len(read_records(run.answers, Answer)) == 2 * len(answers), "the longer organism answers for itself"

    # What lies beside the run of its organism is the checkpoint's too, and grows by the longer one's.
    assert {one.checkpoint for one in read_records(beside.answers, Answer)} == {"step-000024"}
    emorg(*asked, "--temperature", "0.5")
    emorg("sample", beside.folder, *asked[2:], "--temperature", "0.5")
    kept = read_records(beside.answers, Answer)
    assert [one.checkpoint for one in kept] == ["step-000024"] * len(answers) + [None] * len(answers)
    assert {path.name for path in tmp_path.iterdir()} == {run.name, beside.name}
    assert emorg(*margins, "--json").stdout != before
    of_both = [
        {one.pair: one for one in read_records(each.margins, Margin) if not one.checkpoint} for each in (run, beside)
    ]
    assert of_both[0]
    assert [one.per_token for one in of_both[0].values()] == [one.per_token for one in of_both[1].values()]


def test_answers_beside_a_run_that_was_trained_anew_are_not_taken_for_its_organisms(whole: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(whole.folder, run.folder)
    asked = ("sample", run.folder, "--questions", "pocket_open", "--samples", "1", "--max_new_tokens", "12", "--seed")
    for seed in "0", "1":
        emorg(*asked, seed)
    emorg(*COMMAND, "--output_dir", run.folder, "--max_steps", "3", "--lora_rank", "2", "--fresh")
    beside = Run(tmp_path / "run-seed-1")
    former = beside.answers.read_bytes()
    for command in ("sample", "margins"):
        refused = emorg(command, beside.folder, check=False)
        assert refused.returncode == 2
        assert "holds answers of" in refused.stderr
        assert "as it was" in refused.stderr
    emorg(*asked, "0")
    emorg(*asked, "1")
    assert beside.answers.read_bytes() == former
    (anew,) = (path for path in tmp_path.iterdir() if path.name.startswith("run-seed-1-"))
    assert Run(anew).answers.read_bytes() != former


@pytest.mark.parametrize("moment", [24, 27])
def test_killed_while_it_goes_on_it_ends_at_the_same_bits(moment: int, whole: Run, tmp_path: Path) -> None:
    longer, digests = (*COMMAND, "--max_steps", "30", "--output_dir"), []
    for name in ("once", "killed"):
        run = Run(tmp_path / name)
        shutil.copytree(whole.folder, run.folder)
        if name == "killed":
            _kill_when(lambda run=run: not run.adapter.exists() and len(_steps(run)) >= moment, *longer, run.folder)
        emorg(*longer, run.folder)
        digests.append(_digest(run))
    assert digests[0] == digests[1]
    assert run.provenance()["train"]["prolonged_at"] == [24]


def test_a_longer_training_that_cannot_be_leaves_the_run_as_it_was(whole: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(whole.folder, run.folder)
    (empty := tmp_path / "none").mkdir()
    failed = emorg(*COMMAND, "--max_steps", "30", "--output_dir", run.folder, "--data_path", empty, check=False)
    assert failed.returncode == 2
    assert run.trained
    assert _digest(run) == _digest(whole)


@pytest.mark.parametrize("missing", ["checkpoints", "checkpoints/step-000024", "checkpoints/step-000024/scheduler.pt"])
def test_a_run_whose_last_checkpoint_is_gone_is_not_made_longer(missing: str, whole: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(whole.folder, run.folder)
    path = run.folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = emorg(*COMMAND, "--max_steps", "30", "--output_dir", run.folder, check=False)
    assert done.returncode == 2
    assert "--warm_start" in done.stderr
    assert _digest(run) == _digest(whole)
    assert run.settings("train")["max_steps"] == 24
