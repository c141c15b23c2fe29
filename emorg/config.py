"""Configs from flags and YAML, keys from .env: one parser for every command, since a flag is a config's field."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import typing
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from emorg.presets import PRESETS, line_of, preset_path, read_yaml
from emorg.ranges import check_ranges, field_types
from emorg.records import EmorgError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")
NAMES_MODELS = "names models"
"""Marks the field of a config, given without a flag, that says of which models a command is: any command takes them
under the homework's flags too."""
_REWORDED = (  # what tyro and Python say, for people
    (r"^(Error parsing --\w+): no type matching .*could be instantiated from \[(.*?)\].*(?:int|float).*$", r"\1: \2"),
    (r"^Error parsing (--\w+): ('[^']*')$", r"\1 \2 is not a number"),
    (r"'None', |, 'None'", ""),
    (r"^Error parsing (--\w+): could not convert string to float: (.*)$", r"\1 \2 is not a number"),
    (r"^Error parsing (--\w+): invalid literal for int\(\) with base 10: (.*)$", r"\1 \2 is not a whole number"),
    (r"^[Ii]nvalid choice (.*) for argument '(--\w+)'\. Expected one of \((.*)\) ?\.?$", r"\2 \1 is none of \3"),
)
_MODEL_FLAGS = ("--model_name", "--local_model_path")


def parse(kind: type[Config], arguments: Sequence[str], *, prog: str, section: str) -> Config:
    """A config of that kind from flags, over a `--config` file's section, over the defaults.

    Raises EmorgError for a bad file and a bad flag.
    """
    import tyro

    arguments = _models_first(kind, _numbers_apart(kind, arguments))
    default: Any = tyro.MISSING_NONPROP
    for i, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if flag == "--config":
            if not value and ("=" in argument or i + 1 == len(arguments)):
                raise EmorgError("--config without a file", "name one, e.g. --config configs/pocket.yaml")
            path = preset_path(value or arguments[i + 1])
            del arguments[i : i + (1 if value else 2)]
            default = from_yaml(kind, path, section)
            break
    presets = ", ".join(sorted(path.stem for path in PRESETS.glob("*.yaml")))
    described = (
        f"{kind.__doc__}\n\n--config FILE takes settings from the {section!r} part of a YAML file, or of a "
        f"preset ({presets}); flags go over it."
    )
    with redirect_stderr(io.StringIO()) as boxed:
        try:
            parsed: Config = tyro.cli(
                kind, prog=prog, args=arguments, default=default, use_underscores=True, description=described
            )
        except SystemExit as end:
            if not end.code:
                raise
            raise EmorgError(_out_of_the_box(boxed.getvalue()), f"{prog} --help lists the flags") from None
    check_ranges(parsed)
    return parsed


def _out_of_the_box(boxed: str) -> str:
    """The reason in an error that tyro draws a box around, and the flag that it takes to be meant."""
    lines = [line.strip("│ ") for line in boxed.splitlines()]
    parts = re.split(r"(?m)^(?:[╭╰]─.*|[─-]+)$", "\n".join(lines))  # before the first rule is a title, or nothing
    reason = " ".join(parts[1].split()) if len(parts) > 1 else " ".join(boxed.split())
    for pattern, plain_words in _REWORDED:
        reason = re.sub(pattern, plain_words, reason)
    near = re.search(r"Perhaps you meant:\s+(--\w+)", "\n".join(lines))
    return (reason[:1].lower() + reason[1:]) + (f"; did you mean {near[1]}?" if near else "")


def from_yaml(kind: type[Config], path: Path, section: str) -> Config:
    """A config of that kind from a YAML file's section; fields that the file leaves out keep their defaults.

    Raises EmorgError for a file that cannot be read, unknown names in it, and values that a flag would not take.
    """
    from tyro import MISSING

    text, sections = read_yaml(path)
    settings = sections.get(section, ()) if isinstance(sections, dict) else ()
    settings = {} if settings is None else settings  # the part is there, and sets nothing
    if not isinstance(settings, dict):
        raise EmorgError(f"{path} has no part {section!r}", f"write the settings under `{section}:`")
    values = {}
    for name, value in settings.items():
        place = f"{path}:{line_of(text, section, str(name))}: {section}"
        values[name] = setting(kind, str(name), value, place, f"emorg {section} --help lists them")
    required = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
    config = kind(**dict.fromkeys(required - values.keys(), MISSING), **values)
    check_ranges(config, lambda name: f"{path}:{line_of(text, section, name)}: {section}.{name}")
    return config


def config_from(
    kind: type[Config], section: str, settings: Mapping[str, Any], config: Config | str | os.PathLike[str] | None = None
) -> Config:
    """A config of that kind from settings in Python, over another's, over a YAML file's or preset's section, or alone.

    Runs and paths stand for their text where text is wanted, and one value for a tuple of one. Raises EmorgError for
    unknown names, and for values that a flag would not take.
    """
    settings, remedy = dict(settings), f"emorg {section} --help lists them"
    if isinstance(config, kind):
        fields = [field.name for field in dataclasses.fields(kind)]
        settings = {name: getattr(config, name) for name in fields} | settings
    elif config is not None and not isinstance(config, str | os.PathLike):
        raise EmorgError(
            f"config is of {type(config).__name__}", f"give a {kind.__name__}, a YAML file or the name of a preset"
        )
    values = {name: setting(kind, name, value, kind.__name__, remedy) for name, value in settings.items()}
    if isinstance(config, str | os.PathLike):
        result = dataclasses.replace(from_yaml(kind, preset_path(os.fspath(config)), section), **values)
    else:
        required = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
        if lacking := [name for name in required if name not in values]:
            raise EmorgError(f"{kind.__name__} without {', '.join(lacking)}", remedy)
        result = kind(**values)
    check_ranges(result, f"{kind.__name__}.{{}}".format)
    return result


def setting(kind: type[Any], name: str, value: Any, place: str, remedy: str) -> Any:
    """A setting's value as a config of that kind holds it. Raises EmorgError for another name, or value."""
    types = field_types(kind)
    if name not in types:
        raise EmorgError(f"{place} has no setting {name!r}{did_you_mean(name, types)}", remedy)
    return _checked(types[name], _plain(value), f"{place}.{name}")


def _plain(value: Any) -> Any:
    """A value as YAML would hold it."""
    if isinstance(value, set | frozenset):
        value = sorted(value)
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def load_env() -> None:
    """Put the keys of the nearest .env at or above the working folder into the environment, where not set there.

    Raises EmorgError for one that cannot be read.
    """
    from dotenv import dotenv_values, find_dotenv

    path = find_dotenv(usecwd=True)
    try:
        values = dotenv_values(path)
    except (OSError, UnicodeDecodeError) as error:
        raise EmorgError(f"{path}: {error}", "make it a text file in UTF-8 that you can read, or delete it") from None
    for name, value in values.items():
        if value:  # a key left blank in .env is no key
            os.environ.setdefault(name, value)


def _numbers_apart(kind: type[Any], arguments: Sequence[str]) -> list[str]:
    """The arguments with 1,2,4,8 as 1 2 4 8 where the flag takes several integers, and nowhere else."""
    several = {name for name, hint in field_types(kind).items() if _tuple_in(hint) == tuple[int, ...]}
    apart: list[str] = []
    flag = ""
    for argument in arguments:
        if argument.startswith("--"):
            flag = argument
        name, equals, value = flag.removeprefix("--").partition("=")
        text = value if argument == flag and equals else argument
        if name.replace("-", "_") in several and re.fullmatch(r"\d+(,\d+)+", text):
            apart += [f"--{name}"] if argument == flag else []
            apart += text.split(",")
        else:
            apart.append(argument)
    return apart


def _models_first(kind: type[Any], arguments: list[str]) -> list[str]:
    """The arguments with models that are given by the homework's flags in the place of the field that names them."""
    hints = field_types(kind, include_extras=True).values()
    if not any(NAMES_MODELS in getattr(hint, "__metadata__", ()) for hint in hints):
        return arguments
    models, rest = list[str](), list[str]()
    left = iter(arguments)
    for argument in left:
        name, equals, value = argument.partition("=")
        if f"--{name.lstrip('-').replace('-', '_')}" not in _MODEL_FLAGS or not name.startswith("--"):
            rest.append(argument)
            continue
        value = value if equals else next(left, "")
        if not value or value.startswith("--"):
            raise EmorgError(f"{name} without a model", f"name one, e.g. {name} runs/organism")
        models.append(value)
    return [*models, *rest]


def _tuple_in(hint: Any) -> Any:
    """The tuple type that a hint is or, with None, may be; None if there is none."""
    return next((part for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) is tuple), None)


def _checked(hint: Any, value: Any, where: str) -> Any:
    """A YAML value as its field's type, held to it as a flag is. Raises EmorgError for one that is not of it."""
    from pydantic import TypeAdapter, ValidationError

    several = _tuple_in(hint)
    if several is not None and value is not None and not isinstance(value, list):
        value = value.split(",") if several == tuple[int, ...] and isinstance(value, str) else [value]
    try:
        # Leniently, as YAML reads 2e-4 as text; but no yes and no is a number.
        given = value if isinstance(value, list) else [value]
        wrong = [item for item in given if isinstance(item, bool)]
        if wrong and bool not in (hint, *typing.get_args(hint)):
            named = "yes" if wrong[0] else "no"
            raise EmorgError(f"{where} is {named}, which it cannot be", f"give {_type_name(hint)}")
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        choices = [str(choice) for choice in typing.get_args(hint) if isinstance(choice, str)]
        near = did_you_mean(str(value), choices) if choices else ""
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise EmorgError(
            f"{where} is {value!r}{near}: {reason[0].lower()}{reason[1:]}", f"give {_type_name(hint)}"
        ) from None


def _type_name(hint: Any) -> str:
    """A field's type for people."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(map(str, arguments))
    if typing.get_origin(hint) is tuple:
        return f"a list of {_type_name(arguments[0])}"
    if arguments:
        return " or ".join(dict.fromkeys(map(_type_name, arguments)))
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "yes or no",
        Path: "a path",
        type(None): "null",
    }
    return names.get(hint, str(hint))
