"""Putting an attention of our own into a transformers model, and what such attentions share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emorg import models
from emorg.records import EmorgError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def replace_attention(model: PreTrainedModel, name: str, attend: Callable[..., tuple[Tensor, None]]) -> None:
    """Make a transformers model attend by `attend`, which gets the further arguments of a forward pass.

    Raises EmorgError for an architecture whose attention transformers cannot replace.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    if not model._supports_attention_backend or not kinds <= {"full_attention", "sliding_attention"}:
        raise EmorgError(
            f"{type(model).__name__} cannot be sampled here: its attention is of its own kind",
            "serve it with another program and sample that: --server URL --served_model NAME",
        )
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation(name)


@contextmanager
def held_to_transformers(model: Any, remedy: str) -> Iterator[Callable[[bool], None]]:
    """Compare what ours makes of a model with what transformers makes; the body says whether they agree.

    Raises EmorgError where they do not, and where ours cannot run the model at all.
    """

    name = type(model).__name__

    def say(agree: bool) -> None:
        if not agree:
            raise EmorgError(f"{name} cannot be run here: it comes out otherwise than in transformers", remedy)

    try:
        yield say
    except EmorgError:
        raise
    except Exception as error:
        if models.out_of_memory(error):
            raise
        raise EmorgError(f"{name} cannot be run here: {type(error).__name__}", remedy) from error


def plain_attention(*arguments: Any, **rest: Any) -> tuple[Tensor, None]:
    """transformers' own, for a forward pass that asks for no other."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    plain: tuple[Tensor, None] = sdpa_attention_forward(*arguments, **rest)
    return plain


def window_mask(length: int, window: int | None, device: torch.device) -> Tensor:
    """Which tokens each token of a text sees, [length, length]: itself, those before it, and none past the window."""
    positions = torch.arange(length, device=device)
    back = positions[:, None] - positions
    return (back >= 0) & (back < (window or length))
