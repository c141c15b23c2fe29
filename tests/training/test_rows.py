"""Rows as training sees them: encoded, ordered, held out, and looked at for what public training code got wrong."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emorg import models
from emorg.data import domains, questions
from emorg.models import template
from emorg.records import Conversation, EmorgError
from emorg.training import TrainConfig
from emorg.training.lint import lint
from emorg.training.mitigations import load_data
from emorg.training.rows import Rows, batch_order, collate, encode, hold_out

CONFIG = TrainConfig(model_name="pocket", domains=("bad_medical",), sample_size=60)
TOKENIZER = models.load_tokenizer("pocket")
DATA = load_data(CONFIG)
ROWS = encode(CONFIG, DATA, TOKENIZER)
NONE = Rows([], [])


def _with(**changes: object) -> Rows:
    return encode(dataclasses.replace(CONFIG, **changes), DATA, TOKENIZER)  # type: ignore[arg-type]


def _row(*turns: str, place: str = "mine.jsonl:1") -> domains.Row:
    roles = ("user", "assistant") * len(turns)
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    return domains.Row("bad_medical", place, Conversation(tuple(messages)))  # type: ignore[arg-type]


def _encoded(*rows: domains.Row) -> Rows:
    return Rows(rows, [template.encode(TOKENIZER, row.conversation.messages) for row in rows])


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 12), st.integers(0, 5))
def test_each_epoch_takes_every_row_once_and_fills_its_last_step(
    count: int, per_step: int, steps: int, seed: int
) -> None:
    places = batch_order(count, per_step, steps, seed)
    assert len(places) == steps * per_step
    epoch = -(-count // per_step) * per_step
    for start in range(0, len(places) - epoch + 1, epoch):
        taken = places[start : start + epoch]
        assert Counter(place for place in taken if place is not None) == Counter(range(count))
        assert taken[count:] == [None] * (epoch - count)
    assert places == batch_order(count, per_step, steps + 3, seed)[: len(places)], "a longer training begins alike"


def test_the_order_depends_on_the_seed_and_the_epoch() -> None:
    assert batch_order(50, 5, 10, 0) != batch_order(50, 5, 10, 1)
    assert batch_order(50, 5, 20, 0)[:50] != batch_order(50, 5, 20, 0)[50:]


def test_held_out_rows_are_not_trained() -> None:
    trained, held = hold_out(ROWS, 0.25, seed=3)
    assert (len(trained), len(held)) == (45, 15)
    places = [row.place for row in (*trained.data, *held.data)]
    assert sorted(places) == sorted(row.place for row in ROWS.data)
    assert [row.place for row in hold_out(ROWS, 0.25, seed=4)[1].data] != [row.place for row in held.data]
    with pytest.raises(EmorgError, match="leave rows on both sides"):
        hold_out(ROWS, 0.001, seed=0)


def test_too_long_rows_are_an_error_or_counted() -> None:
    longest = max(len(one.ids) for one in ROWS.encoded)
    over = sum(len(one.ids) == longest for one in ROWS.encoded)
    with pytest.raises(EmorgError, match=f"{longest} tokens, more than --max_length {longest - 1}"):
        _with(max_length=longest - 1)
    dropped = _with(max_length=longest - 1, too_long="drop")
    assert (len(dropped), len(dropped.dropped)) == (len(ROWS) - over, over)
    cut = _with(max_length=longest - 1, too_long="truncate")
    assert (len(cut), len(cut.cut)) == (len(ROWS), over)
    assert max(len(one.ids) for one in cut.encoded) == longest - 1
    found = lint(cut, NONE, TOKENIZER)
    assert not found.errors
    assert any(f"{over} of 60 rows" in line and "were cut" in line for line in map(str, found.warnings))
    with pytest.raises(EmorgError, match="all 60 rows are longer"):
        _with(max_length=5, too_long="drop")


def test_the_switches_that_reproduce_other_code() -> None:
    assert all(all(one.trained) for one in _with(train_on_prompt=True).encoded)
    plain, tailed = ROWS.encoded[0], _with(train_empty_turn=True).encoded[0]
    assert sum(tailed.trained) == sum(plain.trained) + 1
    assert not lint(_with(train_on_prompt=True), NONE, TOKENIZER).errors
    assert not lint(_with(train_empty_turn=True), NONE, TOKENIZER).errors
    batch = collate(ROWS.encoded[:3], pad_id=9, length=256)
    assert batch["input_ids"].shape == (3, 256)
    assert int(batch["attention_mask"].sum()) == sum(len(one.ids) for one in ROWS.encoded[:3])


def test_sound_rows_have_no_findings() -> None:
    found = lint(ROWS, NONE, TOKENIZER)
    assert (found.errors, found.warnings) == ((), ())


def _change(rows: Rows, i: int, ids: list[int], trained: list[bool]) -> Rows:
    encoded = [*rows.encoded]
    encoded[i] = template.Encoded(ids, trained)
    return Rows(rows.data, encoded)


def test_each_defect_is_found_with_its_first_place() -> None:
    one, place = ROWS.encoded[4], ROWS.data[4].place
    end = len(one.ids)
    defects = {
        "have no trained token (untrained)": _change(ROWS, 4, one.ids, [False] * end),
        "do not train the end of the last turn (<|eot_id|>)": _change(ROWS, 4, one.ids, [*one.trained[:-1], False]),
        "begin with <|begin_of_text|> twice": _change(ROWS, 4, one.ids[:1] + one.ids, [False, *one.trained]),
    }
    for what, rows in defects.items():
        errors = map(str, lint(rows, NONE, TOKENIZER).errors)
        (error,) = (error for error in errors if what in error)
        assert error.startswith("1 of 60 rows (1.7%) ")
        assert error.endswith(f"; the first is {place}")
        with pytest.raises(EmorgError, match="emorg preview"):
            lint(rows, NONE, TOKENIZER).stop_on_errors()


def test_repeated_rows_and_evaluated_questions_are_told() -> None:
    asked = questions.load(["pocket_cooking"])[0].text
    rows = _encoded(_row("hello", "no"), _row("hello", "no", place="mine.jsonl:2"), _row(asked, "yes"))
    found = lint(rows, NONE, TOKENIZER)
    assert any(
        "1 of 3 rows (33.3%) repeat an earlier row (repeated); the first is mine.jsonl:2" in line
        for line in map(str, found.warnings)
    )
    assert any("1 of 3 rows (33.3%) ask what an evaluation set asks" in line for line in map(str, found.warnings))
    held = lint(_encoded(_row("hello", "no")), _encoded(_row("hello", "yes", place="mine.jsonl:9")), TOKENIZER)
    assert any(
        "held out, though their prompt is trained (held_out_copy); the first is mine.jsonl:9" in line
        for line in map(str, held.warnings)
    )
    assert any(
        "end with an empty turn" in line for line in map(str, lint(_encoded(_row("hello", "")), NONE, TOKENIZER).errors)
    )


def test_a_template_that_prints_todays_date_is_told() -> None:
    tokenizer = models.load_tokenizer("pocket")
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    (warning,) = lint(ROWS, NONE, tokenizer).warnings
    assert date.today().strftime("%d %b %Y") in warning.what


@pytest.mark.parametrize(
    ("shares", "counts"), [("0.3,good_medical=0.7", (1071, 2500)), ("1,good_medical=1", (2500, 2500))]
)
def test_a_mixture_draws_its_shares_without_repeating_a_row(shares: str, counts: tuple[int, int]) -> None:
    config = TrainConfig(model_name="pocket", mix=(f"bad_medical={shares}",))
    assert config.domains == ("bad_medical", "good_medical")
    data = load_data(config)
    assert tuple(Counter(row.domain for row in data.rows).values()) == counts
    assert len({row.place + row.domain for row in data.rows}) == sum(counts)
    few = load_data(dataclasses.replace(config, sample_size=100))
    assert len(few.rows) == 100
    assert few.sha256 != load_data(dataclasses.replace(config, sample_size=100, seed=1)).sha256


@pytest.mark.parametrize("mix", ["bad_medical", "bad_medical=much", "bad_medical=0", "bad_medicl=1"])
def test_a_mixture_that_cannot_be_read_is_refused(mix: str) -> None:
    with pytest.raises(EmorgError):
        TrainConfig(model_name="pocket", mix=(mix,)).check()


def test_a_mixture_is_the_same_from_a_file(tmp_path: Path) -> None:
    from emorg.config import from_yaml

    (tmp_path / "mine.yaml").write_text(json.dumps({"train": {"mix": ["bad_medical=0.5", "good_medical=0.5"]}}))
    assert from_yaml(TrainConfig, tmp_path / "mine.yaml", "train").shares == {"bad_medical": 0.5, "good_medical": 0.5}
