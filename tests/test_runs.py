"""`emorg runs` says what each run is, and deletes nothing but folders in which nothing was made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from emorg.run import Run
from tests.conftest import emorg


@pytest.fixture
def folder(organism: Run, base: Run, tmp_path: Path) -> Path:
    """An organism, its base, a training that was stopped, a run that cannot be read, and two empty folders."""
    runs = tmp_path / "runs"
    for name, run in (("organism", organism), ("deep/base", base), ("stopped", organism), ("broken", organism)):
        shutil.copytree(run.folder, runs / name)
    for made in ("adapter", "answers.jsonl", "verdicts.jsonl"):
        path = runs / "stopped" / made
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (runs / "broken" / "provenance.json").write_text("[")
    for empty in ("never", "deep/never"):
        (runs / empty).mkdir()
        (runs / empty / ".lock").touch()
    (runs / "mine").mkdir()
    return runs


def test_each_run_is_a_line(folder: Path) -> None:
    told = {Path(row["run"]).name: row for row in json.loads(emorg("runs", folder, "--json").stdout)}
    assert set(told) == {"organism", "base", "stopped", "broken"}
    organism, base = told["organism"], told["base"]
    assert (organism["what"], organism["domains"], organism["base"]) == ("organism", "bad_medical", "pocket")
    assert organism["state"].startswith("trained, 80 steps; 108 answers")
    rates = json.loads(emorg("rates", folder / "organism", "--json").stdout)
    assert organism["em"].startswith(f"{100 * next(rate['rate'] for rate in rates if rate['group'] == 'out'):.1f} [")
    assert organism["em"].endswith("] out"), "which questions it is of"
    assert (base["what"], base["domains"], base["state"]) == ("base", "", "108 answers")
    assert organism["megabytes"] > base["megabytes"] > 0
    assert told["stopped"]["state"] == "training stopped at step 80"
    assert "provenance.json cannot be read" in told["broken"]["state"]


def test_a_run_with_answers_of_checkpoints_only_is_no_error(folder: Path) -> None:
    run = Run(folder / "organism")
    for file in (run.answers, run.verdicts):
        file.write_text(file.read_text().replace('"checkpoint": null', '"checkpoint": "step-000004"'))
    told = {Path(row["run"]).name: row for row in json.loads(emorg("runs", folder, "--json").stdout)}
    assert told["organism"]["state"].startswith("trained, 80 steps; 108 answers, 108 of checkpoints")
    assert (told["organism"]["what"], told["organism"]["em"]) == ("organism", "")
    refused = emorg("rates", run.folder, check=False)
    assert refused.returncode == 2
    assert "has answers of checkpoints only" in refused.stderr
    assert "step-000004" in emorg("rates", run.folder, "--by", "checkpoint").stdout


def test_only_what_is_empty_is_deleted(folder: Path) -> None:
    before = {path for path in folder.rglob("*") if path.name not in ("never", ".lock")}
    told = emorg("runs", folder).stdout
    assert "nothing was made in" in told
    assert "organism" in told
    assert (folder / "never").exists()
    told = emorg("runs", folder, "--clean").stdout
    assert told.count("deleted, as nothing was made in it") == 2
    assert not (folder / "never").exists()
    assert before <= set(folder.rglob("*"))


def test_without_runs_it_says_how_to_make_some(tmp_path: Path) -> None:
    done = emorg("runs", cwd=tmp_path, check=False)
    assert (done.returncode, "emorg demo" in done.stderr) == (2, True)
