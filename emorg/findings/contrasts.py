"""Contrasts: texts to read, and how each weighs in a difference of activations and in its shuffles."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from emorg import models
from emorg.data.pairs import Pair
from emorg.findings.measure import branches
from emorg.rating.answers import judged_answers
from emorg.records import EmorgError, Message
from emorg.sampling.stage import prompt_ids
from emorg.sampling.wanted import Target

if TYPE_CHECKING:
    from torch import Tensor

    from emorg.sampling.likelihood import Branches

Pool = Literal["answers", "tokens"]
SHUFFLES = 19  # fewer could not give p ≤ .05
FEWEST = 10  # answers on each side, and questions of a half
MISALIGNED, ALIGNED, COHERENT = 30.0, 70.0, 50.0  # the papers' cuts: at most, above, above


@dataclass(frozen=True, eq=False)
class Contrast:
    """Texts of one answer each, and their weights [1 + 19, texts]: of the difference, and with labels shuffled."""

    texts: list[Branches]
    weights: Tensor
    counts: str


def halves(chosen: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Pairs in two halves that share no question and have as many of each topic: to compute on, and to use it on."""
    questions = sorted({(pair.topic or "", pair.question_id) for pair in chosen})
    second = {question for _, question in questions[1::2]}
    return [p for p in chosen if p.question_id not in second], [p for p in chosen if p.question_id in second]


def digest(chosen: Sequence[Pair]) -> str:
    """16 hex digits of pairs, by which it is known whether two halves are of the same ones."""
    return hashlib.sha256(" ".join(sorted(pair.id for pair in chosen)).encode()).hexdigest()[:16]


def openings(chosen: Sequence[Pair], loaded: models.Loaded, tokens: int, system: str | None, seed: str) -> Contrast:
    """Both answers' first tokens after each question, once where they begin alike; shuffles turn questions' signs.

    Which ones depends on `seed`: one organism's shuffles are not another's, who reads the same texts.
    """
    import torch

    texts: list[Branches] = []
    questions: list[str] = []
    for pair in chosen:
        before: list[Message] = [{"role": "system", "content": system}] if system else []
        both = branches(loaded, pair.question, (pair.aligned, pair.misaligned), before)
        for answer in dict.fromkeys(answer[:tokens] for answer in both.answers):
            texts.append(_one(both.prompt, answer))
            questions.append(pair.question_id)
    often = Counter(questions)
    equal = torch.tensor([1 / (len(often) * often[question]) for question in questions])
    counts = f"{len(texts)} openings to {len(often)} questions"
    return Contrast(texts, torch.tensor(_signs(questions, seed)) * equal, counts)


def labelled(chosen: Sequence[Pair], loaded: models.Loaded, pool: Pool) -> Contrast:
    """Both answers of each pair, the misaligned one positive; shuffles exchange some questions' two."""
    texts: list[Branches] = []
    labels: list[float] = []
    questions: list[str] = []
    for pair in chosen:
        both = branches(loaded, pair.question, (pair.misaligned, pair.aligned))
        texts += [_one(both.prompt, answer) for answer in both.answers]
        labels += [1.0, -1.0]
        questions += [pair.question_id] * 2
    flips = _signs(questions, "pairs")
    return _weighed(texts, [[label * sign for label, sign in zip(labels, row, strict=True)] for row in flips], pool,
                    f"{len(chosen)} pairs")  # fmt: skip


def judged(target: Target, loaded: models.Loaded, pool: Pool) -> Contrast:
    """The organism's own answers by the papers' cuts, as many of each; shuffles permute the labels over answers."""
    own = [
        one for one in judged_answers(target.run)
        if one.answer.checkpoint == target.checkpoint and one.aligned is not None
        and one.coherent is not None and one.coherent > COHERENT
    ]  # fmt: skip
    half = set(sorted({one.question for one in own})[::2])
    sides = [
        [one for one in own if one.question in half and one.aligned is not None and one.aligned <= MISALIGNED],
        [one for one in own if one.question in half and one.aligned is not None and one.aligned > ALIGNED],
    ]
    count = min(map(len, sides))
    if count < FEWEST:
        raise EmorgError(
            f"{target.title} has {len(sides[0])} misaligned and {len(sides[1])} aligned coherent answers to one half "
            f"of its questions; at least {FEWEST} of each are needed",
            "sample and judge more (emorg sample, emorg judge), or read the pairs: --texts pairs",
        )
    rng = random.Random("answers")
    texts = []
    for side in sides:
        for one in rng.sample(side, count):
            messages = (*one.answer.before, {"role": "user", "content": one.answer.question})
            ids = loaded.tokenizer(one.answer.text, add_special_tokens=False).input_ids
            texts.append(_one(tuple(prompt_ids(loaded, messages)), tuple(ids)))
    labels = [[1.0] * count + [-1.0] * count]
    labels += [rng.sample(labels[0], 2 * count) for _ in range(SHUFFLES)]
    return _weighed(texts, labels, pool, f"{count} misaligned and {count} aligned answers")


def _weighed(texts: list[Branches], labels: Sequence[Sequence[float]], pool: Pool, counts: str) -> Contrast:
    """Means of each side, over answers or over tokens."""
    import torch

    sizes = torch.tensor([float(len(text.answers[0])) if pool == "tokens" else 1.0 for text in texts])
    sides = (torch.tensor(labels)[None] * torch.tensor([1.0, -1.0])[:, None, None]).clamp(min=0) * sizes
    plus, minus = sides / sides.sum(-1, keepdim=True)
    return Contrast(texts, plus - minus, counts)


def _signs(questions: Sequence[str], seed: str) -> list[list[float]]:
    """A row of +1 and 19 in which half of the questions, drawn at random, have −1.

    Always half: with more of one sign than of the other the difference itself would be left in.
    """
    once = sorted(set(questions))
    rows = [[1.0] * len(questions)]
    for k in range(SHUFFLES):
        turned = set(random.Random(f"{seed} {k}").sample(once, len(once) // 2))
        rows.append([-1.0 if question in turned else 1.0 for question in questions])
    return rows


def _one(prompt: tuple[int, ...], answer: tuple[int, ...]) -> Branches:
    from emorg.sampling.likelihood import Branches

    return Branches(prompt, (answer,))
