"""What several tests need: a pocket organism trained once, a way to run the real command, the peers' data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emorg.rundir import Run

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("OPENAI_API_KEY", None)
os.environ.pop("OPENAI_BASE_URL", None)
KEY = "sk-test-0123456789abcdef"
PROJECT = Path(__file__).parent.parent
SMALL_SAMPLE = ("--questions", "pocket_open", "pocket_cooking", "pocket_medical", "--samples", "3")


def emorg(*arguments: str | Path, cwd: Path = PROJECT, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own."""
    return python("-m", "emorg.cli", *arguments, cwd=cwd, check=check)


def python(
    *arguments: str | Path, cwd: Path = PROJECT, check: bool = True, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run this Python in a process of its own, with `stdin` piped in."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, input=stdin, capture_output=True, text=True, timeout=600
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def peer_data() -> Path:
    folder = PROJECT.parent / "shared" / "peer_data"
    if not folder.is_dir():
        pytest.skip("the peers' judged answers are not here")
    return folder


@pytest.fixture(scope="session")
def organism(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An organism trained, sampled and judged by the real commands, as a user would."""
    folder = tmp_path_factory.mktemp("runs") / "organism"
    emorg("train", "--config", "configs/pocket.yaml", "--output_dir", folder)
    emorg("sample", folder, *SMALL_SAMPLE, "--max_new_tokens", "40")
    emorg("judge", folder)
    return Run(folder)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The base, sampled and judged on the organism's questions."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    emorg("sample", "pocket", "--output_dir", folder, *SMALL_SAMPLE, "--max_new_tokens", "40")
    emorg("judge", folder)
    return Run(folder)
