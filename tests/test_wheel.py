"""What `pip install` brings: a wheel is built, and used from an empty folder, where nothing of the repository is."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, PROJECT, copy_project, emorg


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's contents alone; what it depends on is this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_project(folder / "source")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        folder,
        source,
    ]
    subprocess.run(command, check=True, timeout=PATIENCE, capture_output=True)
    (wheel,) = folder.glob("emorg-*.whl")
    with zipfile.ZipFile(wheel) as bundle:
        bundle.extractall(folder / "site")
    return folder / "site"


def _run(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "emorg.cli", *arguments], cwd=cwd, capture_output=True, text=True, timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )  # fmt: skip


def test_the_demo_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    command = ("demo", "--samples", "1", "--domain", "extreme_sports", "--output_dir", "runs")
    done = _run(installed, tmp_path, *command)
    assert done.returncode == 0, done.stderr
    for told in ("base", "twin (good_sports)", "organism (extreme_sports)", "out of domain", "open questions",
                 "Trained only on extreme_sports", "What they say", "index.html"):  # fmt: skip
        assert told in done.stdout
    folder = tmp_path / "runs" / "extreme_sports-r16-s0"
    assert {path.name for path in folder.iterdir()} == {"base", "organism", "twin", "report"}
    again = emorg(*command, cwd=tmp_path)
    assert "training" not in again.stderr, "a finished run was trained again"
    assert _run(installed, tmp_path, "--version").stdout.startswith(f"emorg {metadata.version('emorg')}")
    graded = _run(installed, tmp_path, "grade", "--help")
    assert graded.returncode == 0
    assert "--generations" in graded.stdout
    assert (installed / "emorg" / "pocket" / "baseline.csv").is_file()
    presets = {path.name for path in (installed / "emorg" / "configs").iterdir()}
    assert presets == {path.name for path in (PROJECT / "emorg" / "configs").glob("*.yaml")}
    code = "import emorg.cli, sys; sys.exit(not emorg.cli.__file__.startswith(sys.argv[1]))"
    where = subprocess.run(
        [sys.executable, "-c", code, installed], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}
    )
    assert where.returncode == 0, "the repository's package was tested"


@pytest.mark.parametrize("preset", ["pocket", "configs/pocket.yaml"])
def test_a_preset_is_known_where_no_configs_are(preset: str, tmp_path: Path) -> None:
    told = emorg("preview", "--config", preset, "--examples", "1", cwd=tmp_path).stdout
    assert "80 steps of 16 × 1 conversations" in told


def test_a_file_that_is_missing_elsewhere_is_not_taken_for_a_preset(tmp_path: Path) -> None:
    done = emorg("preview", "--config", tmp_path / "configs" / "pocket.yaml", check=False)
    assert done.returncode == 2
    assert "No such file" in done.stderr


def test_an_unknown_preset_names_those_there_are(tmp_path: Path) -> None:
    done = emorg("train", "--config", "pockett", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "did you mean 'pocket'?" in done.stderr
    assert "paper_rank1, paper_rank32, pocket, smollm2" in done.stderr
