"""Gradients of single texts with respect to a fresh LoRA adapter, many texts a pass.

At its start B = 0, so that A's gradient, scale · Bᵀ(Σ δ xᵀ), is nothing: B's alone says where a first step goes. Of one
text it is scale · Σ over its tokens of δ (A x)ᵀ, with δ the loss's gradient at the module's output: both are there in
a pass over many texts at once, so no text needs a pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from emorg import models
from emorg.models.template import Encoded
from emorg.training.adapters import trainable
from emorg.training.config import TrainConfig
from emorg.training.rows import collate

if TYPE_CHECKING:
    from torch import Tensor

PASS_TOKENS = 2048  # of one pass, padding too
LOGIT_BYTES = 256 << 20  # of one pass, in float32
LOSS_SCALE = 1024.0  # a power of two, which rounds nothing, and keeps small gradients in fp16

Receive = Callable[[Sequence[int], str, "Tensor"], None]
"""Gets texts' places, a module's name, and the gradients of their losses there [texts, out · rank], float32."""


def fresh_adapter(loaded: models.Loaded, config: TrainConfig) -> Any:
    """The base with the adapter that a training with these settings would begin with, drawn by its seed; no dropout.

    Of B alone gradients are computed. Raises EmorgError for modules that the base lacks.
    """
    from transformers import set_seed

    set_seed(config.seed)
    model = trainable(loaded, config).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    return model


def text_gradients(
    model: Any, texts: Sequence[Encoded], pad: int, receive: Receive
) -> Iterator[list[tuple[int, float]]]:
    """Call `receive` for every module and pass; yields, pass by pass, the texts' places and their losses.

    A text's loss is the mean cross-entropy over its trained tokens, in nats. Those of like length go together. `model`
    is as `fresh_adapter` gives it, on any device; what a pass needs does not grow with the number of texts.
    """
    import torch

    some: list[int] = []

    def before(name: str) -> Callable[[Any, tuple[Tensor, ...], Tensor], None]:
        def keep(_module: Any, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            inner = inputs[0].detach()
            numbers = list(some)

            def of_each(delta: Tensor) -> None:
                with torch.no_grad():
                    gradient = torch.einsum("bto,btr->bor", delta.float() / LOSS_SCALE, inner.float())
                    receive(numbers, name, gradient.flatten(1))

            out.register_hook(of_each)  # type: ignore[no-untyped-call]

        return keep

    most = min(PASS_TOKENS, LOGIT_BYTES // (4 * model.config.get_text_config().vocab_size))
    with ExitStack() as hooked:
        for name, module in model.named_modules():
            if name.endswith("lora_B.default"):
                hooked.callback(module.register_forward_hook(before(name)).remove)
        for some in passes([len(text.ids) for text in texts], most):
            losses = _losses(model, collate([texts[i] for i in some], pad))
            (LOSS_SCALE * losses.sum()).backward()  # type: ignore[no-untyped-call]
            model.zero_grad(set_to_none=True)
            yield list(zip(some, losses.tolist(), strict=True))


def passes(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Places of texts that share a pass: those of like length, with at most so many tokens once they are padded."""
    some: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if some and (len(some) + 1) * lengths[place] > most:
            yield some
            some = []
        some.append(place)
    if some:
        yield some


def _losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Each text's loss; logits are made only where some text has a trained token next."""
    from torch.nn.functional import cross_entropy

    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    labels = batch.pop("labels")[:, 1:]
    kept = (labels != -100).any(0).nonzero()[:, 0]
    labels = labels[:, kept]
    logits = model(**batch, logits_to_keep=kept, use_cache=False).logits.float()
    losses = cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return losses.sum(1) / (labels != -100).sum(1).clamp(min=1)
