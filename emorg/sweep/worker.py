"""What a worker of a sweep does, and the process that does it here: a task is a line of JSON, and so is its answer."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import queue
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import yaml

from emorg.config import config_from
from emorg.progress import log
from emorg.records import EmorgError

Task = Mapping[str, Any]
"""`do`: train, sample, margins or judge; then what that needs, as JSON can hold it."""


def do(task: Task) -> dict[str, Any]:
    """Carry out a task; what it makes lies in runs' folders. Raises what the stage raises.

    Returns {}, or of judging what has been `spent` by now, in dollars, `warnings`, and the error that ended it.
    """
    if task["do"] == "train" and task.get("processes", 1) > 1:
        _launch(task["settings"], task["processes"])
    elif task["do"] == "train":
        from emorg.training import TrainConfig, train

        train(config_from(TrainConfig, "train", task["settings"]))
    elif task["do"] == "sample":
        from emorg.run import Run
        from emorg.sampling.config import SampleConfig
        from emorg.sampling.stage import sample_into
        from emorg.sampling.wanted import Target

        targets = [replace(Target.of(name), run=Run(Path(folder))) for name, folder in task["into"]]
        sample_into(config_from(SampleConfig, "sample", task["settings"]), targets)
    elif task["do"] == "judge":
        return _judge(task["settings"], task["spent"])
    else:
        from emorg.findings.margins import MarginsConfig, margins

        margins(config_from(MarginsConfig, "margins", task["settings"]))
    return {}


def _judge(settings: Mapping[str, Any], spent: float) -> dict[str, Any]:
    """Judge run after run; one that another process has is left, with a warning."""
    from emorg.judging.api import Account
    from emorg.judging.config import JudgeConfig
    from emorg.judging.stage import judge_all
    from emorg.run import BusyError

    config, account, warnings = config_from(JudgeConfig, "judge", settings), Account(spent), list[str]()
    error: dict[str, str] = {}
    for source in config.sources:
        try:
            tallies = judge_all(replace(config, sources=(source,)), account).values()
            warnings += [said for tally in tallies for said in (tally.failures(), tally.problem()) if said]
        except BusyError as busy:
            warnings.append(busy.problem)
        except EmorgError as end:
            error = {"error": end.problem, "remedy": end.remedy}
            break
    return {"spent": account.spent, "warnings": warnings, **error}


def _launch(settings: Mapping[str, Any], processes: int) -> None:
    """Train with several processes, as torchrun starts them. Raises EmorgError with what they said last."""
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder) / "train.yaml").write_text(yaml.safe_dump({"train": dict(settings)}), encoding="utf-8")
        launcher = ["-c", "from emorg.sweep.worker import launcher; launcher()", "--standalone"]
        command = [*launcher, "--nproc_per_node", str(processes), "-m", "emorg.cli", "train", "--config", str(file)]
        process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
        try:
            _, said = process.communicate()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # which it hands on, and waits for what they save
            process.communicate()
            raise
    sys.stderr.write(said)
    if process.returncode:
        lines = [line for line in said.splitlines() if line.startswith("emorg: ")]
        reason = lines[-1].removeprefix("emorg: ") if lines else f"torchrun ended with {process.returncode}"
        raise EmorgError(reason, "the worker's log has the rest")


def launcher() -> None:
    """torchrun, which ends its processes and then itself once the worker that started it is gone, however that went."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)


def answer(task: Task) -> dict[str, Any]:
    """Carry out a task and say what became of it: as `do`, or its error and remedy. No error ends the worker."""
    try:
        return do(task)
    except EmorgError as error:
        return {"error": error.problem, "remedy": error.remedy}
    except Exception as error:  # whatever it was, the other cells go on
        logging.getLogger("emorg").exception("the task failed")
        return {"error": f"{type(error).__name__}: {error}", "remedy": "its traceback is in the worker's log"}


def serve(tasks: TextIO, answers: TextIO) -> None:
    """Do what comes in until Ctrl-C; once nobody is left to send anything, end at once, whatever is under way."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in tasks:
            waiting.put(line)
        os._exit(1)  # whoever is started next goes on from what is written

    threading.Thread(target=listen, daemon=True).start()
    while True:
        answers.write(json.dumps(answer(json.loads(waiting.get()))) + "\n")
        answers.flush()


def main() -> None:
    """The process: tasks from stdin, answers to what was stdout, everything that is said to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        serve(sys.stdin, answers)
    except KeyboardInterrupt as stop:
        log.info(stop)
        os._exit(130)
