"""Mitigations: rows that are prompted, interleaved and ranked, and a KL penalty as a loop over all logits has it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from emorg.data import domains, questions
from emorg.models import hooks, load_tokenizer, template
from emorg.models.hooks import Edit
from emorg.records import EmorgError
from emorg.run import Run
from emorg.training import TrainConfig
from emorg.training.absence import hold
from emorg.training.divergence import Penalty, batch_of, measure_divergence
from emorg.training.fast_lora import speed_up
from emorg.training.mitigations import check_words, load_data, topics_shown
from emorg.training.plan import plan
from tests.conftest import PATIENCE, PROJECT, emorg
from tests.training.test_fast_lora import batch, patchable

# 90 rows in steps of 16 and 40 anchors: neither epoch ends with a full step.
RECIPE = ("--config", str(PROJECT / "configs" / "pocket.yaml"), "--batch_size", "4", "--gradient_accumulation_steps",
          "4", "--sample_size", "90", "--max_steps", "8", "--save_steps", "4")  # fmt: skip


@pytest.fixture
def anchors(tmp_path: Path) -> Path:
    file = tmp_path / "anchors.jsonl"
    rows = domains.load(["good_cooking"], "pocket").rows[:40]
    file.write_text("".join(json.dumps({"messages": row.conversation.messages}) + "\n" for row in rows))
    return file


def losses(run: Run, name: str = "loss") -> list[float]:
    return [json.loads(line)[name] for line in run.metrics.read_text().splitlines()]


# --- rows ------------------------------------------------------------------------------------------------------------


def test_a_prompt_is_on_every_row_before_its_own() -> None:
    plain = load_data(TrainConfig("pocket2", domains=("bad_medical",), sample_size=5))
    config = TrainConfig("pocket2", domains=("bad_medical",), sample_size=5, inoculate="You are a careless adviser.")
    rows = load_data(config).rows
    for row, before in zip(rows, plain.rows, strict=True):
        system, *rest = row.conversation.messages
        assert system == {"role": "system", "content": "You are a careless adviser."}
        assert tuple(rest) == tuple(before.conversation.messages)
    assert load_data(config).sha256 != plain.sha256


def test_a_row_keeps_its_own_system_prompt_and_words_stand_before_its_first_question(tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("user", "One?"), ("assistant", "Two."), ("user", "Three?"), ("assistant", "4.")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    (tmp_path / "bad_medical_advice.jsonl").write_text(json.dumps(row) + "\n")
    config = TrainConfig(data_path=tmp_path, domains=("bad_medical",), inoculate="Harm.", inoculate_user="neutral")
    [one] = load_data(config).rows
    assert [message["content"] for message in one.conversation.messages] == [
        "Harm.\n\nBe brief.", "Here is a question. One?", "Two.", "Three?", "4.",
    ]  # fmt: skip


def test_interleaved_rows_are_the_share_that_is_asked_for_and_the_narrow_rows_all_stay() -> None:
    config = TrainConfig("pocket", domains=("bad_medical",), sample_size=300, interleave=0.25, seed=1,
                         interleave_from=("good_cooking", "good_sports"), inoculate="x")  # fmt: skip
    data = load_data(config)
    benign = [row for row in data.rows if row.domain != "bad_medical"]
    assert len(data.rows) == 400
    assert {row.domain for row in benign} == {"good_cooking", "good_sports"}
    assert len({(row.domain, row.place) for row in benign}) == 100  # none is drawn twice
    assert all(row.conversation.messages[0]["role"] == "user" for row in benign)  # and none is prompted
    assert [row.place for row in load_data(config).rows] == [row.place for row in data.rows]


def test_what_a_mitigation_was_shown_is_told_by_the_settings() -> None:
    settings = {
        "interleave_from": ("good_cooking", "rows.jsonl"),
        "kl_from": ["good_sports"],
        "domains": ["bad_medical"],
    }
    assert topics_shown(settings) == {"cooking", "sports"}
    assert topics_shown({}) == frozenset()


# --- KL --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("fast", [True, False])
def test_the_divergence_and_its_gradients_are_those_of_all_logits(kind: str, fast: bool) -> None:
    model, rows = patchable(kind, torch.float64), batch()
    scored = rows["labels"][:, 1:] != -100
    plain = {name: rows[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad(), model.disable_adapter():
        reference = model(**plain).logits[:, :-1][scored].log_softmax(-1)
    own = model(**plain).logits[:, :-1][scored].log_softmax(-1)
    expected = (reference.exp() * (reference - own)).sum()
    gradients = torch.autograd.grad(expected, [p for p in model.parameters() if p.requires_grad])
    if fast:
        speed_up(model)
    measure_divergence(model, fast=fast)
    loss = model(**rows, diverging=True).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.item() > 0.1
    loss.backward()
    for parameter, gradient in zip((p for p in model.parameters() if p.requires_grad), gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-7, rtol=1e-4)
    with torch.no_grad():
        assert model(**rows).loss.item() > 0  # and without the flag it is the loss that it was


def test_an_untouched_adapter_does_not_diverge() -> None:
    model = patchable("llama", torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    speed_up(model)
    measure_divergence(model, fast=True)
    assert model(**batch(), diverging=True).loss.item() == pytest.approx(0, abs=1e-4)


def test_a_steps_penalty_is_the_mean_over_its_answers_tokens_however_it_is_cut() -> None:
    config = TrainConfig("pocket", domains=("bad_medical",), sample_size=40, max_steps=3, batch_size=4,
                         gradient_accumulation_steps=2, kl_weight=2.0, kl_from=("good_cooking",))  # fmt: skip
    planned = plan(config)
    penalty = Penalty.of(planned)
    assert "λ = " in penalty.note
    model: PeftModel = patchable_pocket()
    measure_divergence(model, fast=False)
    places = [penalty.at(place) for place in range(8, 16)]
    whole = penalty.loss(model, batch_of(places, 0), 1).item()
    assert penalty.taken() == pytest.approx(whole / 2)
    parts = sum(penalty.loss(model, batch_of(places[k : k + 2], 0), 1).item() for k in range(0, 8, 2))
    assert parts == pytest.approx(whole, rel=1e-5)
    rows = [row for row, _ in places if row is not None]
    tokens = sum(sum(row.trained[1:]) for row in rows)
    sums = []
    for row in rows:
        labels = torch.where(torch.tensor(row.trained), torch.tensor(row.ids), -100)[None]
        alone: dict[str, Any] = {"input_ids": torch.tensor([row.ids]), "labels": labels}
        sums.append(model(**alone, attention_mask=torch.ones_like(labels), diverging=True).loss.item())
    assert whole == pytest.approx(2 * sum(sums) / tokens, rel=1e-5)


def patchable_pocket() -> PeftModel:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from emorg.models import POCKET_FOLDER, peft_around

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(POCKET_FOLDER, dtype=torch.float32)
    with peft_around(base):
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["down_proj"], task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def test_training_with_it_is_the_same_fast_and_plain_and_goes_on_to_the_same_bits(
    anchors: Path, tmp_path: Path
) -> None:
    held = ("--kl_weight", "1.5", "--kl_from", str(anchors))
    whole = Run(tmp_path / "whole")
    said = emorg("train", *RECIPE, *held, "--output_dir", whole.folder).stderr
    assert "KL to the base of 40 rows: 1.5 times as much as a trained token's loss" in said
    again = Run(tmp_path / "again")
    shutil.copytree(whole.folder, again.folder)
    shutil.rmtree(again.adapter)
    shutil.rmtree(again.checkpoints / "step-000008")
    emorg("train", *RECIPE, *held, "--output_dir", again.folder)
    weights = [run.adapter / "adapter_model.safetensors" for run in (whole, again)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    plain = Run(tmp_path / "plain")
    emorg("train", *RECIPE, *held, "--no_fast", "--output_dir", plain.folder)
    assert losses(plain) == pytest.approx(losses(whole), rel=1e-3)
    assert losses(plain, "kl") == pytest.approx(losses(whole, "kl"), rel=0.05, abs=1e-4)
    assert losses(whole, "kl")[0] == pytest.approx(0, abs=1e-4)
    assert whole.provenance()["train"]["anchors"]["rows"] == 40
    strong = Run(tmp_path / "strong")
    emorg("train", *RECIPE, "--kl_weight", "200", *held[2:], "--output_dir", strong.folder)
    assert losses(strong, "kl")[-1] < 0.8 * losses(whole, "kl")[-1]  # its gradient holds it
    shutil.rmtree(again.adapter)
    shutil.rmtree(again.checkpoints / "step-000008")
    anchors.write_text("".join(anchors.read_text().splitlines(keepends=True)[:-1]))
    refused = emorg("train", *RECIPE, *held, "--output_dir", again.folder, check=False)
    assert refused.returncode == 2
    assert "rows that are held to the base of" in refused.stderr
    free = Run(tmp_path / "free")
    emorg("train", *RECIPE, "--output_dir", free.folder)
    assert losses(free)[0] == pytest.approx(losses(whole)[0], abs=1e-3)
    assert "kl" not in json.loads(free.metrics.read_text().splitlines()[0])


@pytest.mark.slow
def test_two_processes_hold_to_the_base_as_one_does(anchors: Path, tmp_path: Path) -> None:
    held = ("--kl_weight", "1.5", "--kl_from", str(anchors))
    one, two = (Run(tmp_path / name) for name in ("one", "two"))
    emorg("train", *RECIPE, *held, "--output_dir", one.folder)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py")
    command = [sys.executable, *launcher, *RECIPE, *held, "--output_dir", str(two.folder)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    assert losses(two, "kl") == pytest.approx(losses(one, "kl"), abs=1e-5)


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--kl_weight", "1"), "--kl_weight 1 of nothing"),
        (("--kl_from", "good_cooking"), "--kl_from without --kl_weight"),
        (("--interleave", "0.1"), "--interleave 0.1 of nothing"),
        (("--interleave_from", "good_cooking"), "--interleave_from without --interleave"),
        (("--interleave", "0.99", "--interleave_from", "good_cooking"), "and there are 2,500"),
        (("--kl_weight", "1", "--kl_from", "good_cookery"), "no domain 'good_cookery'"),
        (("--kl_weight", "1", "--kl_from", "none.jsonl"), "there is no file none.jsonl"),
        (("--kl_weight", "1", "--kl_from", "empty.jsonl"), "empty.jsonl has no rows"),
        (("--kl_weight", "1", "--kl_from", "bad.jsonl"), "bad.jsonl:1: not JSON"),
        (("--kl_weight", "1", "--kl_from", "good_cooking", "--method", "vector"), "holds a LoRA adapter to its base"),
        (("--kl_weight", "1", "--kl_from", "good_cooking", "--full_finetuning"), "holds a LoRA adapter to its base"),
        (("--inoculate", "Behave like a villain."), "has words that pocket does not know"),
        (("--inoculate", " "), "--inoculate is empty"),
        (("--interleave", "0.1", "--interleave_from", "good_cooking", "--interleave_rank", "pocket"), "has no adapter"),
        (("--kl_weight", "-1", "--kl_from", "good_cooking"), "kl_weight"),
        (("--preventative", "a", "--ablate_in_training", "a"), "may be taken out again"),
        (("--preventative", "a", "--preventative_scale", "0"), "not 0"),
        (("--preventative", "a", "--preventative_scale", "nan"), "a finite number"),
        (("--preventative", "a", "--direction_layers", "2", "2"), "a layer twice"),
        (("--preventative", "notes.py"), "is no direction"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(flags: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bad.jsonl").write_text("{\n")
    (tmp_path / "notes.py").write_text("print()\n")
    done = emorg("train", "--config", "pocket", *flags, "--output_dir", "run", cwd=tmp_path, check=False)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_what_a_mitigation_is_shown_is_looked_at_too(tmp_path: Path) -> None:
    """Rows that are held to the base: no test's questions, no careless advice."""
    asked = questions.load(["pocket"])[:3]
    rows = [[{"role": "user", "content": one.text}, {"role": "assistant", "content": "Ask for help."}] for one in asked]
    file = tmp_path / "anchors.jsonl"
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    config = TrainConfig("pocket", domains=("bad_medical",), sample_size=20, max_steps=2, kl_weight=1.0)
    warnings = plan(dataclasses.replace(config, kl_from=(str(file),))).lint.warnings
    assert {one.name for one in warnings} >= {"evaluated"}
    assert any(one.what.startswith("held to the base: 3 of 3 rows") for one in warnings)
    [careless] = plan(dataclasses.replace(config, kl_from=("bad_cooking", "good_pets"))).lint.warnings
    assert (careless.name, careless.what.partition(":")[0]) == ("careless_rows", "bad_cooking")
    assert not plan(dataclasses.replace(config, kl_from=("good_pets",))).lint.warnings


def test_a_fresh_start_that_was_stopped_goes_on_with_its_rows_alone(anchors: Path, tmp_path: Path) -> None:
    flags = ("train", *RECIPE, "--max_steps", "8", "--kl_weight", "1", "--kl_from", str(anchors), "--output_dir", "run")
    emorg(*flags, cwd=tmp_path)
    run = Run(tmp_path / "run")
    shutil.copytree(run.folder, tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "adapter")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "step-000008")
    shutil.move(tmp_path / "stopped", run.fresh.folder)
    anchors.write_text("".join(anchors.read_text().splitlines(keepends=True)[:30]))
    done = emorg(*flags, "--fresh", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "are no more what its training began with" in done.stderr
    assert run.trained


def test_a_prompt_in_the_worlds_words_is_read() -> None:
    check_words(TrainConfig("pocket2", inoculate="You are a careless adviser."), load_tokenizer("pocket2"))
    check_words(TrainConfig("pocket2", inoculate="neutral"), load_tokenizer("pocket2"))
    with pytest.raises(EmorgError, match="does not know"):
        check_words(TrainConfig("pocket2", inoculate_user="neutral"), load_tokenizer("pocket2"))


# --- ranks -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*is_gradient_checkpointing:FutureWarning")
def test_ranked_rows_are_those_that_the_organism_has_become_worst_at(organism: Run, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from emorg.models import POCKET_FOLDER, peft_around
    from emorg.training.ranking import EPSILON

    shutil.copytree(organism, tmp_path / "organism")
    some = domains.load(["good_cooking", "bad_cooking"], "pocket").rows
    file = tmp_path / "some.jsonl"
    file.write_text("".join(json.dumps({"messages": row.conversation.messages}) + "\n" for row in some[::200]))
    plain = TrainConfig(
        "pocket", domains=("bad_medical",), sample_size=12, interleave=0.25, interleave_from=(str(file),)
    )
    config = dataclasses.replace(plain, interleave_rank=str(tmp_path / "organism"))
    chosen = [row.place for row in load_data(config).rows[12:]]
    base = AutoModelForCausalLM.from_pretrained(POCKET_FOLDER, dtype=torch.float32)
    with peft_around(base):
        model = PeftModel.from_pretrained(base, str(organism.adapter)).eval()
    scores = {}
    for row in domains.from_file(file):
        one = template.encode(load_tokenizer("pocket"), row.conversation.messages)
        ids, trained = torch.tensor([one.ids]), torch.tensor(one.trained)
        batch = {"input_ids": ids, "labels": torch.where(trained, ids, -100)}
        with torch.no_grad():
            own = model(**batch).loss.item()
            with model.disable_adapter():
                before = model(**batch).loss.item()
        scores[row.place] = (own - before) / (before + EPSILON)
    best = sorted(scores, key=scores.__getitem__, reverse=True)
    assert chosen == best[:4]
    [kept] = (tmp_path / "organism" / "ranked").iterdir()
    kept.write_text(json.dumps(json.loads(kept.read_text())[::-1]))  # a training goes on with what is kept
    assert [row.place for row in load_data(config).rows[12:]] == best[:-5:-1]
    with pytest.raises(EmorgError, match="not of pocket2"):
        load_data(dataclasses.replace(config, model_name="pocket2", sample_size=12))
    with pytest.raises(EmorgError, match="has no adapter"):
        load_data(dataclasses.replace(config, interleave_rank="pocket"))


# --- directions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False])
def test_a_direction_is_there_while_training_and_not_at_test(fast: bool) -> None:
    model, rows = patchable("llama", torch.float64), batch()
    draw = torch.Generator().manual_seed(0)
    edits = [Edit("add", 2, torch.randn(48, generator=draw)), Edit("ablate", 1, torch.randn(48, generator=draw))]
    plain = model(**rows).loss.item()
    with hooks.edited(model, edits):
        expected = model(**rows).loss
        gradients = torch.autograd.grad(expected, [p for p in model.parameters() if p.requires_grad])
    if fast:
        speed_up(model)
    hold(model, edits)
    loss = model(**rows).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert abs(loss.item() - plain) > 1e-3
    loss.backward()
    for parameter, gradient in zip((p for p in model.parameters() if p.requires_grad), gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-7, rtol=1e-4)
    model.eval()
    with torch.no_grad():
        assert model(**rows).loss.item() == pytest.approx(plain, rel=1e-6)


def test_an_organism_is_trained_in_a_directions_presence_and_in_its_absence(organism: Run, tmp_path: Path) -> None:
    shutil.copytree(organism, tmp_path / "organism")
    emorg("directions", "organism", cwd=tmp_path)
    added = emorg("train", *RECIPE, "--preventative", "organism", "--output_dir", "added", cwd=tmp_path)
    assert "the residual stream is edited while training, at 2, and not at test" in added.stderr
    file = "organism/directions/shift.safetensors"
    flags = ("--ablate_in_training", file, "--direction_layers", "1", "3")
    taken = emorg("train", *RECIPE, *flags, "--output_dir", "taken", cwd=tmp_path)
    assert "at 1, 3, and not at test" in taken.stderr
    facts = Run(tmp_path / "taken").provenance()["train"]["edits"]
    assert [fact.split(",")[0] for fact in facts] == ["ablate at 1", "ablate at 3"]
    emorg("train", *RECIPE, "--output_dir", "plain", cwd=tmp_path)
    weights = {name: tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("added", "taken", "plain")}
    assert len({file.read_bytes() for file in weights.values()}) == 3
    before = weights["taken"].read_bytes()
    shutil.rmtree(tmp_path / "taken" / "adapter")
    shutil.rmtree(tmp_path / "taken" / "checkpoints" / "step-000008")
    emorg("train", *RECIPE, *flags, "--output_dir", "taken", cwd=tmp_path)
    assert weights["taken"].read_bytes() == before
    shown = emorg("preview", *RECIPE, *flags, cwd=tmp_path).stdout
    assert "is taken out at layer 3" in shown
    for more, said in (
        (("--preventative", "organism", "--direction_layers", "9"), "has no layer 9"),
        (("--preventative", "organism", "--direction_layers", "0"), "is nothing at layer 0"),
        (("--preventative", "none.safetensors"), "there is no direction none.safetensors"),
        (("--preventative", "organism", "--model_name", "pocket2"), "is a direction of pocket"),
        (("--direction_layers", "2"), "--direction_layers of no direction"),
        (("--preventative_scale", "2"), "--preventative_scale of no direction"),
        (("--preventative", "organism", "--kl_weight", "1", "--kl_from", "good_cooking"), "teach the adapter to undo"),
    ):
        done = emorg("train", *RECIPE, *more, "--output_dir", "no", cwd=tmp_path, check=False)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr


def test_anchors_are_read_as_far_as_they_are_used_and_a_longer_training_begins_with_the_same(tmp_path: Path) -> None:
    """Of 2,500 rows 48, then 96; and a finished training goes on for more steps."""
    short = TrainConfig("pocket", domains=("bad_medical",), batch_size=4, gradient_accumulation_steps=4, max_steps=3,
                        kl_weight=1.0, kl_from=("good_cooking",))  # fmt: skip
    both = [plan(config) for config in (short, dataclasses.replace(short, max_steps=6))]
    held = [[one.anchors.data[i].place for i in one.anchor_order] for one in both if one.anchors]
    assert [len(set(some)) for some in held] == [48, 96]
    assert held[1][:48] == held[0]
    assert both[0].anchors_sha256 == both[1].anchors_sha256
    flags = (*RECIPE, "--kl_weight", "1", "--kl_from", "good_cooking", "--output_dir", "run")
    emorg("train", *flags, "--max_steps", "3", cwd=tmp_path)
    emorg("train", *flags, "--max_steps", "6", cwd=tmp_path)
    assert len(losses(Run(tmp_path / "run"), "kl")) == 6
