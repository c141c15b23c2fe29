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
Kind = Literal["add", "ablate", "weights"]
WRITERS = ("o_proj", "down_proj")  # the modules that write into the residual stream


@dataclass(frozen=True, eq=False)
class Edit:
    """A vector [width] that is added at a layer, or whose direction is taken out of it: h − (h·v̂)v̂.

    `weights` takes it out of what a LoRA adapter writes at that layer, and out of nothing else (`out_of_weights`).
    """

    kind: Kind
    layer: int
    vector: Tensor
    part: Part = "residual"


def out_of_weights(module: str, b: Tensor, edits: Sequence[Edit]) -> Tensor:
    """A module's LoRA B [width, rank] with the directions of `weights` edits at its layer taken out of it.

    (B − v̂v̂ᵀB)·‖B‖/‖B − v̂v̂ᵀB‖, for modules that write into the residual stream (arXiv 2506.11618).
    """
    layer = next((int(part) + 1 for part in module.split(".") if part.isdigit()), None)
    for edit in edits:
        if edit.kind == "weights" and edit.layer == layer and any(part in WRITERS for part in module.split(".")):
            unit = (edit.vector / edit.vector.norm()).to(b.device, b.dtype)
            left = b - unit[:, None] * (unit @ b)
            b = left * (b.norm() / left.norm().clamp(min=1e-12))
    return b


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
def edited(model: Any, edits: Sequence[Edit]) -> Iterator[None]:
    """Edit the activations at every forward pass, one edit after another.

    Raises EmorgError for a layer that the model lacks, and for a vector of another width.
    """
    with ExitStack() as taken_back:
        for hook in attach(model, [edits]):
            taken_back.callback(hook.remove)
        yield


def attach(model: Any, sets: Sequence[Sequence[Edit]], which: Callable[[], Tensor | int] = lambda: 0) -> list[Any]:
    """As `edited`, for as long as the model lives, with several sets of edits; returns the hooks.

    `which` says which set each token of a forward pass is of, [tokens], or all of them; −1 is none.
    """
    width = model.config.get_text_config().hidden_size
    sites: dict[tuple[int, Part], list[list[Edit]]] = {}  # by where it is, what each set does there, in order
    for number, edits in enumerate(sets):
        for edit in edits:
            if edit.kind == "weights":
                continue
            if edit.vector.shape != (width,):
                raise EmorgError(
                    f"a direction of shape {tuple(edit.vector.shape)} does not fit a model of width {width}",
                    "use a direction of this base",
                )
            sites.setdefault((edit.layer, edit.part), [[] for _ in sets])[number].append(edit)
    return [_hook(model, layer, part, _Site(model, some, which).change) for (layer, part), some in sites.items()]


class _Site:
    """What all sets do at one place: vectors side by side, so that a pass with many sets takes no longer."""

    def __init__(self, model: Any, sets: Sequence[Sequence[Edit]], which: Callable[[], Tensor | int]):
        self._which = which
        self._rounds: list[tuple[Kind, Tensor]] = []  # [sets + 1, width], the last for tokens of no set
        for number in range(max(map(len, sets))):
            kinds: tuple[Kind, ...] = ("ablate", "add")
            for kind in kinds:
                of_kind = [edits[number] if edits[number:] and edits[number].kind == kind else None for edits in sets]
                if any(of_kind):
                    self._rounds.append((kind, _table(model, of_kind)))

    def change(self, hidden: Tensor) -> Tensor:
        which = self._which()
        if isinstance(which, int) and which < 0:
            return hidden
        for kind, table in self._rounds:
            rows = table[which]
            hidden = hidden + rows if kind == "add" else hidden - (hidden * rows).sum(-1, keepdim=True) * rows
        return hidden


def _table(model: Any, edits: Sequence[Edit | None]) -> Tensor:
    """The vectors of one kind of edit, as the model computes, with nothing for sets without one."""
    import torch

    table = torch.zeros(len(edits) + 1, model.config.get_text_config().hidden_size)
    for row, edit in zip(table, edits, strict=False):
        if edit is not None:
            vector = edit.vector.detach().float().cpu()
            size = vector.norm().clamp(min=1e-30) if edit.kind == "ablate" else 1.0  # of nothing, nothing is taken out
            row.copy_(vector / size)
    return table.to(model.device, model.dtype)


def _receive(receive: Callable[[int, Tensor], None], layer: int, hidden: Tensor) -> Tensor:
    receive(layer, hidden)
    return hidden


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
