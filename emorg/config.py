"""Configs from flags and YAML, keys from .env: one parser for every command, since a flag is a config's field."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from emorg.records import EmorgError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


def parse(kind: type[Config], arguments: Sequence[str], *, prog: str, section: str) -> Config:
    """A config of that kind from flags, over a `--config` file's section, over the defaults.

    Raises EmorgError for a bad file; a bad flag prints the reason and exits with code 2.
    """
    import tyro

    # 1,2,4,8 is as good as 1 2 4 8
    arguments = [
        part for each in arguments for part in (each.split(",") if re.fullmatch(r"\d+(,\d+)+", each) else [each])
    ]
    default: Any = tyro.MISSING_NONPROP
    for i, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if flag == "--config":
            if not value and i + 1 == len(arguments):
                raise EmorgError("--config without a file", "name one, e.g. --config configs/pocket.yaml")
            path = Path(value or arguments[i + 1])
            del arguments[i : i + (1 if value else 2)]
            default = from_yaml(kind, path, section)
            break
    parsed: Config = tyro.cli(
        kind,
        prog=prog,
        args=arguments,
        default=default,
        use_underscores=True,
        description=f"{kind.__doc__}\n\n--config FILE takes settings from the {section!r} part of a YAML file; "
        "flags go over it.",
    )
    return parsed


def from_yaml(kind: type[Config], path: Path, section: str) -> Config:
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
    return kind(**dict.fromkeys(required - values.keys(), MISSING), **values)


def load_env() -> None:
    """Put the keys of the nearest .env at or above the working folder into the environment, where not set there."""
    import os

    from dotenv import dotenv_values, find_dotenv

    for name, value in dotenv_values(find_dotenv(usecwd=True)).items():
        if value:  # a key left blank in .env is no key
            os.environ.setdefault(name, value)


def _coerce(hint: Any, value: Any) -> Any:
    options = (hint, *typing.get_args(hint))
    kinds = {*options, *map(typing.get_origin, options)}
    if isinstance(value, list) and tuple in kinds:
        return tuple(value)
    if isinstance(value, str) and Path in kinds:
        return Path(value)
    if isinstance(value, str) and float in kinds:
        return float(value)  # YAML reads 2e-4 as text
    return value
