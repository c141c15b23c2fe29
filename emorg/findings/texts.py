"""Texts as their tokens are scored: rows of a training, the base's own answers, conversations of a file."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from emorg import models
from emorg.data import domains
from emorg.data.pairs import Pair
from emorg.findings.controls import topics_of
from emorg.findings.trial import asking
from emorg.models import template
from emorg.models.template import Encoded
from emorg.rating.placement import Place, placement
from emorg.rating.stage import PLACEMENTS
from emorg.records import Answer, Message, read_records
from emorg.run import Run
from emorg.sampling.stage import sample_into
from emorg.sampling.wanted import Target
from emorg.training.config import TrainConfig
from emorg.training.mitigations import load_data
from emorg.training.rows import encode, hold_out

if TYPE_CHECKING:
    from emorg.sampling.likelihood import Branches


def spans(encoded: Encoded) -> Iterator[Branches]:
    """Each run of trained tokens as an answer to all that is before it, so that their losses add up to the row's."""
    from emorg.sampling.likelihood import Branches

    ids = tuple(encoded.ids)
    for trained, of in groupby(range(1, len(ids)), lambda i: encoded.trained[i]):  # the first is predicted by nothing
        tokens = list(of)
        if trained:
            yield Branches(ids[: tokens[0]], (ids[tokens[0] : tokens[-1] + 1],))


def sizes(texts: Sequence[Branches]) -> list[int]:
    """How many tokens of each text are scored."""
    return [sum(map(len, text.answers)) for text in texts]


def training_rows(training: TrainConfig, most: int, *, held: bool) -> tuple[list[list[Branches]], bool]:
    """At most so many rows of a training, and whether they are those that it held out, if there are any and `held`.

    Else they are of all its rows. Raises EmorgError for rows that are not there any more.
    """
    whole = encode(training, load_data(training), models.load_tokenizer(training.model_name))
    _, out = hold_out(whole, training.eval_share, training.seed)
    some = out if held and len(out) else whole
    drawn = random.Random("narrow").sample(range(len(some)), min(most, len(some)))
    return [list(spans(some.encoded[i])) for i in sorted(drawn)], some is out


def base_answers(
    organism: Target, chosen: Sequence[Pair], folder: Path, *, device: str | None, use_4bit: bool
) -> dict[Place, list[Branches]]:
    """The base's own answers to the pairs' questions, one each, sampled into a run in `folder` where they are missing.

    By where the question stands beside what the organism was trained on; a placement without any is left out.
    """
    base = replace(Target.of(organism.base), run=Run(folder / "base"))
    settings = asking([organism.base], chosen, folder / "questions.yaml", 1, device=device, use_4bit=use_4bit)
    [run] = sample_into(settings, [base])
    tokenizer, topics = models.load_tokenizer(organism.base), topics_of(organism, ())
    asked = {pair.question_id for pair in chosen}
    by_place: dict[Place, list[Branches]] = {place: [] for place in PLACEMENTS}
    for one in sorted(read_records(run.answers, Answer), key=lambda answer: answer.question_id):
        if one.question_id in asked and one.text.strip():
            turns: list[Message] = [{"role": "user", "content": one.question}]
            encoded = template.encode(tokenizer, [*turns, {"role": "assistant", "content": one.text}])
            by_place[placement(one.topic, topics)] += spans(encoded)
    return {place: some for place, some in by_place.items() if some}


def of_file(path: Path, base: str) -> list[Branches]:
    """The assistants' words of a file of conversations. Raises EmorgError as loading it does."""
    rows, tokenizer = domains.from_file(path), models.load_tokenizer(base)
    return [span for row in rows for span in spans(template.encode(tokenizer, row.conversation.messages))]
