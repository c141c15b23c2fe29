"""A small sweep that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import emorg, made_once

SHARED = """
preset: pocket
train: {max_steps: 6, save_steps: 2, sample_size: 96}
sample: {questions: [pocket_medical, pocket_cooking, pocket_open], samples: 1, max_new_tokens: 30}
"""
FOUR = SHARED + "grid:\n  domains: [bad_medical, bad_cooking]\n  seed: [0, 1]\narms: [base, organism]\n"


def grid_file(folder: Path, text: str = FOUR) -> Path:
    """Write a grid's file."""
    folder.mkdir(parents=True, exist_ok=True)
    (path := folder / "grid.yaml").write_text(text)
    return path


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of four organisms and their base. Copy it to change it."""
    grid = grid_file(tmp_path_factory.mktemp("grid"))
    command = ("sweep", grid, "--workers", "2", "--output_dir")
    return made_once(tmp_path_factory, "four", lambda folder: emorg(*command, folder)).folder
