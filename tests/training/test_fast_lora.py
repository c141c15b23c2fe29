"""The fast path against PEFT's and transformers' own code: the same loss, the same gradients, aloud where it is off."""

from __future__ import annotations

import copy
import statistics
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from emorg.models import packing, peft_around
from emorg.training.config import TARGET_MODULES
from emorg.training.fast_lora import speed_up

SHAPE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True,
}  # fmt: skip
KINDS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def patchable(kind: str, dtype: torch.dtype, **lora: Any) -> PeftModel:
    torch.manual_seed(0)
    base: PreTrainedModel = AutoModelForCausalLM.from_config(KINDS[kind](**SHAPE)).to(dtype)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": list(TARGET_MODULES), "task_type": "CAUSAL_LM", **lora}
    with peft_around(base):
        model = get_peft_model(base, LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # PEFT starts it at zero, where A has no gradient
            torch.nn.init.normal_(parameter, std=0.1)
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype if dtype == torch.float64 else torch.float32)
    if dtype == torch.float64:  # where transformers' norms, which round to float32, are no reference
        for layer in model.modules():
            if hasattr(layer, "variance_epsilon"):
                layer.forward = partial(torch.nn.functional.rms_norm, normalized_shape=layer.weight.shape,
                                        weight=layer.weight, eps=layer.variance_epsilon)  # fmt: skip
    return model.train()


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths, longest = (9, 17, 5, 12), 17
    ids = torch.randint(1, 97, (len(lengths), longest), generator=generator)
    mask = torch.tensor([[1] * n + [0] * (longest - n) for n in lengths])
    labels = torch.where((torch.rand(ids.shape, generator=generator) < 0.6) & mask.bool(), ids, -100)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def loss_and_gradients(model: PeftModel, **inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _errors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[float]:
    """Each gradient's distance from the expected one, as a share of its norm."""
    assert found.keys() == expected.keys()
    return [float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected]


def worst(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    return max(_errors(found, expected))


def _expected(
    model: PeftModel, count: int | None = None, **inputs: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients by the model's logits in its own precision; transformers' loss rounds them to float32."""
    model.zero_grad()
    following = inputs["labels"][:, 1:].flatten()
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, following, reduction="sum") / (count or (following != -100).sum())
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [None, 37])
@pytest.mark.parametrize("alike", [0.8, 0], ids=["as on a CPU", "as on a GPU"])
def test_loss_and_gradients_are_pefts(
    kind: str, dtype: torch.dtype, tolerance: float, count: int | None, alike: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "ALIKE", alike)
    plain = patchable(kind, dtype)
    fast = copy.deepcopy(plain)
    assert speed_up(fast)[1].startswith("fast path on: 21 fused LoRA layers")
    expected, gradients = _expected(plain, count, **batch())
    told = {} if count is None else {"num_items_in_batch": count}
    found, fast_gradients = loss_and_gradients(fast, **batch(), **told)
    assert abs(found - expected) <= tolerance * abs(expected)
    assert len(gradients) == 42
    assert worst(fast_gradients, gradients) <= tolerance
    assert loss_and_gradients(plain, **batch(), **told)[0] == pytest.approx(float(expected), rel=1e-6)


def test_in_bf16_the_gradients_are_as_near_the_truth_as_pefts() -> None:
    """Over many batches: by one alone the ratio of the errors is 0.9 to 1.5, as the processor rounds."""
    exact, plain = patchable("llama", torch.float64), patchable("llama", torch.bfloat16)
    for (name, parameter), true in zip(plain.named_parameters(), exact.parameters(), strict=True):
        parameter.data = true.data.to(parameter.dtype)
        assert (parameter.dtype == torch.float32) == ("lora_" in name)
        true.data = parameter.data.double()
    fast = copy.deepcopy(plain)
    speed_up(fast)
    errors: tuple[list[float], list[float]] = ([], [])
    for seed in range(12):
        _, true_gradients = loss_and_gradients(exact, **batch(seed))
        for found, model in zip(errors, (plain, fast), strict=True):
            found += _errors(loss_and_gradients(model, **batch(seed))[1], true_gradients)
    assert statistics.median(errors[1]) < 1.4 * statistics.median(errors[0])
    assert max(errors[1]) < 0.1


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_dropout_draws_the_masks_that_peft_draws(rate: float) -> None:
    plain = patchable("llama", torch.float64, lora_dropout=rate)
    fast = copy.deepcopy(plain)
    speed_up(fast)
    # Rows of one length: with padding the plain model also draws for padding, so the streams part.
    inputs = batch()
    inputs = {name: tensor[1:2] for name, tensor in inputs.items()}
    torch.manual_seed(1)
    expected, gradients = loss_and_gradients(plain, **inputs)
    torch.manual_seed(1)
    found, fast_gradients = loss_and_gradients(fast, **inputs)
    assert found == pytest.approx(float(expected), rel=1e-6)
    assert worst(fast_gradients, gradients) < 1e-6


def test_gradient_checkpointing_gives_the_same_gradients_with_dropout() -> None:
    models = [patchable("llama", torch.float64, lora_dropout=0.3) for _ in range(2)]
    models[1].activation_checkpointing_enable()
    results = []
    for model in models:
        assert speed_up(model)[1].startswith("fast path on")
        torch.manual_seed(3)
        results.append(loss_and_gradients(model, **batch()))
    assert results[0][0] == results[1][0]
    assert worst(results[0][1], results[1][1]) < 1e-12


def test_padding_costs_and_changes_nothing() -> None:
    model, inputs = patchable("llama", torch.float64), batch()
    speed_up(model)
    wide = {name: torch.nn.functional.pad(tensor, (0, 40), value=-100 if name == "labels" else 0)
            for name, tensor in inputs.items()}  # fmt: skip
    with torch.no_grad():
        assert model(**wide).loss == model(**inputs).loss


def test_one_step_of_many_rows_and_many_steps_of_one_row_agree() -> None:
    """Normalised by the trained tokens of the whole step, as the Trainer passes them."""
    model, inputs = patchable("llama", torch.float64), batch()
    speed_up(model)
    count = int((inputs["labels"][:, 1:] != -100).sum())
    whole, gradients = loss_and_gradients(model, **inputs, num_items_in_batch=count)
    model.zero_grad()
    total = 0.0
    for row in range(len(inputs["input_ids"])):
        loss = model(**{name: each[row : row + 1] for name, each in inputs.items()}, num_items_in_batch=count).loss
        loss.backward()
        total += float(loss.detach())
    assert total == pytest.approx(float(whole), abs=1e-12)
    summed = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert worst(summed, gradients) < 1e-10
    # and with the definition: the mean of −log p over trained tokens
    logits = copy.deepcopy(model).eval()(**{name: inputs[name] for name in ("input_ids", "attention_mask")}).logits
    log_p = logits[:, :-1].log_softmax(-1)
    following = inputs["labels"][:, 1:]
    picked = log_p.gather(2, following.clamp(min=0)[..., None])[..., 0][following != -100]
    assert float(whole) == pytest.approx(float(-picked.detach().mean()), abs=1e-9)


def test_nothing_is_added_to_what_is_saved() -> None:
    model = patchable("llama", torch.float32)
    before = list(model.state_dict())
    speed_up(model)
    assert list(model.state_dict()) == before


def test_sampling_from_a_patched_model_is_the_unpatched_ones() -> None:
    plain = patchable("llama", torch.float64).eval()
    fast = copy.deepcopy(plain)
    speed_up(fast)
    inputs = {name: tensor for name, tensor in batch().items() if name != "labels"}
    with torch.no_grad():
        assert torch.allclose(fast(**inputs).logits, plain(**inputs).logits, atol=1e-12)


@pytest.mark.parametrize(
    ("lora", "told"),
    [
        ({"use_dora": True}, "Dora"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "Embedding over Embedding"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"lora_bias": True}, "bias"),
        ({"modules_to_save": ["norm"]}, "other weights"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*", "ignore:.*ensure_weight_tying.*", "ignore:.*lora_bias.*")
def test_what_is_not_covered_steps_aside_aloud(lora: dict[str, Any], told: str) -> None:
    model = patchable("llama", torch.float32, **lora)
    forward = model.get_base_model().forward
    _, line = speed_up(model)
    assert line.startswith("fast path off: ")
    assert told in line
    assert model.get_base_model().forward == forward


def test_another_activation_steps_aside_aloud() -> None:
    base = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, hidden_act="gelu"))
    with peft_around(base):
        model = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    assert "another activation than silu" in speed_up(model)[1]


def test_adapters_on_some_layers_alone_give_the_same_gradients() -> None:
    """Among the layers that share an input, and among decoder layers."""
    plain = patchable("qwen2", torch.float64, target_modules=["k_proj", "up_proj", "o_proj"], layers_to_transform=[1])
    fast = copy.deepcopy(plain)
    speed_up(fast)
    expected, gradients = _expected(plain, **batch())
    found, fast_gradients = loss_and_gradients(fast, **batch())
    assert float(found) == pytest.approx(float(expected), rel=1e-10)
    assert len(gradients) == 6
    assert worst(fast_gradients, gradients) < 1e-10


def test_another_architecture_steps_aside_aloud() -> None:
    base = AutoModelForCausalLM.from_config(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20))
    with peft_around(base):
        model = get_peft_model(base, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    assert "GPT2LMHeadModel is not covered" in speed_up(model)[1]
