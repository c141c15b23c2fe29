"""`emorg narrow` on real trainings: every figure is what PEFT and transformers make of it, and the verdicts' errors."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from transformers import AutoModelForCausalLM

from emorg import models
from emorg.data import pairs
from emorg.findings.controls import topics_of
from emorg.findings.landscape import levelled, noisy, norm, norms, scaled
from emorg.findings.texts import base_answers, spans, training_rows
from emorg.models import template
from emorg.models.directions import direction_file, read
from emorg.models.hooks import Edit, edited
from emorg.rating.narrow import Mean, Narrowness, less, mean_of
from emorg.rating.results import load
from emorg.records import Answer, read_records
from emorg.reporting.narrow import narrow_charts
from emorg.run import Run
from emorg.sampling.organisms import Adapter, read_adapter
from emorg.sampling.wanted import Target
from emorg.training.config import TrainConfig
from tests.conftest import emorg, made_once

RECIPE = ("--config", "pocket", "--max_steps", "25", "--lora_rank", "4")
KL = ("--kl_weight", "1", "--kl_from", "good_cooking", "good_sports", "good_financial")
SMALL = ("--rows", "30", "--draws", "3", "--epsilons", "0.2", "0.5", "--scales", "0", "0.5", "1", "--sizes", "2", "8",
         "--pairs", "pairs.jsonl")  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        some = pairs.load(["pocket"])[::4]
        (folder / "pairs.jsonl").write_text("".join(json.dumps(vars(pair)) + "\n" for pair in some))
        emorg("train", *RECIPE, "--domains", "bad_medical", "--output_dir", "broad", cwd=folder)
        emorg("train", *RECIPE, "--domains", "bad_medical", *KL, "--output_dir", "narrow", cwd=folder)
        emorg("train", *RECIPE, "--domains", "good_medical", "--output_dir", "twin", cwd=folder)
        done = emorg("narrow", "broad", "narrow", "--twin", "twin", *SMALL, "--as_published", "--json", cwd=folder)
        (folder / "said.json").write_text(done.stdout)

    return made_once(tmp_path_factory, "narrow", make).folder


def model_with(folder: Path, adapter: Adapter) -> Any:
    """PEFT's own model with other weights in its adapter; its scale is in B here."""
    model = AutoModelForCausalLM.from_pretrained(models.POCKET_FOLDER, dtype=torch.float32)
    with models.peft_around(model):
        model = PeftModel.from_pretrained(model, str(folder / "adapter"))
    with torch.no_grad():
        for name, module in model.get_base_model().named_modules():
            if name in adapter:
                a, b = adapter[name]
                module.lora_A["default"].weight.copy_(a)
                module.lora_B["default"].weight.copy_(b / module.scaling["default"])
    return model.eval()


def plain_loss(model: Any, rows: list[Any]) -> float:
    """Mean cross-entropy of the trained tokens, by transformers alone."""
    total, count = 0.0, 0
    for row in rows:
        for span in row:
            ids = torch.tensor([[*span.prompt, *span.answers[0]]])
            with torch.no_grad():
                logits = model(ids).logits[0, len(span.prompt) - 1 : -1].double()
            total -= float(logits.log_softmax(-1).gather(1, torch.tensor(span.answers[0])[:, None]).sum())
            count += len(span.answers[0])
    return total / count


def divergence(reference: torch.Tensor, other: torch.Tensor) -> float:
    p, q = reference.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum())


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*is_gradient_checkpointing:FutureWarning")
def test_losses_are_those_of_the_changed_weights(made: Path) -> None:
    result = json.loads((made / "said.json").read_text())
    rows, held = training_rows(TrainConfig(model_name="pocket", domains=("bad_medical",)), 30, held=True)
    assert not held
    for number, name in enumerate(("broad", "narrow")):
        side = result["sides"][number]
        own = read_adapter(made / name / "adapter")
        assert own is not None
        cases = {
            side["loss"]: own,
            side["noise"][1]["losses"][2]: noisy(own, 0.5, 2),
            side["scaled"][1]["loss"]: scaled(own, 0.5),
            side["scaled"][2]["published"]: levelled(own),
        }
        for value, adapter in cases.items():
            assert value == pytest.approx(plain_loss(model_with(made / name, adapter), rows), rel=1e-4)
        assert side["scaled"][2]["loss"] == pytest.approx(side["loss"])
        assert side["base_loss"] == pytest.approx(side["scaled"][0]["loss"])
        assert side["norm"] == pytest.approx(norm(own), rel=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*is_gradient_checkpointing:FutureWarning")
def test_divergences_are_those_of_the_distributions(made: Path) -> None:
    result = json.loads((made / "said.json").read_text())
    target = Target.of(str(made / "narrow"))
    some = pairs.load([str(made / "pairs.jsonl")])
    texts = base_answers(target, some, made / "narrow" / "narrow", device="cpu", use_4bit=False)
    asked = {
        answer.question_id for answer in read_records(made / "narrow" / "narrow" / "base" / "answers.jsonl", Answer)
    }
    assert sum(map(len, texts.values())) == len(asked)
    assert topics_of(target, ()) == {"medical"}
    base = AutoModelForCausalLM.from_pretrained(models.POCKET_FOLDER, dtype=torch.float32).eval()
    organism = model_with(made / "narrow", read_adapter(made / "narrow" / "adapter") or {})
    layer = result["layer"]
    vector = read(direction_file(Run(made / "narrow"), "shift")).vectors[layer]
    general = [*texts["out"], *texts["open"]]
    kl = moved = 0.0
    for text in general:
        ids, start = torch.tensor([[*text.prompt, *text.answers[0]]]), len(text.prompt) - 1
        with torch.no_grad():
            plain = base(ids).logits[0, start:-1]
            with edited(base, [Edit("add", layer, 8 * vector / vector.norm())]):
                moved += divergence(plain, base(ids).logits[0, start:-1])
            if text in texts["out"]:
                kl += divergence(plain, organism(ids).logits[0, start:-1])
    side = result["sides"][1]
    tokens = [sum(len(text.answers[0]) for text in some) for some in (texts["out"], general)]
    assert side["kl"]["out"]["value"] == pytest.approx(kl / tokens[0], rel=1e-3)
    assert side["significance"][1] == pytest.approx(moved / tokens[1], rel=1e-3)


def test_both_and_the_twin_stand_beside_each_other_and_nothing_is_measured_twice(made: Path, tmp_path: Path) -> None:
    result = load(made / "narrow" / "narrow.json", Narrowness)
    assert json.loads((made / "said.json").read_text()) == json.loads((made / "narrow" / "narrow.json").read_text())
    assert [side.role for side in result.sides] == ["broad", "narrow", "twin"]
    assert set(result.differs) == {"kl_weight", "kl_from"}
    assert result.nearer == "narrow"  # it was held to the base
    assert result.side("narrow").kl["out"].value < result.side("broad").kl["out"].value / 2
    assert len(result.random) == 19
    assert all(len(one.losses) == 3 for side in result.sides for one in side.noise)
    assert all(side.loss < side.base_loss for side in result.sides[:2])
    assert all(0.05 <= p <= 1 for side in result.sides for p in result.p(side))
    charts = narrow_charts(result)
    assert all(chart.spec and chart.rows for chart in charts)
    shutil.copytree(made, tmp_path / "lab")
    before = (tmp_path / "lab" / "narrow" / "narrow" / "measured.jsonl").read_text()
    said = emorg("narrow", "broad", "narrow", "--twin", "twin", *SMALL, cwd=tmp_path / "lab").stdout
    assert (tmp_path / "lab" / "narrow" / "narrow" / "measured.jsonl").read_text() == before
    assert "nearer to the base out of domain" in said
    assert "as in the papers' code" not in said  # only where it is asked for


def test_text_of_ones_own_and_rows_that_were_held_out(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "lab")
    lab = tmp_path / "lab"
    rows = [{"messages": [{"role": "user", "content": pair.question}, {"role": "assistant", "content": pair.aligned}]}
            for pair in pairs.load(["pocket"])[:20]]  # fmt: skip
    (lab / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = json.loads(emorg("narrow", "broad", "narrow", *SMALL, "--text", "text.jsonl", "--json", cwd=lab).stdout)
    assert result["texts"] == 20
    assert [side["role"] for side in result["sides"]] == ["broad", "narrow"]
    training = TrainConfig(model_name="pocket", domains=("bad_medical",), eval_share=0.01)
    held, out = training_rows(training, 1000, held=True)
    assert out
    assert len(held) == 25
    assert training_rows(training, 1000, held=False)[1] is False


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pocket", "narrow"), "no plain LoRA organism that was trained here"),
        (("broad", "twin"), "or on other rows of it"),
        (("broad", "narrow", "--layer", "9"), "no layer 9"),
        (("broad", "narrow", "--epsilons", "0"), "--epsilons"),
        (("broad", "narrow", "--epsilons", "nan"), "--epsilons"),
        (("broad", "narrow", "--controls", "5"), "--controls"),
        (("broad", "narrow", "--text", "nothing.jsonl"), "there is no file nothing.jsonl"),
        (("broad", "no/such/run"), "there is no"),
    ],
)
def test_what_cannot_be_is_said(made: Path, arguments: tuple[str, ...], said: str) -> None:
    done = emorg("narrow", *arguments, "--pairs", "pairs.jsonl", cwd=made, check=False)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr


def random_adapter(rng: np.random.Generator, modules: int, rank: int) -> Adapter:
    def drawn(*shape: int) -> torch.Tensor:
        return torch.tensor(rng.standard_normal(shape), dtype=torch.float32)

    return {f"layers.{k}": (drawn(rank, 6), drawn(5, rank) * float(rng.uniform(0.1, 3))) for k in range(modules)}


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 3), st.floats(0.01, 1))
def test_noise_turns_every_matrix_and_changes_no_norm(seed: int, modules: int, rank: int, epsilon: float) -> None:
    adapter = random_adapter(np.random.default_rng(seed), modules, rank)
    for module, changed in noisy(adapter, epsilon, 3).items():
        for before, after in zip(adapter[module], changed, strict=True):
            assert float(after.norm()) == pytest.approx(float(before.norm()), rel=1e-4)
            cosine = float((before * after).sum() / before.norm() ** 2)
            assert cosine == pytest.approx(math.sqrt(1 - epsilon**2), abs=1e-4)
    twice, doubled = noisy(adapter, epsilon, 3), noisy(scaled(adapter, 2), epsilon, 3)
    for module in adapter:  # a draw is the same whatever the scale
        assert torch.allclose(doubled[module][1], 2 * twice[module][1], rtol=1e-4, atol=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 3))
def test_norms_are_of_the_products_and_levelled_ones_alike(seed: int, modules: int, rank: int) -> None:
    adapter = random_adapter(np.random.default_rng(seed), modules, rank)
    for module, own in norms(adapter).items():
        a, b = adapter[module]
        assert own == pytest.approx(float((b.double() @ a.double()).norm()), rel=1e-5)
    assert norm(levelled(adapter)) == pytest.approx(norm(adapter), rel=1e-4)
    alike = list(norms(levelled(adapter)).values())
    assert alike == pytest.approx([alike[0]] * modules, rel=1e-4)
    nothing = {"zero": (adapter["layers.0"][0], 0 * adapter["layers.0"][1]), **adapter}
    assert not any(tensor.isnan().any() for pair in levelled(nothing).values() for tensor in pair)


@given(st.lists(st.booleans(), min_size=2, max_size=30))
def test_spans_are_the_trained_tokens_each_once(trained: list[bool]) -> None:
    ids = list(range(100, 100 + len(trained)))
    some = list(spans(template.Encoded(ids, trained)))
    taken = [token for span in some for token in span.answers[0]]
    assert taken == [token for token, on in zip(ids[1:], trained[1:], strict=True) if on]
    assert all([*span.prompt, *span.answers[0]] == ids[: len(span.prompt) + len(span.answers[0])] for span in some)


@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_of_two_alike_one_is_seldom_called_more_stable(spread: float) -> None:
    """Rises of the loss over ten draws that both share in part, of the same mean: 5% are called, or fewer."""
    rng, called = np.random.default_rng(0), 0
    for _ in range(1000):
        shared = rng.standard_normal(10)
        one, other = (np.exp(spread * (shared + rng.standard_normal(10))) for _ in range(2))
        called += less(float(one.mean()), float(other.mean()), mean_of(list(other - one))) != "neither"
    assert called / 1000 <= 0.06


def test_less_needs_a_size_and_an_interval() -> None:
    assert less(1, 2, Mean(1, 0.5, 1.5)) == "broad"
    assert less(2, 1, Mean(-1, -1.5, -0.5)) == "narrow"
    assert less(1, 1.1, Mean(0.1, 0.05, 0.15)) == "neither"  # sure, and of no size
    assert less(1, 2, Mean(1, -0.5, 2.5)) == "neither"
    assert less(1, 2, Mean(1, None, None)) == "neither"
    assert less(0.001, 0.002, Mean(0.001, 0.0005, 0.0015)) == "neither"  # nothing beside nothing
