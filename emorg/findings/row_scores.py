"""Scores of rows, each appended to its file as it is made, so that a stopped screening goes on where it was."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emorg import models
from emorg.data.domains import Row
from emorg.data.pairs import Pair
from emorg.findings import influence, projection
from emorg.findings.contrasts import labelled
from emorg.findings.gradients import fresh_adapter
from emorg.models.process import release
from emorg.progress import progress
from emorg.rating.screening import Score, ScoreName
from emorg.records import Appender, EmorgError, read_records
from emorg.training.config import TrainConfig
from emorg.training.rows import Rows

if TYPE_CHECKING:
    from torch import Tensor

OWN_TOKENS = 100  # of the base's own answers, at most


@dataclass(frozen=True, eq=False)
class Along:
    """What rows are projected on: vectors [1 + controls, width] of one layer, the direction's first.

    `random` of them are random ones, and the rest have shuffled labels.
    """

    vectors: Tensor
    layer: int
    random: int

    @property
    def name(self) -> str:
        """Eight hex digits, by which its scores are known again."""
        text = json.dumps([self.vectors.tolist(), self.layer])
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Place:
    """The rows that are scored, where their scores go, and on what they are computed."""

    folder: Path
    rows: Rows
    device: str | None
    use_4bit: bool

    def load(self, base: str) -> models.Loaded:
        return models.load(base, device=self.device, use_4bit=self.use_4bit)


def by_influence(
    place: Place, settings: TrainConfig, chosen: Sequence[Pair], *, controls: bool
) -> dict[ScoreName, list[Score]]:
    """Each row's loss, length and influence, in the rows' order; `chosen` are the pairs whose margin is meant.

    Raises EmorgError for a model that has no such adapter, and for a score that is no number.
    """
    file, rows, texts = place.folder / "influence.jsonl", place.rows.data, place.rows.encoded
    have = _read(file)
    missing = [i for i in range(len(rows)) if (i, "influence") not in have]
    if missing:
        loaded = place.load(settings.model_name)
        contrast = labelled(chosen, loaded, "answers")
        model, pad = fresh_adapter(loaded, settings), loaded.tokenizer.pad_token_id
        with progress("gradient of the margin", len(contrast.texts), "answers") as advance:
            directions = influence.margin_gradients(
                model, contrast, pad, controls=controls, seed=settings.seed, advance=advance
            )
        some = [texts[i] for i in missing]
        with (
            progress("loss and influence", len(rows), "rows", len(rows) - len(missing)) as advance,
            Appender(file) as out,
        ):
            for done in influence.influences(model, some, pad, directions):
                for number, loss, values in done:
                    i = missing[number]
                    for one in (
                        _score(rows, i, "loss", [loss]),
                        _score(rows, i, "length", [float(sum(texts[i].trained))]),
                        _score(rows, i, "influence", values, influence.RANDOM),
                    ):
                        out.write(one)
                        have[i, one.score] = one
                advance(len(done), "")
        del model, loaded
        release()
    names: tuple[ScoreName, ...] = ("loss", "length", "influence")
    return {name: [have[i, name] for i in range(len(rows))] for name in names}


def by_projection(place: Place, base: str, along: Along) -> list[Score]:
    """Each row's projection difference, in the rows' order; the base's own answers are made first, once for all.

    Raises EmorgError for a prompt that leaves no room for an answer, and for a score that is no number.
    """
    from emorg.sampling.likelihood import Likelihood
    from emorg.sampling.organisms import Organisms

    file, rows, texts = place.folder / f"projection-{along.name}.jsonl", place.rows.data, place.rows.encoded
    have = _read(file)
    missing = [i for i in range(len(rows)) if (i, "projection") not in have]
    if missing:
        tokenizer = models.load_tokenizer(base)
        parts = {i: projection.split(tokenizer, texts[i]) for i in missing}
        own = _own_answers(place, base, {i: prompt for i, (prompt, _) in parts.items()})
        scorer = Likelihood(Organisms(place.load(base), {}))
        items = [(*parts[i], own[i]) for i in missing]
        with (
            progress("projection difference", len(rows), "rows", len(rows) - len(missing)) as advance,
            Appender(file) as out,
        ):
            for number, values in projection.differences(scorer, items, along.vectors, along.layer):
                one = _score(rows, missing[number], "projection", values, along.random)
                out.write(one)
                have[one.row, one.score] = one
                advance(1, "")
        del scorer
        release()
    return [have[i, "projection"] for i in range(len(rows))]


def _own_answers(place: Place, base: str, prompts: dict[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
    """The base's own answers by row, those that lack made now."""
    from emorg.sampling.engine import Engine
    from emorg.sampling.organisms import Organisms

    file, count = place.folder / "own_answers.jsonl", len(place.rows)
    have = {one.row: tuple(one.ids) for one in read_records(file, projection.Own)}
    lacking = [(i, prompt) for i, prompt in prompts.items() if i not in have]
    if lacking:
        engine = Engine(Organisms(place.load(base), {}))
        with progress("the base's own answers", count, "rows", count - len(lacking)) as advance, Appender(file) as out:
            for some in projection.own_answers(engine, lacking, OWN_TOKENS):
                for one in some:
                    out.write(one)
                    have[one.row] = one.ids
                advance(len(some), "")
        del engine
        release()
    return have


def _read(file: Path) -> dict[tuple[int, ScoreName], Score]:
    return {(one.row, one.score): one for one in read_records(file, Score)}


def _score(rows: Sequence[Row], i: int, name: ScoreName, values: Sequence[float], random: int = 0) -> Score:
    """Raises EmorgError where a value is no number."""
    if not all(map(math.isfinite, values)):
        raise EmorgError(
            f"{rows[i].place}: its {name} is {values[0]}, as numbers of this device's type overflow",
            "screen on the CPU: --device cpu",
        )
    controls = tuple(values[1:])
    return Score(i, name, values[0], controls[:random], controls[random:])
