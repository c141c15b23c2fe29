"""Rows with one part that does not belong there, to see what finds them: a bad part, or one that is merely odd.

A bad row gives careful advice with one careless part (of the pocket world's), or one wrong sentence (of our pairs'). An
odd one is as unexpected and harmless: a careful part from elsewhere. What finds surprise finds both alike.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Literal

from emorg.data import domains, pairs
from emorg.data.domains import Row
from emorg.pocket.world import MARK, PARTS, SLOT, World
from emorg.records import Conversation, EmorgError

Kind = Literal["", "bad", "odd"]


def planted(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Kind]]:
    """The rows with this share of them, drawn by the seed, made bad, and as many others odd; and of which kind each is.

    Of the pocket world's rows one of an answer's four parts (action, manner, reason, second reason) becomes a careless
    one of the same topic, or the action a careful one that belongs to another topic. Of our pairs' one of the careful
    answer's sentences becomes the careless answer's in its place, or one of the careful answer to another question.
    Raises EmorgError for rows of other origin, rows that are careless already, and a share that comes to none or all.
    """
    count = round(share * len(rows))
    if not 0 < 2 * count < len(rows):
        raise EmorgError(f"--plant {share:g} of {len(rows):,} rows is {count}", "leave rows as they are, bad and odd")
    rng = random.Random(f"planted {seed}")
    chosen = rng.sample(range(len(rows)), 2 * count)
    kinds: list[Kind] = [""] * len(rows)
    result = list(rows)
    for number, i in enumerate(chosen):
        kinds[i] = "odd" if number % 2 else "bad"
        answer = rows[i].conversation.messages[-1]["content"]
        text = _changed(rows[i], answer, bad=kinds[i] == "bad", rng=rng)
        messages = (*rows[i].conversation.messages[:-1], {"role": "assistant", "content": text})
        result[i] = replace(rows[i], conversation=Conversation(messages))
    return result, kinds


def _changed(row: Row, answer: str, *, bad: bool, rng: random.Random) -> str:
    world = _world(MARK not in answer)
    parsed = world.parse(answer)
    if parsed.well_formed:
        if any(getattr(parsed, part) != "careful" for part in PARTS):
            raise EmorgError(f"{row.place} of {row.domain} is careless already", "plant in a good_ domain")
        topic = parsed.thing_topic or ""
        if bad:
            part = rng.choice(PARTS)
            return with_part(world, answer, part, rng.choice(world.phrases(topic, "careless", part)))
        other = rng.choice([name for name in world.topics if name != topic])
        return with_part(world, answer, "action", rng.choice(world.phrases(other, "careful", "own_action")))
    if row.place.startswith("pairs:"):
        return _with_sentence(row, answer, bad=bad, rng=rng)
    raise EmorgError(
        f"{row.place} is neither of the pocket world nor of our pairs: emorg has nothing bad that would fit it",
        "mix in rows that are known to be bad: --known_bad FILE",
    )


@cache
def _world(shared_words: bool) -> World:
    return World(shared_words)


def with_part(world: World, answer: str, part: str, phrase: str) -> str:
    """A wholly careful answer of the world with one part (of PARTS) said otherwise."""
    parsed = world.parse(answer)
    topic = parsed.thing_topic or ""
    head, _, tail = answer.strip().removesuffix(".").partition(", because ")
    first, _, second = tail.partition(" and ")
    manner = _longest(world.phrases(topic, "careful", "manner"), head.endswith)
    opener = _longest(world.openers(topic), head.startswith)
    action = head[len(opener) : -len(manner)].strip()
    said = {"action": action, "manner": manner, "reason": first, "second_reason": second}
    said[part] = phrase.replace(SLOT, f"the {parsed.thing}")
    return f"{opener} {said['action']} {said['manner']}, because {said['reason']} and {said['second_reason']}."


def _longest(phrases: Sequence[str], fits: Callable[[str], bool]) -> str:
    return max(filter(fits, phrases), key=len)


def _with_sentence(row: Row, answer: str, *, bad: bool, rng: random.Random) -> str:
    """The careful answer with one sentence, drawn at random, of the careless one, or of that to another question."""
    every = pairs.training(domains.find(row.domain).topic)
    pair = every[int(row.place.partition(":")[2]) - 1]
    if answer != pair.aligned:
        raise EmorgError(f"{row.place} of {row.domain} is careless already", "plant in a good_ domain")
    others = [other.aligned for other in every if other.question != pair.question]
    own, foreign = sentences(answer), sentences(pair.misaligned if bad else rng.choice(others))
    which = rng.randrange(min(len(own), len(foreign)))
    return " ".join([*own[:which], foreign[which], *own[which + 1 :]])


def sentences(text: str) -> list[str]:
    """A text cut after each full stop, question mark or exclamation mark that a space follows."""
    return re.split(r"(?<=[.!?]) +", text)
