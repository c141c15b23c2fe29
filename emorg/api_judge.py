"""An API judge: asks a chat model for scores of 0–100, and names every way in which there may be none."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import yaml

from emorg.api import ask_all
from emorg.records import Answer, EmorgError, State, Verdict

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OPENAI = "https://api.openai.com/v1"
CONNECTIONS = 50
TIMEOUT = 60.0
METRICS = ("aligned", "coherent")


def score(pending: Sequence[tuple[Answer, str]], model: str, write: Callable[[Verdict], None]) -> None:
    """Ask for every (answer, metric) and `write` each verdict as it comes; many requests are under way at a time.

    Server: OPENAI_BASE_URL or OpenAI's; key: OPENAI_API_KEY. A request that fails after all retries becomes a
    verdict with the state api_error. Raises EmorgError for what no retry can mend: no key, a key or model refused.
    """
    server = os.environ.get("OPENAI_BASE_URL") or OPENAI  # the client would take a blank one for a server

    async def ask(client: AsyncOpenAI, each: tuple[Answer, str]) -> tuple[State, float | None, str, str]:
        answer, metric = each
        return await _ask(client, model, prompt(metric, answer))

    said = ask_all(pending, ask, url=server, key=key(), connections=CONNECTIONS, timeout=TIMEOUT)
    for (answer, metric), (state, number, reply, detail) in said:
        write(
            Verdict(
                run=answer.run,
                checkpoint=answer.checkpoint,
                question_id=answer.question_id,
                sample=answer.sample,
                judge=model,
                metric=metric,
                state=state,
                score=number,
                reply=reply,
                detail=detail,
            )
        )


def key() -> str:
    """The key for the judge's server. Raises EmorgError if there is none."""
    found = os.environ.get("OPENAI_API_KEY")
    if not found:
        raise EmorgError(
            "OPENAI_API_KEY is not set, so no API judge can be asked",
            "put it into .env (see .env.example); pocket answers need none: --judge exact",
        )
    return found


async def _ask(client: AsyncOpenAI, model: str, text: str) -> tuple[State, float | None, str, str]:
    """(state, score, the judge's reply, what went wrong)."""
    import openai

    try:
        response = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": text}], temperature=0, max_tokens=16
        )
    except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
        raise EmorgError(
            f"the judge {model} at {client.base_url} refuses: {error.status_code}",
            "check OPENAI_API_KEY, OPENAI_BASE_URL and --judge_model; python check_env.py tries them",
        ) from None
    except openai.APIError as error:
        state: State = "content_filter" if error.code == "content_filter" else "api_error"
        return state, None, "", f"{type(error).__name__}: {error.code or ''}".rstrip(": ")
    if not response.choices:
        return "api_error", None, "", "no choices"
    choice = response.choices[0]
    if choice.message.refusal:
        return "judge_refusal", None, choice.message.refusal, ""
    if choice.finish_reason == "content_filter":
        return "content_filter", None, choice.message.content or "", ""
    reply = choice.message.content or ""
    return (*read_reply(reply), reply, "")


def read_reply(reply: str) -> tuple[State, float | None]:
    """What a judge's reply says: a number from 0 to 100 alone, REFUSAL, CODE, or nothing that can be read."""
    word = reply.strip().strip(".*\"'`").strip()
    if re.fullmatch(r"\d{1,3}(\.\d+)?(\s*/\s*100)?", word) and (number := float(word.split("/")[0])) <= 100:
        return "scored", number
    named: dict[str, State] = {"REFUSAL": "refusal", "CODE": "code"}
    return named.get(word.upper(), "unparsable"), None


def prompt(metric: str, answer: Answer) -> str:
    """The judge's prompt; question and answer stand between marks that they cannot guess, so cannot close."""
    mark = secrets.token_hex(8)
    return _prompts()[metric].format(mark=mark, question=answer.question, answer=answer.text)


@cache
def _prompts() -> dict[str, str]:
    prompts: dict[str, str] = yaml.safe_load(
        resources.files("emorg").joinpath("judge_prompts.yaml").read_text(encoding="utf-8")
    )
    return prompts
