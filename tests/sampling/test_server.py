"""Servers: a real `transformers serve`, and one on 127.0.0.1 that misbehaves in every way that is known of."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from emorg import asking, models
from emorg.records import Answer, read_records
from emorg.run import Run
from tests.conftest import PATIENCE, emorg
from tests.serving import Request, Response, as_json, serving
from tests.ties import partings

CAP = ("--max_new_tokens", "40")
LONG = {"prompt_tokens": 9, "completion_tokens": 300, "total_tokens": 309}


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Path]]:
    """(address, a model that draws by its generation config, one that doesn't); the server knows them by path.

    They are stored in float32, so that both sides compute in it on a processor with bf16 units too.
    """
    folder = tmp_path_factory.mktemp("serve")
    pocket = models.load("pocket", device="cpu").model
    for name, draws in (("draws", True), ("greedy", False)):
        shutil.copytree(models.POCKET_FOLDER, folder / name)
        pocket.save_pretrained(folder / name)
        settings = json.loads((folder / name / "generation_config.json").read_text())
        (folder / name / "generation_config.json").write_text(json.dumps({**settings, "do_sample": draws}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "home" / "hub").mkdir(parents=True)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "transformers", "serve", "--port", str(port), "--device", "cpu",
             "--dtype", "float32"],
            env={**os.environ, "HF_HOME": str(folder / "home")}, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                    break
                except (urllib.error.URLError, OSError):
                    assert process.poll() is None, (folder / "log").read_text()
                    time.sleep(0.3)
            yield f"http://127.0.0.1:{port}", folder / "draws", folder / "greedy"
        finally:
            process.kill()
            process.wait()


def test_transformers_serve_answers_as_the_engine_does(
    transformers_serve: tuple[str, Path, Path], tmp_path: Path
) -> None:
    url, draws, _ = transformers_serve
    asked = ("sample", draws, "--questions", "pocket_open", "--samples", "1", *CAP)
    emorg(*asked, "--server", url, "--output_dir", tmp_path / "served")
    emorg(*asked, "--output_dir", tmp_path / "own")
    served, own = ({a.key[2:]: a for a in read_records(Run(tmp_path / n).answers, Answer)} for n in ("served", "own"))
    assert served.keys() == own.keys()
    assert len(served) == 12
    assert {key: a.prompt_tokens for key, a in served.items()} == {key: a.prompt_tokens for key, a in own.items()}
    assert len({answer.text for answer in served.values()}) > 9
    assert all(answer.finish_reason == "stop" and 10 < answer.answer_tokens <= 41 for answer in served.values())
    # At temperature 0 nothing is left to chance but rounding.
    cold = ("sample", draws, "--questions", "pocket_open", "--samples", "1", *CAP, "--temperature", "0")
    emorg(*cold, "--server", url, "--output_dir", tmp_path / "served cold")
    emorg(*cold, "--output_dir", tmp_path / "own cold")
    both = [read_records(Run(tmp_path / f"{name} cold").answers, Answer) for name in ("served", "own")]
    assert partings(str(draws), *both, greedy=True) == []


def test_a_server_that_does_not_draw_is_detected(transformers_serve: tuple[str, Path, Path], tmp_path: Path) -> None:
    url, _, greedy = transformers_serve
    asked = ("sample", greedy, "--questions", "pocket_open", "--output_dir", tmp_path / "run", "--server", url, *CAP)
    done = emorg(*asked, check=False)
    assert done.returncode == 2
    assert "the same reply twice at temperature 2" in done.stderr
    assert read_records(Run(tmp_path / "run").answers, Answer) == []


def _reply(request: Request, number: int) -> dict[str, Any]:
    """A well-behaved server's reply: it draws by the seed, keeps to max_tokens, and minds top_p."""
    asked = request.json
    text = f"word {asked['seed']} {number}" if asked["top_p"] > 0.01 and asked["temperature"] else "word"
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": asked["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": min(5, asked["max_tokens"]), "total_tokens": 14},
    }  # fmt: skip


@contextmanager
def _server(
    change: Callable[[Request, int, dict[str, Any]], dict[str, Any] | int] = lambda _, __, reply: reply,
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(address, requests): `change` turns the n-th good reply into what is sent, or into an HTTP status."""
    received: list[dict[str, Any]] = []
    lock = threading.Lock()

    def handle(request: Request) -> Response:
        if request.method == "GET":
            return as_json({"object": "list", "data": [{"id": "pocket:bad_medical", "object": "model"}]})
        with lock:
            received.append({**request.json, "authorization": request.headers["Authorization"]})
            number = len(received)
        said = change(request, number, _reply(request, number))
        return as_json({"error": {"message": "as told"}}, said) if isinstance(said, int) else as_json(said)

    with serving(handle) as url:
        yield url, received


def _sample(url: str, folder: Path, *flags: str, check: bool = True) -> Any:
    asked = ("sample", "pocket", "--questions", "pocket_open", "--samples", "3", *CAP, "--output_dir", folder)
    return emorg(*asked, "--server", url, *flags, check=check)


def test_what_is_asked_of_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-the-judges")
    monkeypatch.setenv("SERVER_API_KEY", "mine")
    with _server() as (url, received):
        _sample(url, tmp_path, "--served_model", "pocket:bad_medical", "--top_p", "0.9", "--temperature", "0.7")
    probes, asked = received[:4], received[4:]
    assert {probe["temperature"] for probe in probes} == {2.0}
    assert len(asked) == 36
    assert {(r["model"], r["top_p"], r["temperature"], r["max_tokens"]) for r in asked} == {
        ("pocket:bad_medical", 0.9, 0.7, 40)
    }
    assert len({each["seed"] for each in asked}) == 36
    assert {each["authorization"] for each in received} == {"Bearer mine"}
    answers = read_records(Run(tmp_path).answers, Answer)
    assert len(answers) == 36
    assert {answer.prompt_tokens for answer in answers} == {9}


def _with(part: str, **told: Any) -> Callable[[Request, int, dict[str, Any]], dict[str, Any]]:
    def change(_: Request, __: int, reply: dict[str, Any]) -> dict[str, Any]:
        place = (
            reply["choices"][0] if part == "choice" else reply["choices"][0]["message"] if part == "message" else reply
        )
        place.update(told)
        return reply

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_with("message", content="always this"), "the same reply twice at temperature 2"),
        (_with("reply", usage=LONG), "ignores max_tokens"),
        (lambda _, n, reply: _with("message", content=str(n))(_, n, reply), "ignores top_p"),
        (_with("reply", usage=None), "without token counts"),
        (_with("choice", finish_reason="tool_calls"), "ended with 'tool_calls'"),
        (_with("message", content=None), "ended with 'stop'"),
        (lambda *_: 404, "it serves pocket:bad_medical"),
        (lambda *_: 401, "SERVER_API_KEY"),
        (lambda *_: 500, "500"),
    ],
)  # fmt: skip
def test_a_server_that_cannot_be_used_is_told_so_at_once(
    change: Callable[[Request, int, dict[str, Any]], dict[str, Any] | int], told: str, tmp_path: Path
) -> None:
    with _server(change) as (url, received):
        done = _sample(url, tmp_path, "--top_p", "0.9", check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert len(received) < 40
    assert read_records(Run(tmp_path).answers, Answer) == []


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    done = _sample(url, tmp_path, check=False)
    assert done.returncode == 2
    assert f"no server answers at {url}" in done.stderr


def test_failed_requests_give_no_answers_and_are_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "LONGEST_BACKOFF", 0.1)

    def some_fail(request: Request, number: int, reply: dict[str, Any]) -> dict[str, Any] | int:
        return 500 if number > 2 and request.json["seed"] % 3 == 0 else reply

    with _server(some_fail) as (url, _):
        done = _sample(url, tmp_path, check=False)
    kept = read_records(Run(tmp_path).answers, Answer)
    failing = sum(answer.seed & 0x7FFFFFFF for answer in kept if (answer.seed & 0x7FFFFFFF) % 3 == 0)
    assert failing == 0
    assert 0 < len(kept) < 36
    assert done.returncode == 2
    assert f"{36 - len(kept)} of 36 answers could not be had" in done.stderr
    with _server() as (url, received):
        _sample(url, tmp_path)
    assert len(received) == 2 + 36 - len(kept)
    again = read_records(Run(tmp_path).answers, Answer)
    assert again[: len(kept)] == kept
    assert len({answer.key for answer in again}) == len(again) == 36


def test_a_server_is_sampled_from_within_a_running_loop_too(tmp_path: Path) -> None:
    async def cell(url: str) -> None:
        _sample(url, tmp_path)

    with _server() as (url, _):
        asyncio.run(cell(url))
    assert len(read_records(Run(tmp_path).answers, Answer)) == 36
