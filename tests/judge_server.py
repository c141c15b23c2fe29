"""The rehearsal server, told what to say, in this process or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from emorg.judging.rehearsal import Rehearsal, Said, hashed_score, serving
from tests.conftest import PATIENCE
from tests.forkserver import popen


@contextmanager
def judge_server(says: Callable[[str, int], Said], *, probed: bool = True) -> Iterator[tuple[str, Rehearsal]]:
    """Yield (base URL, what it has been asked). `says` answers the n-th request for a prompt, from 0.

    The probe before judging is answered well unless `probed` is False.
    """

    def answer(prompt: str, n: int) -> Said:
        return hashed_score(prompt) if probed and prompt.startswith("Reply with the number") else says(prompt, n)

    rehearsal = Rehearsal(says=answer, key="sk-test-0123456789abcdef")
    with serving(rehearsal) as url:
        yield url, rehearsal


@contextmanager
def rehearsal_process(*flags: str) -> Iterator[tuple[str, Callable[[], dict[str, int]]]]:
    """Yield (base URL, a function that reads the server's own counters) of a server that outlives its clients."""
    command = [sys.executable, "-m", "emorg.judging.rehearsal", "--port", "0", *flags]
    with popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split("OPENAI_BASE_URL=")[1].split()[0]

        def count() -> dict[str, int]:
            with urllib.request.urlopen(url.removesuffix("/v1") + "/count", timeout=PATIENCE) as reply:
                found: dict[str, int] = json.load(reply)
                return found

        try:
            yield url, count
        finally:
            server.kill()


def environment(url: str, key: str) -> dict[str, str]:
    """The environment of a command that judges there."""
    return {**os.environ, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": key}
