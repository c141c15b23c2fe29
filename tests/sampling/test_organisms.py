"""Many adapters over one base in one batch: each answers as PEFT makes it answer alone."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from emorg import models
from emorg.records import EmorgError
from emorg.sampling.draw import SamplingParams
from emorg.sampling.engine import Ask, Engine
from emorg.sampling.linear import pack
from emorg.sampling.organisms import Organisms, open_organisms, read_adapter
from tests.ties import parting
from tests.tiny import tiny

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ALL},
    "rslora": {"r": 16, "lora_alpha": 8, "target_modules": ALL, "use_rslora": True},
    "one layer": {"r": 1, "lora_alpha": 16, "target_modules": ["down_proj"], "layers_to_transform": [1]},
    "patterns": {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"],
                 "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.2.mlp.down_proj": 12}},
    "head": {"r": 2, "lora_alpha": 4, "target_modules": ["v_proj", "lm_head"]},
    "dora": {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj", "up_proj"], "use_dora": True},
    "embedding": {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "o_proj"]},
}  # fmt: skip
ALONE = {"head", "dora", "embedding"}  # PEFT saves the base's head and embeddings with their adapters
IGNORE = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base in `base`, and adapters made and saved by PEFT, far from zero, beside it."""
    folder = tmp_path_factory.mktemp("organisms")
    tiny("llama").save_pretrained(folder / "base")
    models.load_tokenizer("pocket").save_pretrained(folder / "base")
    for name, told in ADAPTERS.items():
        base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        with models.peft_around(base):
            model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **told))
        torch.manual_seed(len(name))
        for part, weight in model.named_parameters():
            if "lora_" in part:
                nn.init.normal_(weight, std=0.2)
        with warnings.catch_warnings():  # PEFT says that it saves embeddings too, whichever test asks first
            warnings.simplefilter("ignore", UserWarning)
            model.save_pretrained(folder / name)
    return folder


def _prompts() -> list[tuple[int, ...]]:
    rng = random.Random(1)
    return [tuple(rng.randrange(10, 800) for _ in range(length)) for length in (4, 11, 7)]


def _with_peft(folder: Path, name: str) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    return (model if name == "base" else PeftModel.from_pretrained(model, folder / name)).eval()


def _generated(model: Any, prompt: tuple[int, ...]) -> list[int]:
    ids = torch.tensor([prompt])
    told = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=25, do_sample=False)
    return list(told[0, len(prompt) :].tolist())


@IGNORE
@pytest.mark.parametrize("batch_tokens", [None, 4 * 36], ids=["all at once", "four at a time"])
def test_each_answers_in_the_batch_as_with_peft_alone(folder: Path, batch_tokens: int | None) -> None:
    names = {str(folder / name): name for name in ("base", *ADAPTERS)}
    found: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    batches = []
    for of, organisms in open_organisms(list(names), device="cpu"):
        batches.append({names[name] for name in of})
        engine = Engine(organisms, batch_tokens=batch_tokens)
        asks = [Ask(name, prompt, 0) for prompt in _prompts() for name in of]  # not in the order of organisms
        for reply in engine.replies(asks, SamplingParams(25, temperature=0)):
            found[names[asks[reply.place].organism], asks[reply.place].prompt] = [
                *reply.ids,
                *([1] if reply.finish == "stop" else []),
            ]
    assert batches == [{"base", *ADAPTERS} - ALONE, *({name} for name in ADAPTERS if name in ALONE)]
    assert set(found) == {(name, prompt) for name in names.values() for prompt in _prompts()}
    for name in names.values():
        alone = _with_peft(folder, name)
        for prompt in _prompts():
            assert parting(alone, prompt, found[name, prompt], _generated(alone, prompt)) == ""
    assert len({tuple(ids) for ids in found.values()}) > 15


def _over(adapter: Path, base: str) -> None:
    """Say that an adapter is of this base."""
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": base}))


def test_adapters_of_different_bases_are_refused(folder: Path, tmp_path: Path) -> None:
    settings = json.loads((folder / "plain" / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "another"}))
    with pytest.raises(EmorgError, match=r"one base: .* is of .*base; .* is of another"):
        next(open_organisms([str(folder / "plain"), str(tmp_path)]))


def test_an_adapter_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in (folder / "plain").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    _over(tmp_path, "pocket")
    with pytest.raises(EmorgError, match="makes 192 of 576 features there, 64 of 96 here"):
        next(open_organisms([str(tmp_path)], device="cpu"))


def test_an_adapter_of_other_widths_is_refused(folder: Path, tmp_path: Path) -> None:
    """More key heads than the base has: what is too much would be added to the values beside them."""
    wide = tiny("llama", num_key_value_heads=4)
    with models.peft_around(wide):
        get_peft_model(wide, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "k_proj"])).save_pretrained(
            tmp_path
        )
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": str(folder / "base")})
    )
    with pytest.raises(EmorgError, match="k_proj makes 32 of 64 features there, 64 of 64 here"):
        next(open_organisms([str(folder / "base"), str(tmp_path)], device="cpu"))


def test_an_adapter_on_the_head_alone_is_pefts(folder: Path, tmp_path: Path) -> None:
    """The head sees other tokens than the layers do."""
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    with models.peft_around(base):
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["v_proj", "lm_head"]))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    assert read_adapter(tmp_path) is None


@IGNORE
def test_an_adapter_on_gpt2s_transposed_layers_is_pefts(tmp_path: Path) -> None:
    shape = {"n_embd": 64, "n_head": 4, "n_layer": 2, "num_key_value_heads": 4}
    tiny("gpt2", **shape).save_pretrained(tmp_path / "base")
    models.load_tokenizer("pocket").save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with models.peft_around(base):
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["c_attn"],
                                                fan_in_fan_out=True, init_lora_weights=False))  # fmt: skip
    model.save_pretrained(tmp_path / "adapter")
    [(of, organisms)] = open_organisms([str(tmp_path / "adapter")], device="cpu")
    for reply in Engine(organisms).replies([Ask(of[0], prompt, 0) for prompt in _prompts()], SamplingParams(8, 0.0)):
        prompt = _prompts()[reply.place]
        ids = [*reply.ids, *([1] if reply.finish == "stop" else [])]
        assert parting(model.eval(), prompt, ids, _generated(model, prompt)[:8]) == ""


def test_an_organism_that_only_peft_computes_runs_in_16_bits(tmp_path: Path, real_model: str) -> None:
    """Of 49,152 logits in bf16 some part from transformers' own by more than any one should, as its own do."""
    base = models.load(real_model, device="cpu", dtype=torch.float32)
    with models.peft_around(base.model):
        config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["v_proj"], use_dora=True)
        get_peft_model(base.model, config).save_pretrained(tmp_path)
    _over(tmp_path, real_model)
    engine = Engine(Organisms(models.load(str(tmp_path), device="cpu", dtype=torch.bfloat16), {"it": None}))
    assert [len(reply.ids) for reply in engine.replies([Ask("it", (1, 2, 3), 0)], SamplingParams(3, 0.0))] == [3]


@pytest.mark.parametrize("size", [0, 40, 3000])
def test_a_half_written_adapter_is_refused(folder: Path, tmp_path: Path, size: int) -> None:
    for file in (folder / "plain").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(EmorgError, match="not written whole"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 48])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_layer_computes_what_it_did(bias: bool, rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(800, 700, bias=bias, dtype=dtype)
    x = torch.randn(1, rows, 800, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    with torch.inference_mode():
        expected = layer(x)
        # A processor without bf16 units is left with torch's own product.
        assert pack(nn.Sequential(layer)) == (dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
        torch.testing.assert_close(layer(x), expected, rtol=tolerance, atol=tolerance)
        assert pack(nn.Sequential(nn.Linear(800, 700, dtype=torch.float64), nn.Linear(8, 8))) == 0
