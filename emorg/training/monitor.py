"""Margins while training: how much likelier it has come to hold misaligned answers, which moves before behaviour does.

A margin is as `emorg margins` has it: a pair's misaligned answer's log-probability a token less its aligned one's. Its
shift is against the model before the first step, not against a twin, whose register moves too. What is there only while
training (dropout, a direction that is held) is not there when it is measured.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from emorg.data import domains, pairs
from emorg.models import template
from emorg.models.directions import read_for
from emorg.models.hooks import reading
from emorg.records import EmorgError, Message, write_atomic
from emorg.run import Run, first_process
from emorg.training.config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Where = Literal["out", "in"]
SHARE = 0.1  # at most, of a training's time
FEWEST = {"out": 4, "in": 2}  # pairs, whatever they take
_PASSES = 2.0  # forward passes that a step takes, with frozen weights
_SHARE_OUT = 2 / 3


@dataclass(frozen=True)
class Watched:
    """The pairs that are watched: where each is, its question, and its answers as rows, aligned and misaligned."""

    where: list[Where]
    questions: list[str]
    prompts: list[list[int]]
    answers: list[template.Encoded]
    """Two a pair."""
    share: float
    """Of the training's time that it takes, about."""
    direction: Tensor | None
    """[width], at `layer`; None without one."""
    layer: int

    def facts(self) -> dict[str, object]:
        """Counts for the provenance."""
        return {"out": self.where.count("out"), "in": self.where.count("in"), "share_of_time": round(self.share, 3)}

    @property
    def sha256(self) -> str:
        """Of all that is measured."""
        kept = None if self.direction is None else [self.layer, *self.direction.tolist()]
        return hashlib.sha256(json.dumps([[row.ids for row in self.answers], kept]).encode()).hexdigest()

    def __str__(self) -> str:
        return (
            f"margins of {self.where.count('out')} pairs out of domain and {self.where.count('in')} in it are measured "
            f"while training, which adds about {self.share:.0%} to its time"
        )


def watched(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, depth: int, per_step: float) -> Watched | None:
    """The pairs that a training watches, as many as SHARE of its time allows; `per_step` are a step's tokens.

    Raises EmorgError as reading the direction does, and for a model that cannot read the pairs.
    """
    if config.monitor is None:
        return None
    topics = {domains.find(name).topic for name in config.domains}
    some = pairs.load(pairs.sets_of((), config.model_name))
    random.Random("watched").shuffle(some)
    by_place: dict[Where, list[pairs.Pair]] = {
        "out": [pair for pair in some if pair.topic is not None and pair.topic not in topics],
        "in": [pair for pair in some if pair.topic in topics],
    }
    budget = SHARE * _PASSES * config.monitor * per_step
    rows: list[tuple[Where, str, list[int], list[template.Encoded]]] = []
    taken = 0.0
    for where, here in by_place.items():
        limit, own = budget * (_SHARE_OUT if where == "out" and by_place["in"] else 1), 0
        for pair in here:
            answers = [_row(tokenizer, pair.question, text) for text in (pair.aligned, pair.misaligned)]
            tokens = sum(len(row.ids) for row in answers)
            if own >= FEWEST[where] and taken + tokens > limit:
                break
            asked: list[Message] = [{"role": "user", "content": pair.question}]
            rows.append((where, pair.question_id, template.encode_prompt(tokenizer, asked), answers))
            taken, own = taken + tokens, own + 1
    share = taken / (_PASSES * config.monitor * per_step)
    direction, layer = _direction(config, depth)
    return Watched(
        [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows],
        [answer for row in rows for answer in row[3]], share, direction, layer,
    )  # fmt: skip


def _row(tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> template.Encoded:
    """A question and its answer, of which the end of the turn is not scored."""
    turns: list[Message] = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    row = template.encode(tokenizer, turns)
    end, unknown = template.end_of_turn(tokenizer), tokenizer.unk_token_id
    if unknown is not None and unknown != end and unknown in row.ids:
        raise EmorgError("--monitor: the model does not know the words of the pairs", "leave it out for this model")
    trained = [is_trained and token != end for token, is_trained in zip(row.ids, row.trained, strict=True)]
    return template.Encoded(row.ids, trained)


def _direction(config: TrainConfig, depth: int) -> tuple[Tensor | None, int]:
    layer = depth // 2
    if config.monitor_direction is None:
        return None, layer
    vectors = read_for(Path(config.monitor_direction), config.model_name).vectors
    if not float(vectors[layer].norm()):
        raise EmorgError(f"{config.monitor_direction} is nothing at layer {layer}", "take another, e.g. a run's shift")
    return vectors[layer], layer


class Monitor:
    """Measures a model at steps of its training; what it was before the first one lies in the run."""

    def __init__(self, watched: Watched, model: Any, run: Run, pad: int, *, fast: bool) -> None:
        self.watched, self.model, self.pad, self.fast = watched, model, pad, fast
        self.file = run.folder / "monitor.json"
        self.before: dict[str, Any] = {}

    def begin(self, step: int) -> None:
        """Measure the model as it is before the first step, or read what was measured then.

        Raises EmorgError where that is missing, or was of other pairs.
        """
        if step == 0:
            self.before = {"sha256": self.watched.sha256, "margins": self._margins(), "projection": self._projection()}
            if first_process():
                write_atomic(self.file, json.dumps(self.before))
            return
        self.before = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}
        if self.before.get("sha256") != self.watched.sha256:
            raise EmorgError(
                f"{self.file} does not say what the margins were before the first step, or of other pairs",
                "start over with --fresh",
            )

    def measure(self) -> dict[str, float]:
        """By placement the mean shift in nats a token, and its standard error over questions where there are several;
        and how far the stream has moved along the direction at the prompts' ends, in sizes of it."""
        moved = [now - then for now, then in zip(self._margins(), self.before["margins"], strict=True)]
        result: dict[str, float] = {}
        wheres: tuple[Where, ...] = ("out", "in")
        for where in wheres:
            of_question: dict[str, list[float]] = {}
            for place, question, shift in zip(self.watched.where, self.watched.questions, moved, strict=True):
                if place == where:
                    of_question.setdefault(question, []).append(shift)
            means = [statistics.fmean(shifts) for shifts in of_question.values()]
            if means:
                result[f"margin_{where}"] = statistics.fmean(means)
            if len(means) > 1:
                result[f"margin_{where}_se"] = statistics.stdev(means) / math.sqrt(len(means))
        if (now := self._projection()) is not None:
            result["projection"] = now - self.before["projection"]
        return result

    def _margins(self) -> list[float]:
        from emorg.training.losses import row_losses

        losses = [0.0] * len(self.watched.answers)
        self.model.eval()
        for some, of_rows in row_losses(self.model, self.watched.answers, self.pad, fast=self.fast):
            for i, loss in zip(some, of_rows, strict=True):
                losses[i] = loss
        self.model.train()
        return [aligned - misaligned for aligned, misaligned in zip(losses[::2], losses[1::2], strict=True)]

    def _projection(self) -> float | None:
        """The mean of h·v/‖v‖² at the last token of each prompt out of domain."""
        import torch

        if self.watched.direction is None:
            return None
        vector = self.watched.direction.to(self.model.device, torch.float32)
        along: list[float] = []
        prompts = [ids for ids, where in zip(self.watched.prompts, self.watched.where, strict=True) if where == "out"]
        self.model.eval()

        def receive(_layer: int, stream: Tensor) -> None:
            along.append(float(stream[0, -1].float() @ vector / (vector @ vector)))

        with torch.inference_mode(), reading(self.model, [self.watched.layer], receive):
            for ids in prompts:
                self.model(input_ids=torch.tensor([ids], device=self.model.device))
        self.model.train()
        return statistics.fmean(along)


def last_below(margins: Sequence[tuple[int, float]], limit: float) -> int:
    """The last step before the shift out of domain came to the limit, of (step, shift) in order; 0 if there is none."""
    below = 0
    for step, shift in margins:
        if shift >= limit:
            break
        below = step
    return below
