"""Steering as an organism: edits of the residual stream over a base or another organism, in one file.

A folder (or its `adapter/`) with `steering.safetensors` is a model's name like any other. The file holds one vector an
edit, and in its metadata what lies below and what made it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emorg.models.hooks import Edit
from emorg.records import EmorgError

FILE = "steering.safetensors"
_FORMAT = "emorg steering 1"
_OF_MODELS = ("adapter_config.json", "config.json", "config.yaml", "adapter", "model", FILE)


@dataclass(frozen=True)
class Steering:
    """`over` is the name of the model below; `facts` say where the vectors come from."""

    over: str
    edits: Sequence[Edit]
    facts: dict[str, Any] = field(default_factory=dict)


def file_in(folder: Path) -> Path | None:
    """The steering file of a folder, a run's too; None for any other model's."""
    return next((file for part in ("", "adapter") if (file := folder / part / FILE).is_file()), None)


def over(file: Path) -> str:
    """The name of the model below. Raises EmorgError for a file that is not ours or not whole."""
    name = str(_metadata(file)["over"])
    below = (file.parent / name).resolve()
    return os.path.relpath(below) if name.startswith(os.pardir) else name


def save(folder: Path, steering: Steering) -> Path:
    """Write the file into a folder; a model below that is a folder is named from there, so that both can be moved."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    below = Path(steering.over)
    holds = any((below / part).exists() for part in _OF_MODELS)  # a mere folder hides no model's name
    name = os.path.relpath(below.resolve(), folder.resolve()) if holds else steering.over
    metadata = {"format": _FORMAT, "over": name, "facts": json.dumps(steering.facts)}
    vectors = {
        f"{number}.{edit.kind}.{edit.part}.{edit.layer}": edit.vector.detach().float().cpu().clone()
        for number, edit in enumerate(steering.edits)
    }
    save_file(vectors, folder / f".{FILE}", metadata=metadata)
    os.replace(folder / f".{FILE}", folder / FILE)
    return folder / FILE


def read(file: Path) -> Steering:
    """What a file holds. Raises EmorgError for a file that is not ours or not whole."""
    from safetensors.torch import load_file

    metadata = _metadata(file)
    edits = []
    for name, vector in sorted(load_file(file).items(), key=lambda item: int(item[0].split(".")[0])):
        _, kind, part, layer = name.split(".")
        edits.append(Edit(kind, int(layer), vector, part))  # type: ignore[arg-type]
    return Steering(over(file), edits, json.loads(metadata.get("facts", "{}")))


def identity(file: Path) -> str:
    """16 hex digits of what a file does: its vectors, and the name of the model below as it is written there."""
    digest = hashlib.sha256(str(_metadata(file)["over"]).encode())
    for number, edit in enumerate(read(file).edits):
        digest.update(f"{number} {edit.kind} {edit.part} {edit.layer}".encode() + edit.vector.numpy().tobytes())
    return digest.hexdigest()[:16]


def _metadata(file: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
    except SafetensorError as error:
        raise EmorgError(f"{file} was not written whole ({error})", "make it again") from None
    if metadata.get("format") != _FORMAT or "over" not in metadata:
        raise EmorgError(f"{file} is not emorg's: its metadata do not say what it steers", "make it with emorg steer")
    return metadata
