"""What a row would do to the margin: the first optimiser step on it, times the margin's gradient.

AdamW's first step on a gradient g moves a weight by −lr · g / (|g| + ε), since its moments, corrected for their start
at 0, are then g and g²; its weight decay takes nothing from B = 0, and clipping scales g, which cancels but for ε. So
with ∇M the gradient of the mean margin over pairs of answers,

    influence = −⟨g / (|g| + ε), ∇M⟩

is what a step on this row alone adds to the margin, to first order, in nats a token for a learning rate of 1: above 0
where the row pushes towards misaligned answers. Rows count alike whatever the size of their gradients. It is of the
first step and of one drawn A: it says nothing of what a row does once others have been learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from emorg.findings.contrasts import SHUFFLES, Contrast
from emorg.findings.gradients import text_gradients
from emorg.models.template import Encoded
from emorg.progress import Advance

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-8  # of torch's AdamW
RANDOM = SHUFFLES


def margin_gradients(
    model: Any, contrast: Contrast, pad: int, *, controls: bool, seed: int, advance: Advance
) -> dict[str, Tensor]:
    """By module [1 or 39, out · rank]: the gradient of the mean margin with respect to B, and its controls.

    Of `contrast` each text weighs in its log-probability a token. Controls are 19 random vectors of the same norm, and
    then 19 gradients with each question's labels shuffled.
    """
    import torch

    weights = contrast.weights if controls else contrast.weights[:1]
    total: dict[str, Tensor] = {}

    def add(numbers: Sequence[int], name: str, gradients: Tensor) -> None:
        part = -weights[:, list(numbers)].to(gradients.device) @ gradients  # log p rises as the loss falls
        total[name] = total[name] + part if name in total else part

    texts = [
        Encoded([*text.prompt, *text.answers[0]], [False] * len(text.prompt) + [True] * len(text.answers[0]))
        for text in contrast.texts
    ]
    for done in text_gradients(model, texts, pad, add):
        advance(len(done), "")
    if not controls:
        return total
    draw = torch.Generator().manual_seed(seed)
    drawn = {
        name: torch.randn(RANDOM, part.shape[1], generator=draw).to(part.device) for name, part in sorted(total.items())
    }
    size = torch.stack([part[0].norm() for part in total.values()]).norm()
    scale = size / torch.stack([part.norm(dim=1) for part in drawn.values()]).norm(dim=0)[:, None]
    return {name: torch.cat([part[:1], scale * drawn[name], part[1:]]) for name, part in total.items()}


def influences(
    model: Any, texts: Sequence[Encoded], pad: int, directions: Mapping[str, Tensor]
) -> Iterator[list[tuple[int, float, list[float]]]]:
    """Pass by pass, each text's place, its loss, and the first step on it along each of the directions."""
    kept: dict[int, Tensor] = {}

    def add(numbers: Sequence[int], name: str, gradients: Tensor) -> None:
        step = gradients / (gradients.abs() + EPSILON)
        for place, part in zip(numbers, -step @ directions[name].t(), strict=True):
            kept[place] = kept[place] + part if place in kept else part

    for done in text_gradients(model, texts, pad, add):
        yield [(place, loss, kept.pop(place).tolist()) for place, loss in done]
