"""Losses of rows without gradients: one a row, in nats a trained token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from emorg.models import template
from emorg.training.rows import collate

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 8


def row_losses(
    model: Any, encoded: Sequence[template.Encoded], pad: int, *, fast: bool = False
) -> Iterator[tuple[list[int], list[float]]]:
    """Rows' mean cross-entropy over their trained tokens, a batch at a time with the rows' indices; 0 of a row that
    has none. Rows of like length go together. `fast` says whether `speed_up` has patched the model.
    """
    import torch

    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
    for start in range(0, len(order), BATCH):
        some = order[start : start + BATCH]
        batch = {name: t.to(model.device) for name, t in collate([encoded[i] for i in some], pad).items()}
        with torch.inference_mode():
            yield some, _means(model, batch, fast)


def _means(model: Any, batch: dict[str, Tensor], fast: bool) -> list[float]:
    import torch
    from torch.nn import functional

    from emorg.training.fast_lora import scored_states

    labels = batch["labels"]
    scored = labels[:, 1:] != -100
    if fast:
        causal = model.get_base_model()
        hidden, target = scored_states(causal, batch["input_ids"], batch["attention_mask"], labels)
        logits = functional.linear(hidden, causal.lm_head.weight)
    else:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1][scored]
        target = labels[:, 1:][scored]
    exact = torch.promote_types(logits.dtype, torch.float32)
    losses = functional.cross_entropy(logits.to(exact), target, reduction="none")
    totals = torch.zeros(len(labels), dtype=exact, device=losses.device)
    totals.index_add_(0, scored.nonzero()[:, 0], losses)
    means: list[float] = (totals / scored.sum(1).clamp(min=1)).tolist()
    return means
