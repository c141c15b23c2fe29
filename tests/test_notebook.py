"""The documentation's notebooks in a real kernel: they run, say only what they should, and were saved executed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from emorg import models
from tests.conftest import PATIENCE, PROJECT, copy_project

NOTEBOOK = PROJECT / "docs" / "notebook.ipynb"


def test_the_notebook_runs_and_was_saved_with_its_outputs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in code if cell is not code[-1]), "run it, then save it"
    saved = [[output.output_type for output in cell.outputs] for cell in code]
    NotebookClient(notebook, timeout=PATIENCE, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert [[output.output_type for output in cell.outputs] for cell in code] == saved
    shown = "\n".join(str(output.get("data", {}).get("text/plain", "")) for output in outputs)
    assert "training organism 80/80" in shown, "a progress line is drawn into its cell"
    assert "they differ" in shown
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()} == {"base", "organism", "twin"}


HOMEWORK = PROJECT / "docs" / "homework.ipynb"


@pytest.mark.parametrize(
    ("model", "shorter"), [("pocket", "--max_steps 20"), pytest.param("smollm2", "", marks=pytest.mark.slow)]
)
def test_the_homeworks_notebook_goes_from_training_to_the_hand_in(
    model: str, shorter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a kernel at the top of a fresh copy, with the environment's programs on its path and no key."""
    if model != "pocket" and models.cached(model) is None:
        pytest.skip(f"{model} is not in the cache")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    notebook = nbformat.read(HOMEWORK, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for old, new in (('MODEL = "smollm2"', f'MODEL = "{model}"'), ('SHORTER = ""', f'SHORTER = "{shorter}"')):
        assert old in code[0].source
        code[0].source = code[0].source.replace(old, new)
    clone = copy_project(tmp_path / "clone")
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(clone)}}).execute()
    shown = ["".join(output.get("text", "") for output in cell.outputs) for cell in code]
    assert "Traceback" not in "".join(shown)
    assert "\x1b[?25l" not in "".join(shown), "no cell is drawn over, which no notebook can show"
    for expected in ("training medical", "training twin", "[organism: runs/medical]", "20 answers of runs/medical",
                     "the smallest rate told", "medical, out of domain", "ready to hand in"):  # fmt: skip
        assert any(expected in text for text in shown), expected
    judged = "judged by exact" if model == "pocket" else "Without a key nothing is judged"
    assert any(judged in text for text in shown)
    made = {path.name for path in (clone / "submission").iterdir()}
    assert {"train.py", "model_generations.csv", "training_details.md", "training.png"} <= made


def test_the_homeworks_notebook_was_saved_executed() -> None:
    cells = [cell for cell in nbformat.read(HOMEWORK, 4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells), "run it, then save it"
    assert all(cell.outputs for cell in cells[2:])
