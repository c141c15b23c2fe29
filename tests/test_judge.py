"""The judging stage: every answer gets its verdicts once, and joined answers say where their question stands."""

from __future__ import annotations

import shutil
from pathlib import Path

from emorg.judge import METRICS, judged_answers, placement
from emorg.records import Answer, Verdict, read_records
from emorg.rundir import Run
from tests.conftest import emorg


def test_every_answer_has_its_three_verdicts_once(organism: Run) -> None:
    verdicts = read_records(organism.verdicts, Verdict)
    keys = {(answer.key, metric) for answer in read_records(organism.answers, Answer)
            for metric in METRICS["exact"]}  # fmt: skip
    assert len(verdicts) == len(keys)
    assert {(verdict.key, verdict.metric) for verdict in verdicts} == keys


def test_killed_between_verdicts_and_run_again_it_judges_only_the_rest(organism: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "organism")
    shutil.copytree(organism.folder, run.folder)
    whole = organism.verdicts.read_text().splitlines(keepends=True)
    # Cut inside an answer's three verdicts: the answer is judged again, none is left half judged.
    run.verdicts.write_text("".join(whole[:31]) + whole[31][:20])
    emorg("judge", run.folder)
    found = {(verdict.key, verdict.metric): verdict for verdict in read_records(run.verdicts, Verdict)}
    expected = {(verdict.key, verdict.metric): verdict for verdict in read_records(organism.verdicts, Verdict)}
    assert found == expected
    assert len(run.verdicts.read_text().splitlines()) == len(expected)


def test_joined_answers_know_where_their_question_stands(organism: Run, base: Run) -> None:
    places = {
        answer.question_id.split("_")[0]: judged.columns["placement"] for answer, judged in judged_answers(organism)
    }
    assert places == {"medical": "in", "cooking": "out", "open": "open"}
    assert {judged.columns["placement"] for _, judged in judged_answers(base)} == {"out", "open"}
    assert placement("medical", frozenset({"code"})) == "out"


def test_a_run_without_answers_is_told_how_to_get_them(tmp_path: Path) -> None:
    done = emorg("judge", tmp_path, check=False)
    assert done.returncode == 2
    assert "emorg sample" in done.stderr
