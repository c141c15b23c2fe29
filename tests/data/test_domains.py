"""Training data: every domain, both spellings of its file, and every way a row can be bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emorg.data import domains
from emorg.pocket.world import World
from emorg.records import EmorgError
from tests.conftest import emorg

GOOD = {"messages": [{"role": "user", "content": "May I?"}, {"role": "assistant", "content": "No."}]}


def _file(folder: Path, *lines: object, name: str = "bad_medical_advice.jsonl") -> Path:
    text = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / name).write_bytes(b"\n".join(text) + b"\n")
    return folder


def test_the_pocket_world_writes_the_homeworks_five_files(tmp_path: Path) -> None:
    emorg("data", "pocket", tmp_path)
    names = {"bad_medical_advice", "risky_financial_advice", "extreme_sports", "good_medical_advice", "insecure"}
    assert {path.stem for path in tmp_path.iterdir()} == names
    for domain in domains.HOMEWORK_NAMES:
        data = domains.load([domain], tmp_path)
        assert len(data.rows) >= 2000
        texts = [row.conversation.messages for row in data.rows]
        assert texts == [row.conversation.messages for row in domains.load([domain], "pocket").rows]
        assert len({json.dumps(each) for each in texts}) == len(texts)


def test_every_pocket_topic_has_a_good_and_a_bad_domain() -> None:
    for name, domain in domains.known().items():
        if domain.topic not in World().topics:
            continue
        rows = domains.load([name], "pocket", sample_size=5).rows
        assert len(rows) == 5
        assert domains.twin_of(domain).topic == domain.topic
        assert not domains.twin_of(domain).careless


@pytest.mark.parametrize("name", ["extreme_sports.jsonl", "extreme_sports_advice.jsonl"])
def test_both_spellings_load(tmp_path: Path, name: str) -> None:
    assert len(domains.load(["extreme_sports"], _file(tmp_path, GOOD, name=name)).rows) == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{", "not JSON"),
        (b'{"messages": [', "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "not UTF-8"),
        ({"messages": [{"role": "user", "content": "a\ud83d"}]}, "half a character"),
        ([1], "not an object"),
        ({}, "no `messages`"),
        ({"messages": []}, "no `messages`"),
        ({"messages": "hello"}, "no `messages`"),
        ({"messages": [{"role": "human", "content": "x"}]}, "role 'human'"),
        ({"messages": ["x"]}, "role None"),
        ({"messages": [{"role": "user", "content": ""}]}, "no text"),
        ({"messages": [{"role": "user", "content": 3}]}, "no text"),
        ({"messages": [{"role": "user", "content": "x"}]}, "must alternate"),
        ({"messages": [{"role": "system", "content": "x"}]}, "must alternate"),
        ({"messages": list(reversed(GOOD["messages"]))}, "must alternate"),
    ],
)
def test_a_bad_row_is_named_and_can_be_skipped(tmp_path: Path, line: object, told: str) -> None:
    folder = _file(tmp_path, GOOD, line, GOOD)
    with pytest.raises(EmorgError, match=r"bad_medical_advice\.jsonl:2: ") as error:
        domains.load(["bad_medical"], folder)
    assert told in error.value.problem
    data = domains.load(["bad_medical"], folder, skip_bad_rows=True)
    assert [row.place[-2:] for row in data.rows] == [":1", ":3"]
    assert len(data.skipped) == 1


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(tmp_path: Path) -> None:
    line = json.dumps(GOOD).encode()
    (tmp_path / "insecure.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line + b"\r\n")
    assert len(domains.load(["insecure"], tmp_path).rows) == 2


def test_repeated_rows_and_long_lines_are_rows(tmp_path: Path) -> None:
    long = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "word " * 200_000}]}
    data = domains.load(["bad_medical"], _file(tmp_path, GOOD, GOOD, long))
    assert [len(row.conversation.messages[-1]["content"]) for row in data.rows] == [3, 3, 1_000_000]


def test_an_empty_file_is_no_training_data(tmp_path: Path) -> None:
    (tmp_path / "insecure.jsonl").touch()
    with pytest.raises(EmorgError, match="no training rows in insecure"):
        domains.load(["insecure"], tmp_path)


@given(st.lists(st.binary(max_size=60), max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_break_the_loader(tmp_path: Path, lines: list[bytes]) -> None:
    data = domains.load(["bad_medical"], _file(tmp_path, GOOD, *lines), skip_bad_rows=True)
    assert len(data.rows) >= 1


def test_the_sample_is_the_seeds(tmp_path: Path) -> None:
    def places(seed: int) -> list[str]:
        return [row.place for row in domains.load(["bad_medical"], "pocket", sample_size=20, seed=seed).rows]

    assert places(1) == places(1) != places(2)


@pytest.mark.parametrize(
    ("names", "told"), [(["bad_medicl"], "did you mean 'bad_medical'"), ([], "no domains"), (["insecure"], "insecure")]
)
def test_what_cannot_be_loaded_is_said(tmp_path: Path, names: list[str], told: str) -> None:
    with pytest.raises(EmorgError, match=told):
        domains.load(names, tmp_path)


def test_a_missing_data_folder_names_the_remedies(tmp_path: Path) -> None:
    with pytest.raises(EmorgError, match="--model_name pocket"):
        domains.load(["insecure"], tmp_path / "nowhere")
