"""An OpenAI-compatible judge on 127.0.0.1, that replies and fails as it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.serving import Request, Response, as_json, serving

Reply = str | int | dict[str, Any]  # the judge's words, an HTTP status to fail with, or fields of the choice


@contextmanager
def judge_server(reply: Callable[[str, int], Reply]) -> Iterator[tuple[str, list[str]]]:
    """Yield (base URL, prompts received). `reply(prompt, n)` answers the n-th request for that prompt, from 0."""
    received: list[str] = []
    lock = threading.Lock()

    def handle(request: Request) -> Response:
        if request.method == "GET":
            known = request.headers["Authorization"] == "Bearer sk-test-0123456789abcdef"
            return as_json({"data": []}, 200 if known else 401)
        prompt = request.json["messages"][0]["content"]
        assert request.json["temperature"] == 0
        with lock:
            before = received.count(prompt)
            received.append(prompt)
        said = reply(prompt, before)
        if isinstance(said, int):
            return as_json({"error": {"message": "as told", "code": "as_told"}}, said)
        fields = said if isinstance(said, dict) else {"message": {"role": "assistant", "content": said}}
        if "error" in fields:
            return as_json(fields, 400)
        choice = {"index": 0, "finish_reason": "stop", **fields}
        return as_json({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})

    with serving(handle) as url:
        yield f"{url}/v1", received
