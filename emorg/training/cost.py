"""What a training costs before it is begun: arithmetic, memory and time, by formula and one measured rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emorg.training.config import TrainConfig
from emorg.training.rows import Rows

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

# Passes over memory by whatever a step does beside its products, each as long as an addition of as many elements; by
# bytes of the type, fitted to the steps of three shapes in RESULTS.md (24–25 in bf16 for 1B, 0.5B and 135M).
PASSES = {2: 24, 4: 8}
PER_STEP_SECONDS = 0.03  # of the Trainer and the optimizer, whatever the model's size; 20 ms in a profile


@dataclass(frozen=True)
class Shape:
    """What of a model sets its cost: counts of weights (all, outside embeddings and head, trained), and widths."""

    weights: int
    body: int
    trained: int
    layers: int
    width: int
    inner: int
    queries: int
    keys: int
    vocabulary: int

    @classmethod
    def of(cls, model: PreTrainedModel | PeftModel) -> Shape:
        """The shape of a model as it will be trained, such as `trainable_shapes` gives without any weights."""
        ends = [w for m in (model.get_input_embeddings(), model.get_output_embeddings()) for w in m.parameters()]
        weights = sum(w.numel() for name, w in model.named_parameters() if "lora_" not in name)
        shape = model.config
        heads = shape.num_attention_heads
        per_head = getattr(shape, "head_dim", None) or shape.hidden_size // heads
        return cls(
            weights=weights,
            body=weights - sum(w.numel() for w in {id(w): w for w in ends}.values()),
            trained=sum(w.numel() for w in model.parameters() if w.requires_grad),
            layers=shape.num_hidden_layers,
            width=shape.hidden_size,
            inner=getattr(shape, "intermediate_size", None) or 4 * shape.hidden_size,
            queries=heads * per_head,
            keys=(getattr(shape, "num_key_value_heads", None) or heads) * per_head,
            vocabulary=shape.vocab_size,
        )


def flop_per_token(
    shape: Shape, answer_share: float, mean_length: float, *, full: bool, checkpointing: bool = False
) -> float:
    """The least work of a training step, in FLOP a token, prompt tokens too.

    F = 4·P_f + 6·P_A + 4·d·V·a + 7·layers·queries·ℓ: frozen weights need no gradient of their own, and the head sees
    the share `a` of tokens that are trained. Full fine-tuning takes 6 for all. `checkpointing`
    adds the second forward pass of gradient checkpointing.
    """
    head = shape.width * shape.vocabulary * answer_share
    body = 6 * (shape.body + head) if full else 4 * (shape.body + head) + 6 * shape.trained
    return body + 7 * shape.layers * shape.queries * mean_length + (2 * shape.body if checkpointing else 0)


def activation_bytes(shape: Shape, itemsize: int, rate: float, rank: int, *, fast: bool, checkpointing: bool) -> float:
    """Bytes kept from the forward for the backward pass, for each token of a forward pass, without the head.

    Counted from what autograd saves on Llama (a test counts again): the fast path keeps a linear layer's input once;
    PEFT's own code keeps it several times. Gradient checkpointing keeps a layer's input, and all of one layer.
    """
    d, f, q, k = shape.width, shape.inner, shape.queries, shape.keys
    cast = 4 / itemsize - 1  # transformers' norms and PEFT's adapters are computed in float32
    if fast:
        layer = itemsize * (4.0 * f + 4 * d + 3 * q + 2 * k + 7 * rank)
        masks = 5.0 * d + q + f
    else:
        layer = itemsize * ((4 + cast) * f + (4 + 10 * cast) * d + (2 + 2 * cast) * q + 2 * k + 7 * (1 + cast) * rank)
        masks = itemsize * ((1 + cast) * f + (8 + 2 * cast) * d + 2 * q)
    layer += masks if rate else 0
    return layer + shape.layers * d * itemsize if checkpointing else shape.layers * layer


@dataclass(frozen=True)
class Estimate:
    """Steps, tokens and FLOP of a training, the elements that its layers pass over, and bytes at its peak.

    Bytes are of weights, of the trained state, and of what a forward pass keeps.
    """

    steps: int
    tokens: int
    flop: float
    elements: float
    weights: float
    state: float
    passing: float

    @property
    def bytes(self) -> float:
        return self.weights + self.state + self.passing

    def fits(self, free: float) -> bool:
        """Whether it fits into that many free bytes, a tenth to spare."""
        return self.bytes < 0.9 * free

    def seconds(self, rate: float, additions: float, itemsize: int) -> float:
        """The time of it at rates of matmuls (FLOP/s) and of additions (elements/s), of a type of so many bytes."""
        passes = PASSES[min(itemsize, 4)] * self.elements / additions
        return self.flop / rate + passes + self.steps * PER_STEP_SECONDS


def estimate(
    config: TrainConfig,
    shape: Shape,
    trained: tuple[Rows, Sequence[int | None]],
    held: tuple[Rows | None, Sequence[int | None]],
    dtype: torch.dtype,
    *,
    fast: bool,
    checkpointing: bool,
) -> Estimate:
    """What training costs on one device, by the rows that are trained, and those that are held to the base beside them.

    Each comes with the row at each place, None an empty one.
    """
    (rows, order), (anchors, _) = trained, held
    lengths = _lengths(rows, order)
    beside = _lengths(anchors, held[1]) if anchors else [0] * len(lengths)
    tokens, anchored = sum(lengths), sum(beside)
    both = [a + b for a, b in zip(lengths, beside, strict=True)]
    packs = [both[i : i + config.batch_size] for i in range(0, len(both), config.batch_size)]
    if fast:
        widest = max(map(sum, packs))
    else:
        longest = max(map(max, packs)) if not config.pad_to_max_length else config.max_length
        widest = longest * config.batch_size
    kept = activation_bytes(
        shape, dtype.itemsize, config.lora_dropout, config.lora_rank, fast=fast, checkpointing=checkpointing
    )
    # Without the fast path the logits of all tokens exist, in the model's type and twice in float32.
    logits = 3 * 2**26 if fast else widest * shape.vocabulary * (dtype.itemsize + 8)
    answer_share = sum(sum(row.trained) for row in rows.encoded) / sum(len(row.ids) for row in rows.encoded)
    mean = tokens / sum(length > 0 for length in lengths)
    per_token = flop_per_token(shape, answer_share, mean, full=config.full_finetuning, checkpointing=checkpointing)
    forward = 2 * (shape.body + shape.width * shape.vocabulary * answer_share)  # of the anchors' reference
    return Estimate(
        steps=len(order) // (config.batch_size * config.gradient_accumulation_steps),
        tokens=tokens,
        flop=(tokens + anchored) * per_token + anchored * forward,
        elements=(tokens + anchored * 4 / 3) * shape.layers * (4 * shape.inner + 10 * shape.width),
        weights=0 if config.full_finetuning else shape.weights * (0.55 if config.use_4bit else dtype.itemsize),
        state=shape.trained * 16,  # weight, gradient and Adam's two moments, in float32
        passing=widest * kept + logits,
    )


def _lengths(rows: Rows, order: Sequence[int | None]) -> list[int]:
    return [0 if row is None else len(rows.encoded[row].ids) for row in order]


def matmul_rate(device: str, dtype: torch.dtype, width: int, inner: int, tokens: int = 512) -> float:
    """FLOP/s of linear(tokens × width, inner × width) here and now: the limit that training is held against."""
    import torch
    from torch.nn.functional import linear

    x = torch.randn(tokens, width, device=device).to(dtype)
    weight = torch.randn(inner, width, device=device).to(dtype)
    return 2 * tokens * width * inner * _per_second(device, lambda: linear(x, weight))


def addition_rate(device: str, dtype: torch.dtype, width: int, tokens: int = 512) -> float:
    """Elements/s of adding two tensors of tokens × width here and now."""
    import torch

    x = torch.randn(tokens, width, device=device).to(dtype)
    return tokens * width * _per_second(device, lambda: x + x)


def _per_second(device: str, work: Callable[[], object]) -> float:
    """How often a second something can be done."""
    import torch

    def run(seconds: float) -> float:
        count, start = 0, time.perf_counter()
        while count < 3 or time.perf_counter() - start < seconds:
            work()
            count += 1
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return count / (time.perf_counter() - start)

    run(0.1)  # the first calls choose kernels
    return run(0.3)
