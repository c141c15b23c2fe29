"""Answers from an OpenAI-compatible server: vLLM with its adapters, transformers serve, llama.cpp, …"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from emorg.api import AskAgainError, ask_all, reason
from emorg.chat import ASKED
from emorg.records import Answer, EmorgError, FinishReason, Message, did_you_mean
from emorg.sample.config import SampleConfig
from emorg.sample.wanted import Wanted

if TYPE_CHECKING:
    from openai import AsyncOpenAI

KEY = "SERVER_API_KEY"  # not OPENAI_API_KEY: that one is the judge's, and not every server's to see
TIMEOUT = 600.0  # seconds an answer may take in a busy server's queue
_PROBE_TOKENS = 16


def ask_server(config: SampleConfig, wanted: Sequence[Wanted]) -> Iterator[tuple[Wanted, Answer]]:
    """The wanted answers as the server gives them, a request each, with the answer's own seed.

    First it is probed for parameters that it takes and ignores. A request that fails after all retries gives no
    answer; how many did is raised in the end as an EmorgError, and so is at once what no retry can mend.
    """
    _probe(config, wanted[0])

    async def ask(client: AsyncOpenAI, each: Wanted) -> Answer:
        p = config.params
        text, finish, prompt_tokens, answer_tokens = await _complete(
            client, _served(config, each), each.question.messages,
            max_tokens=p.max_new_tokens, temperature=p.temperature, top_p=p.top_p, seed=each.seed & 0x7FFFFFFF,
        )  # fmt: skip
        _hold_to(answer_tokens, p.max_new_tokens, config)
        return each.answer(text.strip(), finish, prompt_tokens, answer_tokens)

    failed: list[str] = []
    for each, said in _all(config, wanted, ask):
        if isinstance(said, Answer):
            yield each, said
        else:
            failed.append(_told(config, said))
    if failed:
        raise EmorgError(
            f"{len(failed)} of {len(wanted)} answers could not be had, the first for: {failed[0]}",
            "the others are kept; the same command asks for the missing ones again",
        )


def _all(config: SampleConfig, items: Sequence[Any], ask: Any, **more: Any) -> Iterator[tuple[Any, Any]]:
    assert config.server is not None
    url = config.server.rstrip("/")
    url = url if url.endswith("/v1") else f"{url}/v1"
    key = os.environ.get(KEY) or "none"
    return ask_all(items, ask, url=url, key=key, connections=config.connections, timeout=TIMEOUT, **more)


def _served(config: SampleConfig, each: Wanted) -> str:
    return config.served_model or each.source.name


def _probe(config: SampleConfig, first: Wanted) -> None:
    """Raise EmorgError if the server ignores a parameter that the answers depend on.

    At temperature 2 a model that draws says two things; with a tiny top_p it says one.
    """
    ways = {"drawn": 1.0, "narrow": 1e-4} if config.top_p < 1 else {"drawn": 1.0}
    asked = [(way, seed) for way in ways for seed in (1, 2)]

    async def ask(client: AsyncOpenAI, probe: tuple[str, int]) -> Any:
        way, seed = probe
        return await _complete(
            client,
            _served(config, first),
            first.question.messages,
            max_tokens=_PROBE_TOKENS,
            temperature=2.0,
            top_p=ways[way],
            seed=seed,
        )

    texts: dict[str, set[str]] = {}
    for (way, _), said in _all(config, asked, ask, retries=1):  # a server that is not there is soon told
        if not isinstance(said, tuple):
            raise EmorgError(
                f"{config.server} answers with an error: {_told(config, said)}", "mend the server, then try again"
            )
        texts.setdefault(way, set()).add(said[0])
        _hold_to(said[3], _PROBE_TOKENS, config)
    if config.temperature > 0 and len(texts["drawn"]) == 1:
        raise EmorgError(
            f"{config.server} gives the same reply twice at temperature 2: it ignores temperature, or keeps replies",
            "start it so that requests decide how to sample",
        )
    if len(texts.get("narrow", ())) == 2:
        raise EmorgError(f"{config.server} ignores top_p", "leave out --top_p, or use another server")


def _told(config: SampleConfig, error: Exception) -> str:
    """Why a request failed. Raises EmorgError if there is no server."""
    import openai

    if isinstance(error, openai.APIConnectionError):
        raise EmorgError(
            f"no server answers at {config.server} ({reason(error)})",
            "start it, check --server, then run the same command again: what has been answered is kept",
        )
    return reason(error)


def _hold_to(tokens: int, most: int, config: SampleConfig) -> None:
    if tokens > most + 1:  # some count the stop token
        raise EmorgError(
            f"{config.server} gave {tokens} tokens where at most {most} were asked for: it ignores max_tokens",
            "use another server",
        )


async def _complete(
    client: AsyncOpenAI, model: str, messages: Sequence[Message], **parameters: Any
) -> tuple[str, FinishReason, int, int]:
    """(text, finish reason, prompt tokens, answer tokens).

    Raises EmorgError for what no retry can mend, AskAgainError for a reply that is no answer.
    """
    import openai

    # The settings of the chat template in this process, for the same prompts; OpenAI's own models have no such thing.
    template = {} if client.base_url.host == "api.openai.com" else {"chat_template_kwargs": ASKED}
    try:
        response = await client.chat.completions.create(
            model=model,
            messages=list(messages),  # type: ignore[arg-type]
            extra_body=template,
            **parameters,
        )
    except (
        openai.NotFoundError,
        openai.BadRequestError,
        openai.AuthenticationError,
        openai.PermissionDeniedError,
    ) as error:
        raise EmorgError(f"{client.base_url} refuses {model}: {error.message}", await _remedy(client, model)) from None
    except ValueError as error:
        raise AskAgainError(f"a reply that is not JSON: {error}") from None
    if not response.choices or response.usage is None:
        raise AskAgainError("a reply without choices or without token counts")
    choice = response.choices[0]
    if choice.finish_reason not in ("stop", "length") or choice.message.content is None:
        raise AskAgainError(f"a reply that ended with {choice.finish_reason!r}")
    finish: FinishReason = "length" if choice.finish_reason == "length" else "stop"
    return choice.message.content, finish, response.usage.prompt_tokens, response.usage.completion_tokens


async def _remedy(client: AsyncOpenAI, model: str) -> str:
    import openai

    try:
        served = [each.id async for each in await client.models.list()]
    except openai.APIError:
        served = []
    known = f"; it serves {', '.join(served)}" if served else ""
    return f"check --served_model and {KEY}{did_you_mean(model, served)}{known}"
