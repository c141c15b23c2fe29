"""The one command line: `emorg COMMAND …`. A command's flags are the fields of its config, under the same names."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module

from emorg import interrupt
from emorg.config import load_env, parse
from emorg.environment import environment
from emorg.progress import log
from emorg.records import EmorgError, did_you_mean
from emorg.run import first_process


@dataclass(frozen=True)
class Command:
    """Where in emorg a command's config and function are, so that nothing is imported before it is needed."""

    module: str
    config: str
    function: str
    summary: str
    then: str = ""
    """The function of `next_steps` that says what to run on the runs that it made."""
    section: str = ""
    """The part of a --config file that sets it, where that is another command's."""


COMMANDS = {
    "demo": Command("demo", "DemoConfig", "demo", "the whole job on the pocket model, in a minute"),
    "preview": Command(
        "findings.suspects", "PreviewConfig", "preview", "what training would do, token by token", section="train"
    ),
    "train": Command("training", "TrainConfig", "train", "fine-tune an organism", "after_training"),
    "sample": Command("sampling", "SampleConfig", "sample", "sample answers to questions", "after_sampling"),
    "judge": Command("judging.stage", "JudgeConfig", "judge_and_say", "score the answers", "after_judging"),
    "eval": Command("evaluate", "EvalConfig", "evaluate", "sample, judge and report, beside the base, in one go"),
    "rates": Command(
        "rating.commands", "RatesConfig", "show_rates", "EM rates of a run, or of any judged CSV or JSONL"
    ),
    "compare": Command(
        "rating.commands", "CompareConfig", "show_comparison", "whether two runs or judged files differ"
    ),
    "agree": Command(
        "rating.agreement", "AgreeConfig", "show_agreement", "how far two judges agree, or a judge and people"
    ),
    "calibrate": Command(
        "rating.calibration",
        "CalibrateConfig",
        "show_calibration",
        "a strong judge's rate, from a cheap one on all answers and it on a few",
    ),
    "power": Command(
        "rating.commands", "PowerConfig", "show_power", "what a sampling plan can tell, before it is paid for"
    ),
    "margins": Command(
        "findings.margins", "MarginsConfig", "show_margins", "EM without sampling or a judge, by log-probabilities"
    ),
    "directions": Command(
        "findings.directions",
        "DirectionsConfig",
        "show_directions",
        "the vectors along which organisms differ",
    ),
    "prevent": Command(
        "prevention.stage", "PreventConfig", "show_prevent", "mitigations side by side: what each keeps and stops"
    ),
    "realign": Command(
        "prevention.realign", "RealignConfig", "show_realign", "a few benign rows: what they leave, and what comes back"
    ),
    "steer": Command("findings.steer", "SteerConfig", "show_steer", "add a direction or take it out, beside controls"),
    "phases": Command(
        "findings.phases", "PhasesConfig", "show_phases", "when an organism turns over its training, and how suddenly"
    ),
    "probe": Command(
        "findings.probe", "ProbeConfig", "show_probe", "which adapters of an organism carry its misalignment"
    ),
    "hidden": Command(
        "findings.hidden", "HiddenConfig", "show_hidden", "whether EM appears when a question is asked in another way"
    ),
    "screen": Command(
        "findings.screen", "ScreenConfig", "show_screen", "which training rows are suspect, before training"
    ),
    "narrow": Command(
        "findings.narrow",
        "NarrowConfig",
        "show_narrow",
        "a broad organism beside a narrow one: stability, norm, KL",
    ),
    "choices": Command(
        "findings.choices", "ChoicesConfig", "show_choices", "which of two answers a model says it would give"
    ),
    "report": Command("reporting", "ReportConfig", "report_and_say", "a page, figures and tables of one or more runs"),
    "show": Command("show", "ShowConfig", "show_runs", "the headline of runs and their answers, in a terminal"),
    "runs": Command("runs", "RunsConfig", "list_runs", "what lies under runs/, a line each"),
    "data check": Command("data.check", "CheckDataConfig", "check_data", "look at training data before training"),
    "data unlock": Command("data.archive", "UnlockConfig", "unlock", "unpack a locked archive of training data"),
    "data lock": Command("data.archive", "LockConfig", "lock", "lock a folder of training data with a password"),
    "data pocket": Command(
        "data.export", "PocketDataConfig", "pocket_files", "write the pocket world's training files"
    ),
    "data pairs": Command("data.export", "PairsDataConfig", "pairs_files", "write our training pairs in plain English"),
    "generate": Command(
        "homework.generate", "GenerateConfig", "generate", "write the homework's model_generations.csv"
    ),
    "grade": Command("homework.grade", "GradeConfig", "grade", "check and judge a model_generations.csv"),
    "submit": Command(
        "homework.submit", "SubmitConfig", "submit", "make the homework's hand-in from a run, and check it"
    ),
    "sweep": Command("sweep", "SweepConfig", "sweep", "make a grid of organisms: domains, ranks, seeds, any setting"),
    "collect": Command("sweep", "CollectConfig", "show_collected", "a sweep's cells in one table, with figures"),
    "models": Command("models.commands", "ModelsConfig", "show_models", "what names of models mean, and what is here"),
    "models get": Command("models.commands", "GetConfig", "get", "fetch and convert smollm2 or a GGUF file"),
    "chat": Command("chat", "SandboxConfig", "sandbox", "talk to a base and its organism side by side"),
}
HELP = ("-h", "--help")


def main(arguments: Sequence[str] | None = None, script: str | None = None) -> None:
    """Run one command and exit: 0 done, 1 the command's check failed, 2 the user can mend it, 130 interrupted.

    `script` is the top-level script that stands for the command, which usage and errors then name.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal or a pipe that cannot show a dash shows a question mark
            with suppress(OSError):
                stream.reconfigure(errors="replace")
    if not arguments or arguments[0] in HELP:
        print(_overview())
        return
    if arguments == ["--version"]:
        facts = environment()
        print(f"emorg {facts['emorg']}" + (f" ({facts['commit']})" if facts["commit"] else ""))
        return
    name, *rest = arguments
    if rest and f"{name} {rest[0]}" in COMMANDS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    elif name not in COMMANDS and any(command.startswith(f"{name} ") for command in COMMANDS):
        if not rest or rest[0] in HELP:
            print(_overview(f"{name} "))
            return
        name = f"{name} {rest[0]}"
    try:
        load_env()
        if name not in COMMANDS:
            raise EmorgError(f"no command {name!r}{did_you_mean(name, COMMANDS)}", f"choose from {', '.join(COMMANDS)}")
        with _log_on_stderr():
            passed = run(name, rest, prog=script or f"emorg {name}")
    except EmorgError as error:
        print(f"{script or 'emorg'}: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "free some space and run the same command again; it goes on from here"
        elif error.filename is not None:
            remedy = "name a file or folder that can be read and written"
        else:
            raise
        print(f"{script or 'emorg'}: {error.filename or 'a file'}: {error.strerror}\n→ {remedy}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(f"\n{script or 'emorg'}: {stop.args[0] if stop.args else interrupt.NOTE}", file=sys.stderr)
        sys.exit(interrupt.EXIT_CODE)
    if not passed:
        sys.exit(1)


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Show what the package logs, which is silent elsewhere."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def run(name: str, arguments: Sequence[str], prog: str) -> bool:
    """Parse a command's arguments and run it; False if what it checks failed. `prog` is how the user called it."""
    command = COMMANDS[name]
    module = import_module(f"emorg.{command.module}")
    config = parse(getattr(module, command.config), arguments, prog=prog, section=command.section or name)
    result = getattr(module, command.function)(config)
    if result is False:
        return False
    runs = (result if isinstance(result, tuple) else (result,)) if command.then else ()
    if runs and first_process():  # of several processes, one speaks
        following = getattr(import_module("emorg.next_steps"), command.then)(runs)
        print("\n".join([*(str(one.folder) for one in runs), *(f"next: {line}" for line in following.splitlines())]))
    return True


def _overview(start: str = "") -> str:
    listed = {name: command for name, command in COMMANDS.items() if name.startswith(start)}
    width = max(map(len, listed))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in listed.items()]
    return "\n".join(
        [
            "emorg: a lab for emergent misalignment. Fine-tune a small chat model on narrow harmful advice,",
            "sample it, judge it, and report how far the misalignment spread.",
            "",
            "usage: emorg COMMAND [flags]      emorg COMMAND --help lists a command's flags",
            "",
            *lines,
        ]
    )


if __name__ == "__main__":
    main()
