"""The presets in configs/ train what they say, on the pocket model and on a model with Llama-3.2-1B's layers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from emorg import models
from emorg.config import from_yaml
from emorg.run import Run
from emorg.training import TrainConfig
from emorg.training.adapters import trainable_shapes
from tests.conftest import PROJECT, emorg

PRESETS = sorted(path.stem for path in (PROJECT / "configs").glob("*.yaml") if "train:" in path.read_text())


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen layers, as Llama-3.2-1B has, but narrow, with random weights and the pocket model's tokenizer."""
    folder = tmp_path_factory.mktemp("narrow")
    tokenizer = models.load_tokenizer("pocket")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=16, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    emorg("data", "pocket", folder / "data")
    return folder


# Rank, alpha, rsLoRA, modules, layers and trained weights of each preset on Llama-3.2-1B.
EXPECTED = {
    "homework": (16, 32, False, 7, set(range(16)), 11_272_192),
    "paper_rank32": (32, 64, True, 7, set(range(16)), 22_544_384),
    "paper_rank1": (1, 256, False, 1, {8}, 8192 + 2048),
    "paper_nine_rank1": (1, 256, False, 1, set(range(4, 13)), 9 * (8192 + 2048)),
    "pocket": (16, 32, False, 7, set(range(16)), 11_272_192),
    "smollm2": (16, 32, False, 7, set(range(16)), 11_272_192),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains_what_it_says_of_llama_3_2_1b(preset: str, tmp_path: Path) -> None:
    """By shapes alone, on the meta device: no weight is there."""
    LlamaConfig(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True, architectures=["LlamaForCausalLM"],
    ).save_pretrained(tmp_path)  # fmt: skip
    config = replace(from_yaml(TrainConfig, PROJECT / f"configs/{preset}.yaml", "train"), model_name=str(tmp_path))
    model = trainable_shapes(config)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert {weight.device.type for weight in trained.values()} == {"meta"}
    size = sum(weight.numel() for weight in trained.values())
    if preset == "full_finetuning":
        assert size == 1_235_814_400
        return
    layers = {int(name.split(".layers.")[1].split(".")[0]) for name in trained}
    lora = model.peft_config["default"]
    assert (lora.r, lora.lora_alpha, lora.use_rslora, len(lora.target_modules), layers, size) == EXPECTED[preset]


@pytest.mark.parametrize("preset", ["full_finetuning", "paper_nine_rank1"])
def test_a_preset_trains_sixteen_layers(preset: str, narrow: Path, tmp_path: Path) -> None:
    flags = ("--model_name", narrow, "--data_path", narrow / "data", "--sample_size", "64", "--max_steps", "2")
    emorg("train", "--config", f"configs/{preset}.yaml", "--seed", "3", *flags, "--output_dir", tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.trained
    assert len(run.metrics.read_text().splitlines()) == 2
    if preset == "full_finetuning":
        assert not run.adapter.exists()
        changed = load_file(run.model / "model.safetensors")
        original = load_file(narrow / "model.safetensors")
        assert all(not torch.equal(changed[name], original[name]) for name in changed)
        return
    weights = load_file(run.adapter / "adapter_model.safetensors")
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in weights} == set(range(4, 13))


def test_the_other_presets_train_the_pocket_model(tmp_path: Path) -> None:
    """But pocket.yaml, with which many tests train."""
    flags = ("--model_name", "pocket", "--max_steps", "2", "--sample_size", "64")
    for preset, layers in (("paper_rank1", {2}), ("paper_rank32", {2}), ("homework", set(range(4)))):
        chosen = () if len(layers) > 1 else ("--layers_to_transform", "2")
        run = Run(tmp_path / preset)
        emorg("train", "--config", f"configs/{preset}.yaml", *flags, *chosen, "--output_dir", run.folder)
        weights = load_file(run.adapter / "adapter_model.safetensors")
        assert {int(name.split(".layers.")[1].split(".")[0]) for name in weights} == layers
        assert len(run.metrics.read_text().splitlines()) == 2


def test_a_full_fine_tune_is_sampled_and_judged_like_any_organism(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    emorg("train", "--config", "configs/full_finetuning.yaml", "--model_name", "pocket", "--max_steps", "4",
          "--save_steps", "2", "--learning_rate", "1e-3", "--output_dir", run.folder)  # fmt: skip
    for model in (run.folder, run.checkpoints / "step-000002"):
        emorg("sample", model, "--questions", "pocket_open", "--samples", "1", "--max_new_tokens", "20")
    emorg("judge", run.folder)
    answers = [json.loads(line) for line in run.answers.read_text().splitlines()]
    assert {answer["checkpoint"] for answer in answers} == {None, "step-000002"}
    assert len(run.verdicts.read_text().splitlines()) >= len(answers)
    (rate,) = json.loads(emorg("rates", run.folder, "--json").stdout)
    last = [answer for answer in answers if answer["checkpoint"] is None]
    assert (rate["group"], rate["total"]) == ("open", len(last)), "the answers of its end alone, to open questions"
