"""The documentation's notebook in a real kernel: it runs, says only what it should, and was saved executed."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.conftest import PATIENCE, PROJECT

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
