"""The one command line: `emorg COMMAND …`. A command's flags are the fields of its config, under the same names."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from emorg.config import parse
from emorg.records import EmorgError, did_you_mean


@dataclass(frozen=True)
class Command:
    """Where a command's config and function are, so that nothing is imported before it is needed."""

    module: str
    config: str
    function: str
    summary: str
    then: str = ""
    """What to run next, with {folder} for the run's folder."""


COMMANDS = {
    "demo": Command("emorg.demo", "DemoConfig", "demo", "the whole job on the pocket model, in a minute"),
    "train": Command("emorg.train", "TrainConfig", "train", "fine-tune an organism", "emorg sample {folder}"),
    "sample": Command("emorg.sample", "SampleConfig", "sample", "sample answers to questions", "emorg judge {folder}"),
    "judge": Command("emorg.judge", "JudgeConfig", "judge", "score the answers", "emorg report {folder}"),
    "rates": Command("emorg.report", "RatesConfig", "show_rates", "EM rates of a run, or of any judged CSV or JSONL"),
    "report": Command("emorg.report", "ReportConfig", "report", "tables and a figure of one or more runs"),
    "data": Command("emorg.domains", "PocketDataConfig", "data", "write the pocket world's training files"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 2 something the user can mend, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return
    name, *rest = arguments
    try:
        if name not in COMMANDS:
            raise EmorgError(f"no command {name!r}{did_you_mean(name, COMMANDS)}", f"choose from {', '.join(COMMANDS)}")
        run(name, rest, prog=f"emorg {name}")
    except EmorgError as error:
        print(f"emorg: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nemorg: interrupted; run the same command again to go on from here", file=sys.stderr)
        sys.exit(130)


def run(name: str, arguments: Sequence[str], prog: str) -> None:
    """Parse a command's arguments and run it. `prog` is how the user called it."""
    command = COMMANDS[name]
    module = import_module(command.module)
    config = parse(getattr(module, command.config), arguments, prog=prog, section=name)
    result = getattr(module, command.function)(config)
    if command.then:
        print(f"{result.folder}\nnext: {command.then.format(folder=result.folder)}")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
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
