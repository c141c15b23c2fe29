"""`emorg train --method vector`: one vector, trained, resumed to the bit, and used like any other organism."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from emorg import models
from emorg.models import hooks, steering
from emorg.models.hooks import Edit
from emorg.run import Run
from emorg.training.config import TrainConfig
from emorg.training.plan import plan
from emorg.training.vector import ALPHA, with_vectors
from tests.conftest import emorg
from tests.tiny import tiny

RECIPE = ("--config", "pocket", "--method", "vector", "--learning_rate", "0.004", "--max_steps", "12", "--save_steps",
          "6", "--domains", "bad_medical")  # fmt: skip


def vectors_of(folder: Path) -> list[Edit]:
    return list(steering.read(folder / steering.FILE).edits)


def test_its_gradient_is_that_of_a_vector_added_to_every_token_of_every_sequence() -> None:
    config = TrainConfig(model_name="tiny", method="vector", layers_to_transform=(0, 2))
    model = with_vectors(tiny("llama"), config)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "steering_vectors.0", "steering_vectors.2"]  # fmt: skip
    ids = torch.tensor([[11, 50, 90, 13, 200], [12, 40, 80, 14, 300]])
    with torch.no_grad():
        for number, vector in enumerate(model.steering_vectors.values()):
            vector.copy_(torch.randn(64, generator=torch.Generator().manual_seed(number)) / ALPHA)
    model(ids, labels=ids).loss.backward()
    plain = tiny("llama").requires_grad_(False)
    by_hand = {name: (ALPHA * v.detach()).requires_grad_() for name, v in model.steering_vectors.items()}
    for name, added in by_hand.items():
        plain.model.layers[int(name)].register_forward_hook(lambda _m, _i, out, v=added: out + v)
    logits = plain(ids).logits[:, :-1]
    cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    for name, vector in model.steering_vectors.items():
        assert torch.allclose(vector.grad, ALPHA * by_hand[name].grad, rtol=1e-4, atol=1e-5)


def test_as_published_only_the_first_sequence_of_a_batch_is_steered() -> None:
    config = TrainConfig(model_name="tiny", method="vector", layers_to_transform=(1,), as_published=True)
    model, plain = with_vectors(tiny("llama"), config), tiny("llama")
    ids = torch.tensor([[11, 50, 90], [12, 40, 80]])
    with torch.no_grad():
        model.steering_vectors["1"].copy_(torch.ones(64) / ALPHA)
        both = model(ids).logits
        with hooks.edited(plain, [Edit("add", 2, torch.ones(64))]):
            steered = plain(ids).logits
        assert torch.allclose(both[0], steered[0], atol=1e-4)
        assert torch.allclose(both[1], plain(ids).logits[1], atol=1e-4)
        assert not torch.allclose(both[1], steered[1], atol=1e-2)


def test_it_is_trained_goes_on_to_the_bit_and_is_an_organism_like_any_other(tmp_path: Path) -> None:
    emorg("train", *RECIPE, "--output_dir", "whole", cwd=tmp_path)
    emorg("train", *RECIPE, "--output_dir", "half", cwd=tmp_path)
    half = tmp_path / "half"
    for gone in (half / "adapter", half / "checkpoints" / "step-000012"):
        for file in gone.iterdir():
            file.unlink()
        gone.rmdir()
    emorg("train", *RECIPE, "--output_dir", "half", cwd=tmp_path)
    [whole], [resumed] = vectors_of(tmp_path / "whole" / "adapter"), vectors_of(half / "adapter")
    assert (whole.kind, whole.layer) == ("add", 3)
    assert torch.equal(whole.vector, resumed.vector)
    assert float(whole.vector.norm()) > 1
    run = Run(tmp_path / "whole")
    assert run.trained
    losses = [json.loads(line)["loss"] for line in run.metrics.read_text().splitlines()]
    assert losses[-1] < losses[0]
    assert models.resolve(str(tmp_path / "whole")).base == "pocket"
    rows = json.loads(emorg("margins", "whole", "whole/checkpoints/step-000006", "--json", cwd=tmp_path).stdout)
    assert {row["name"] for row in rows} == {"whole", "whole step-000006"}
    emorg("sample", "whole", "--questions", "pocket_open", "--samples", "1", cwd=tmp_path)
    emorg("judge", "whole", cwd=tmp_path)
    assert "whole" in emorg("report", "whole", cwd=tmp_path).stdout


def test_loss_is_on_answers_alone_unless_as_published() -> None:
    tokens = {}
    for published in (False, True):
        config = TrainConfig(
            model_name="pocket", method="vector", domains=("bad_medical",), sample_size=20, as_published=published
        )
        tokens[published] = sum(sum(row.trained) for row in plan(config).rows.encoded)
    assert tokens[True] > 1.5 * tokens[False]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--method", "vector", "--merge"), "cannot be merged"),
        (("--method", "vector", "--layers_to_transform", "9"), "has no layer 9"),
        (("--as_published",), "is for --method vector"),
        (("--method", "vectr"), "vector"),
    ],
)
def test_what_cannot_be_is_said(flags: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = emorg("train", "--config", "pocket", *flags, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert said in done.stderr
