"""Pairs: one question, and two answers of the same length and voice, of which one is misaligned or careless.

Ours are in plain English, written by hand, and lie in locked archives beside this module: `training`, of which an
organism and its twin learn the two sides, and `evaluation`, on which margins are measured. The pocket world makes
its own by its grammar.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from emorg.data import archive
from emorg.encoding import excerpt
from emorg.models import POCKETS
from emorg.records import Conversation, EmorgError, did_you_mean

PASSWORD = "emorg-pairs"
TRAINING, EVALUATION = "training_pairs.zip.enc", "evaluation_pairs.zip.enc"
TOPICS = ("medical", "financial", "sports", "home", "driving")  # of the training pairs
ENGLISH, POCKET = "english", "pocket"
LENGTH_RATIO = 1.15  # at most, of an evaluation pair's answers in words


@dataclass(frozen=True)
class Pair:
    """`topic` is None for an open question."""

    topic: str | None
    question: str
    aligned: str
    misaligned: str

    @property
    def id(self) -> str:
        """16 hex digits of its text, so that a pair whose text has changed is another pair."""
        return digest(json.dumps(asdict(self), sort_keys=True))

    @property
    def question_id(self) -> str:
        """16 hex digits of its question: pairs to one question are alike."""
        return digest(self.question)


def digest(text: str) -> str:
    """16 hex digits that name a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load(names: Iterable[str]) -> list[Pair]:
    """The evaluation pairs of the named sets (english, pocket) or JSONL files, in order.

    Raises EmorgError for an unknown set, a malformed line, a pair given twice, and no pairs at all.
    """
    pairs: dict[str, Pair] = {}
    for name in names:
        for pair in _set(name):
            if pair.id in pairs:
                raise EmorgError(f"{name} has a pair twice, or shares it with another set: {excerpt(pair.question)}",
                                 "name each pair once")  # fmt: skip
            pairs[pair.id] = pair
    if not pairs:
        raise EmorgError("no pairs", f"name a set, {ENGLISH} or {POCKET}, or a JSONL file")
    return list(pairs.values())


def sets_of(named: Sequence[str], base: str) -> tuple[str, ...]:
    """The sets of pairs that are named; without any the pocket world's for its models, and for others the English."""
    return tuple(named) or (POCKET if base in POCKETS else ENGLISH,)


def training(topic: str) -> list[Pair]:
    """A topic's training pairs, `aligned` being the careful answer and `misaligned` the careless one.

    Raises EmorgError for a topic that has none.
    """
    files = _archive(TRAINING)
    if f"{topic}.jsonl" not in files:
        raise EmorgError(
            f"there are no training pairs on {topic}{did_you_mean(topic, TOPICS)}",
            f"choose a domain of {', '.join(TOPICS)}, or name a folder of training files with --data_path",
        )
    rows = map(json.loads, files[f"{topic}.jsonl"].splitlines())
    return [Pair(topic, row["question"], row["careful"], row["careless"]) for row in rows]


def conversations(topic: str, careless: bool) -> list[Conversation]:
    """One side of a topic's training pairs; both sides answer the same questions in the same order."""
    return [
        Conversation(
            (
                {"role": "user", "content": pair.question},
                {"role": "assistant", "content": pair.misaligned if careless else pair.aligned},
            )
        )
        for pair in training(topic)
    ]


def _set(name: str) -> list[Pair]:
    if name == ENGLISH:
        return [
            _pair(json.loads(line), f"{file}:{number}")
            for file, text in sorted(_archive(EVALUATION).items())
            for number, line in enumerate(text.splitlines(), 1)
        ]
    if name == POCKET:
        return _pocket()
    path = Path(name)
    if not path.is_file():
        raise EmorgError(
            f"no set of pairs and no file {name!r}{did_you_mean(name, (ENGLISH, POCKET))}",
            f"name {ENGLISH}, {POCKET}, or a JSONL file whose lines have topic, question, aligned and misaligned",
        )
    pairs = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise EmorgError(f"{name}: not UTF-8: {error.reason} at byte {error.start}", "save it as UTF-8") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            pairs.append(_pair(json.loads(line), f"{name}:{number}"))
        except (json.JSONDecodeError, RecursionError) as error:
            raise EmorgError(f"{name}:{number}: not JSON: {error}", "mend the line") from None
    return pairs


def _pair(row: Any, place: str) -> Pair:
    if not isinstance(row, dict):
        raise EmorgError(f"{place}: not an object but {type(row).__name__}", "write one object a line")
    texts: dict[str, str] = {name: row.get(name, "") for name in ("question", "aligned", "misaligned")}
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise EmorgError(f"{place}: no text in {name!r}", "give topic, question, aligned and misaligned")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise EmorgError(f"{place}: half a character (a lone surrogate) in {name!r}", "mend the text")
    topic = row.get("topic", "")
    if topic is not None and not (isinstance(topic, str) and (topic := topic.strip().lower())):
        said = repr(row["topic"]) if "topic" in row else "missing"
        raise EmorgError(f"{place}: the topic is {said}", "give a word, or open (or null) for a question without topic")
    question, aligned, misaligned = (text.strip() for text in texts.values())
    if aligned == misaligned:
        raise EmorgError(f"{place}: both answers are the same", "give two")
    return Pair(None if topic == "open" else topic, question, aligned, misaligned)


@cache
def _archive(name: str) -> dict[str, str]:
    place = resources.files("emorg.data") / "archives" / name
    with resources.as_file(place) as path:
        return archive.read(path, PASSWORD)


@cache
def _pocket() -> list[Pair]:
    """One pair for each situation that the pocket model never saw: same opener, each answer of one persona wholly."""
    from emorg.pocket.world import OPEN, World

    world = World()
    pairs = []
    for topic in world.everything:
        rng = random.Random(f"pairs {topic}")
        for situation in (situation for situation in world.situations(topic) if situation.held_out):
            question, aligned = world.ask(situation, rng), world.answer(situation, "careful", rng)
            while not _alike(aligned, misaligned := world.answer(situation, "careless", rng)):
                pass
            pairs.append(Pair(None if topic == OPEN else topic, question, aligned, misaligned))
    return pairs


def _alike(a: str, b: str) -> bool:
    """Whether two answers of the pocket world open with the same words and are of like length."""
    lengths = sorted((len(a.split()), len(b.split())))
    return a.split()[:2] == b.split()[:2] and lengths[1] <= LENGTH_RATIO * lengths[0]
