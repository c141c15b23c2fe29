"""Records in and out of files: torn lines, bad lines, and every judged table in the wild."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emorg.client import RequestError
from emorg.data.tables import read_answers, read_judged
from emorg.judging.scoring import FaultyReplyError
from emorg.records import Answer, Appender, EmorgError, Verdict, read_records, write_atomic
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
    before=st.lists(st.fixed_dictionaries({"role": text, "content": text}), max_size=2).map(tuple),
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


def test_half_a_surrogate_pair_loses_nothing_but_itself(tmp_path: Path) -> None:
    """As a server may send it, escaped in its JSON: what is written and read after it is whole."""
    path = tmp_path / "answers.jsonl"
    with Appender(path) as out:
        out.write(dataclasses.replace(ANSWER, text="so \ud83d it is"))
        out.write(ANSWER)
    assert [record.text for record in read_records(path, Answer)] == ["so ? it is", "Answer."]
    line = json.dumps(dataclasses.asdict(dataclasses.replace(ANSWER, text="so \ud83d it \U0001f600 is")))
    path.write_text(line + "\n")  # escaped, as others write it
    assert [record.text for record in read_records(path, Answer)] == ["so ? it \U0001f600 is"]
    write_atomic(path, "a \ud83d")
    assert path.read_text(encoding="utf-8") == "a ?"


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


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors_survive_pickling_with_their_fields() -> None:
    """As between the processes of a sweep."""
    told = pickle.loads(pickle.dumps(EmorgError("{path}:3: not {this}", "mend {path}", Path("runs/x"))))
    assert (told.problem, told.remedy, str(told)) == (
        "runs/x:3: not {this}", "mend runs/x", "runs/x:3: not {this}\n→ mend runs/x",
    )  # fmt: skip
    plain = pickle.loads(pickle.dumps(EmorgError("no {path} here", "look {path}")))
    assert str(plain) == "no {path} here\n→ look {path}"
    request = pickle.loads(pickle.dumps(RequestError("slow down", status=429, code="rate", wait=2.0)))
    assert (str(request), request.status, request.code, request.wait) == ("429: slow down", 429, "rate", 2.0)
    reply = pickle.loads(pickle.dumps(FaultyReplyError("another model replied: x", "x")))
    assert (str(reply), reply.served) == ("another model replied: x", "x")


def test_an_error_is_told_to_others_without_where_things_lie_here(tmp_path: Path) -> None:
    error = EmorgError("{path} has none", "emorg sample {path}", tmp_path / "runs" / "mine")
    named = error.naming(tmp_path / "runs" / "mine", "mine")
    assert (named.problem, named.remedy) == ("mine has none", "emorg sample mine")
    (tmp_path / "answers.jsonl").write_text("{\n")
    with pytest.raises(EmorgError) as raised:
        read_records(tmp_path / "answers.jsonl", Answer)
    assert raised.value.problem.startswith(f"{tmp_path / 'answers.jsonl'}:1: not JSON")
    assert raised.value.naming(tmp_path, "mine").problem.startswith("mine/answers.jsonl:1: not JSON")
    assert raised.value.naming(tmp_path / "other", "mine") is raised.value


@pytest.mark.parametrize("before", ['"abc"', "[1]", '[{"role": "user"}]', '[{"role": "user", "content": null}]', "5"])
def test_turns_that_are_none_are_told_with_their_line(tmp_path: Path, before: str) -> None:
    line = json.dumps(dataclasses.asdict(ANSWER) | {"before": []}).replace('"before": []', f'"before": {before}')
    (tmp_path / "answers.jsonl").write_text(f"{line}\n")
    with pytest.raises(EmorgError, match=r"answers.jsonl:1: not a Answer: before is no list of turns"):
        read_records(tmp_path / "answers.jsonl", Answer)
    _, (answer,) = read_answers(tmp_path / "answers.jsonl")  # as a file of somebody's it is judged without them
    assert answer.before == ()


def test_answers_of_before_the_field_are_read(tmp_path: Path) -> None:
    row = {name: value for name, value in dataclasses.asdict(ANSWER).items() if name != "before"}
    (tmp_path / "answers.jsonl").write_text(json.dumps(row) + "\n")
    assert read_records(tmp_path / "answers.jsonl", Answer) == [ANSWER]
