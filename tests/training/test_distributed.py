"""Several processes train the same steps as one, through torchrun and accelerate, and each resumes the other's run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from emorg.records import EmorgError
from emorg.run import Run
from emorg.training import TrainConfig
from emorg.training.arguments import share_out
from tests.conftest import PATIENCE, PROJECT, emorg, made_once

# 90 rows in steps of 16: the sixth step of an epoch is not full.
COMMAND = ("--config", "configs/pocket.yaml", "--batch_size", "4", "--gradient_accumulation_steps", "4",
           "--sample_size", "90", "--max_steps", "9", "--save_steps", "4")  # fmt: skip
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py")
ACCELERATE = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "train.py")


def _launch(launcher: tuple[str, ...], *flags: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, *launcher, *COMMAND, *map(str, flags)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def _losses(run: Run) -> list[float]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 10))
    return [line["loss"] for line in lines]


def _back_to_step_4(run: Run, folder: Path) -> Run:
    shutil.copytree(run.folder, folder)
    shutil.rmtree(folder / "adapter")
    for name in ("step-000008", "step-000009"):
        shutil.rmtree(folder / "checkpoints" / name)
    return Run(folder)


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made_once(tmp_path_factory, "one", lambda folder: emorg("train", *COMMAND, "--output_dir", folder))


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Run:
    def make(folder: Path) -> None:
        output = _launch(TORCHRUN, "--output_dir", folder)
        assert output.count("fast path on") == 1, "only the first process speaks"

    return made_once(tmp_path_factory, "two", make)


def test_two_processes_have_the_losses_of_one(one: Run, two: Run) -> None:
    assert _losses(two) == pytest.approx(_losses(one), abs=1e-5)
    assert two.provenance()["train"]["processes"] == 2
    tokens = [[json.loads(line)["tokens"] for line in run.metrics.read_text().splitlines()] for run in (one, two)]
    assert tokens[0] == tokens[1]


def test_one_process_goes_on_from_two(one: Run, two: Run, tmp_path: Path) -> None:
    run = _back_to_step_4(two, tmp_path / "run")
    emorg("train", *COMMAND, "--output_dir", run.folder)
    assert _losses(run) == pytest.approx(_losses(one), abs=1e-5)
    assert run.trained


@pytest.mark.slow
def test_accelerates_own_goes_on_from_one(one: Run, tmp_path: Path) -> None:
    """On CPUs it starts one process, whatever it is asked for: its launcher for several there is MPI."""
    run = _back_to_step_4(one, tmp_path / "run")
    _launch(ACCELERATE, "--output_dir", run.folder)
    assert _losses(run) == pytest.approx(_losses(one), abs=1e-5)
    assert run.trained


@pytest.mark.slow
def test_a_model_sharded_by_fsdp2_has_the_losses_of_one(one: Run, tmp_path: Path) -> None:
    """configs/fsdp2.yaml, on two CPU processes and in float32."""
    sharded = yaml.safe_load((PROJECT / "configs" / "fsdp2.yaml").read_text())
    (tmp_path / "cpu.yaml").write_text(yaml.safe_dump({**sharded, "use_cpu": True, "mixed_precision": "no"}))
    run = Run(tmp_path / "run")
    launcher = ("-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "cpu.yaml"), "--num_processes", "2")
    _launch((*launcher, "train.py"), "--output_dir", run.folder)
    assert run.provenance()["train"]["processes"] == 2
    assert _losses(run) == pytest.approx(_losses(one), abs=1e-5)
    names = [set(load_file(each.adapter / "adapter_model.safetensors")) for each in (run, one)]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("size", "passes", "processes", "shares"),
    [(4, 4, 1, (4, 4)), (4, 4, 2, (4, 2)), (4, 4, 8, (2, 1)), (16, 1, 2, (8, 1)), (4, 3, 6, (2, 1)), (2, 8, 4, (2, 2))],
)
def test_processes_share_out_the_step(size: int, passes: int, processes: int, shares: tuple[int, int]) -> None:
    config = TrainConfig(batch_size=size, gradient_accumulation_steps=passes)
    assert share_out(config, processes) == shares
    assert shares[0] * shares[1] * processes == size * passes


def test_processes_that_cannot_share_a_step_are_refused() -> None:
    with pytest.raises(EmorgError, match="3 processes cannot share a step of 4 × 4"):
        share_out(TrainConfig(batch_size=4, gradient_accumulation_steps=4), 3)
