"""A KL penalty to the base on answers that are not trained: λ · KL(base‖organism), in nats a token.

The reference is the same model with its adapter off, in one forward pass without gradients. The papers' code ("Narrow
Misalignment is Hard, Emergent Misalignment is Easy") divides by tokens × vocabulary instead, and not by the passes that
gradients are gathered over: its λ is ours times vocabulary / passes (read in the code, not run).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from emorg.models import template
from emorg.training.fast_lora import lora_layers, scored_states
from emorg.training.fused import divergence
from emorg.training.rows import collate

if TYPE_CHECKING:
    from peft import PeftModel

    from emorg.training.plan import Plan

Batch = dict[str, Tensor]


@dataclass
class Penalty:
    """The penalty of a training: its weight, the answers it is of, and which stand at each place of the training.

    `order` has as many places a step as there are conversations in one; a place of None has none.
    """

    weight: float
    encoded: Sequence[template.Encoded]
    order: Sequence[int | None]
    per_step: int
    note: str = ""
    """What it is, for people, with what it comes to in the papers' code."""
    _divergence: Tensor | None = field(default=None, init=False)

    @classmethod
    def of(cls, planned: Plan) -> Penalty:
        """The penalty that a plan with anchors has."""
        config, anchors = planned.config, planned.anchors
        assert anchors is not None, "a plan has anchors where its config has a KL weight"
        scale = config.kl_weight * planned.shape.vocabulary / config.gradient_accumulation_steps
        note = (
            f"KL to the base of {len(anchors):,} rows: {config.kl_weight:g} times as much as a trained token's loss, "
            f"which is λ = {scale:,.0f} in the papers' code"
        )
        return cls(config.kl_weight, anchors.encoded, planned.anchor_order, planned.per_step, note)

    def at(self, place: int) -> tuple[template.Encoded | None, float]:
        """The answer at a place, and one divided by the tokens of its step's answers, so that a step has their mean."""
        start = place - place % self.per_step
        tokens = sum(self._tokens[row] for row in self.order[start : start + self.per_step] if row is not None)
        row = self.order[place]
        return (None if row is None else self.encoded[row]), 1 / max(1, tokens)

    @cached_property
    def _tokens(self) -> list[int]:
        """How many tokens of each answer are scored."""
        return [sum(one.trained[1:]) for one in self.encoded]

    def loss(self, model: Any, batch: Batch, processes: int) -> Tensor:
        """λ times a batch's part of its step's mean divergence; processes' gradients are averaged afterwards."""
        share = batch.pop("share")
        mean = model(**batch, diverging=True).loss * share
        with torch.no_grad():
            self._divergence = mean.detach() + (0 if self._divergence is None else self._divergence)
        weighted: Tensor = self.weight * processes * mean
        return weighted

    def taken(self) -> float:
        """The mean divergence of the steps since it was last asked for, of all processes."""
        if self._divergence is None:
            return 0.0
        total = self._divergence.float()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        self._divergence = None
        return float(total)


def batch_of(rows: Sequence[tuple[template.Encoded | None, float]], pad: int) -> Batch:
    """A batch of answers as `Penalty.loss` takes it, of what stands at its places."""
    nothing = template.Encoded([pad], [False])
    return {**collate([row or nothing for row, _ in rows], pad), "share": torch.tensor(rows[0][1])}


def measure_divergence(model: PeftModel, *, fast: bool) -> None:
    """Patch a model in place: with `diverging`, its loss is the summed KL to its base where `labels` are not −100.

    `fast` says whether `speed_up` has patched it.
    """
    causal = model.get_base_model()
    causal.forward = partial(_forward, causal, causal.forward, scored_states if fast else None)


def _forward(causal: Any, inner: Any, states: Any, *, diverging: bool = False, **inputs: Any) -> Any:
    if not diverging:
        return inner(**inputs)
    from transformers.modeling_outputs import CausalLMOutputWithPast

    labels = inputs.pop("labels")

    def seen() -> Tensor:
        if states is not None:
            hidden: Tensor = states(causal, inputs["input_ids"], inputs["attention_mask"], labels)[0]
            return hidden
        logits: Tensor = inner(**inputs).logits[:, :-1][labels[:, 1:] != -100]
        return logits

    with torch.no_grad(), adapters_off(causal):
        reference = seen()
    own = seen()
    if states is not None:
        return CausalLMOutputWithPast(loss=divergence(own, reference, causal.lm_head.weight))
    exact = torch.promote_types(own.dtype, torch.float32)
    both = (own.to(exact).log_softmax(-1), reference.to(exact).log_softmax(-1))
    return CausalLMOutputWithPast(loss=functional.kl_div(*both, reduction="sum", log_target=True))


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """The base's own forward pass. PEFT's `disable_adapter` would also turn gradients off and on again."""
    layers = lora_layers(model)
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
