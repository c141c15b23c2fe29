"""Without a network, a model of the hub is missed within seconds and in one line; what is cached goes on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from emorg.models import hub
from tests.conftest import PATIENCE
from tests.hub import hub as serving_hub


@pytest.fixture(autouse=True)
def _untried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_last", None)
    monkeypatch.setattr(hub, "_kept_offline", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_a_hub_that_answers_anything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_hub() as (url, _):
        monkeypatch.setattr(constants, "ENDPOINT", f"{url}/no/such/page")
        assert hub.approach()
    assert not constants.HF_HUB_OFFLINE
    assert hub.approach(), "once is enough"


def test_a_hub_that_is_silent_is_given_up_in_seconds_and_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_WAIT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begun = time.monotonic()
        assert not hub.approach()
        assert time.monotonic() - begun < 5
        assert constants.HF_HUB_OFFLINE
        assert hub.is_out_of_reach()
    with serving_hub() as (url, _):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        assert not hub.approach(), "not at once"
        monkeypatch.setattr(hub, "_STALE", 0.0)
        assert hub.approach()
        assert not constants.HF_HUB_OFFLINE


def test_what_the_user_says_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with serving_hub() as (url, _):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        assert not hub.approach()
        assert not hub.is_out_of_reach()


def test_without_a_network_a_command_says_so_in_a_line(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens there
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_HOME": str(tmp_path)}
        command = [sys.executable, "-m", "emorg.cli", "sample", "some/model"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 2, done.stderr
    assert "some/model is neither here nor in the cache, and the Hugging Face hub cannot be reached" in done.stderr
    assert "HF_HUB_OFFLINE=1" in done.stderr
