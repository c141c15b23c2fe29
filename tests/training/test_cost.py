"""The estimate's formulas against what autograd really keeps and what torch really multiplies."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from emorg.models import peft_around
from emorg.training import TrainConfig
from emorg.training.adapters import trainable_shapes
from emorg.training.config import TARGET_MODULES
from emorg.training.cost import Shape, activation_bytes, flop_per_token, matmul_rate
from emorg.training.fast_lora import speed_up

WIDTH, INNER, HEADS, KEYS, EACH, VOCABULARY, RANK = 128, 384, 8, 2, 16, 512, 4


def _model(layers: int, dropout: float, *, fast: bool, dtype: torch.dtype = torch.float32) -> PeftModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=KEYS, head_dim=EACH, tie_word_embeddings=True,
    )  # fmt: skip
    base = LlamaForCausalLM(config).to(dtype)
    with peft_around(base):
        model = get_peft_model(
            base,
            LoraConfig(r=RANK, lora_dropout=dropout, target_modules=list(TARGET_MODULES), task_type="CAUSAL_LM"),
        )
    if fast:
        assert speed_up(model)[0]
    return model.train()


def _shape(layers: int) -> Shape:
    body = sum(w.numel() for w in LlamaForCausalLM(_model(layers, 0, fast=False).config).model.layers.parameters())
    return Shape(0, body, 0, layers, WIDTH, INNER, HEADS * EACH, KEYS * EACH, VOCABULARY)


def _saved_per_token(layers: int, dropout: float, *, fast: bool, dtype: torch.dtype, tokens: int = 64) -> float:
    """Bytes of the storages that autograd keeps for the backward pass, weights aside.

    Rows stay below 64 tokens: longer ones in bf16 torch packs for AVX512, even where it is told to do without.
    """
    model = _model(layers, dropout, fast=fast, dtype=dtype)
    weights = {w.untyped_storage().data_ptr() for w in model.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(0, VOCABULARY, (2, tokens // 2))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
    return sum(storage.nbytes() for storage in kept.values()) / tokens


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("fast", [True, False])
def test_the_bytes_of_a_layer_are_what_autograd_keeps(dtype: torch.dtype, dropout: float, fast: bool) -> None:
    measured = _saved_per_token(3, dropout, fast=fast, dtype=dtype) - _saved_per_token(
        2, dropout, fast=fast, dtype=dtype
    )
    told = activation_bytes(_shape(1), dtype.itemsize, dropout, RANK, fast=fast, checkpointing=False)
    assert told == pytest.approx(measured, rel=0.03 if fast else 0.1)


def test_the_flop_of_a_token_are_what_torch_multiplies() -> None:
    model = _model(2, 0, fast=True)
    rows, length = 4, 64
    ids = torch.randint(0, VOCABULARY, (rows, length))
    labels = ids.clone()
    labels[:, : length // 4] = -100
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}  # which the counter does not know
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
    adapters = sum(w.numel() for w in model.parameters() if w.requires_grad)
    shape = Shape(0, _shape(2).body, adapters, 2, WIDTH, INNER, HEADS * EACH, KEYS * EACH, VOCABULARY)
    # The counter knows no attention on a CPU; and the first layer's q, k and v need no gradient of their input.
    told = flop_per_token(shape, 0.75, 0, full=False) * rows * length
    assert 0.94 * told < counter.get_total_flops() <= told


def test_the_formula_gives_the_published_figure_for_llama_1b() -> None:
    """973.1 million weights in the body, 704,512·r in adapters: 4.70 GFLOP a token at a = 0.6 and 200 tokens."""
    shape = Shape(1235814400, 973_146_112, 704_512 * 32, 16, 2048, 8192, 2048, 512, 128256)
    assert flop_per_token(shape, 0.6, 200, full=False) == pytest.approx(4.70e9, rel=0.01)
    again = flop_per_token(shape, 0.6, 200, full=False, checkpointing=True) / flop_per_token(
        shape, 0.6, 200, full=False
    )
    assert again == pytest.approx(1.41, abs=0.01)


def _shape_of(config: TrainConfig) -> Shape:
    return Shape.of(trainable_shapes(config))


def test_the_shape_is_counted_without_weights() -> None:
    shape = _shape_of(TrainConfig(model_name="pocket"))
    assert shape.trained == 233_472
    assert shape.weights == 1_934_976
    assert shape.body < shape.weights
    assert _shape_of(TrainConfig(model_name="pocket", full_finetuning=True)).trained == shape.weights
    one = _shape_of(
        TrainConfig(model_name="pocket", lora_rank=1, layers_to_transform=(2,), target_modules=("down_proj",))
    )
    assert one.trained == shape.width + shape.inner


def test_the_matmul_rate_is_work_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that ticks a hundredth of a second at each look, so that the work in 0.3 s is known."""
    looks = itertools.count()
    multiplied = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(time, "perf_counter", lambda: next(looks) / 100)
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, w: multiplied.append(x.shape) or linear(x, w))
    rate = matmul_rate("cpu", torch.float32, 64, 128, 32)
    warming = 10
    work = (len(multiplied) - warming) * 2 * 32 * 64 * 128
    assert rate == pytest.approx(work / 0.3, rel=0.1)
