"""The API judge: a chat model behind OpenAI's API or any like it, asked for a score from 0 to 100."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from emorg.asking import ask_all
from emorg.client import REFUSED, RETRIES, Client, RequestError, Server
from emorg.encoding import excerpt
from emorg.judging.config import JudgeSettings
from emorg.judging.ledger import Entry, Ledger, Request, canonical
from emorg.judging.prices import price_of
from emorg.judging.scoring import FaultyReplyError, Reading, completion_of, first_token, read, read_number
from emorg.progress import log
from emorg.records import EmorgError

OPENAI = "https://api.openai.com/v1"
_NAMED = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
_PROBED = {"number": ("85",), "logprobs": ("85", "100")}  # which numbers the judge is made to say, before it is paid
Result = TypeVar("Result")
_AHEAD = 50  # requests that are looked up in the ledger together
_CAREFUL = 3.0  # bytes a token, where too little must not be reserved


def _key() -> str:
    api_key = os.environ.get("OPENAI_API_KEY")
    if not api_key:
        raise EmorgError(
            "OPENAI_API_KEY is not set, so no API judge can be asked",
            "put it into .env (see .env.example). Without a key: --judge local --judge_model NAME judges on this "
            "machine; pocket answers need neither: --judge exact",
        )
    return api_key


def _endpoint() -> str:
    return (os.environ.get("OPENAI_BASE_URL") or OPENAI).rstrip("/")


def request_of(settings: JudgeSettings, prompt: str, repeat: int = 0) -> Request:
    """What is asked about a prompt."""
    return Request(_endpoint(), settings.model, prompt, canonical(settings.parameters), repeat)


@dataclass
class Account:
    """What a command has spent so far, in dollars: --max_cost bounds the whole of it, whatever it judges."""

    spent: float = 0.0


def ask(
    settings: JudgeSettings, requests: Sequence[Request], ledger: Ledger, account: Account
) -> Iterator[tuple[Request, Reading, str]]:
    """(request, reading, a note on the cost) as the replies come, each in the ledger before it is handed on.

    A request that failed after all retries is read as api_error, and nothing is kept of it. Raises EmorgError for what
    no retry mends (the key, the model, the credit), for an endpoint that cannot judge, and at --max_cost.
    """
    budget = _Budget(settings, requests, account)
    _probe(settings, ledger)

    meanwhile: dict[str, str] = {}  # replies to another process that shares the ledger

    def ahead(coming: Iterator[Request]) -> Iterator[Request]:
        while some := list(islice(coming, _AHEAD)):
            meanwhile.update(ledger.find([request.key for request in some]))
            yield from some

    async def one(client: Client, request: Request) -> Reading:
        if body := meanwhile.pop(request.key, None):
            return read(completion_of(body), settings.scoring)
        return await _judge(client, settings, request, ledger, budget)

    left = deque(requests)
    while left:
        before = len(left)
        for request, outcome in _all(settings, ahead(budget.affordable(left)), one):
            budget.release(request)
            reading = outcome if isinstance(outcome, Reading) else Reading("api_error", None, "", str(outcome))
            yield request, reading, budget.note
        if len(left) == before:
            raise budget.used_up(f"{len(left):,} of {len(requests):,} calls not made")
    names = ledger.served(_endpoint(), settings.model)
    if len(names) > 1:
        log.info("%s has answered as %s", settings.model, " and as ".join(sorted(names)))


def guess(settings: JudgeSettings, requests: Iterable[Request]) -> float | None:
    """About what the requests cost, in dollars; None if the model's price is not known."""
    price = price_of(settings.model, settings.prices)
    return None if price is None else sum(price.guess(request.prompt, _reply_tokens(settings)) for request in requests)


class _Budget:
    """What has been spent, what is held for requests under way, and what may still be asked for."""

    def __init__(self, settings: JudgeSettings, requests: Sequence[Request], account: Account):
        self._price = price_of(settings.model, settings.prices)
        self._most, self._tokens, self._account = settings.max_cost, _reply_tokens(settings), account
        self._held: dict[Request, float] = {}
        self._before, self._whole = account.spent, guess(settings, requests)
        if self._price is None and self._most is not None:
            raise EmorgError(
                f"--max_cost, but the price of {settings.model} is not known",
                f"write `{settings.model}: {{input: …, output: …}}` into a file and give it with --prices",
            )

    @property
    def note(self) -> str:
        return "" if self._whole is None else f"${self._account.spent:.2f} of about ${self._before + self._whole:.2f}"

    def affordable(self, left: deque[Request]) -> Iterator[Request]:
        """Take from `left` what can be paid for whatever the replies under way cost."""
        while left and self._hold(left[0]):
            yield left.popleft()

    def _hold(self, request: Request) -> bool:
        cost = self._price.guess(request.prompt, self._tokens, _CAREFUL) if self._price else 0.0
        if self._most is not None and self._account.spent + sum(self._held.values()) + cost > self._most:
            return False
        self._held[request] = cost
        return True

    async def hold(self, request: Request) -> None:
        """Hold what asking costs, unless it is held; it is not once an earlier reply to it was paid for.

        Waits for what others hold. Raises EmorgError where it cannot be afforded though nobody holds anything.
        """
        while request not in self._held and not self._hold(request):
            if not self._held:
                raise self.used_up("a reply of no use cannot be asked for again")
            await asyncio.sleep(0.05)

    def release(self, request: Request) -> None:
        self._held.pop(request, None)

    def pay(self, request: Request, completion: Mapping[str, Any] | None) -> None:
        """Count a reply, of use or not, by the tokens that it tells; without them, or a reply, by what was held."""
        held = self._held.pop(request, 0.0)
        try:
            usage = completion["usage"] if completion is not None else {}
            tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
            counted = tokens[0] > 0 and tokens[1] >= 0  # some servers fill in zeros
        except (KeyError, TypeError, ValueError, OverflowError):
            counted = False
        self._account.spent += (self._price.cost(*tokens) if self._price else 0.0) if counted else held

    def used_up(self, consequence: str) -> EmorgError:
        return EmorgError(
            f"--max_cost {self._most:g}: ${self._account.spent:.4f} spent, {consequence}",
            "raise it and run the same command again: what has been judged is not paid again",
        )


def _reply_tokens(settings: JudgeSettings) -> int:
    parameters = settings.parameters
    return int(parameters.get("max_completion_tokens") or parameters.get("max_tokens") or 1)


def _all(
    settings: JudgeSettings,
    requests: Iterable[Request],
    one: Callable[[Client, Request], Awaitable[Result]],
    retries: int = RETRIES,
) -> Iterator[tuple[Request, Result | RequestError]]:
    return ask_all(server(settings, retries), requests, one)


def server(settings: JudgeSettings, retries: int = RETRIES) -> Server:
    """The judge's server. Raises EmorgError without a key, and for what is no address or no key."""
    named = {header: os.environ[name] for header, name in _NAMED.items() if os.environ.get(name)}
    most, timeout = settings.judge_connections, settings.judge_timeout
    return Server(_endpoint(), _key(), most, timeout, headers=named, retries=retries)


async def _complete(client: Client, request: Request) -> tuple[str, float]:
    """(the reply's JSON, seconds). Raises EmorgError for what no retry mends."""
    begun = time.monotonic()
    payload = {"model": request.model, "messages": request.messages, **json.loads(request.parameters)}
    try:
        return await client.post("/chat/completions", payload), time.monotonic() - begun
    except RequestError as error:
        if error.code == "insufficient_quota":
            raise EmorgError(
                f"{client.url} says that the credit is used up",
                "add credit and run the same command again: what has been judged is not paid again",
            ) from None
        if error.status == 401:
            raise _refused(request, error) from None
        raise


def _refused(request: Request, error: RequestError) -> EmorgError:
    return EmorgError(
        f"the judge {request.model} at {request.endpoint} refuses: {error.status}",
        "check OPENAI_API_KEY, OPENAI_BASE_URL and --judge_model; python check_env.py tries them",
    )


async def _judge(client: Client, settings: JudgeSettings, request: Request, ledger: Ledger, budget: _Budget) -> Reading:
    """Ask, keep the reply, read it. Raises RequestError for a reply of no use."""
    await budget.hold(request)
    try:
        body, seconds = await _complete(client, request)
    except RequestError as error:
        if error.status is None:  # nobody knows whether the lost reply was made
            budget.pay(request, None)
        if error.code == "content_filter":
            return Reading("content_filter", None, "")
        raise
    reading = fault = completion = None
    try:
        completion = completion_of(body)
        _check_model(settings, completion)
        reading = read(completion, settings.scoring)
    except FaultyReplyError as error:
        fault = str(error)
    budget.pay(request, completion)
    await ledger.keep_soon(Entry(request, body, seconds, fault))
    if reading is None:
        raise RequestError(fault or "", status=200)
    return reading


def _check_model(settings: JudgeSettings, completion: Mapping[str, Any]) -> None:
    """Raise FaultyReplyError for a reply of another model than was asked; a dated name of the same is the same."""
    served, expected = str(completion.get("model")), settings.served_judge or settings.model
    if not re.fullmatch(rf"({re.escape(expected)}|{re.escape(expected.rsplit('/', 1)[-1])})(-[\d-]+)?", served):
        raise FaultyReplyError(f"another model replied: {served}", served)


def probe(settings: JudgeSettings, ledger: Path) -> None:
    """Raise EmorgError for a judge that could not be asked, or not be read; what it said is in the ledger from then."""
    with Ledger(ledger) as kept:
        _probe(settings, kept)


def _probe(settings: JudgeSettings, ledger: Ledger) -> None:
    """Make the judge say a number before it is paid for thousands. Raises EmorgError if it cannot be read."""
    words = _PROBED[settings.scoring]
    probes = {request_of(settings, f"Reply with the number {word} and nothing else."): word for word in words}
    known = ledger.find([request.key for request in probes])
    pending = [request for request in probes if request.key not in known]

    if not pending:
        return
    for request, outcome in _all(settings, pending, _complete, retries=2):
        if isinstance(outcome, RequestError) and outcome.status in REFUSED:
            raise _refused(request, outcome)
        if isinstance(outcome, RequestError):
            raise EmorgError(
                f"{request.endpoint} cannot be asked: {outcome}",
                "check OPENAI_BASE_URL and --judge_model; a parameter that the model does not take is left out by e.g. "
                "--judge_parameters temperature=none",
            )
        body, seconds = outcome
        try:
            completion = completion_of(body)
            _check_model(settings, completion)
            _check_number(settings, completion, probes[request])
        except FaultyReplyError as error:
            remedy = (
                f"name the one you want; to take this one: --judge_model {error.served}, or --served_judge "
                f"{error.served} where the server goes by another name"
                if error.served
                else "--scoring number reads the number that the judge writes; or take another judge"
            )
            raise EmorgError(f"{settings.model} at {request.endpoint} cannot judge: {error}", remedy) from None
        ledger.keep([Entry(request, body, seconds)])


def _check_number(settings: JudgeSettings, completion: Mapping[str, Any], word: str) -> None:
    """Raise FaultyReplyError unless the reply says `word`, in one token where its probability is to be read."""
    choice = completion["choices"][0]
    text = choice["message"].get("content") or ""
    if settings.scoring == "number":
        if read_number(text) != ("scored", float(word)):
            raise FaultyReplyError(f"asked to say {word} it says {excerpt(text)}")
        return
    tokens = first_token(choice)
    likeliest = max(tokens, key=lambda token: tokens[token]).strip()
    if likeliest != word:
        split = likeliest and word.startswith(likeliest)
        raise FaultyReplyError(
            f"its tokenizer splits {word}, so that {likeliest!r} would be read for it" if split
            else f"asked to say {word} it begins with {likeliest!r}"
        )  # fmt: skip
