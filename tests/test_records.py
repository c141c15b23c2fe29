"""Records in and out of files: torn lines, bad lines, and every judged table in the wild."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emorg.records import Answer, Appender, EmorgError, Verdict, read_judged, read_records, write_atomic
from tests.conftest import emorg

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
answers = st.builds(
    Answer,
    run=text,
    checkpoint=st.none() | text,
    question_id=text,
    topic=st.none() | text,
    sample=st.integers(0, 99),
    question=text,
    text=text,
    finish_reason=st.sampled_from(["stop", "length"]),
    prompt_tokens=st.integers(0, 99),
    answer_tokens=st.integers(0, 99),
    seed=st.integers(0, 2**63 - 1),
)
ANSWER = Answer("r", None, "q", None, 0, "Question?", "Answer.", "stop", 3, 2, 1)


@given(st.lists(answers, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path: Path, records: list[Answer]) -> None:
    path = tmp_path / "answers.jsonl"
    path.unlink(missing_ok=True)
    with Appender(path) as out:
        for record in records:
            out.write(record)
    assert read_records(path, Answer) == records


@pytest.mark.parametrize("torn", range(1, 60, 7))
def test_a_line_torn_by_a_kill_is_passed_over_and_written_over(tmp_path: Path, torn: int) -> None:
    path = tmp_path / "answers.jsonl"
    for _ in range(2):
        with Appender(path) as out:
            out.write(ANSWER)
    path.write_bytes(path.read_bytes()[:-torn])
    assert read_records(path, Answer) == [ANSWER]
    with Appender(path) as out:
        out.write(ANSWER)
    assert read_records(path, Answer) == [ANSWER, ANSWER]


@pytest.mark.parametrize("bad", ["{nonsense", '{"run": "r"}', "[1]"])
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "answers.jsonl"
    with Appender(path) as out:
        out.write(ANSWER)
    path.write_text(path.read_text() + bad + "\n")
    with pytest.raises(EmorgError, match=r"answers\.jsonl:2"):
        read_records(path, Answer)


@pytest.mark.parametrize(("state", "score"), [("scored", None), ("refusal", 0.0)])
def test_a_verdict_has_a_score_exactly_when_it_is_scored(state: str, score: float | None) -> None:
    with pytest.raises(ValueError, match="exactly when"):
        Verdict("r", None, "q", 0, "exact", "aligned", state, score, "", "")  # type: ignore[arg-type]


def test_an_atomic_write_leaves_nothing_beside_the_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "deep" / "file.txt", "one")
    write_atomic(tmp_path / "deep" / "file.txt", "two")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["file.txt"]
    assert (tmp_path / "deep" / "file.txt").read_text() == "two"


@pytest.mark.parametrize("value", ["", "REFUSAL", "ERROR", "nan", "None", "-3", "101", "inf"])
def test_what_is_no_score_is_unscored_never_zero(tmp_path: Path, value: str) -> None:
    path = tmp_path / "judged.csv"
    path.write_text(f"\ufeffquestion,aligned,coherent\n=1+1,{value},90\r\n")
    (row,) = read_judged(path)
    assert (row.aligned, row.coherent) == (None, 90)


def test_json_lines_and_other_column_names_are_read(tmp_path: Path) -> None:
    path = tmp_path / "judged.jsonl"
    path.write_text(json.dumps({"prompt": "q", "alignment_score": 10, "coherence": 90.5, "step": 3}) + "\n")
    (row,) = read_judged(path)
    assert (row.question, row.aligned, row.coherent, row.columns["step"]) == ("q", 10, 90.5, "3")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no rows"),
        (b"question,aligned,coherent\n", "no rows"),
        (b"question,score\nq,3\n", "no column aligned"),
        (b"question,aligned,coherent\n\xff\xfe,1,2\n", "not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_rated_is_refused_with_the_reason(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "judged.csv"
    path.write_bytes(content)
    done = emorg("rates", path, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
