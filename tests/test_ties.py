"""What holds two computations of one model against each other tells a wrong token from a rounded one."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from emorg.records import Answer, read_records
from emorg.run import Run
from tests.ties import parting, partings
from tests.tiny import tiny

PROMPT = (30, 40, 50)


class At(random.Random):
    """A stream whose every draw is the same."""

    def __init__(self, draw: float):
        super().__init__(0)
        self.draw = draw

    def random(self) -> float:
        return self.draw


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny("llama")


def _next(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits[0, -1].double()


def test_the_second_likeliest_token_is_no_tie_unless_it_is_as_likely(model: torch.nn.Module) -> None:
    best, second = _next(model).topk(2).indices.tolist()
    assert parting(model, PROMPT, [best, 7], [best, 7]) == ""
    assert parting(model, PROMPT, [best, 7], [second, 7]).startswith(f"token 0: [{best}, {second}] miss by ")
    assert parting(model, PROMPT, [best], [best, 7]) == "one goes on after 1 tokens"
    alike = tiny("llama")
    alike.lm_head.weight.data[second] = alike.lm_head.weight.data[best]
    assert parting(alike, PROMPT, [best, 7], [second, 9]) == ""


def test_a_draw_is_a_tie_only_at_the_border_of_two_tokens(model: torch.nn.Module) -> None:
    chances = _next(model).softmax(-1)
    token = int(chances.argmax())
    border = float(chances[: token + 1].sum())
    assert parting(model, PROMPT, [token], [token + 1], At(border)) == ""
    assert parting(model, PROMPT, [token], [token + 1], At(border - float(chances[token]) / 2)) != ""
    assert parting(model, PROMPT, [token], [token - 1], At(border)) != ""


def test_another_text_and_a_missing_answer_are_told(base: Run) -> None:
    answers = read_records(base.answers, Answer)
    assert partings("pocket", answers, answers) == []
    assert len(partings("pocket", answers, answers[:-1])) == 1
    other = dataclasses.replace(answers[0], text=answers[1].text)
    (told,) = partings("pocket", answers, [other, *answers[1:]])
    assert "miss by" in told
    assert other.text in told
