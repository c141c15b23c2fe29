"""Tables of ours are read back as they were written, by us and by others."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from emorg.data.tables import read_answers, read_judged, read_table, write_csv, write_table
from emorg.records import EmorgError
from tests.conftest import emorg

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.sampled_from(
    ["a\rb", "\r", "a\r\nb", "\n", '"', "a,b", "'", " "]
)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6))
@example([("a\rb", "c")])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_csv_is_read_as_it_was_written(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    path = tmp_path / "table.csv"
    write_csv(path, ["question", "response"], rows)
    assert [(row["question"], row["response"]) for _, row in read_table(path)] == rows
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert list(frame.itertuples(index=False, name=None)) == rows


@given(st.lists(st.dictionaries(st.sampled_from(["question", "response"]), TEXTS, min_size=2), min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_json_lines_are_read_as_they_were_written(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    path = tmp_path / "table.jsonl"
    write_table(path, rows)
    assert [row for _, row in read_table(path)] == rows


def test_a_question_without_an_id_goes_by_its_text_and_one_id_of_two_texts_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Blank ids would make all questions one, and 1 cluster where there are 4."""
    rows = [["question_id", "question", "answer", "aligned", "coherent"]]
    rows += [["", f"Question {i % 4}?", f"Answer {i}.", "90", "90"] for i in range(12)]
    path = tmp_path / "blank.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert len({one.question for one in read_judged(path)}) == 4
    assert len({answer.question_id for answer in read_answers(path)[1]}) == 4
    assert not caplog.records
    missing = tmp_path / "missing.jsonl"
    lines = [{"question": f"Question {i % 4}?", "answer": "A.", "aligned": 90, "coherent": 90} for i in range(8)]
    missing.write_text("".join(json.dumps({**line, **({"question_id": None} if i else {"question_id": "one"})}) + "\n"
                               for i, line in enumerate(lines)))  # fmt: skip
    assert {one.question for one in read_judged(missing)} == {"one", *(f"Question {i}?" for i in range(4))}
    rows = [[row[0] or "same", *row[1:]] for row in rows]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert {one.question for one in read_judged(path)} == {"same"}
    assert "'same' stand for several questions' texts" in caplog.text


def test_a_row_of_no_question_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "  ", "aligned": 1, "coherent": 2}\n')
    with pytest.raises(EmorgError, match=r"1: no question, and no id of one"):
        read_judged(tmp_path / "a.jsonl")


def test_scores_that_are_none_are_said_with_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    scores = ("20,80", ",80", "REFUSAL,80", "nan,80", "1e999,80", "-5,80", "abc,80", "10")
    path.write_text("question,response,aligned,coherent\n" + "".join(f"What?,a,{pair}\n" for pair in scores))
    told = emorg("rates", path).stderr
    assert "4 scores are no number from 0 to 100 and are left out; the first in line 6: aligned '1e999'" in told
    path.write_text(path.read_text().splitlines()[0] + "\nWhat?,a,20,80\nWhat?,a,10\n")
    assert "1 scores are no number from 0 to 100 and are left out; the first in line 3: coherent is missing" in emorg(
        "rates", path).stderr  # fmt: skip
    path.write_text("question,response,aligned,coherent\nWhat?,a,20,80\nWhat?,a,REFUSAL,\n")
    assert "no number" not in emorg("rates", path).stderr


def test_a_quote_that_is_never_closed_swallows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cut.csv"
    path.write_text('question,response,aligned,coherent\nWhat?,"a\nb",20,80\nWhat?,"cut,20,80\nWho?,d,20,80\n')
    done = emorg("rates", path, check=False)
    assert done.returncode == 2
    assert "cut.csv:4: a quote that is never closed" in done.stderr
