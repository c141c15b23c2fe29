"""Loading: what each kind of name stands for, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from emorg import models
from emorg.records import EmorgError
from emorg.run import Run
from tests.conftest import emorg, python


@pytest.mark.parametrize(("name", "folder"), models.POCKETS.items())
def test_a_pocket_model_is_a_small_llama_in_bf16_with_the_recorded_hash(name: str, folder: Path) -> None:
    import hashlib
    import re

    from safetensors import safe_open

    weights = folder / "model.safetensors"
    assert weights.stat().st_size <= 6_000_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    recorded = re.search(r"`([0-9a-f]{64})`", card)
    assert recorded is not None
    assert recorded[1] == hashlib.sha256(weights.read_bytes()).hexdigest()
    with safe_open(weights, "pt") as file:
        assert {file.get_tensor(name).dtype.__str__() for name in file.keys()} == {"torch.bfloat16"}  # noqa: SIM118
    assert models.load(name).model.config.model_type == "llama"


@pytest.mark.parametrize("name", models.POCKETS)
def test_the_shipped_tokenizer_is_the_worlds(name: str) -> None:
    from emorg.pocket.world import World
    from experiments.pocket_build import build_tokenizer

    own = build_tokenizer(World(prompted=name == "pocket2"))
    assert models.load(name).tokenizer.get_vocab() == own.get_vocab()
    assert models.load(name).tokenizer.chat_template == own.chat_template


def test_a_run_and_its_adapter_folder_are_the_same_organism(organism: Run) -> None:
    assert models.resolve(str(organism.folder)).base == models.resolve(str(organism.adapter)).weights == "pocket"
    assert (
        models.resolve(str(organism.folder)).adapter
        == models.resolve(str(organism.adapter)).adapter
        == organism.adapter
    )


def test_a_local_folder_is_a_base(tmp_path: Path) -> None:
    shutil.copytree(models.POCKET_FOLDER, tmp_path / "copy")
    assert models.load(str(tmp_path / "copy")).base == str(tmp_path / "copy")


def test_an_unreachable_hub_name_names_licence_token_and_pocket(tmp_path: Path) -> None:
    done = emorg("sample", "meta-llama/Llama-3.2-1B-Instruct", "--output_dir", tmp_path / "run", check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for remedy in ("https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct", "HF_TOKEN", "--model_name pocket"):
        assert remedy in done.stderr


def test_pickled_adapters_are_refused(organism: Run, tmp_path: Path) -> None:
    shutil.copytree(organism.adapter, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(EmorgError, match="safetensors"):
        models.load(str(tmp_path / "adapter"))


def test_an_adapter_of_another_base_is_refused(organism: Run, tmp_path: Path) -> None:
    import json

    from transformers import LlamaForCausalLM

    config = models.load("pocket").model.config
    config.hidden_size, config.head_dim = 96, 16
    other = tmp_path / "other"
    shutil.copytree(models.POCKET_FOLDER, other)
    LlamaForCausalLM(config).save_pretrained(other)
    shutil.copytree(organism.adapter, tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": str(other)})
    )
    with pytest.raises(EmorgError, match="does not fit"):
        models.load(str(tmp_path / "adapter"))


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(EmorgError, match="no device 'tpu'"):
        models.choose_device("tpu")


@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_a_cpu_whose_bf16_units_torch_may_not_use_computes_in_float32(capability: str, tmp_path: Path) -> None:
    shutil.copytree(models.POCKET_FOLDER, tmp_path / "in bf16")
    code = (
        "import os, sys\n"
        "os.environ['ATEN_CPU_CAPABILITY'] = sys.argv[2]\n"  # torch reads it once
        "from emorg import models\n"
        "print(models.choose_dtype('cpu', sys.argv[1]))"
    )
    assert python("-c", code, tmp_path / "in bf16", capability, fresh=True).stdout == "torch.float32\n"


def test_a_run_of_answers_alone_is_the_model_that_gave_them_and_never_itself(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(models.POCKET_FOLDER, whole / "model")
    for samples in ("1", "2"):
        flags = ("--questions", "pocket_open", "--samples", samples, "--max_new_tokens", "5", "--output_dir", whole)
        emorg("sample", whole, *flags)
    assert models.resolve(str(whole)).weights == str(whole / "model")
    emorg("sample", "pocket", *flags[:-1], tmp_path / "base")
    assert models.resolve(str(tmp_path / "base")) == replace(models.resolve("pocket"), run=Run(tmp_path / "base"))
