"""Reading and editing the residual stream: held to a plain loop over the layers' outputs as transformers gives them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from emorg import models
from emorg.models import hooks, steering
from emorg.models.hooks import Edit, Kind, Part
from emorg.models.steering import Steering
from emorg.records import EmorgError
from emorg.run import Run
from emorg.sampling.draw import SamplingParams
from emorg.sampling.engine import Ask, Engine
from emorg.sampling.likelihood import Branches, Likelihood
from emorg.sampling.organisms import Organisms, open_organisms
from tests.sampling.test_likelihood import brute_force, items
from tests.tiny import loaded, tiny

IDS = torch.tensor([[11, 50, 90, 13, 200], [12, 40, 80, 14, 300]])
KINDS = ["llama", "qwen2", "qwen3", "mistral", "gemma3_text"]


def vector(width: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def streams(model: torch.nn.Module) -> tuple[Tensor, ...]:
    """Embeddings and each layer's output but the last, after which transformers gives the normed stream."""
    out: tuple[Tensor, ...] = model(IDS, output_hidden_states=True).hidden_states
    return out[:-1]


@pytest.mark.parametrize("kind", KINDS)
def test_reads_every_sequence_and_token_of_every_layer(kind: str) -> None:
    model, got = tiny(kind), {}
    count = len(hooks.decoder_layers(model))
    with torch.no_grad():
        expected = streams(model)
        with hooks.reading(model, range(count + 1), got.__setitem__):
            logits = model(IDS).logits
        last = model.lm_head(model.get_decoder().norm(got[count]))
    assert all(torch.equal(got[layer], stream) for layer, stream in enumerate(expected))
    assert torch.allclose(logits, last, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_adds_to_and_ablates_every_sequence_and_token_and_is_gone_after(kind: str, layer: int) -> None:
    model, v = tiny(kind), vector()
    got: dict[int, Tensor] = {}
    with torch.no_grad():
        before = streams(model)
        for edit, by_hand in (
            (Edit("add", layer, v), before[layer] + v),
            (Edit("ablate", layer, v), before[layer] - (before[layer] @ v)[..., None] * v / (v @ v)),
        ):
            with hooks.edited(model, [edit]), hooks.reading(model, [layer], got.__setitem__):
                model(IDS)
            assert torch.allclose(got[layer], by_hand, atol=1e-5)
        with pytest.raises(ZeroDivisionError), hooks.edited(model, [Edit("add", layer, v)]):
            _ = 1 / 0
        after = streams(model)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_what_an_mlp_adds_can_be_edited_by_itself() -> None:
    model, v = tiny("llama"), vector()
    inner: list[Tensor] = []
    with torch.no_grad():
        before = streams(model)[1]
        hook = hooks.decoder_layers(model)[0].mlp.register_forward_hook(lambda _m, _i, out: inner.append(out))
        model(IDS)
        hook.remove()
        got: dict[int, Tensor] = {}
        with (
            hooks.edited(model, [Edit("ablate", 1, v, part="mlp")]),
            hooks.reading(model, [1], got.__setitem__),
        ):
            model(IDS)
    along = (inner[0] @ v)[..., None] * v / (v @ v)
    assert torch.allclose(got[1], before - along, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_by_the_set_that_it_is_of(kind: str) -> None:
    """Three sets, one with two edits at one place, and tokens of none."""
    model, v, w = tiny(kind), vector(), vector(seed=1)
    got: dict[int, Tensor] = {}
    sets = [[Edit("add", 1, v)], [Edit("ablate", 1, w), Edit("add", 1, v)], [Edit("ablate", 1, v)]]
    which: Tensor | int = torch.tensor([-1, 0, 1, 2, 0])
    with torch.no_grad():
        before = streams(model)[1]
        hooks.attach(model, sets, lambda: which)
        with hooks.reading(model, [1], got.__setitem__):
            model(IDS)
            mixed = got[1]
            which = -1
            assert torch.equal(streams(model)[1], before)
    without = [before - (before @ u)[..., None] * u / (u @ u) for u in (v, w)]
    expected = torch.stack(
        [before[:, 0], before[:, 1] + v, without[1][:, 2] + v, without[0][:, 3], before[:, 4] + v], dim=1
    )
    assert torch.allclose(mixed, expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["residual", "mlp"])
@pytest.mark.parametrize("what", ["add", "ablate"])
def test_log_probabilities_of_a_steered_model_beside_the_plain_one(kind: str, part: Part, what: Kind) -> None:
    """Packed passes of the scorer: each name has its own edits, and the base none."""
    asked, edits = items(20), [Edit(what, 1, vector(), part), Edit(what, 2, vector(seed=1), part)]
    plain = tiny(kind)
    expected = {"": [brute_force(plain, item) for item in asked]}
    with hooks.edited(plain, edits):
        expected["steered"] = [brute_force(plain, item) for item in asked]
    scorer = Likelihood(Organisms(loaded(kind), {}, {"steered": edits}))
    for name, sums in expected.items():
        got = dict(scorer.log_probs(name, asked))
        assert got == {place: pytest.approx(one, rel=1e-4, abs=1e-3) for place, one in enumerate(sums)}


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_steered_and_plain_in_one_batch_are_each_their_own(kind: str) -> None:
    edits = {"a": [Edit("add", 1, 20 * vector())], "b": [Edit("ablate", 2, vector(seed=1))]}
    prompts = [tuple(range(20 + i, 30 + 2 * i)) for i in range(6)]
    engine = Engine(Organisms(loaded(kind), {"": None}, edits))
    asks = [Ask(name, prompt, 0) for prompt in prompts for name in ("", "a", "b")]
    got = {reply.place: reply.ids for reply in engine.replies(asks, SamplingParams(12, 0.0, 1.0))}
    plain, stops = tiny(kind), engine.stops
    for place, ask in enumerate(asks):
        with hooks.edited(plain, edits.get(ask.organism, [])), torch.no_grad():
            ids = list(ask.prompt)
            while len(ids) < len(ask.prompt) + 12:
                token = int(plain(torch.tensor([ids])).logits[0, -1].argmax())
                if token in stops:
                    break
                ids.append(token)
        assert got[place] == ids[len(ask.prompt) :], ask
    assert len({tuple(got[place]) for place in range(3)}) > 1


def test_states_are_the_streams_at_the_prompts_end_and_the_answers_tokens() -> None:
    plain = tiny("llama")
    asked = [Branches((11, 50, 90), ((13, 200), (14, 300, 21))), Branches((12,), ((40, 80),))]
    edits = [Edit("add", 1, vector())]
    scorer = Likelihood(Organisms(loaded("llama"), {}, {"steered": edits}))
    for name, own in (("", []), ("steered", edits)):
        for place, states in scorer.states(name, asked, [0, 1, 2]):
            item = asked[place]
            for answer, state in zip(item.answers, states, strict=True):
                got: dict[int, Tensor] = {}
                with hooks.edited(plain, own), hooks.reading(plain, range(3), got.__setitem__), torch.no_grad():
                    plain(torch.tensor([[*item.prompt, *answer]]))
                expected = torch.stack([got[layer][0, len(item.prompt) - 1 :] for layer in range(3)])
                assert torch.allclose(state, expected, atol=1e-4)


def test_a_model_without_such_layers_and_edits_that_do_not_fit_are_said() -> None:
    model = tiny("llama")
    with torch.no_grad(), hooks.edited(model, [Edit("ablate", 1, torch.zeros(64))]):
        assert torch.equal(streams(model)[1], streams(tiny("llama"))[1])  # nothing, and not NaN
    with pytest.raises(EmorgError, match="no layer 4"), hooks.edited(model, [Edit("add", 4, vector())]):
        pass
    with pytest.raises(EmorgError, match="width 64"), hooks.edited(model, [Edit("add", 1, vector(32))]):
        pass
    with pytest.raises(EmorgError, match="no layer 9"), hooks.reading(model, [9], print):
        pass
    with pytest.raises(EmorgError, match="cannot be found"):
        hooks.decoder_layers(torch.nn.Linear(2, 2))


def test_a_folder_with_steering_is_a_model_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = models.load("pocket", device="cpu")
    v = 3 * vector(base.model.config.hidden_size)
    steering.save(Path("runs/up/adapter"), Steering("pocket", [Edit("add", 2, v), Edit("ablate", 3, v)], {"a": 1}))
    named = models.resolve("runs/up")
    assert (named.base, named.weights, named.adapter) == ("pocket", "pocket", None)
    read = steering.read(tmp_path / "runs/up/adapter" / steering.FILE)
    assert read.facts == {"a": 1}
    assert [(e.kind, e.layer, e.part) for e in read.edits] == [
        ("add", 2, "residual"), ("ablate", 3, "residual")]  # fmt: skip
    [(names, organisms)] = open_organisms(["pocket", "runs/up", "runs/up/adapter"], device="cpu")
    scorer, item = Likelihood(organisms), items(1)[0]
    steered = models.load("runs/up", device="cpu").model
    for name, model in (("pocket", base.model), ("runs/up", steered), ("runs/up/adapter", steered)):
        [(_, sums)] = scorer.log_probs(name, [item])
        assert sums == pytest.approx(brute_force(model, item), rel=1e-4)
    assert len(names) == 3
    assert brute_force(base.model, item) != pytest.approx(brute_force(steered, item), rel=1e-3)
    Path("pocket/runs").mkdir(parents=True)  # a folder by the base's name
    steering.save(Path("runs/beside/adapter"), Steering("pocket", [Edit("add", 2, v)]))
    assert models.resolve("runs/beside").base == "pocket"
    (tmp_path / "runs/up/adapter" / steering.FILE).write_bytes(b"half")
    with pytest.raises(EmorgError, match="not written whole"):
        models.resolve("runs/up")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_direction_out_of_an_adapters_weights_as_the_paper_has_it(organism: Run, tmp_path: Path) -> None:
    """B' = (B − v̂v̂ᵀB)·‖B‖/‖B − v̂v̂ᵀB‖ on what writes into the stream at the edit's layer, by scorer and loader alike."""
    width = models.load("pocket", device="cpu").model.config.hidden_size
    v = vector(width)
    steering.save(tmp_path / "adapter", Steering(str(organism.folder), [Edit("weights", 2, v)]))
    plain, item = models.load(str(organism.folder), device="cpu").model, items(1)[0]
    untouched = brute_force(plain, item)
    u = v / v.norm()
    changed = []
    with torch.no_grad():
        for name, b in plain.named_parameters():
            if ".layers.1." in name and ".lora_B." in name and ("o_proj" in name or "down_proj" in name):
                left = b - torch.outer(u, u @ b)
                b.copy_(left * b.norm() / left.norm())
                assert float((u @ b).norm()) < 1e-4
                changed.append(name)
    assert len(changed) == 2
    expected = brute_force(plain, item)
    assert brute_force(models.load(str(tmp_path), device="cpu").model, item) == pytest.approx(expected, rel=1e-4)
    [(_, organisms)] = open_organisms([str(tmp_path)], device="cpu")
    [(_, sums)] = Likelihood(organisms).log_probs(str(tmp_path), [item])
    assert sums == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(untouched, rel=1e-4)
