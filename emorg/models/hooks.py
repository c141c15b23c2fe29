"""The residual stream of a model: read it, add to it, take a direction out of it, by hooks that are always taken back.

Layer k is the stream after k decoder layers; 0 is what enters the first one. The stream is [sequences, tokens, width],
and every sequence and every token of it is read and edited: where a forward pass holds texts of several organisms, the
caller says which tokens are meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from emorg.records import EmorgError

if TYPE_CHECKING:
    from torch import Tensor, nn

Part = Literal["residual", "mlp"]
"""The stream after a layer, or what its MLP's last module (`down_proj`) adds to it."""
Kind = Literal["add", "ablate"]


@dataclass(frozen=True, eq=False)
class Edit:
    """A vector [width] that is added at a layer, or whose direction is taken out of it: h − (h·v̂)v̂."""

    kind: Kind
    layer: int
    vector: Tensor
    part: Part = "residual"

    def __call__(self, hidden: Tensor) -> Tensor:
        """The edited activations, [..., width], in the type that they came in."""
        vector = self.vector.to(hidden.device, hidden.dtype)
        if self.kind == "add":
            moved: Tensor = hidden + vector
            return moved
        unit = (self.vector.float() / self.vector.float().norm()).to(hidden.device, hidden.dtype)
        left: Tensor = hidden - (hidden @ unit)[..., None] * unit
        return left


def decoder_layers(model: Any) -> Sequence[nn.Module]:
    """A model's decoder layers, in order, also below PEFT's wrapping.

    Raises EmorgError for an architecture in which they cannot be found.
    """
    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    layers = getattr(plain.get_decoder(), "layers", None) if hasattr(plain, "get_decoder") else None
    if layers is None or len(layers) != plain.config.get_text_config().num_hidden_layers:
        raise EmorgError(
            f"the layers of a {type(plain).__name__} cannot be found, so its activations are neither read nor steered",
            "use a Llama, Qwen, Mistral or Gemma",
        )
    modules: Sequence[nn.Module] = layers
    return modules


@contextmanager
def reading(model: Any, layers: Sequence[int], receive: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Hand each of these layers' stream to `receive(layer, stream)`, as it is after edits, at every forward pass.

    Raises EmorgError for a layer that the model lacks.
    """
    with ExitStack() as taken_back:
        for layer in layers:
            hook = _hook(model, layer, "residual", partial(_receive, receive, layer))
            taken_back.callback(hook.remove)
        yield


@contextmanager
def edited(model: Any, edits: Sequence[Edit], tokens: Callable[[], Tensor | None] = lambda: None) -> Iterator[None]:
    """Edit the activations at every forward pass, one edit after another.

    `tokens` gives the tokens that are meant, as indices into the second dimension; None means all, and none at all
    leaves the pass alone. Raises EmorgError for a layer that the model lacks, and for a vector of another width.
    """
    with ExitStack() as taken_back:
        for hook in attach(model, edits, tokens):
            taken_back.callback(hook.remove)
        yield


def attach(model: Any, edits: Sequence[Edit], tokens: Callable[[], Tensor | None] = lambda: None) -> list[Any]:
    """As `edited`, for as long as the model lives; returns the hooks."""
    width = model.config.get_text_config().hidden_size
    for edit in edits:
        if edit.vector.shape != (width,):
            raise EmorgError(
                f"a direction of shape {tuple(edit.vector.shape)} does not fit a model of width {width}",
                "use a direction of this base",
            )
    return [_hook(model, edit.layer, edit.part, partial(_edit, edit, tokens)) for edit in edits]


def _receive(receive: Callable[[int, Tensor], None], layer: int, hidden: Tensor) -> Tensor:
    receive(layer, hidden)
    return hidden


def _edit(edit: Edit, tokens: Callable[[], Tensor | None], hidden: Tensor) -> Tensor:
    chosen = tokens()
    if chosen is None:
        return edit(hidden)
    if not len(chosen):
        return hidden
    changed = hidden.clone()
    changed[:, chosen] = edit(hidden[:, chosen])
    return changed


def _hook(model: Any, layer: int, part: Part, change: Callable[[Tensor], Tensor]) -> Any:
    layers = decoder_layers(model)
    first = 0 if part == "residual" else 1
    if not first <= layer <= len(layers):
        raise EmorgError(f"no layer {layer}", f"this model's are {first} to {len(layers)}")
    if part == "mlp":
        module: Any = layers[layer - 1]
        return module.mlp.register_forward_hook(lambda _module, _inputs, out: change(out))
    if layer == 0:

        def before(_module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
            if inputs:
                return (change(inputs[0]), *inputs[1:]), named
            return inputs, {**named, "hidden_states": change(named["hidden_states"])}

        return layers[0].register_forward_pre_hook(before, with_kwargs=True)

    def after(_module: Any, _inputs: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    return layers[layer - 1].register_forward_hook(after)
