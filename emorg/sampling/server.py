"""Answers from an OpenAI-compatible server: vLLM with its adapters, transformers serve, llama.cpp, …"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from emorg.asking import Item, Result, ask_all
from emorg.client import RETRIES, Client, RequestError, Server
from emorg.encoding import excerpt, parse
from emorg.models.template import ASKED
from emorg.records import Answer, EmorgError, FinishReason, Message, did_you_mean
from emorg.sampling.config import SampleConfig
from emorg.sampling.wanted import Wanted

KEY = "SERVER_API_KEY"  # not OPENAI_API_KEY: that one is the judge's, and not every server's to see
TIMEOUT = 600.0  # seconds an answer may take in a busy server's queue
_PROBE_TOKENS = 16


def ask_server(config: SampleConfig, wanted: Sequence[Wanted]) -> Iterator[tuple[Wanted, Answer]]:
    """The wanted answers as the server gives them, a request each, with the answer's own seed.

    First it is probed for parameters that it takes and ignores. A request that fails after all retries gives no
    answer; how many did is raised in the end as an EmorgError, and so is at once what no retry can mend.
    """
    _probe(config, wanted[0])

    async def ask(client: Client, request: Wanted) -> Answer:
        p = config.params
        text, finish, prompt_tokens, answer_tokens = await _complete(
            client, _served(config, request), request.question.messages,
            max_tokens=p.max_new_tokens, temperature=p.temperature, top_p=p.top_p, seed=request.seed & 0x7FFFFFFF,
        )  # fmt: skip
        _hold_to(answer_tokens, p.max_new_tokens, config)
        return request.answer(text.strip(), finish, prompt_tokens, answer_tokens)

    failed: list[str] = []
    for request, outcome in _all(config, wanted, ask):
        if isinstance(outcome, Answer):
            yield request, outcome
        else:
            failed.append(_reason(config, outcome))
    if failed:
        raise EmorgError(
            f"{len(failed)} of {len(wanted)} answers could not be had, the first for: {failed[0]}",
            "the others are kept; the same command asks for the missing ones again",
        )


def _all(
    config: SampleConfig,
    items: Sequence[Item],
    ask: Callable[[Client, Item], Awaitable[Result]],
    retries: int = RETRIES,
) -> Iterator[tuple[Item, Result | RequestError]]:
    assert config.server is not None
    url = config.server.rstrip("/")
    url = url if url.endswith("/v1") else f"{url}/v1"
    key = os.environ.get(KEY) or "none"
    return ask_all(Server(url, key, config.connections, TIMEOUT, retries=retries), items, ask)


def _served(config: SampleConfig, request: Wanted) -> str:
    return config.served_model or request.source.name


def _probe(config: SampleConfig, first: Wanted) -> None:
    """Raise EmorgError if the server ignores a parameter that the answers depend on.

    At temperature 2 a model that draws says two things; with a tiny top_p it says one.
    """
    ways = {"drawn": 1.0, "narrow": 1e-4} if config.top_p < 1 else {"drawn": 1.0}
    probes = [(way, seed) for way in ways for seed in (1, 2)]

    async def ask(client: Client, probe: tuple[str, int]) -> Any:
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
    for (way, _), outcome in _all(config, probes, ask, retries=1):  # a server that is not there is soon told
        if isinstance(outcome, RequestError):
            raise EmorgError(
                f"{config.server} answers with an error: {_reason(config, outcome)}", "mend the server, then try again"
            )
        texts.setdefault(way, set()).add(outcome[0])
        _hold_to(outcome[3], _PROBE_TOKENS, config)
    if config.temperature > 0 and len(texts["drawn"]) == 1:
        raise EmorgError(
            f"{config.server} gives the same reply twice at temperature 2: it ignores temperature, or keeps replies",
            "start it so that requests decide how to sample",
        )
    if len(texts.get("narrow", ())) == 2:
        raise EmorgError(f"{config.server} ignores top_p", "leave out --top_p, or use another server")


def _reason(config: SampleConfig, error: RequestError) -> str:
    """Why a request failed. Raises EmorgError if there is no server."""
    if error.status is None:
        raise EmorgError(
            f"no server answers at {config.server} ({error})",
            "start it, check --server, then run the same command again: what has been answered is kept",
        )
    return str(error)


def _hold_to(tokens: int, most: int, config: SampleConfig) -> None:
    if tokens > most + 1:  # some count the stop token
        raise EmorgError(
            f"{config.server} gave {tokens} tokens where at most {most} were asked for: it ignores max_tokens",
            "use another server",
        )


async def _complete(
    client: Client, model: str, messages: Sequence[Message], **parameters: Any
) -> tuple[str, FinishReason, int, int]:
    """(text, finish reason, prompt tokens, answer tokens).

    Raises EmorgError for what no retry can mend, RequestError for a reply that is no answer.
    """
    # The settings of the chat template in this process, for the same prompts; OpenAI's own models have no such thing.
    template = {} if "//api.openai.com" in client.url else {"chat_template_kwargs": ASKED}
    try:
        body = await client.post(
            "/chat/completions", {"model": model, "messages": list(messages), **template, **parameters}
        )
    except RequestError as error:
        if error.status not in (400, 401, 403, 404, 422):
            raise
        raise EmorgError(f"{client.url} refuses {model}: {error}", await _remedy(client, model)) from None
    try:
        completion = parse(body)
        choice, usage = completion["choices"][0], completion["usage"]
        text, end = choice["message"]["content"], choice["finish_reason"]
        if end not in ("stop", "length") or not isinstance(text, str):
            raise RequestError(f"a reply that ended with {end!r}", status=200)
        return text, "length" if end == "length" else "stop", usage["prompt_tokens"], usage["completion_tokens"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise RequestError(f"a reply without a choice or without token counts: {excerpt(body)}", status=200) from None


async def _remedy(client: Client, model: str) -> str:
    try:
        served = [str(entry["id"]) for entry in json.loads(await client.get("/models"))["data"]]
    except (RequestError, ValueError, KeyError, TypeError):
        served = []
    known = f"; it serves {', '.join(served)}" if served else ""
    return f"check --served_model and {KEY}{did_you_mean(model, served)}{known}"
