"""A direction as a file in its run: one vector of the residual stream a layer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorg.models.names import identity
from emorg.records import EmorgError, write_atomic
from emorg.run import Run, checkpoint_name

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Direction:
    """One vector a layer, [layers + 1, width], raw: a mean difference of activations. `title` names its run.

    `shuffled` [19, layers + 1, width] are the same with the labels of each question's texts drawn at random; `base`,
    of kind `answers`, what the base makes of the same texts.
    """

    title: str
    vectors: Tensor
    shuffled: Tensor
    base: Tensor | None
    facts: dict[str, Any]


def direction_file(run: Run, kind: str, checkpoint: str | None = None) -> Path:
    """Where a run's direction of a kind lies, or that of one of its checkpoints."""
    name = f"{kind}-{checkpoint}" if checkpoint else kind
    return run.folder / "directions" / f"{name}.safetensors"


def read(file: Path) -> Direction:
    """A direction from its file. Raises EmorgError for a file that is missing, not whole or not ours."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise EmorgError(f"there is no direction {file}", "compute it: emorg directions RUN")
    try:
        with safe_open(file, "pt") as opened:
            facts = json.loads((opened.metadata() or {}).get("emorg", "{}"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise EmorgError(
            f"{file} is no direction, or was not written whole ({error})", "name another, or compute it again"
        ) from None
    if "vectors" not in tensors or "kind" not in facts:
        raise EmorgError(f"{file} is no direction of emorg's", "compute one: emorg directions RUN")
    title = " ".join(filter(None, (file.parent.parent.name, file.stem.partition("-")[2])))  # and its checkpoint
    return Direction(title, tensors["vectors"], tensors["shuffled"], tensors.get("base"), facts)


def read_for(place: Path, base: str) -> Direction:
    """A file's direction, or the shift of a run or of one of its checkpoints, to be used on a model of that base.

    Raises EmorgError as `read` does, and for a direction of another base.
    """
    direction = read(direction_file(Run.at(place), "shift", checkpoint_name(place)) if place.is_dir() else place)
    if identity(str(direction.facts["base"])) != identity(base):
        raise EmorgError(
            f"{place} is a direction of {direction.facts['base']}, and this is a model of {base}",
            "take a direction of the same base",
        )
    return direction


def write(file: Path, direction: Direction) -> None:
    """Write a direction as `read` reads it."""
    from safetensors.torch import save

    tensors = {"vectors": direction.vectors, "shuffled": direction.shuffled}
    if direction.base is not None:
        tensors["base"] = direction.base
    whole = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    write_atomic(file, save(whole, metadata={"emorg": json.dumps(direction.facts)}))
