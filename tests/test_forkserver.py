"""A forked command is a process of its own, and ends as a true one does; without its server it fails, and fast."""

from __future__ import annotations

import os
import pty
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import forkserver
from tests.conftest import PATIENCE, PROJECT
from tests.forkserver import Forked, popen, run, serving

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks no processes")


def _python(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return run(command, capture_output=True, text=True, timeout=PATIENCE, **options)


def _wait_for(line: str, process: Any) -> None:
    assert process.stdout.readline() == f"{line}\n"


def test_torch_is_there_and_no_thread_of_it() -> None:
    code = "import os, sys, threading; print('torch' in sys.modules, threading.active_count(), os.getpid())"
    there, threads, pid = _python(code).stdout.split()
    assert (there, threads) == ("True", "1")
    assert int(pid) != os.getpid()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("import sys; sys.exit()", 0),
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit('a reason')", 1),
        ("1 / 0", 1),
        ("import os; os._exit(7)", 7),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("import atexit; atexit.register(print, 'the end'); print('first')", 0),
        ("import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()", 0),
        ("import sys; print(sys.argv, __name__, sys.path[0]); print(input(), file=sys.stderr)", 0),
        ("import os, sys; print(os.isatty(0), sys.stdout.line_buffering, sys.stderr.line_buffering)", 0),
    ],
)
def test_it_ends_and_speaks_as_a_true_one(code: str, expected: int) -> None:
    forked = _python(code, "a", input="typed\n")
    true = subprocess.run([sys.executable, "-c", code, "a"], input="typed\n", capture_output=True, text=True)
    assert forked.returncode == true.returncode == expected
    assert forked.stdout == true.stdout
    assert forked.stderr.splitlines()[-1:] == true.stderr.splitlines()[-1:]
    assert ("Traceback" in forked.stderr) == ("Traceback" in true.stderr)


def test_modules_and_scripts(tmp_path: Path) -> None:
    done = run([sys.executable, "-m", "emorg.cli", "rates"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "emorg rates" in done.stderr
    (tmp_path / "near.py").write_text("HERE = 'beside it'\n")
    (tmp_path / "script.py").write_text("import sys, near; print(__name__, near.HERE, sys.argv)")
    done = run([sys.executable, "script.py", "x"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "__main__ beside it ['script.py', 'x']\n"
    with pytest.raises(subprocess.CalledProcessError):
        run([sys.executable, "missing.py"], cwd=tmp_path, capture_output=True, check=True)


def test_its_folder_its_environment_and_its_limits_are_its_own(tmp_path: Path) -> None:
    code = (
        "import os, resource, sys\n"
        "print(os.getcwd(), os.environ.get('OPENAI_API_KEY'), resource.getrlimit(resource.RLIMIT_FSIZE)[0])\n"
        "open('big', 'wb').write(bytes(10_000))\n"
    )
    environment = {**os.environ, "OPENAI_API_KEY": "sk-other"}
    done = _python(code, cwd=tmp_path, env=environment, limits={resource.RLIMIT_FSIZE: 5000})
    assert done.stdout == f"{tmp_path} sk-other 5000\n"
    assert "File too large" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 5000
    assert Path.cwd() != tmp_path


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "HF_HUB_OFFLINE", "GOMP_SPINCOUNT", "PYTHONPATH", "NEW"])
def test_what_may_be_read_at_import_makes_a_true_process(name: str) -> None:
    code = "import os, sys; print(os.environ[sys.argv[1]], 'torch' in sys.modules)"
    assert _python(code, name, env={**os.environ, name: "0"}).stdout == "0 False\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_can_be_signalled(number: signal.Signals) -> None:
    command = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
    with popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert isinstance(process, Forked)
        _wait_for("up", process)
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.send_signal(number)
        assert process.wait(PATIENCE) == -number
    process.kill()  # it has ended: nobody else's process is hit


def test_past_its_time_it_is_killed() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run([sys.executable, "-c", "import time; time.sleep(600)"], capture_output=True, timeout=0.2)


def test_much_is_read_and_written_at_once() -> None:
    code = "import sys; told = sys.stdin.read(); sys.stderr.write(told); sys.stdout.write(told)"
    told = "a line of text\n" * 100_000
    done = _python(code, input=told)
    assert done.stdout == done.stderr == told


def test_a_terminal_is_one() -> None:
    ours, theirs = pty.openpty()
    with popen([sys.executable, "-c", "import os; print(os.isatty(0), os.isatty(1), input())"],
               stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL) as process:  # fmt: skip
        os.close(theirs)
        os.write(ours, b"typed\n")
        process.wait(PATIENCE)
    assert b"True True typed" in os.read(ours, 1000)
    os.close(ours)


def test_commands_run_side_by_side_and_end_in_any_order() -> None:
    command = [sys.executable, "-c", "import sys; print(input(), flush=True)"]
    both = [popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    for process, word in zip(reversed(both), "ba", strict=True):
        assert process.communicate(word) == (f"{word}\n", None)
        assert process.returncode == 0


def test_without_its_server_a_command_fails_and_does_not_hang() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with serving(bare=True) as server:
        assert server is not None
        process = popen(command)
        server.kill()
        with pytest.raises(forkserver.ServerDiedError, match="died"):
            process.wait(PATIENCE)
        with pytest.raises(forkserver.ServerDiedError, match="is not there"):
            popen(command)
        os.kill(process.pid, signal.SIGKILL)


def test_whoever_ends_while_asking_stops_nobody_else() -> None:
    with serving(bare=True), socket.socket(socket.AF_UNIX) as line, socket.socket(socket.AF_UNIX) as other:
        for each in (line, other):
            each.connect(os.environ[forkserver.ADDRESS])
        socket.send_fds(line, [forkserver.PID.pack(1000) + b"half"], [0, 1, 2])
        line.close()
        other.close()
        assert _python("print('on')").stdout == "on\n"


def test_server_and_commands_end_with_the_session() -> None:
    code = (
        "import subprocess, sys, time\n"
        "from tests.forkserver import popen, serving\n"
        "with serving(bare=True) as server:\n"
        "    process = popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    print(server.pid, process.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    session = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert session.stdout is not None
    pids = [int(pid) for pid in session.stdout.readline().split()]
    session.kill()  # no handler of it runs
    session.communicate()
    deadline = time.monotonic() + 60
    while any(map(_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(_alive, pids))


def _alive(pid: int) -> bool:
    """Whether it runs; one that ended and waits to be reaped does not."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return done.stdout.strip()[:1] not in ("", "Z")
