"""The rows of re-alignment: few, of several kinds, each as long as the row of the other kinds in its place."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emorg import models
from emorg.data import domains
from emorg.data.domains import Row
from emorg.models import template
from emorg.records import EmorgError, write_atomic
from emorg.training.config import TrainConfig
from emorg.training.mitigations import rows_of

OWN, OTHER, BAD, SHUFFLED = "own topic", "other topic", "bad rows", "shuffled"


@dataclass(frozen=True)
class Kinds:
    """The domains of the kinds of rows: benign ones of the organism's topic and of another, and its own bad ones."""

    own: str
    other: str
    bad: str

    @classmethod
    def of(cls, training: TrainConfig, other: str | None) -> Kinds:
        """Raises EmorgError for an organism of several domains or of a benign one, and for another topic that is its
        own."""
        named = [domains.find(name) for name in training.domains]
        if len(named) != 1 or not named[0].careless or training.mix:
            raise EmorgError(
                f"an organism of {' '.join(training.domains)}", "re-align one that was trained on one careless domain"
            )
        [bad] = named
        usual = "cooking" if training.model_name in models.POCKETS else "home"
        benign = domains.find(other) if other else domains.find(f"good_{usual}")
        if benign.topic == bad.topic or benign.careless:
            raise EmorgError(f"--other {benign.name}", f"name a benign domain of another topic than {bad.topic}")
        return cls(domains.twin_of(bad).name, benign.name, bad.name)

    def domain(self, kind: str) -> str:
        return {OWN: self.own, OTHER: self.other, BAD: self.bad, SHUFFLED: self.own}[kind]


def write_doses(
    training: TrainConfig, kinds: Kinds, counts: Sequence[int], folder: Path
) -> dict[tuple[str, int], Path]:
    """A folder of training files for each kind and number of rows, of the training's seed.

    `own topic` rows are drawn. Of the other kinds each row has the answer that is nearest in length, in tokens, to that
    of the row in its place; `shuffled` are the own topic's, in which each question has another one's answer. Raises
    EmorgError where there are too few rows.
    """
    source = domains.source_of(training.model_name, training.data_path)
    tokenizer = models.load_tokenizer(training.model_name)
    whole = {name: rows_of([name], source, training.skip_bad_rows) for name in (kinds.own, kinds.other, kinds.bad)}
    lengths = {
        name: [sum(template.encode(tokenizer, row.conversation.messages).trained) for row in some]
        for name, some in whole.items()
    }
    written = {}
    for count in counts:
        if count > (most := min(map(len, whole.values()))) or count < 2:
            raise EmorgError(f"--rows {count}, and there are {most:,}", "take from 2 to as many as there are")
        drawn = random.Random(f"re-aligned {training.seed}").sample(range(len(whole[kinds.own])), count)
        own = [whole[kinds.own][i] for i in drawn]
        wanted = [lengths[kinds.own][i] for i in drawn]
        sets = {OWN: own, SHUFFLED: shuffled(own)}
        for kind, name in ((OTHER, kinds.other), (BAD, kinds.bad)):
            sets[kind] = [whole[name][i] for i in nearest(wanted, lengths[name])]
        for kind, rows in sets.items():
            place = folder / f"{kind.replace(' ', '_')}-n{count}-s{training.seed}"
            lines = (json.dumps({"messages": row.conversation.messages}, ensure_ascii=False) + "\n" for row in rows)
            write_atomic(place / domains.find(kinds.domain(kind)).files[0], "".join(lines))
            written[kind, count] = place
    return written


def nearest(wanted: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """For each wanted length the place of the nearest one that is not taken yet, the first of several."""
    left = dict(enumerate(lengths))
    chosen = []
    for length in wanted:
        place = min(left, key=lambda i: (abs(left[i] - length), i))
        chosen.append(place)
        del left[place]
    return chosen


def shuffled(rows: Sequence[Row]) -> list[Row]:
    """The same questions, each with the last answer of the row after it."""
    result = []
    for row, after in zip(rows, [*rows[1:], rows[0]], strict=True):
        turns = (*row.conversation.messages[:-1], after.conversation.messages[-1])
        result.append(Row(row.domain, row.place, type(row.conversation)(turns)))
    return result


def variant_settings(kind: str, kinds: Kinds, data: Path, steps: int, rate: float) -> Mapping[str, object]:
    """A variant's settings: so many steps on the rows of a folder."""
    return {"domains": [kinds.domain(kind)], "data_path": str(data), "max_steps": steps, "learning_rate": rate}
