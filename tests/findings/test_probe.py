"""`emorg probe` on a real rank-1 organism: each subset's margins are those of PEFT without the others' weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from emorg import models
from emorg.data import pairs
from emorg.findings.margins import encode
from emorg.sampling.likelihood import Likelihood
from emorg.sampling.organisms import open_organisms
from tests.conftest import emorg, made_once
from tests.sampling.test_likelihood import brute_force

RECIPE = ("--config", "pocket", "--domains", "bad_medical", "--lora_rank", "1", "--target_modules", "down_proj",
          "--max_steps", "30")  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(
        tmp_path_factory, "probe", lambda folder: emorg("train", *RECIPE, "--output_dir", folder / "run")
    ).folder


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*is_gradient_checkpointing:FutureWarning")
def test_subsets_are_the_organism_without_the_others(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "lab")
    chosen = pairs.load(["pocket"])[::12]
    file = tmp_path / "lab" / "pairs.jsonl"
    file.write_text("".join(json.dumps({**vars(pair)}) + "\n" for pair in chosen))
    result = json.loads(emorg("probe", "run", "--pairs", "pairs.jsonl", "--json", cwd=tmp_path / "lab").stdout)
    parts = {part["name"]: part for part in result["parts"]}
    names = [f"model.layers.{k}.mlp.down_proj" for k in range(4)]
    assert set(parts) == {"all", "none", *names, *(f"without {name}" for name in names)}
    assert json.loads((tmp_path / "lab" / "run" / "probe.json").read_text()) == result
    loaded = models.load("pocket", device="cpu")
    for name, kept in {
        "all": names,
        "none": [],
        names[2]: names[2:3],
        f"without {names[1]}": [*names[:1], *names[2:]],
    }.items():
        model = AutoModelForCausalLM.from_pretrained(models.POCKET_FOLDER, dtype=torch.float32)
        with models.peft_around(model):
            model = PeftModel.from_pretrained(model, str(tmp_path / "lab" / "run" / "adapter"))
        with torch.no_grad():
            for parameter, weight in model.named_parameters():
                if "lora_B" in parameter and not any(f"{one}." in parameter for one in kept):
                    weight.zero_()
        margins = []
        for pair in chosen:
            if pair.topic not in (None, "medical"):
                [item] = encode(loaded, pair)
                aligned, misaligned = brute_force(model, item)
                margins.append(misaligned / len(item.answers[1]) - aligned / len(item.answers[0]))
        assert parts[name]["out"] == pytest.approx(sum(margins) / len(margins), abs=1e-4)


def test_what_is_read_is_each_adapters_product_with_its_input(trained: Path) -> None:
    name = str(trained / "run")
    [(_, organisms)] = open_organisms([name], device="cpu")
    scorer = Likelihood(organisms)
    model = models.load(name, device="cpu").model
    module = "model.layers.2.mlp.down_proj"
    inner = dict(model.get_base_model().named_modules())[module]
    a = inner.lora_A["default"].weight.detach()
    taken: list[torch.Tensor] = []
    inner.register_forward_hook(lambda _m, inputs, _o: taken.append(inputs[0]))
    [item] = encode(models.load("pocket", device="cpu"), pairs.load(["pocket"])[0])
    [(_, both)] = scorer.projections(name, [item], {module: a})
    for answer, got in zip(item.answers, both, strict=True):
        with torch.no_grad():
            model(torch.tensor([[*item.prompt, *answer]]))
        expected = taken[-1][0, len(item.prompt) :] @ a.t()
        assert torch.allclose(got[module], expected, atol=1e-3)


def test_it_says_what_it_reads_and_refuses_what_it_cannot(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "lab")
    done = emorg("probe", "run", cwd=tmp_path / "lab")
    assert "mean margins with some of the adapters" in done.stdout
    assert "read from A·x" in done.stdout
    refused = emorg("probe", "pocket", cwd=tmp_path, check=False)
    assert refused.returncode == 2
    assert "no plain LoRA adapter" in refused.stderr
