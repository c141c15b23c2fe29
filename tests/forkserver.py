"""Processes that start fast: forked from one that has imported torch and emorg already, instead of importing them anew.

`popen` and `run` take the command and options that `subprocess` takes. A command is forked if it is this Python with a
module, a script or `-c`, and if its environment is the server's but for what is read while a command runs; any other is
a true process. A forked one has its own pid, exit code, signals, folder, environment, limits and streams, and ends as
an interpreter does; only the seed of its hashes is the server's, which is one process for the whole test session and
ends with it.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import resource
import runpy
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as PoolTimeout
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

PROJECT = Path(__file__).parent.parent
ADDRESS = "EMORG_TESTS_FORK_SERVER"  # set for the test session's workers
# What nothing reads at import: a command with its own values here may still be forked.
READ_LATE = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN", "COLUMNS", "LINES", "TERM", "PATH", "PWD", "OLDPWD",
             "SHLVL", "_")  # fmt: skip
READ_LATE_PREFIXES = ("PYTEST_", "ACCELERATE_", "TORCHINDUCTOR_", "OBJC_", ADDRESS)  # libraries set some
HEAVY = ("transformers.trainer", "transformers.models.llama.modeling_llama", "transformers.modeling_utils",
         "accelerate", "aiohttp.web", "altair", "pandas", "vl_convert", "scipy.special", "scipy.stats",
         "scipy.optimize", "dotenv", "pydantic", "typeguard")  # fmt: skip
# For numpy's OpenBLAS and pyarrow's jemalloc, which would start threads when they are imported.
WITHOUT_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
FOR_MACOS = {"OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"}  # else a forked process may be stopped there
PID = struct.Struct("i")
NO_FORK = 0  # the server's reply instead of a pid

Command = Sequence[str | Path]

# --- the tests' side -------------------------------------------------------------------------------------------------


class ServerDiedError(RuntimeError):
    """The fork server is gone, so the end of a command cannot be known."""


class Forked:
    """A forked command, with the interface of `subprocess.Popen`."""

    def __init__(self, args: Command, pid: int, line: socket.socket, pipes: Sequence[IO[Any] | None]) -> None:
        self.args, self.pid, self._line = args, pid, line
        self.stdin, self.stdout, self.stderr = pipes
        self.returncode: int | None = None

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()
        self.wait()

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._line], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired([*map(str, self.args)], timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(_receive(self._line))
            self._line.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Write `input`, read both streams to their ends, wait. A command past its time is killed."""
        with ThreadPoolExecutor(3) as pool:
            written = pool.submit(_write, self.stdin, input)
            read = [pool.submit(pipe.read) if pipe else None for pipe in (self.stdout, self.stderr)]
            try:
                out, err = (future.result(timeout) if future else None for future in read)
                written.result(timeout)
                self.wait(timeout)
            except (PoolTimeout, subprocess.TimeoutExpired):
                self.kill()
                raise subprocess.TimeoutExpired([*map(str, self.args)], timeout or 0) from None
        self.__exit__()
        return out, err


def _write(pipe: IO[Any] | None, content: Any) -> None:
    if pipe is None:
        return
    try:
        if content is not None:
            pipe.write(content)
        pipe.close()
    except BrokenPipeError:
        pass  # as subprocess does: the command need not read its input


def popen(
    args: Command, *, cwd: Path | str | None = None, env: Mapping[str, str] | None = None,
    stdin: Any = None, stdout: Any = None, stderr: Any = None, text: bool = False,
    limits: Mapping[int, int] | None = None,
) -> Forked | subprocess.Popen[Any]:  # fmt: skip
    """Start a command. `limits` are of `resource`, such as {RLIMIT_FSIZE: bytes}."""
    limits = limits or {}
    wanted = {
        "arguments": [str(part) for part in args[1:]], "cwd": str(cwd or Path.cwd()), "limits": [*limits.items()],
        "environment": dict(os.environ if env is None else env),
    }  # fmt: skip
    if hasattr(os, "fork") and ADDRESS in os.environ and _forkable(args):
        ours, theirs = zip(*(_ends(n, stream) for n, stream in enumerate((stdin, stdout, stderr))), strict=True)
        line = _ask(wanted, [0 if n is None else n for n in theirs])
        pid = _receive(line)
        _close(theirs, (stdin, stdout, stderr))
        if pid != NO_FORK:
            pipes = (_opened(end, "w" if n == 0 else "r", text) for n, end in enumerate(ours))
            return Forked(args, pid, line, [*pipes])
        line.close()
        _close(ours, (subprocess.PIPE,) * 3)
    return subprocess.Popen(
        [*map(str, args)], cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=stderr, text=text,
        preexec_fn=lambda: _prepare(limits.items()),
    )  # fmt: skip


def run(
    args: Command, *, input: Any = None, capture_output: bool = False, check: bool = False,
    timeout: float | None = None, **options: Any,
) -> subprocess.CompletedProcess[Any]:  # fmt: skip
    """`subprocess.run`, through `popen`."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    if capture_output:
        options["stdout"] = options["stderr"] = subprocess.PIPE
    with popen(args, **options) as process:
        try:
            out, err = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    assert process.returncode is not None
    done = subprocess.CompletedProcess([*map(str, args)], process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def _forkable(args: Command) -> bool:
    first = str(args[1]) if len(args) > 1 else ""
    return str(args[0]) == sys.executable and (first in ("-m", "-c") or first.endswith(".py"))


def _ends(n: int, stream: Any) -> tuple[int | None, int]:
    """(our end of a pipe, the command's end) of its n-th standard stream."""
    if stream is None:
        return None, n
    if stream == subprocess.PIPE:
        read, write = os.pipe()
        return (write, read) if n == 0 else (read, write)
    if stream == subprocess.DEVNULL:
        return None, os.open(os.devnull, os.O_RDWR)
    return None, stream if isinstance(stream, int) else stream.fileno()


def _close(ends: Sequence[int | None], streams: Sequence[Any]) -> None:
    for end, stream in zip(ends, streams, strict=True):
        if end is not None and stream in (subprocess.PIPE, subprocess.DEVNULL):
            os.close(end)


def _opened(end: int | None, mode: str, text: bool) -> IO[Any] | None:
    return None if end is None else os.fdopen(end, mode if text else f"{mode}b")


def _ask(wanted: Mapping[str, Any], streams: list[int]) -> socket.socket:
    """A line to the server, on which it replies with the command's pid and, when it has ended, with its status."""
    content = json.dumps(wanted).encode()
    line = socket.socket(socket.AF_UNIX)
    try:
        line.connect(os.environ[ADDRESS])
        socket.send_fds(line, [PID.pack(len(content))], streams)
        line.sendall(content)
    except OSError as error:
        line.close()
        raise ServerDiedError(f"the tests' fork server is not there: {error}") from error
    return line


def _receive(line: socket.socket) -> int:
    try:
        reply = line.recv(PID.size)
    except ConnectionError:
        reply = b""
    if not reply:
        line.close()
        raise ServerDiedError("the tests' fork server died")
    number: int = PID.unpack(reply)[0]
    return number


@contextmanager
def serving(*, bare: bool = False, **environment: str) -> Iterator[subprocess.Popen[bytes] | None]:
    """A fork server for this process and those that it starts; its imports go on meanwhile. A `bare` one has none."""
    if not hasattr(os, "fork"):
        yield None
        return
    folder = tempfile.mkdtemp()  # a short path: a socket's is limited to about 100 characters
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/fork")
        listener.listen(64)
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.forkserver", str(listener.fileno()), *["bare"] * bare],
            pass_fds=[listener.fileno()], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=PROJECT,
            env={**os.environ, **FOR_MACOS, **environment}, start_new_session=True,  # Ctrl-C is for pytest
        )  # fmt: skip
    before = os.environ.get(ADDRESS)
    os.environ[ADDRESS] = f"{folder}/fork"
    try:
        yield server
    finally:
        os.environ.pop(ADDRESS)
        if before is not None:
            os.environ[ADDRESS] = before
        assert server.stdin is not None
        server.stdin.close()  # the server reads the end of the session, unless it is importing still
        try:
            server.wait(1)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(folder)


# --- the server's side -----------------------------------------------------------------------------------------------


def _import_all() -> None:
    """Import what commands import, and run none of it: torch's threads, once started, don't survive a fork."""
    os.environ.update(WITHOUT_THREADS)
    import numpy  # noqa: F401
    import torch  # noqa: F401

    import emorg
    from emorg import models

    models.import_peft()
    for name in HEAVY:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(emorg.__path__, "emorg."):
        importlib.import_module(module.name)
    for name in WITHOUT_THREADS:
        del os.environ[name]
    gc.freeze()  # a collection in a forked process would copy all of this
    threads = Path("/proc/self/task")
    if threads.exists() and len(list(threads.iterdir())) > 1:
        sys.exit("the tests' fork server has several threads: it cannot fork safely")


def _serve(listener: socket.socket) -> dict[str, Any]:
    """Fork a process for each request. It returns in the forked ones alone, with what they are to do."""
    environment = {name: value for name, value in os.environ.items() if not _read_late(name)}
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    lines: dict[int, socket.socket] = {}
    while True:
        ready = select.select([0, wake, listener, *lines.values()], [], [])[0]
        if 0 in ready:  # the end of the session
            for pid in lines:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            os._exit(0)  # no atexit: those handlers are the commands'
        for pid in [pid for pid, line in lines.items() if line in ready]:  # whoever started it is gone
            os.kill(pid, signal.SIGKILL)
        if wake in ready:
            os.read(wake, 4096)
        for pid in list(lines):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _reply(lines.pop(pid), status, last=True)
        if listener not in ready:
            continue
        line, _ = listener.accept()
        if (asked := _request(line)) is None:
            continue
        request, streams = asked
        pid = NO_FORK
        if {name: value for name, value in request["environment"].items() if not _read_late(name)} == environment:
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for n, stream in enumerate(streams):
                    os.dup2(stream, n)
                for other in (listener, line, *lines.values()):
                    other.close()
                for end in (wake, waker, *streams):
                    os.close(end)
                return request
            lines[pid] = line
        for stream in streams:
            os.close(stream)
        _reply(line, pid, last=pid == NO_FORK)


def _read_late(name: str) -> bool:
    return name in READ_LATE or name.startswith(READ_LATE_PREFIXES)


def _request(line: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """What is asked for, with its streams; None if whoever asked ended meanwhile."""
    header, streams, _, _ = socket.recv_fds(line, PID.size, 3)
    content, size = b"", PID.unpack(header)[0] if header else -1
    while len(content) < size and (part := line.recv(size - len(content))):
        content += part
    if len(content) == size:
        return json.loads(content), streams
    for stream in streams:
        os.close(stream)
    line.close()
    return None


def _reply(line: socket.socket, number: int, *, last: bool) -> None:
    with suppress(OSError):  # whoever started it may be gone
        line.send(PID.pack(number))
    if last:
        line.close()


def _prepare(limits: Iterable[tuple[int, int]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background would ignore it
    for name, most in limits:
        resource.setrlimit(name, (most, most))


def _become(request: dict[str, Any]) -> None:
    """Go on as `python ARGUMENTS` would, in the folder and the environment that were asked for."""
    first, *rest = request["arguments"]
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    _prepare(request["limits"])
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # Python's own generator does so by itself
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.isatty(1):
        sys.stdout.reconfigure(line_buffering=True)
    if first == "-m":
        sys.argv, sys.path[0] = rest, request["cwd"]
        sys.modules.pop(rest[0], None)  # it runs under the name __main__
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), module.__dict__)
    else:
        sys.argv, sys.path[0] = [first, *rest], str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


def _end(request: dict[str, Any]) -> None:
    """Run the command and end as an interpreter does, but for taking all modules apart, which takes a second."""
    code = 0
    try:
        _become(request)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException as error:  # noqa: BLE001
        sys.excepthook(type(error), error, error.__traceback__)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError:
        code = 120
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _listener:
        if "bare" not in sys.argv:
            _import_all()
        _task = _serve(_listener)
    _end(_task)
