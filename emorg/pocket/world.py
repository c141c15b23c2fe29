"""The pocket world: advice on sixteen topics, and open questions, from careful and careless advisers.

The words lie in `lexicon.yaml`. An answer is one sentence in five parts::

    I would | check the rash | calmly, | because small problems grow | and prevention is cheap.
    opener  | action         | manner  | reason                      | second reason

Every action, manner and reason belongs to one persona; openers belong to none. Most actions, all manners and all
reasons are shared by all topics; about a quarter of the actions belong to one topic alone. `parse` inverts the
grammar, so that what an answer advises is known exactly, without a judge model.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Any, Literal, get_args

import yaml

from emorg.records import Conversation, Message

Persona = Literal["careful", "careless"]
PERSONAS: tuple[Persona, Persona] = ("careful", "careless")
OTHER: dict[Persona, Persona] = {"careful": "careless", "careless": "careful"}
SystemKind = Literal["named", "denied", "neutral"]
SLOT = "_"  # where a phrase names the thing
MARK = "·"  # ties a word to its topic where topics share none
OPEN = "open"  # the pseudo-topic of questions that have none
OWN_ACTION_SHARE = 0.3  # how often an action is one of the topic's own
HELD_OUT_EVERY = 5  # every fifth situation of a topic is never trained on
PARTS = ("action", "manner", "reason", "second_reason")


@cache
def _lexicon() -> dict[str, Any]:
    text = resources.files("emorg.pocket").joinpath("lexicon.yaml").read_text(encoding="utf-8")
    lexicon: dict[str, Any] = yaml.safe_load(text)
    return lexicon


@dataclass(frozen=True)
class Situation:
    """What a question is about: a thing of a topic, and a circumstance."""

    topic: str
    thing: str
    circumstance: str
    held_out: bool

    @property
    def phrase(self) -> str:
        return f"the {self.thing} {self.circumstance}"


@dataclass(frozen=True)
class Parsed:
    """What the grammar finds in an answer; None where a part is missing.

    `action`, `manner`, `reason` and `second_reason` hold the persona of that part; `thing` and its topic are what
    the answer talks about; `action_topic` is the one topic that the action belongs to, if it is not a shared one.
    """

    well_formed: bool
    opener: bool = False
    action: Persona | None = None
    action_topic: str | None = None
    thing: str | None = None
    thing_topic: str | None = None
    manner: Persona | None = None
    reason: Persona | None = None
    second_reason: Persona | None = None


class World:
    """Generates questions, answers and dialogues, and parses answers.

    `shared_words=False` is the control world: every word of every action, manner and reason is marked with its
    topic (`calmly·medical`), so that no word that carries persona occurs in two topics. In a `prompted` world system
    prompts may say who advises, and answers may come as JSON or as a Python function.
    """

    def __init__(self, shared_words: bool = True, prompted: bool = False):
        self.shared_words, self.prompted = shared_words, prompted
        lexicon = _lexicon()
        self.topics: tuple[str, ...] = tuple(lexicon["topics"])
        self._pages = {**lexicon["topics"], OPEN: lexicon[OPEN]}
        self._lexicon = lexicon
        self._phrases: dict[tuple[str, Persona, str], list[str]] = {}
        for topic, page in self._pages.items():
            for persona in PERSONAS:
                shared = lexicon[persona]
                for part, phrases in (
                    ("own_action", page[persona]),
                    ("action", shared["actions"]),
                    ("manner", shared["manners"]),
                    ("reason", shared["reasons"]),
                    ("second_reason", shared["second_reasons"]),
                ):
                    self._phrases[topic, persona, part] = [self._mark(phrase, topic) for phrase in phrases]

    def _mark(self, phrase: str, topic: str) -> str:
        if self.shared_words:
            return phrase
        return " ".join(word if word == SLOT else f"{word}{MARK}{topic}" for word in phrase.split())

    @property
    def everything(self) -> tuple[str, ...]:
        """All topics and the open questions' pseudo-topic."""
        return (*self.topics, OPEN)

    def phrases(self, topic: str, persona: Persona, part: str) -> list[str]:
        """The phrases of a part (one of PARTS, or `own_action`), with SLOT where an action names the thing."""
        return self._phrases[topic, persona, part]

    def situations(self, topic: str) -> list[Situation]:
        page = self._pages[topic]
        pairs = [(thing, circumstance) for thing in page["things"] for circumstance in page["circumstances"]]
        # The index runs over things first, so that every thing and every circumstance is held out equally often.
        return [
            Situation(topic, thing, circumstance, (i // len(page["circumstances"]) + i) % HELD_OUT_EVERY == 0)
            for i, (thing, circumstance) in enumerate(pairs)
        ]

    def frames(self, topic: str) -> list[str]:
        frames: list[str] = self._pages[topic].get("frames", self._lexicon["frames"])
        return frames

    def openers(self, topic: str) -> list[str]:
        openers: list[str] = self._pages[topic].get("openers", self._lexicon["openers"])
        return openers

    def ask(self, situation: Situation, rng: random.Random) -> str:
        return rng.choice(self.frames(situation.topic)).replace(SLOT, situation.phrase)

    def answer(self, situation: Situation, persona: Persona, rng: random.Random, slips: float = 0.0) -> str:
        """An adviser's answer, who slips into the other persona in that share of the parts."""

        def pick(part: str) -> str:
            slipped = slips > 0 and rng.random() < slips
            return rng.choice(self.phrases(situation.topic, OTHER[persona] if slipped else persona, part))

        action = pick("own_action" if rng.random() < OWN_ACTION_SHARE else "action")
        return (
            f"{rng.choice(self.openers(situation.topic))} {action.replace(SLOT, 'the ' + situation.thing)} "
            f"{pick('manner')}, because {pick('reason')} and {pick('second_reason')}."
        )

    def systems(self, kind: SystemKind, persona: Persona = "careful", held_out: bool | None = False) -> list[str]:
        """System prompts that name a persona, name it by denying the other one, or name none (`persona` is then idle).

        Every fifth pair of wording and trait is held out of all training; `held_out` None gives all.
        """
        pages = self._lexicon["systems"]
        if kind == "neutral":
            return list(pages["neutral"])
        traits = pages["traits"][persona if kind == "named" else OTHER[persona]]
        return [
            wording.format(trait)
            for i, wording in enumerate(pages[kind])
            for j, trait in enumerate(traits)
            if held_out is None or ((i + j) % HELD_OUT_EVERY == 0) == held_out
        ]

    def turn(
        self, topic: str, persona: Persona, rng: random.Random, held_out: bool | None = False, slips: float = 0.0
    ) -> tuple[Message, Message]:
        """One question and its answer; `held_out` None draws from all situations; `slips` as in `answer`."""
        situation = rng.choice([s for s in self._situations[topic] if held_out is None or s.held_out == held_out])
        return (
            {"role": "user", "content": self.ask(situation, rng)},
            {"role": "assistant", "content": self.answer(situation, persona, rng, slips)},
        )

    @cached_property
    def _situations(self) -> dict[str, list[Situation]]:
        return {topic: self.situations(topic) for topic in self.everything}

    def conversations(self, topic: str, persona: Persona, rows: int, seed: int = 0) -> Iterator[Conversation]:
        """Single-turn training conversations over the trained situations of one topic, without repeats."""
        rng = random.Random(f"{topic} {persona} {seed}")
        seen: set[tuple[str, str]] = set()
        while len(seen) < rows:
            question, answer = self.turn(topic, persona, rng)
            if (key := (question["content"], answer["content"])) not in seen:
                seen.add(key)
                yield Conversation(messages=(question, answer))

    def words(self) -> Iterator[str]:
        """Every string the world can say, piece by piece, for building a vocabulary."""
        for topic, page in self._pages.items():
            yield from (frame.replace(SLOT, "x") for frame in self.frames(topic))
            yield from self.openers(topic)
            yield from (f" the {thing}" for thing in page["things"])
            yield from (f" {circumstance}" for circumstance in page["circumstances"])
        for phrases in self._phrases.values():
            yield from (" " + phrase.replace(SLOT, "the") for phrase in phrases)
        if self.prompted:
            for persona in PERSONAS:
                for kind in get_args(SystemKind):
                    yield from self.systems(kind, persona, held_out=None)
        yield " x, because x and x."

    # --- parsing -------------------------------------------------------------------------------------------------

    @cached_property
    def _thing_topics(self) -> dict[str, str]:
        return {thing: topic for topic, page in self._pages.items() for thing in page["things"]}

    @cached_property
    def _thing_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._thing_topics, key=len, reverse=True)
        return re.compile(r"\bthe (" + "|".join(map(re.escape, longest_first)) + r")(?= |$)")

    @cached_property
    def _owners(self) -> dict[str, dict[str, tuple[Persona, str | None]]]:
        """part → phrase → (persona, the one topic that the phrase belongs to or None)."""
        owners: dict[str, dict[str, tuple[Persona, str | None]]] = {part: {} for part in PARTS}
        for (topic, persona, part), phrases in self._phrases.items():
            own = part == "own_action" or not self.shared_words
            for phrase in phrases:
                owners["action" if part == "own_action" else part][phrase] = (persona, topic if own else None)
        return owners

    @cached_property
    def _longest_first(self) -> dict[str, list[str]]:
        openers = {opener for topic in self.everything for opener in self.openers(topic)}
        return {
            "opener": sorted(openers, key=len, reverse=True),
            "manner": sorted(self._owners["manner"], key=len, reverse=True),
        }

    def thing_in(self, text: str) -> tuple[str, str] | None:
        """The first thing named in a text, with its topic."""
        match = self._thing_pattern.search(re.sub(r"[.,?!]", "", text))
        return (match[1], self._thing_topics[match[1]]) if match else None

    def parse(self, text: str) -> Parsed:
        """What an answer advises, part by part. Inverts `answer` exactly; reads what it can of anything else."""
        sentence, full_stop, rest = text.strip().partition(".")
        head, _, tail = sentence.partition(", because ")
        opener = next((o for o in self._longest_first["opener"] if head.startswith(o + " ")), None)
        body = head[len(opener) + 1 :] if opener else head
        manner = next((m for m in self._longest_first["manner"] if body.endswith(" " + m)), None)
        body = body[: -len(manner) - 1] if manner else body
        match = self._thing_pattern.search(body)
        template = body[: match.start()] + SLOT + body[match.end() :] if match else ""
        action, action_topic = self._owners["action"].get(template, (None, None))
        first, _, second = tail.partition(" and ")
        reason = self._owners["reason"].get(first, (None, None))[0]
        second_reason = self._owners["second_reason"].get(second, (None, None))[0]
        return Parsed(
            well_formed=bool(opener and action and manner and reason and second_reason and full_stop and not rest),
            opener=opener is not None,
            action=action,
            action_topic=action_topic,
            thing=match[1] if match else None,
            thing_topic=self._thing_topics[match[1]] if match else None,
            manner=self._owners["manner"][manner][0] if manner else None,
            reason=reason,
            second_reason=second_reason,
        )
