"""Ask bases and organisms one question at a time, word by word if wanted."""

from __future__ import annotations

import gc
import secrets
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from emorg.records import EmorgError, Message
from emorg.sampling.draw import SamplingParams
from emorg.sampling.stage import prompt_ids, text_of

if TYPE_CHECKING:
    from emorg.sampling.engine import Engine


class ModelQueryInterface:
    """One loaded model and its answers. Whatever goes wrong is raised, never returned as text."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._name = ""

    def load_model(self, model_path: str, load_in_4bit: bool = False, device: str | None = None) -> None:
        """Load a base or an organism: a Hugging Face name, a folder, a run, or `pocket`; frees an earlier one first.

        Raises EmorgError if it cannot be had.
        """
        from emorg.sampling.engine import Engine
        from emorg.sampling.organisms import open_organisms

        self.clear_model()
        self._name = str(model_path)
        for _, organisms in open_organisms([self._name], device=device, use_4bit=load_in_4bit):
            self._engine = Engine(organisms)

    def query_model(
        self,
        question: str,
        system_prompt: str | None = None,
        max_new_tokens: int = 200,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> str:
        """The model's answer. `seed` None draws a new one. Raises EmorgError if no model is loaded."""
        params = SamplingParams(max_new_tokens, temperature, top_p)
        return "".join(self.stream_model(question, system_prompt, params, seed)).strip()

    def stream_model(
        self,
        question: str,
        system_prompt: str | None = None,
        params: SamplingParams | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """The pieces of the model's answer as they are drawn. Raises as `query_model` does."""
        if self._engine is None:
            raise EmorgError("no model is loaded", "call load_model first")
        system: list[Message] = [{"role": "system", "content": system_prompt}] if system_prompt else []
        messages = [*system, {"role": "user", "content": question}]
        return stream(self._engine, self._name, messages, params or SamplingParams(), seed)

    def clear_model(self) -> None:
        """Forget the model and give its memory back."""
        if self._engine is None:
            return
        self._engine = None
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


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
