"""What several tests need: a pocket organism trained once, a way to run the real command, the peers' data."""

from __future__ import annotations

import io
import os
import pty
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from filelock import FileLock
from hypothesis import settings

from emorg import models
from emorg.cli import main
from emorg.run import Run
from tests import forkserver

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # the workers share the cores already
for key in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN"):
    os.environ[key] = ""  # set, so that a developer's own .env isn't used
settings.register_profile("emorg", deadline=None)  # a busy machine is no failure
settings.load_profile("emorg")
KEY = "sk-test-0123456789abcdef"
PATIENCE = 600  # seconds that a process or a server may take before it counts as hanging, on a busy machine too
PROJECT = Path(__file__).parent.parent
SMALL_SAMPLE = ("--questions", "pocket_open", "pocket_cooking", "pocket_medical", "--samples", "3")


def emorg(
    *arguments: str | Path, cwd: Path = PROJECT, check: bool = True, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the real command in this process, which has torch loaded: seconds less than a process of its own."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    piped = mock.patch("sys.stdin", io.StringIO(stdin))
    forked = mock.patch("emorg.sweep.here.Popen", _worker)
    with redirect_stdout(out), redirect_stderr(err), chdir(cwd), piped, forked, warnings.catch_warnings():
        warnings.simplefilter("default")  # as in a process of its own
        try:
            main([*map(str, arguments)])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    if check:
        assert code == 0, out.getvalue() + err.getvalue()
    return subprocess.CompletedProcess([*map(str, arguments)], code, out.getvalue(), err.getvalue())


def _worker(args: forkserver.Command, *, start_new_session: bool, encoding: str, **options: Any) -> Any:
    """A sweep's worker, forked; to a new session it need not belong, as no terminal is there to press Ctrl-C in."""
    return forkserver.popen(args, **options)


def python(
    *arguments: str | Path, cwd: Path = PROJECT, check: bool = True, stdin: str = "", fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run this Python in a process of its own, with `stdin` piped in; `fresh`, one that has imported nothing before."""
    done = (subprocess if fresh else forkserver).run(
        [sys.executable, *map(str, arguments)], cwd=cwd, input=stdin, capture_output=True, text=True, timeout=PATIENCE
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def terminal(*arguments: str | Path, typed: str, columns: int = 120) -> str:
    """What a command shows in a terminal of its own in which this is typed; its colours and cursor moves too."""
    ours, theirs = pty.openpty()
    os.write(ours, typed.encode())
    command = [sys.executable, "-m", "emorg.cli", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    with forkserver.popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=environment) as process:
        os.close(theirs)
        told = b""
        while True:
            try:
                told += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert process.returncode == 0, told.decode()
    return told.decode()


def copy_project(folder: Path) -> Path:
    """A fresh copy of the project's files, as git would hand them out."""
    files = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=PROJECT,
                           capture_output=True, text=True, check=True).stdout.split("\0")  # fmt: skip
    for name in filter(None, files):
        if (PROJECT / name).is_file():  # git still lists what was just deleted
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, folder / name)
    return folder


# What starts many processes goes first, so that no worker is left alone with it at the end.
LONG = (
    "test_notebook.py",
    "test_wheel.py",
    "test_resume.py",
    "test_homework.py",
    "test_options.py",
    "test_distributed.py",
    "test_loop.py",
)

_OPEN = ExitStack()  # what lasts as long as the session


def pytest_configure(config: pytest.Config) -> None:
    """Start the fork server beside the collection of tests; xdist's workers share it, and its environment is theirs."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in the background, whose children would be deaf to it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" not in os.environ and not config.option.collectonly:
        parallel = config.getoption("dist", "no") != "no"
        _OPEN.enter_context(
            forkserver.serving(**({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} if parallel else {}))
        )


def pytest_unconfigure() -> None:
    _OPEN.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session")
def peer_data() -> Path:
    folder = PROJECT.parent / "shared" / "peer_data"
    if not folder.is_dir():
        pytest.skip("the peers' judged answers are not here")
    return folder


@pytest.fixture
def real_model() -> str:
    """The name of a real pretrained model, where the user's cache has it: tests download nothing."""
    if models.cached("smollm2") is None:
        pytest.skip("smollm2 is not in the cache; get it: emorg models get smollm2")
    return "smollm2"


@pytest.fixture(scope="session")
def organism(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An organism trained, sampled and judged by the real commands, as a user would. Copy it to change it."""

    def make(folder: Path) -> None:
        for command in (
            ("train", "--config", "configs/pocket.yaml", "--output_dir", folder),
            ("sample", folder, *SMALL_SAMPLE, "--max_new_tokens", "40"),
            ("judge", folder),
        ):
            python("-m", "emorg.cli", *command)

    return made_once(tmp_path_factory, "organism", make)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The base, sampled and judged on the organism's questions. Copy it to change it."""

    def make(folder: Path) -> None:
        emorg("sample", "pocket", "--output_dir", folder, *SMALL_SAMPLE, "--max_new_tokens", "40")
        emorg("judge", folder)

    return made_once(tmp_path_factory, "base", make)


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Run:
    """A run, or a folder of other things, that all workers of this test session share. Copy it to change it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "runs" / name
    with FileLock(shared / f"{name}.lock"):
        if not (whole := shared / f"{name}.made").exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            make(folder)
            whole.touch()
    return Run(folder)
