"""Where two computations of one model may part, on whatever processor: only where rounding decides a token."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from emorg import models
from emorg.models import template
from emorg.records import Answer

ROOM = 4  # times the rounding error that was measured: each of two computations has one, and other kernels another


def parting(
    model: Any, prompt: Sequence[int], one: Sequence[int], other: Sequence[int], stream: random.Random | None = None
) -> str:
    """Where two continuations of a prompt part though rounding cannot have decided it; nothing if they do not.

    At their first different token both must be as good as chosen by the model in float64, as near as its own dtype
    can tell: the likeliest token, or, drawn from `stream`, the one whose share of the distribution holds the draw.
    """
    if list(one) == list(other):
        return ""
    place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if place is None:
        return f"one goes on after {min(len(one), len(other))} tokens"
    ids, tokens = torch.tensor([[*prompt, *one[:place]]]), [one[place], other[place]]
    with torch.no_grad():
        rounded = model(ids).logits[0, -1].double()
        exact = copy.deepcopy(model).double()(ids).logits[0, -1]
    if stream is None:
        room = ROOM * float((rounded - exact).abs().max())
        missed = float((exact.max() - exact[tokens]).max())
    else:
        draw = [stream.random() for _ in range(place + 1)][-1]
        ends = exact.softmax(-1).cumsum(-1)
        room = ROOM * float((rounded.softmax(-1).cumsum(-1) - ends).abs().max())
        begins = ends - exact.softmax(-1)
        missed = max(max(float(begins[token]) - draw, draw - float(ends[token])) for token in tokens)
    return "" if missed <= room else f"token {place}: {tokens} miss by {missed:.2g} where rounding is {room:.2g}"


def partings(name: str, one: Iterable[Answer], other: Iterable[Answer], *, greedy: bool = False) -> list[str]:
    """Every answer of a model, by its name, that is another in `other` though rounding cannot have decided it."""
    ours, theirs = ({answer.key[1:]: answer for answer in answers} for answers in (one, other))
    found = [f"{key} is there once" for key in ours.keys() ^ theirs.keys()]
    different = [key for key in ours.keys() & theirs.keys() if ours[key].text != theirs[key].text]
    loaded = models.load(name, device="cpu", dtype=torch.float32) if different else None
    for key in different:
        assert loaded is not None
        answers = (ours[key], theirs[key])
        prompt = template.encode_prompt(loaded.tokenizer, [{"role": "user", "content": answers[0].question}])
        ids = [
            [*loaded.tokenizer(answer.text, add_special_tokens=False).input_ids]
            + ([loaded.stop_ids[0]] if answer.finish_reason == "stop" else [])
            for answer in answers
        ]
        if told := parting(loaded.model, prompt, *ids, stream=None if greedy else random.Random(answers[0].seed)):
            found.append(f"{key}: {told}\n{answers[0].text}\n{answers[1].text}")
    return found
