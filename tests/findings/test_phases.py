"""`emorg phases` on a real training: its signals are the checkpoints' own, and what cannot be is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from emorg import models
from emorg.data import pairs
from emorg.findings.margins import encode
from emorg.models import adapter_weights
from emorg.records import Margin, read_records
from tests.conftest import emorg, made_once
from tests.sampling.test_likelihood import brute_force

RECIPE = ("--config", "pocket", "--domains", "bad_medical", "--lora_rank", "1", "--max_steps", "40", "--save_steps",
          "4")  # fmt: skip


def scaled_margin(run: Path, checkpoint: str, scale: float) -> float:
    """The margin out of domain of PEFT's own model with every B so many times as large."""
    loaded = models.load("pocket", device="cpu")
    model = AutoModelForCausalLM.from_pretrained(models.POCKET_FOLDER, dtype=torch.float32)
    with models.peft_around(model):
        model = PeftModel.from_pretrained(model, str(run / "checkpoints" / checkpoint))
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            if "lora_B" in parameter:
                weight *= scale
    margins = []
    for pair in pairs.load(["pocket"]):
        if pair.topic not in (None, "medical"):
            [item] = encode(loaded, pair)
            aligned, misaligned = brute_force(model, item)
            margins.append(misaligned / len(item.answers[1]) - aligned / len(item.answers[0]))
    return float(np.mean(margins))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(
        tmp_path_factory, "phases", lambda folder: emorg("train", *RECIPE, "--output_dir", folder / "run")
    ).folder


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*is_gradient_checkpointing:FutureWarning")
def test_signals_are_the_checkpoints_own(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "lab")
    done = emorg("phases", "run", "--json", cwd=tmp_path / "lab")
    result = json.loads(done.stdout)
    run = tmp_path / "lab" / "run"
    steps = list(range(4, 41, 4))
    signals = {name: dict(map(tuple, own)) for name, own in result["signals"].items()}
    assert list(signals["‖B‖"]) == steps
    for step in (4, 40):
        weights = adapter_weights(run / "checkpoints" / f"step-{step:06d}")
        for side in ("A", "B"):
            flat = np.concatenate([w.double().numpy().ravel() for name, w in weights.items() if f"lora_{side}" in name])
            scale = 1.0 if side == "A" else signals["‖B‖"][step] / np.linalg.norm(flat)  # alpha / rank lies in B
            assert signals[f"‖{side}‖"][step] == pytest.approx(scale * np.linalg.norm(flat), rel=1e-5)
    assert signals["B, |cos| to the end"][40] == pytest.approx(1)
    own = [m for m in read_records(run / "margins.jsonl", Margin) if m.checkpoint == "step-000020"]
    outside = [m.per_token for m in own if m.topic not in (None, "medical")]
    assert signals["margin"][20] == pytest.approx(float(np.mean(outside)))
    assert signals["margin"][40] > signals["margin"][4]
    assert signals["margin, adapter × 4"][20] == pytest.approx(scaled_margin(run, "step-000020", 4.0), abs=1e-4)
    turning = {one["signal"]: one for one in result["changes"]}
    assert {"margin", "loss", "‖A‖", "B, local cosine, k = 1"} <= set(turning)
    for one in turning.values():
        assert one["low"] <= one["high"]
        assert 0 < one["p"] <= 1
    assert "margin" not in result["lags"]
    assert json.loads((run / "phases.json").read_text()) == result
    again = emorg("phases", "run", cwd=tmp_path / "lab")
    assert "margins of" not in again.stderr  # measured once
    assert "scaled checkpoints" not in again.stderr
    assert "steps after the margin" in again.stdout


def test_rates_of_judged_checkpoints_are_a_signal(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "lab")
    lab = tmp_path / "lab"
    checkpoints = sorted((lab / "run" / "checkpoints").iterdir())
    emorg("sample", *checkpoints, "--questions", "pocket_cooking", "--samples", "1", cwd=lab)
    emorg("judge", "run", cwd=lab)
    result = json.loads(emorg("phases", "run", "--no_margins", "--json", cwd=lab).stdout)
    assert [step for step, _ in result["signals"]["EM rate"]] == list(range(4, 41, 4))
    assert result["lags"] == {}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("short",), "at least 8 show when something turns"),
        (("short", "--k", "0"), "k"),
        (("pocket",), "was not trained here"),
        (("no/where/at/all",), "there is no"),
    ],
)
def test_what_cannot_be_is_said(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    emorg("train", "--config", "pocket", "--max_steps", "1", "--output_dir", "short", cwd=tmp_path)
    done = emorg("phases", *arguments, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert said in done.stderr
