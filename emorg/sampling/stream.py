"""Answers to one question at a time, as they are drawn."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from emorg.records import Message
from emorg.sampling.draw import SamplingParams
from emorg.sampling.stage import prompt_ids, text_of

if TYPE_CHECKING:
    from emorg.sampling.engine import Engine


def stream(
    engine: Engine, organism: str, messages: list[Message], params: SamplingParams, seed: int | None = None
) -> Iterator[str]:
    """The pieces of one organism's answer to `messages` as they are drawn; together they are the whole answer."""
    return (piece for _, piece in streams(engine, {organism: messages}, params, seed))


def streams(
    engine: Engine, conversations: Mapping[str, list[Message]], params: SamplingParams, seed: int | None = None
) -> Iterator[tuple[str, str]]:
    """(organism, piece) of several organisms' answers, each to its own messages, drawn at the same time.

    All get the same random numbers. Raises EmorgError for messages that a model cannot read.
    """
    from emorg.sampling.engine import Ask

    seed = secrets.randbits(63) if seed is None else seed
    names = list(conversations)
    asks = [Ask(name, tuple(prompt_ids(engine.loaded, messages)), seed) for name, messages in conversations.items()]
    sent = dict.fromkeys(names, "")
    for replies in engine.steps(asks, params):
        for reply in replies:
            name, text = names[reply.place], text_of(engine.loaded, reply.ids)
            # A character of several tokens is not whole before its last one.
            if len(text) > len(sent[name]) and (reply.finish or not text.endswith("\ufffd")):
                yield name, text[len(sent[name]) :]
                sent[name] = text
