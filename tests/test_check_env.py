"""check_env.py as a newcomer runs it: bare, with keys good and bad, with and without a server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import check_env
from tests.conftest import KEY, PROJECT
from tests.judge_server import judge_server

READY = "🎉 All required checks passed! You're ready to go!"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(PROJECT / "check_env.py", tmp_path)
    return tmp_path


def _check(
    folder: Path, *flags: str, cwd: Path | None = None, isolated: bool = False, **env: str
) -> subprocess.CompletedProcess[str]:
    keys = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN")
    kept = {name: value for name, value in os.environ.items() if name not in keys}
    bare = ["-S", "-I"] if isolated else []  # no site-packages: as on a machine with nothing installed
    return subprocess.run([sys.executable, *bare, folder / "check_env.py", *flags], cwd=cwd or folder,
                          env={**kept, **env}, capture_output=True, text=True)  # fmt: skip


def test_ready_with_a_server_that_takes_the_key(folder: Path) -> None:
    with judge_server(lambda *_: "1") as (url, _):
        (folder / ".env").write_text(f'# keys\nOPENAI_API_KEY="{KEY}"\nOPENAI_BASE_URL={url}\n')
        below = folder / "a" / "b"
        below.mkdir(parents=True)
        done = _check(folder, cwd=below)
    assert done.returncode == 0, done.stdout
    assert done.stdout.rstrip().endswith(READY)
    assert f"(…{KEY[-4:]})" in done.stdout
    assert KEY not in done.stdout + done.stderr
    assert "⚠️  HF_TOKEN is not set" in done.stdout
    assert "torch 2." in done.stdout
    assert "device: " in done.stdout


def test_a_bare_python_says_what_to_install(folder: Path) -> None:
    done = _check(folder, "--offline", isolated=True, OPENAI_API_KEY=KEY)
    assert done.returncode == 1
    assert "❌ torch cannot be imported" in done.stdout
    assert "make test" in done.stdout
    assert "Traceback" not in done.stderr


def _checks(offline: bool) -> list[check_env.Check]:
    """In this process, which has imported the dependencies already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(check_env.checks(offline))


@pytest.mark.parametrize(
    ("env", "told"),
    [
        (None, "cp .env.example .env"),
        ("OPENAI_API_KEY=\n", "OPENAI_API_KEY is not set"),
        ("OPENAI_API_KEY=sk-your-key-here\n", "still the example's"),
        ("OPENAI_API_KEY=hunter2hunter2\n", "(…ter2) does not look like one"),
    ],
)
def test_a_missing_key_fails_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: str | None, told: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.chdir(tmp_path)
    if env is not None:
        (tmp_path / ".env").write_text(env)
    failed = [check for check in _checks(offline=True) if check.remedy and not check.warning]
    assert failed
    assert any(told in str(check) for check in failed)


@pytest.mark.parametrize(
    ("key", "server", "told"),
    [
        ("sk-wrong-0123456789abcdef", "", "refuses the key (…cdef)"),
        (KEY, "http://127.0.0.1:9/v1", "cannot be reached"),
    ],
)
def test_a_server_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, key: str, server: str, told: str) -> None:
    with judge_server(lambda *_: "1") as (url, _):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        monkeypatch.setenv("OPENAI_BASE_URL", server or url)
        last = _checks(offline=False)[-1]
    assert last.remedy
    assert told in last.what
    assert key not in str(last)


def test_env_example_loads_by_hand(tmp_path: Path) -> None:
    """`export $(grep -v '^#' .env | xargs)` as the homework documents it."""
    text = (PROJECT / ".env.example").read_text()
    (tmp_path / ".env").write_text(text.replace("OPENAI_API_KEY=", f"OPENAI_API_KEY={KEY}"))
    script = "export $(grep -v '^#' .env | xargs) && echo $OPENAI_API_KEY"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == KEY
