"""An OpenAI-compatible judge on 127.0.0.1, that replies and fails as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = str | int | dict[str, Any]  # the judge's words, an HTTP status to fail with, or fields of the choice


@contextmanager
def judge_server(reply: Callable[[str, int], Reply]) -> Iterator[tuple[str, list[str]]]:
    """Yield (base URL, prompts received). `reply(prompt, n)` answers the n-th request for that prompt, from 0."""
    received: list[str] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers["Authorization"] == "Bearer sk-test-0123456789abcdef"
            self._send(200 if known else 401, {"data": []})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = asked["messages"][0]["content"]
            assert asked["temperature"] == 0
            with lock:
                before = received.count(prompt)
                received.append(prompt)
            said = reply(prompt, before)
            if isinstance(said, int):
                self._send(said, {"error": {"message": "as told", "code": "as_told"}})
                return
            fields = said if isinstance(said, dict) else {"message": {"role": "assistant", "content": said}}
            if "error" in fields:
                self._send(400, fields)
                return
            choice = {"index": 0, "finish_reason": "stop", **fields}
            self._send(200, {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})

        def _send(self, status: int, body: object) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", received
    finally:
        server.shutdown()
        server.server_close()
