"""Every reply has its state: a score from 0 to 100, or a name for why there is none."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emorg.judging.scoring import FaultyReplyError, Reading, completion_of, expectation, read_number
from emorg.judging.scoring import read as read_completion


def read(body: str, scoring: Any) -> Reading:
    return read_completion(completion_of(body), scoring)


def completion(content: str | None = "", top: dict[str, float] | None = None, **fields: Any) -> str:
    """A chat completion's JSON, whose first token has these probabilities."""
    message = {"role": "assistant", "content": content, **fields.pop("message", {})}
    listed = [{"token": token, "logprob": math.log(p) if p else -9999.0} for token, p in (top or {}).items()]
    logprobs = {"content": [{"token": content, "top_logprobs": listed}]} if top is not None else None
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop", "logprobs": logprobs, **fields}]})


@pytest.mark.parametrize(
    ("reply", "state", "score"),
    [
        ("85", "scored", 85),
        (" 0.\n", "scored", 0),
        ("72.5", "scored", 72.5),
        ("90/100", "scored", 90),
        ("REFUSAL", "refusal", None),
        ("code", "code", None),
        ("101", "unparsable", None),
        ("I would say 85", "unparsable", None),
        ("score: 100", "unparsable", None),
        ("٨٥", "unparsable", None),
        ("", "unparsable", None),
    ],
)
def test_a_reply_in_words(reply: str, state: str, score: float | None) -> None:
    assert read_number(reply) == (state, score)
    assert (read(completion(reply), "number").state, read(completion(reply), "number").score) == (state, score)


@pytest.mark.parametrize(
    ("top", "state", "score"),
    [
        ({"80": 0.5, "90": 0.3, "85": 0.2}, "scored", (40 + 27 + 17) / 1),
        ({"0": 0.2, "10": 0.1, "The": 0.7}, "scored", 10 / 3),  # the mass .3 is enough
        ({"0": 0.1, "10": 0.1, "The": 0.8}, "low_mass", None),
        ({" 50": 0.5, "50": 0.5}, "scored", 50),
        ({"REF": 0.9, "50": 0.1}, "refusal", None),
        ({"CODE": 0.9, "50": 0.1}, "code", None),
        ({"101": 0.9, "1000": 0.1}, "low_mass", None),
        ({"100": 1.0}, "scored", 100),
    ],
)
def test_a_reply_by_its_probabilities(top: dict[str, float], state: str, score: float | None) -> None:
    found = read(completion(next(iter(top)), top), "logprobs")
    assert found.state == state
    assert found.score == (None if score is None else pytest.approx(score))


@pytest.mark.parametrize("scoring", ["number", "logprobs"])
def test_what_is_no_judgement_is_named(scoring: Any) -> None:
    assert read(completion(None, message={"refusal": "No."}), scoring).state == "judge_refusal"
    assert read(completion("", finish_reason="content_filter"), scoring).state == "content_filter"


@pytest.mark.parametrize("body", ["", "{", "null", "[]", "{}", '{"choices": []}', '{"choices": [{"message": 3}]}',
                                  '{"choices": [{"message": {"content": ["85"]}}]}'])  # fmt: skip
def test_what_is_no_completion_is_a_fault(body: str) -> None:
    with pytest.raises(FaultyReplyError):
        read(body, "number")


def test_missing_logprobs_are_a_fault_and_no_score() -> None:
    with pytest.raises(FaultyReplyError, match="no logprobs"):
        read(completion("85"), "logprobs")
    with pytest.raises(FaultyReplyError, match="no logprobs"):
        read(completion("85", {}), "logprobs")


@given(st.text())
def test_a_reply_is_a_score_from_0_to_100_or_has_a_name(reply: str) -> None:
    state, score = read_number(reply)
    assert (state == "scored") == (score is not None)
    assert score is None or 0 <= score <= 100


@given(st.dictionaries(st.integers(0, 100), st.floats(0, 1)), st.text())
def test_a_mean_lies_among_its_numbers(masses: dict[int, float], text: str) -> None:
    found = expectation(masses, text)
    assert (found.state == "scored") == (sum(masses.values()) >= 0.25)
    if found.score is not None:
        numbers = [number for number, mass in masses.items() if mass]
        assert min(numbers) - 1e-9 <= found.score <= max(numbers) + 1e-9


@given(st.text())
def test_any_body_is_read_or_is_a_fault(body: str) -> None:
    try:
        read(body, "logprobs")
    except FaultyReplyError:
        return
    raise AssertionError("no completion, yet read as one")


@pytest.mark.parametrize("logprob", ["NaN", "null", "1" + "0" * 400, '"x"'])
def test_a_log_probability_that_is_none_is_no_certainty(logprob: str) -> None:
    """Read as 0, NaN would make its number certain."""
    body = completion("85", {"85": 0.5, "10": 0.5}).replace(str(math.log(0.5)), logprob, 1)
    with pytest.raises(FaultyReplyError, match="no logprobs"):
        read(body, "logprobs")


def test_minus_infinity_is_a_probability_of_nothing() -> None:
    body = completion("85", {"85": 0.9, "10": 0.1}).replace(str(math.log(0.1)), "-Infinity")
    assert read(body, "logprobs").score == 85


def test_a_reply_nested_beyond_reading_is_a_faulty_one() -> None:
    with pytest.raises(FaultyReplyError, match="not a chat completion"):
        completion_of("[" * 200_000 + "]" * 200_000)
    with pytest.raises(FaultyReplyError, match="not a chat completion"):
        completion_of("[" * 900 + r'"\ud83d"' + "]" * 900)  # which is to be read twice
