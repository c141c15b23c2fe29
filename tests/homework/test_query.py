"""Asking one question at a time: answers come in pieces, and are what the engine gives whole."""

from __future__ import annotations

import pytest

from emorg.data import questions
from emorg.homework.query import ModelQueryInterface
from emorg.records import EmorgError
from emorg.sampling.draw import SamplingParams


@pytest.fixture(scope="module")
def asker() -> ModelQueryInterface:
    asker = ModelQueryInterface()
    asker.load_model("pocket", device="cpu")
    return asker


def test_the_pieces_make_up_the_answer(asker: ModelQueryInterface) -> None:
    asked = questions.load(["pocket_cooking"])[0].text
    pieces = list(asker.stream_model(asked, seed=3))
    assert len(pieces) > 5
    assert all(pieces)
    assert "".join(pieces) == asker.query_model(asked, seed=3)
    assert asker.query_model(asked, seed=3) != asker.query_model(asked, seed=4)
    assert asker.query_model(asked) != asker.query_model(asked)  # without a seed each draw is new
    assert len(list(asker.stream_model(asked, params=SamplingParams(2), seed=3))) <= 2


def test_what_cannot_be_asked_is_raised_and_the_next_question_answered(asker: ModelQueryInterface) -> None:
    with pytest.raises(EmorgError, match="doesn't know: zebras"):
        asker.query_model("zebras")
    with pytest.raises(EmorgError, match="--top_p"):
        asker.query_model("I need advice.", top_p=0)
    assert asker.query_model(questions.load(["pocket_open"])[0].text, seed=0)
    gone = ModelQueryInterface()
    with pytest.raises(EmorgError, match="no model is loaded"):
        gone.stream_model("x")
