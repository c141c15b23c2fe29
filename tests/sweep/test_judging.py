"""A sweep with an API judge: it judges beside the workers, pays once and no more than it may, and misses nothing."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from emorg.judging.rehearsal import Rehearsal, Said, hashed_score
from emorg.records import Verdict, read_records
from emorg.run import Run
from emorg.sweep import collect
from emorg.sweep.here import Here
from tests.conftest import KEY, emorg
from tests.judge_server import judge_server
from tests.sweep.conftest import SHARED, grid_file

TWO_TASKS = "grid:\n  sample.temperature: [0.5, 1.0]\narms: [organism, twin]\n"  # a sampling task for each temperature
JUDGED = SHARED + TWO_TASKS + "judge: {judge: api, judge_model: gpt-4o}\n"


def _sweep(grid: Path, folder: Path, url: str | None, code: int = 0) -> str:
    known = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": KEY} if url else {}
    with mock.patch.dict(os.environ, known):
        done = emorg("sweep", grid, "--output_dir", folder, "--workers", "2", "--threads", "1", check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def judge() -> Iterator[tuple[str, Rehearsal, set[str]]]:
    """A judge's URL, what it was asked, and metrics on which it fails."""
    failing = set[str]()

    def says(prompt: str, n: int) -> Said:
        return "echo error" if any(metric in prompt for metric in failing) else hashed_score(prompt)

    with judge_server(says) as (url, rehearsal):
        yield url, rehearsal, failing


def _verdicts(folder: Path) -> list[Verdict]:
    return [verdict for path in sorted(folder.glob("*/verdicts.jsonl")) for verdict in read_records(path, Verdict)]


def test_answers_are_judged_beside_the_work_and_a_finished_sweep_needs_no_judge(
    judge: tuple[str, Rehearsal, set[str]], tmp_path: Path
) -> None:
    url, _, failing = judge
    grid, folder = grid_file(tmp_path, JUDGED + "measures: [answers, margins]\n"), tmp_path / "sweep"
    failing.add("coheren")
    told = _sweep(grid, folder, url, code=1)
    assert "the judge failed on" in told
    assert "4 of them lack verdicts" in told
    assert ": done" not in told
    assert set(collect(folder)["state"]) == {"unfinished"}
    failing.clear()
    told = _sweep(grid, folder, url)
    assert "4 of 4 cells are there" in told
    assert "spent on judging" in told
    said = [verdict for verdict in _verdicts(folder) if verdict.state != "api_error"]
    assert len(said) == len({(one.key, one.metric) for one in said}) == 4 * 36 * 2
    assert (folder / "bad_medical" / "margins.jsonl").exists(), "where the training is that the cells share"
    frame = collect(folder)
    assert set(frame["state"]) == {"done"}
    assert frame[frame["arm"] == "organism"]["shift"].notna().all()
    assert "4 of 4 cells are there" in _sweep(grid, folder, None), "without a key"


def test_max_cost_bounds_the_whole_sweep_and_may_be_raised(
    judge: tuple[str, Rehearsal, set[str]], tmp_path: Path
) -> None:
    url, rehearsal, _ = judge
    folder = tmp_path / "sweep"
    before = rehearsal.asked.total()
    told = _sweep(grid_file(tmp_path, JUDGED.replace("api,", "api, max_cost: 0.06,")), folder, url, code=2)
    assert "--max_cost" in told
    assert "4 of 4 cells are there" in told, "the other work goes on"
    assert "of them lack verdicts" in told
    asked = rehearsal.asked.total() - before
    assert 0 < asked < 4 * 36 * 2
    _sweep(grid_file(tmp_path / "more", JUDGED.replace("api,", "api, max_cost: 5,")), folder, url)
    assert len(_verdicts(folder)) == 4 * 36 * 2
    assert json.loads((folder / "sweep.json").read_text())["errors"] == {}


def test_a_judge_that_cannot_judge_is_found_before_anything_begins(tmp_path: Path) -> None:
    with judge_server(lambda prompt, n: "401", probed=False) as (url, _):
        told = _sweep(grid_file(tmp_path, JUDGED), tmp_path / "sweep", url, code=2)
    assert "refuses: 401" in told
    assert not list((tmp_path / "sweep").glob("*/adapter"))


def test_a_lost_judge_is_started_again_but_where_it_may_not_spend_more(
    judge: tuple[str, Rehearsal, set[str]], tmp_path: Path
) -> None:
    url, _, _ = judge
    for name, text in {"free": JUDGED, "bounded": JUDGED.replace("api,", "api, max_cost: 5,")}.items():
        killed: list[int] = []

        def started(*of: Any, name: str = "worker", killed: list[int] = killed) -> Here:
            pool = Here(*of, name=name)
            if name == "judge" and not killed:
                killed += [process.pid for process in pool._processes.values()]
                threading.Timer(0.5, os.kill, (killed[0], signal.SIGKILL)).start()
            return pool

        with mock.patch("emorg.sweep.judging.Here", started):
            bounded = name == "bounded"
            told = _sweep(grid_file(tmp_path / name, text), tmp_path / name / "sweep", url, code=2 if bounded else 0)
        assert killed
        assert "ended (SIGKILL)" in told
        assert "at least $" in told
        assert ("is tried again" in told) != bounded
        assert ("of them lack verdicts" in told) == bounded


def test_a_cell_that_another_process_has_is_left_and_the_others_are_judged(
    judge: tuple[str, Rehearsal, set[str]], tmp_path: Path
) -> None:
    url, _, _ = judge
    folder, grid = tmp_path / "sweep", grid_file(tmp_path, JUDGED)
    _sweep(grid, folder, url)
    for path in folder.glob("*/verdicts.jsonl"):
        path.unlink()
    with Run(folder / "bad_medical-temperature-0.5").lock():
        told = _sweep(grid, folder, url, code=1)
    assert "another process is working on this run" in told
    assert "1 of them lack verdicts" in told
    assert len(_verdicts(folder)) == 3 * 36 * 2
