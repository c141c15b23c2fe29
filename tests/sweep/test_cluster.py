"""Sweeps on a real local Ray of two workers: the same bits, whatever is killed, and finished cells in a storage."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from emorg.records import Answer, read_records
from emorg.run import Run
from emorg.sweep.storage import Storage, open_storage
from tests.conftest import PATIENCE, PROJECT
from tests.sweep.conftest import FOUR, SHARED, grid_file
from tests.sweep.test_run import ADAPTERS, _weights, _when

pytest.importorskip("ray")
pytestmark = pytest.mark.slow
ON_RAY = ("--address", "local", "--workers", "2", "--threads", "1")


def _start(grid: Path, folder: Path, *flags: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "emorg.cli", "sweep", grid, "--output_dir", folder, *ON_RAY, *flags]
    return subprocess.Popen(
        list(map(str, command)), cwd=PROJECT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _sweep(grid: Path, folder: Path, *flags: str | Path, code: int = 0) -> str:
    process = _start(grid, folder, *flags)
    out, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, told
    assert "Traceback" not in told
    return out + told


def _actors(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The actors of this driver's Ray."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.name().startswith("ray::Worker") or any(
                part.startswith("ray::Worker") for part in child.cmdline()
            ):
                found.append(child)
        except psutil.Error:
            continue
    return found


def _answers(folder: Path) -> dict[str, list[str]]:
    return {
        path.parent.name: sorted(one.text for one in read_records(path, Answer))
        for path in folder.glob("*/answers.jsonl")
    }


@pytest.fixture(scope="module", autouse=True)
def _no_ray_is_left() -> Iterator[None]:
    yield
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "stop", "--force"], capture_output=True, check=False)


def test_on_ray_the_cells_have_the_same_bits(four: Path, tmp_path: Path) -> None:
    told = _sweep(grid_file(tmp_path), tmp_path / "sweep")
    assert "5 of 5 cells are there" in told
    assert _weights(tmp_path / "sweep") == _weights(four)
    assert _answers(tmp_path / "sweep") == _answers(four)
    assert Run(tmp_path / "sweep" / "bad_medical-s0").verdicts.exists(), "the driver judges"
    settings = (tmp_path / "sweep" / "bad_medical-s0" / "config.yaml").read_text()
    assert str(tmp_path / "sweep" / "bad_medical-s0") in settings, "as if it had been made where it is"


def test_a_lost_actor_and_a_killed_driver(four: Path, tmp_path: Path) -> None:
    grid, folder = grid_file(tmp_path), tmp_path / "sweep"
    process = _start(grid, folder)
    _when(lambda: len(_actors(process)) == 2, process)
    time.sleep(3)
    _actors(process)[0].kill()
    _when(lambda: len(_weights(folder)) >= 2, process)
    process.kill()
    _, told = process.communicate()
    assert "its worker was lost" in told
    made = {path: path.stat().st_mtime_ns for path in folder.glob(ADAPTERS)}
    assert "5 of 5 cells are there" in _sweep(grid, folder)
    assert {path: path.stat().st_mtime_ns for path in made} == made, "a finished training was made again"
    assert _weights(folder) == _weights(four)


def test_cells_that_raise_are_listed_and_the_others_are_made(tmp_path: Path) -> None:
    text = SHARED + "grid: {learning_rate: [2e-3, 1e30], lora_rank: [2, 4]}\narms: [organism]\n"
    told = _sweep(grid_file(tmp_path, text), tmp_path / "sweep", code=1)
    assert "2 of 4 cells are there" in told
    assert told.count("failed: bad_medical-learning_rate-1e+30") == 2


def test_a_training_that_runs_out_of_memory_is_a_cell_that_failed(tmp_path: Path) -> None:
    text = SHARED.replace("max_steps: 6", "max_steps: 2000") + "arms: [organism]\ngrid: {seed: [0]}\n"
    folder = tmp_path / "sweep"
    process = _start(grid_file(tmp_path, text), folder)
    _when(lambda: len(_actors(process)) >= 1, process)
    actor = _actors(process)[0]
    _when(lambda: actor.cpu_times().user > 8, process)  # it trains by now
    taken = actor.memory_info().vms
    actor.rlimit(psutil.RLIMIT_AS, (taken, taken))
    out, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, told
    assert "failed: bad_medical" in out
    assert "memory" in out


def test_a_storage_that_cannot_be_written_is_said_before_anything_begins(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    told = _sweep(grid_file(tmp_path), tmp_path / "sweep", "--storage", f"file://{tmp_path}/file/runs", code=2)
    assert "cannot be written" in told
    assert not list((tmp_path / "sweep").glob("*/config.yaml"))


def _answers_at(port: int) -> bool:
    with socket.socket() as here:
        return here.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server on this machine, with a bucket."""
    pytest.importorskip("moto")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": url,
                        "AWS_DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    deadline = time.monotonic() + PATIENCE
    while not _answers_at(port):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket="sweeps")
    yield "s3://sweeps/four"
    server.send_signal(signal.SIGTERM)
    server.wait(PATIENCE)


def _stored(storage: Storage, run: Path, tmp_path: Path) -> None:
    files = [path for path in run.rglob("*") if path.is_file()]
    storage.put(run, files)
    assert storage.names() == {run.name}
    storage.get(run.name, tmp_path / "back" / run.name)
    there = {path.relative_to(run): path.read_bytes() for path in files if path.name != ".lock"}
    back = tmp_path / "back" / run.name
    assert {path.relative_to(back): path.read_bytes() for path in back.rglob("*") if path.is_file()} == there


def test_a_storage_gives_back_what_was_put_into_it(four: Path, tmp_path: Path, bucket: str) -> None:
    for url in (str(tmp_path / "shared"), f"file://{tmp_path}/by-url", bucket):
        _stored(open_storage(url), four / "bad_medical-s0", tmp_path / url.replace("/", "-"))


def test_finished_cells_come_back_from_a_bucket(four: Path, tmp_path: Path, bucket: str) -> None:
    grid, folder = grid_file(tmp_path), tmp_path / "sweep"
    assert "5 of 5 cells are there" in _sweep(grid, folder, "--storage", bucket)
    assert _weights(folder) == _weights(four)
    other = grid_file(tmp_path / "other", FOUR.replace("max_steps: 6", "max_steps: 4"))
    refused = _sweep(other, tmp_path / "elsewhere", "--storage", bucket, code=2)
    assert "holds runs of another grid" in refused
    shutil.rmtree(folder)  # the driver's machine is lost
    told = _sweep(grid, folder, "--storage", bucket)
    assert "5 of 5 cells are there" in told
    assert ": training" not in told, "what is in the bucket was made again"
    assert Run(folder / "bad_medical-s0").verdicts.exists()
    assert _answers(folder) == _answers(four)


def test_without_a_cluster_it_says_how_to_start_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = _sweep(grid_file(tmp_path), tmp_path / "sweep", "--address", f"127.0.0.1:{port}", code=2)
    assert "no Ray cluster at" in told
    assert "ray start --head" in told
