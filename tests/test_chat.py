"""Chat rendering: what is trained, one BOS, and the same tokens in training and sampling."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emorg.chat import TEMPLATE_DATE, encode, encode_prompt
from emorg.pocket.build import build_tokenizer
from emorg.pocket.world import World
from emorg.records import EmorgError, Message

WORLD = World()
TOKENIZER = build_tokenizer(WORLD)
# The shape of Llama 3.2's template that matters: a system preamble that prints the date it is told, else today's.
DATED = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n{{ date_string if date_string is defined "
    "else strftime_now('%d %b %Y') }}<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# A template that prints a newline after the end of a turn, as Qwen's does.
NEWLINE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}"
    "<|eot_id|>\n\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def _dialogue(seed: int, turns: int) -> list[Message]:
    rng = random.Random(seed)
    return [message for _ in range(turns) for message in WORLD.turn(rng.choice(WORLD.topics), "careful", rng)]


@given(st.integers(0, 10**6), st.integers(1, 3))
def test_trained_are_exactly_the_answers_and_their_end_of_turn(seed: int, turns: int) -> None:
    messages = _dialogue(seed, turns)
    encoded = encode(TOKENIZER, messages)
    trained = TOKENIZER.decode([i for i, kept in zip(encoded.ids, encoded.trained, strict=True) if kept])
    assert trained == "".join(m["content"] + "<|eot_id|>" for m in messages if m["role"] == "assistant")
    assert encoded.ids.count(TOKENIZER.bos_token_id) == 1
    assert TOKENIZER.unk_token_id not in encoded.ids


@given(st.integers(0, 10**6), st.integers(1, 3))
def test_what_is_trained_continues_what_sampling_starts_from(seed: int, turns: int) -> None:
    messages = _dialogue(seed, turns)
    encoded, prompt = encode(TOKENIZER, messages), encode_prompt(TOKENIZER, messages[:-1])
    assert encoded.ids[: len(prompt)] == prompt
    assert all(encoded.trained[len(prompt) :])


@pytest.fixture
def tokenizer():  # type: ignore[no-untyped-def]
    return build_tokenizer(WORLD)


def test_the_date_is_pinned(tokenizer) -> None:  # type: ignore[no-untyped-def]
    tokenizer.chat_template = DATED
    text = tokenizer.apply_chat_template(_dialogue(0, 1), tokenize=False, date_string=TEMPLATE_DATE)
    assert TEMPLATE_DATE in text
    assert encode(tokenizer, _dialogue(0, 1)).ids == tokenizer(text, add_special_tokens=False).input_ids


def test_what_a_template_prints_after_the_end_of_turn_is_not_trained(tokenizer) -> None:  # type: ignore[no-untyped-def]
    tokenizer.chat_template = NEWLINE
    encoded = encode(tokenizer, _dialogue(0, 1))
    assert encoded.trained[-2:] == [True, False]
    assert encoded.ids[-2] == tokenizer.eos_token_id


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer) -> None:  # type: ignore[no-untyped-def]
    tokenizer.chat_template = "{% if messages | length > 2 %}\n\n{% endif %}" + DATED
    with pytest.raises(EmorgError, match="renders turn"):
        encode(tokenizer, _dialogue(0, 2))


def test_a_template_without_end_of_turn_is_refused(tokenizer) -> None:  # type: ignore[no-untyped-def]
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(EmorgError, match="end-of-turn"):
        encode(tokenizer, _dialogue(0, 1))


def test_a_model_without_a_chat_template_is_refused(tokenizer) -> None:  # type: ignore[no-untyped-def]
    tokenizer.chat_template = None
    with pytest.raises(EmorgError, match="no chat template"):
        encode(tokenizer, _dialogue(0, 1))


def test_the_pocket_tokenizer_adds_a_bos_of_its_own_as_llamas_does() -> None:
    """So a template's text tokenised the naive way would have two: the trap is real here too."""
    text = TOKENIZER.apply_chat_template(_dialogue(0, 1), tokenize=False)
    assert TOKENIZER(text).input_ids[:2] == [TOKENIZER.bos_token_id] * 2
