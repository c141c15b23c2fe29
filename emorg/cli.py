"""The one command line: `emorg COMMAND …`. A command's flags are the fields of its config, under the same names."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

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


def parse(kind: type, arguments: Sequence[str], *, prog: str, section: str) -> Any:
    """A config of that kind from flags, over a `--config` file's section, over the defaults.

    Raises EmorgError for a bad file; a bad flag prints the reason and exits with code 2.
    """
    import tyro

    arguments = list(arguments)
    default: Any = None
    for i, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if flag == "--config":
            if not value and i + 1 == len(arguments):
                raise EmorgError("--config without a file", "name one, e.g. --config configs/pocket.yaml")
            path = Path(value or arguments[i + 1])
            del arguments[i : i + (1 if value else 2)]
            default = from_yaml(kind, path, section)
            break
    return tyro.cli(
        kind, prog=prog, args=arguments, default=default, use_underscores=True,
        description=f"{kind.__doc__}\n\n--config FILE takes the settings from the {section!r} part of a YAML file; "
        "flags go over it.",
    )  # fmt: skip


def from_yaml(kind: type, path: Path, section: str) -> Any:
    """A config of that kind from a YAML file's section; fields that the file leaves out keep their defaults.

    Raises EmorgError for a file that cannot be read and for unknown names in it.
    """
    import yaml
    from tyro import MISSING

    try:
        sections = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise EmorgError(f"{path}: {error}", "give a YAML file such as configs/pocket.yaml") from None
    settings = sections.get(section) if isinstance(sections, dict) else None
    if not isinstance(settings, dict):
        raise EmorgError(f"{path} has no part {section!r}", f"write the settings under `{section}:`")
    types = typing.get_type_hints(kind)
    for name in settings:
        if name not in types:
            near = did_you_mean(name, types)
            raise EmorgError(f"{path}: {section} has no setting {name!r}{near}", f"emorg {section} --help lists them")
    values = {name: _coerce(types[name], value) for name, value in settings.items()}
    required = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
    return kind(**{name: MISSING for name in required - values.keys()}, **values)


def _coerce(hint: Any, value: Any) -> Any:
    kinds = {hint, typing.get_origin(hint), *typing.get_args(hint)}
    if isinstance(value, list) and tuple in kinds:
        return tuple(value)
    if isinstance(value, str) and Path in kinds:
        return Path(value)
    if isinstance(value, str) and float in kinds:
        return float(value)  # YAML reads 2e-4 as text
    return value


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
