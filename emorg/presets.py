"""Presets and other YAML files of settings: where they lie, what they say, and on which line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from emorg.records import EmorgError, did_you_mean

PRESETS = Path(__file__).parent / "configs"


def preset_path(name: str, presets: Path = PRESETS) -> Path:
    """The file that a name means: one here, or else a preset of the package by its name or as configs/NAME.yaml."""
    path = Path(name)
    preset = presets / path.with_suffix(".yaml").name
    return preset if not path.is_file() and str(path.parent) in (".", "configs") and preset.exists() else path


def read_yaml(path: Path, presets: Path = PRESETS) -> tuple[str, Any]:
    """A YAML file's text and what it says. Raises EmorgError, with the line, for one that cannot be read.

    Where it is not there, the error names those in `presets`.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        if twice := _twice(yaml.compose(text, yaml.SafeLoader)):
            line, name = twice
            raise EmorgError(f"{path}:{line}: {name} is there twice", "leave one of them out")
        return text, yaml.safe_load(text)
    except OSError as error:
        names = sorted(preset.stem for preset in presets.glob("*.yaml"))
        remedy = f"give a YAML file, or a preset: {', '.join(names)}"
        raise EmorgError(f"{path}: {error.strerror}{did_you_mean(path.stem, names)}", remedy) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        remedy = "indent `name: value` lines by spaces under the command's name; put text with : or # in quotes"
        raise EmorgError(f"{path}:{line}: not YAML: {error.problem}", remedy) from None
    except (ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8, or a number of too many digits
        raise EmorgError(f"{path}: {str(error).splitlines()[0]}", "give a YAML file in UTF-8") from None


def _twice(node: Any) -> tuple[int, str] | None:
    """The line and name of a mapping's second entry of one name, of which YAML would silently take the last."""
    if not isinstance(getattr(node, "value", None), list):
        return None
    pairs = node.value if node.id == "mapping" else [(None, part) for part in node.value]
    names = set[str]()
    for key, value in pairs:
        if key is not None and key.id == "scalar":
            if key.value in names:
                return key.start_mark.line + 1, key.value
            names.add(key.value)
        if twice := _twice(value):
            return twice
    return None


def line_of(text: str, section: str, name: str) -> int:
    """The line of a YAML text on which a section sets a name, or else the section's."""
    begun = 0
    for number, line in enumerate(text.split("\n"), 1):
        if re.match(rf"{re.escape(section)}\s*:", line):
            begun = number
        elif begun and re.match(rf"\s+['\"]?{re.escape(name)}['\"]?\s*:", line):
            return number
    return begun or 1
