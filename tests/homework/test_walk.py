"""docs/homework.md walked from its top to its end on a fresh copy without a network, and every next step followed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from emorg.run import Run
from tests.conftest import PATIENCE, PROJECT, copy_project
from tests.forkserver import run

PAGE = PROJECT / "docs" / "homework.md"
SET_UP = ("make ", "source ", "easy-dataset-share ", "export ")  # done already, or in need of a network
NO_KEY = {"python check_env.py --offline": 1, "python eval/run_tests.py": 2}  # their exit codes, as the page shows them
MAIN = "python train.py --config configs/pocket.yaml --domains bad_medical --output_dir runs/medical"
FOLLOWED = ("python train.py", MAIN)  # the other trainings' next steps are the same but for the run
NEEDS_LLAMA = re.compile(r"python train\.py(?!.*--(help|config))")
NEXT = re.compile(r"^next: emorg (.*?)(?:   \(|$)", re.MULTILINE)
INSTEAD = ["--model_name", "pocket", "--sample_size", "16"]  # of Llama on all rows


def _commands() -> Iterator[str]:
    """What the page has a reader type: lines of bash, and in what is printed those after a $."""
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        lines = block.replace("\\\n", " ").splitlines()
        typed = lines if kind == "bash" else [line[2:] for line in lines if line.startswith("$ ")] if not kind else []
        yield from (command for line in typed if (command := line.partition("   #")[0].strip()))


def _run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """As a shell with the virtual environment's programs would; without variables of its own, forked."""
    program = {"python": [sys.executable], "emorg": [sys.executable, "-m", "emorg.cli"]}.get(command[0], [command[0]])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    start = subprocess.run if environment else run
    return start(
        [*program, *command[1:]], cwd=folder, input="", capture_output=True, text=True, timeout=PATIENCE,
        env={**os.environ, "PATH": path, **environment},
    )  # fmt: skip


def test_the_homework_from_the_first_command_to_the_last_next_step(tmp_path: Path) -> None:
    folder = copy_project(tmp_path / "a fresh clone")
    ours = {"PYTHONPATH": str(folder)}  # the copy's package
    away = {**ours, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    refused = _run(["python", "train.py"], folder, **away)
    assert refused.returncode == 2
    assert "is not there\n→ unlock it: emorg data unlock" in refused.stderr, "what is local is looked at first"
    walked, followed = [], []
    for line in _commands():
        if line.startswith(SET_UP):
            continue
        command = shlex.split(line)
        if line == "python train.py":
            refused = _run(command, folder, **away)
            assert refused.returncode == 2
            assert "the Hugging Face hub cannot be reached" in refused.stderr, refused.stderr
            assert "--model_name pocket, or smollm2" in refused.stderr
        command += INSTEAD if NEEDS_LLAMA.match(line) else []
        done = _run(command, folder, **(ours if line in (MAIN, "bash eval/run_tests.sh --judge exact") else {}))
        assert done.returncode == NO_KEY.get(line, 0), f"{line}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, f"{line}\n{done.stderr}"
        walked.append(line)
        while line in FOLLOWED and (
            following := re.search(r"^next: emorg (.*?)(?:   \(|$)", done.stdout, re.MULTILINE)
        ):
            done = _run(["emorg", *shlex.split(following[1])], folder)
            assert done.returncode == 0, f"{following[1]}\n{done.stdout}{done.stderr}"
            followed.append(following[1].split()[0])
    assert len(walked) >= 15, walked
    assert followed == ["sample", "judge", "report"] * len(FOLLOWED)
    assert (Run(folder / "runs" / "medical").report / "index.html").exists()
    handed_in = {path.name for path in (folder / "submission").iterdir()}
    assert {"train.py", "model_generations.csv", "training_details.md", "model_judged.csv"} <= handed_in


def test_the_page_has_every_command_of_the_homeworks_documentation() -> None:
    """Its own commands, with or without flags of ours."""
    page = "\n".join(_commands())
    documented = (
        "cp .env.example .env", "python check_env.py", "easy-dataset-share unprotect-dir", "python train.py",
        "python train.py --domains bad_medical extreme_sports", "--num_epochs 7 --lora_rank 16",
        "python train.py --help", "python generate.py", "python sandbox.py", "bash eval/run_tests.sh",
        "python eval/run_tests.py", "python test_data_loading.py",
    )  # fmt: skip
    assert [command for command in documented if command not in page] == []
