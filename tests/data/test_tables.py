"""Tables of ours are read back as they were written, by us and by others."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from emorg.data.tables import read_table, write_csv, write_table

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
