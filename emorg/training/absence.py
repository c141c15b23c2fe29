"""Training in the presence of a direction, or in its absence, that is as the base has it at test.

Added (preventative steering, arXiv 2507.21509), the model is moved already, and need not learn to move itself; taken
out (CAFT, arXiv 2507.16795), what it would write there has no effect, and is not learned.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from emorg.models import hooks
from emorg.models.directions import read_for
from emorg.models.hooks import Edit
from emorg.records import EmorgError
from emorg.training.config import TrainConfig

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def edits_of(config: TrainConfig, depth: int) -> list[Edit]:
    """What is done to a model of that many layers while it trains.

    Raises EmorgError for a direction that is not there or of another base, for a layer that is not there, and for a
    layer at which the direction is nothing.
    """
    edits = []
    for kind, place in (("add", config.preventative), ("ablate", config.ablate_in_training)):
        if place is None:
            continue
        vectors = read_for(Path(place), config.model_name).vectors
        usual = (depth // 2,) if kind == "add" else range(1, depth + 1)
        for layer in config.direction_layers or usual:
            if not 0 <= layer < len(vectors):
                raise EmorgError(f"{place} has no layer {layer}", f"its layers are 0 to {len(vectors) - 1}")
            if not float(vectors[layer].norm()):
                raise EmorgError(f"{place} is nothing at layer {layer}", "name others with --direction_layers")
            scale = config.preventative_scale if kind == "add" else 1.0
            edits.append(Edit("add" if kind == "add" else "ablate", layer, scale * vectors[layer]))
    return edits


def hold(model: PreTrainedModel | PeftModel, edits: list[Edit]) -> None:
    """Edit the stream at every forward pass in training mode."""
    hooks.attach(model, [edits], lambda: 0 if model.training else -1)
