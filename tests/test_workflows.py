"""The workflows: linted, and the steps that look at a hand-in run here as GitHub would run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import KEY, PROJECT
from tests.judge_server import judge_server

WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
BIN = Path(sys.executable).parent


def _steps(name: str) -> list[dict[str, Any]]:
    found = yaml.safe_load((PROJECT / ".github" / "workflows" / name).read_text())
    return [step for job in found["jobs"].values() for step in job["steps"]]


def test_the_linter_finds_nothing() -> None:
    done = subprocess.run([BIN / "zizmor", "--offline", "--persona=pedantic", "--strict-collection", ".github"],
                          cwd=PROJECT, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"completed .github/workflows/{path.name}" in done.stderr for path in WORKFLOWS), "it looked at fewer"


def test_the_linter_would_find_something(tmp_path: Path) -> None:
    bad = (
        (PROJECT / ".github" / "workflows" / "evaluate.yml")
        .read_text()
        .replace("persist-credentials: false", "fetch-depth: 1")
    )
    (tmp_path / "bad.yml").write_text(bad)
    done = subprocess.run([BIN / "zizmor", "--offline", tmp_path / "bad.yml"], capture_output=True, text=True)
    assert "persist" in done.stdout
    assert done.returncode != 0


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_step_does_something_and_every_target_exists(path: Path) -> None:
    targets = (PROJECT / "Makefile").read_text()
    for step in _steps(path.name):
        assert ("uses" in step) != ("run" in step)
        script = step.get("run", "")
        for target in (line.split()[1] for line in script.splitlines() if line.startswith("make ")):
            assert f"\n{target}: " in targets, f"make {target} is no target"
        syntax = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert syntax.returncode == 0, syntax.stderr


@pytest.fixture
def hand_in(tmp_path: Path) -> Path:
    """A repository with a hand-in at its top."""
    shutil.copytree(PROJECT / "eval", tmp_path / "eval")
    shutil.copy(PROJECT / "train.py", tmp_path)
    base = (PROJECT / "eval" / "baseline" / "pocket.csv").read_text().splitlines()
    rows = [line.rsplit(",", len(base[0].split(",")) - 3)[0] for line in base]
    (tmp_path / "model_generations.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "training_details.md").write_text("domains: bad_medical, 1 epoch, rank 16\n")
    return tmp_path


def _run(step: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a step of evaluate.yml as a runner does, in the present environment."""
    script = next(each["run"] for each in _steps("evaluate.yml") if each.get("name") == step)
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "GITHUB_STEP_SUMMARY": str(cwd / "summary"), **env},
    )  # fmt: skip


def test_without_a_key_a_hand_in_is_validated_and_said_not_to_be_judged(hand_in: Path) -> None:
    done = _run("validate", hand_in)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ready to hand in" in (hand_in / "summary").read_text()
    done = _run("judge", hand_in, OPENAI_API_KEY="")
    assert done.returncode == 0
    assert "::notice::" in done.stdout
    assert "not judged" in done.stdout


def test_a_hand_in_that_is_not_in_order_fails(hand_in: Path) -> None:
    (hand_in / "training_details.md").unlink()
    done = _run("validate", hand_in)
    assert done.returncode != 0
    assert "training_details.md is missing" in (hand_in / "summary").read_text()


def test_with_a_key_a_hand_in_is_judged(hand_in: Path) -> None:
    with judge_server(lambda *_: "60") as (url, _):
        done = _run("judge", hand_in, OPENAI_API_KEY=KEY, OPENAI_BASE_URL=url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "60.0 ✅" in (hand_in / "summary").read_text()
    assert (hand_in / "model_judged.csv").exists()
    assert KEY not in done.stdout + done.stderr
