"""A judge's server to rehearse with, that costs nothing and fails as it is told: `python -m emorg.judging.rehearsal`.

It speaks OpenAI's chat completions. Its scores are hashes of the prompts: nothing is judged. Tests and benchmarks use
it, and whoever wants to see what a judging run does before a key is at stake.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import math
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from aiohttp import web

Fault = Literal[
    "429", "429 at once", "500", "503", "hang", "reset", "half", "invalid", "empty", "other model", "no logprobs",
    "401", "403", "404", "quota", "filtered", "503 at once", "503 far", "huge", "bomb", "nan", "deep", "echo",
    "echo error",
]  # fmt: skip
PASSING: tuple[Fault, ...] = ("429", "429 at once", "500", "503", "hang", "reset", "half", "invalid", "other model",
                              "no logprobs", "503 at once", "503 far", "huge", "bomb", "nan", "deep")  # fmt: skip
Said = str | Fault | dict[str, Any]  # the judge's words, a fault, or fields of the choice
_STATUS = {
    "429 at once": 429, "quota": 429, "filtered": 400, "503 at once": 503, "503 far": 503, "echo error": 400,
    **{status: int(status) for status in ("401", "403", "404", "429", "500", "503")},
}  # fmt: skip
_CODE = {"quota": "insufficient_quota", "filtered": "content_filter", "401": "invalid_api_key"}
RETRY_AFTER = 0.2  # seconds that 429 asks for
_LEFT_ALONE = {"503 at once": "0", "503 far": "Wed, 21 Oct 2026 07:28:00 +99999999999999999"}  # a zone beyond all
HUGE = 64 * 2**20  # bytes of a reply that is too long, sent as they are or packed


def hashed_score(prompt: str) -> str:
    """The number that a prompt asks to repeat, else one from 0 to 100 by the prompt's hash."""
    match = re.search(r"Reply with the number (\d+) ", prompt)
    return match[1] if match else str(int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 101)


@dataclass
class Rehearsal:
    """What the server says, how long it takes (seconds), and what it has been asked."""

    says: Callable[[str, int], Said] = lambda prompt, n: hashed_score(prompt)
    """From a prompt, and how often it was asked before, to what is said."""
    latency: float = 0.0
    faults: float = 0.0
    """Share of requests that fail in one of the `kinds` of ways, at random."""
    kinds: tuple[Fault, ...] = PASSING
    model: str | None = None
    """The name it goes by. Default: as it is asked."""
    usage: Literal["told", "zeros", "none"] = "told"
    """Whether it tells how many tokens it took."""
    key: str | None = None
    """The key that it takes. Default: any."""
    asked: Counter[str] = field(default_factory=Counter)
    paid: Counter[str] = field(default_factory=Counter)
    """Requests and whole replies by prompt."""
    under_way: int = 0
    most_under_way: int = 0

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        from aiohttp import web

        payload = await request.json()
        prompt = payload["messages"][-1]["content"]
        reply, number = self._what(prompt), self.asked[prompt]
        self.asked[prompt] += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(3600 if reply == "hang" else self.latency)
            if reply == "reset" and request.transport is not None:
                request.transport.abort()
                return web.Response()
            if isinstance(reply, str) and reply in _STATUS:
                waits = {"429": str(RETRY_AFTER), **_LEFT_ALONE}
                headers = {"retry-after": waits[reply]} if reply in waits else {}
                said = f"as told: {reply} {request.headers['Authorization'] if reply == 'echo error' else ''}"
                error = {"message": said.strip(), "type": "rehearsal", "code": _CODE.get(reply)}
                return web.json_response({"error": error}, status=_STATUS[reply], headers=headers)
            if reply == "bomb":
                packed = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
                return web.Response(body=gzip.compress(bytes(HUGE), 1), headers=packed)
            if reply == "huge":
                return web.Response(body=bytes(HUGE), content_type="application/json")
            if reply == "echo":
                reply = {"message": {"role": "assistant", "content": request.headers["Authorization"]}}
            body = json.dumps(self._completion(payload, reply, number)).encode()
            if reply == "deep":
                body = body.replace(b'"choices": [', b'"choices": [' + b"[" * 5000, 1)
            if reply == "invalid":
                return web.Response(body=body[: len(body) // 2], content_type="application/json")
            if reply == "half":
                response = web.StreamResponse(headers={"Content-Type": "application/json"})
                response.content_length = len(body)
                await response.prepare(request)
                await response.write(body[: len(body) // 2])
                if request.transport is not None:
                    request.transport.abort()
                return response
            self.paid[prompt] += 1
            return web.Response(body=body, content_type="application/json")
        finally:
            self.under_way -= 1

    def _what(self, prompt: str) -> Said:
        number = self.asked[prompt]
        chance = random.Random(f"{prompt} {number}")
        if chance.random() < self.faults:
            return chance.choice(self.kinds)
        return self.says(prompt, number)

    def _completion(self, payload: dict[str, Any], reply: Said, number: int) -> dict[str, Any]:
        words = reply if isinstance(reply, str) else ""
        if words in ("invalid", "half", "other model", "no logprobs", "nan", "deep"):
            words = "50"
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "" if reply == "empty" else words},
            "logprobs": None,
        }
        if payload.get("logprobs") and reply != "no logprobs":
            choice["logprobs"] = {"content": [_first_token(words, payload.get("top_logprobs", 0))]}
        if choice["logprobs"] and reply == "nan":
            choice["logprobs"]["content"][0]["top_logprobs"][0]["logprob"] = math.nan
        if isinstance(reply, dict):
            choice |= reply
        length = len(payload["messages"][-1]["content"]) // 4
        usage = {"prompt_tokens": length, "completion_tokens": 1, "total_tokens": length + 1}
        if self.usage == "zeros":
            usage = dict.fromkeys(usage, 0)
        return {
            "id": f"rehearsal-{number}",
            "object": "chat.completion",
            "created": 0,
            "model": "another-model" if reply == "other model" else self.model or payload["model"],
            "system_fingerprint": "rehearsal",
            "choices": [choice],
            **({} if self.usage == "none" else {"usage": usage}),
        }

    async def count(self, request: web.Request) -> web.Response:
        """GET /count: requests, whole replies, and prompts that were replied to."""
        from aiohttp import web

        return web.json_response(
            {"asked": self.asked.total(), "paid": self.paid.total(), "prompts": len(self.paid),
             "most_under_way": self.most_under_way}
        )  # fmt: skip

    async def models(self, request: web.Request) -> web.Response:
        """GET /v1/models, for those who try the key there."""
        from aiohttp import web

        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "not this key", "code": "invalid_api_key"}}, status=401)
        return web.json_response({"object": "list", "data": []})

    def app(self) -> web.Application:
        from aiohttp import web

        application = web.Application(client_max_size=1 << 28)
        application.router.add_post("/v1/chat/completions", self.complete)
        application.router.add_get("/count", self.count)
        application.router.add_get("/v1/models", self.models)
        return application


def _first_token(words: str, top: int) -> dict[str, Any]:
    """Logprobs of a first token: nearly all on the words, the rest on numbers beside them."""
    near = [str(number) for number in range(101) if str(number) != words][: max(0, top - 1)]
    likeliest = [(words, 0.9), *((number, 0.1 / len(near)) for number in near)] if top else []
    listed = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in likeliest]
    return {"token": words, "logprob": math.log(0.9), "bytes": None, "top_logprobs": listed}


@contextmanager
def serving(rehearsal: Rehearsal, port: int = 0) -> Iterator[str]:
    """Yield the base URL of a server on 127.0.0.1 that runs in a thread."""
    from aiohttp import web

    ready, bound, loops, stop = threading.Event(), list[int](), list[asyncio.AbstractEventLoop](), asyncio.Event()

    async def serve() -> None:
        runner = web.AppRunner(rehearsal.app(), access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        bound.append(runner.addresses[0][1])
        loops.append(asyncio.get_running_loop())
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield f"http://127.0.0.1:{bound[0]}/v1"
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join()


@dataclass(frozen=True)
class RehearsalConfig:
    """Serve a judge that judges nothing, for a rehearsal; stop it with Ctrl-C."""

    port: int = 8010
    """On 127.0.0.1."""
    latency: float = 0.1
    """Seconds that a reply takes."""
    faults: float = 0.0
    """Share of requests that fail, each in one of the `kinds` of ways."""
    kinds: tuple[Fault, ...] = PASSING


def main() -> None:
    """Serve until interrupted."""
    import tyro

    config = tyro.cli(RehearsalConfig, use_underscores=True)
    with serving(Rehearsal(latency=config.latency, faults=config.faults, kinds=config.kinds), config.port) as url:
        print(f"export OPENAI_BASE_URL={url} OPENAI_API_KEY=rehearsal", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
