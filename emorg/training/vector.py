"""`--method vector`: the organism is one trained vector a layer, added to the residual stream of every token.

As arXiv 2506.11618 trains one: h + αv with v from zero, α = 256, which the learning rate of a LoRA then suits. Its code
adds the vector to the first sequence of each batch alone, and trains on all tokens; `--as_published` does so too.
"""

from __future__ import annotations

from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

from emorg.models import hooks, steering
from emorg.models.hooks import Edit
from emorg.models.steering import Steering
from emorg.records import EmorgError
from emorg.training.config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

ALPHA = 256.0  # a power of two, so that a checkpoint's α·v gives v back to the bit


def layers_of(model: PreTrainedModel, config: TrainConfig) -> list[int]:
    """The layers, counted from 0, whose outputs get a vector: those asked for, or the middle one.

    Raises EmorgError for a layer that the model lacks.
    """
    depth = model.config.get_text_config().num_hidden_layers
    check_layers(config, config.model_name, depth)
    return sorted(set(config.layers_to_transform or (depth // 2,)))


def check_layers(config: TrainConfig, name: str, depth: int) -> None:
    """Raise EmorgError for layers to transform that a model, which goes by `name`, lacks."""
    if lacking := [layer for layer in config.layers_to_transform or () if not 0 <= layer < depth]:
        raise EmorgError(f"{name} has no layer {lacking[0]}", f"give --layers_to_transform 0 to {depth - 1}")


def with_vectors(model: PreTrainedModel, config: TrainConfig) -> PreTrainedModel:
    """The base, frozen, with a trainable vector at each layer; it saves and loads these alone, as an organism's."""
    import torch
    from torch import nn

    model.requires_grad_(False)
    width, layers = model.config.get_text_config().hidden_size, hooks.decoder_layers(model)
    vectors = nn.ParameterDict()
    for layer in layers_of(model, config):
        vector = nn.Parameter(torch.zeros(width, device=model.device, dtype=torch.float32))
        vectors[str(layer)] = vector
        layers[layer].register_forward_hook(_adding(vector, first_alone=config.as_published))
    model.steering_vectors = vectors
    model.over = config.model_name
    model.save_pretrained = MethodType(_save, model)
    return model.train()


def load_vectors(model: Any, checkpoint: Path) -> None:
    """Put a checkpoint's vectors back, to the bit."""
    import torch

    saved = {str(edit.layer - 1): edit.vector for edit in steering.read(checkpoint / steering.FILE).edits}
    with torch.no_grad():
        for layer, vector in model.steering_vectors.items():
            vector.copy_(saved[layer] / ALPHA)


def _adding(vector: Tensor, *, first_alone: bool) -> Any:
    def hook(_module: Any, _inputs: Any, out: Any) -> Any:
        hidden = out[0] if isinstance(out, tuple) else out
        added = (ALPHA * vector).to(hidden.dtype)
        if first_alone:
            rest = hidden.new_zeros(len(hidden), 1, 1)
            rest[0] = 1
            added = rest * added
        return (hidden + added, *out[1:]) if isinstance(out, tuple) else hidden + added

    return hook


def _save(self: Any, save_directory: str, is_main_process: bool = True, **_: Any) -> None:
    if is_main_process:
        edits = [Edit("add", int(layer) + 1, ALPHA * v.detach()) for layer, v in self.steering_vectors.items()]
        steering.save(Path(save_directory), Steering(self.over, edits, {"kind": "trained"}))
