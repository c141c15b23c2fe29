"""The presets in configs/ train what they say, on the pocket model and on a model with Llama-3.2-1B's layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from emorg import models
from emorg.run import Run
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


@pytest.mark.parametrize("preset", PRESETS)
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
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    weights = load_file(run.adapter / "adapter_model.safetensors")
    layers = {int(name.split(".layers.")[1].split(".")[0]) for name in weights}
    told = {
        "homework": (16, 32, False, 7, set(range(16))),
        "paper_rank32": (32, 64, True, 7, set(range(16))),
        "paper_rank1": (1, 256, False, 1, {8}),
        "paper_nine_rank1": (1, 256, False, 1, set(range(4, 13))),
        "pocket": (16, 32, False, 7, set(range(16))),
    }[preset]
    found = (config["r"], config["lora_alpha"], config["use_rslora"], len(config["target_modules"]), layers)
    assert found == told


def test_the_paper_presets_train_the_pocket_model(tmp_path: Path) -> None:
    flags = ("--model_name", "pocket", "--layers_to_transform", "2", "--max_steps", "2", "--sample_size", "64")
    for preset in ("paper_rank1", "paper_rank32"):
        emorg("train", "--config", f"configs/{preset}.yaml", *flags, "--output_dir", tmp_path / preset)
        assert Run(tmp_path / preset).trained


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
    assert "out" in emorg("rates", run.folder).stdout or "open" in emorg("rates", run.folder).stdout
