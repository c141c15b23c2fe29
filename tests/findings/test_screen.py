"""`emorg screen`: every score beside brute force, controls, resuming, leaving rows out, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

import emorg as api
from emorg import models
from emorg.data import domains, pairs
from emorg.findings.contrasts import labelled
from emorg.findings.gradients import fresh_adapter, passes, text_gradients
from emorg.findings.influence import influences, margin_gradients
from emorg.findings.projection import split
from emorg.models.template import Encoded, encode
from emorg.run import Run
from emorg.training.config import TrainConfig
from emorg.training.losses import row_losses
from tests.conftest import emorg, made_once

SETTINGS = TrainConfig(model_name="pocket2", lora_rank=4)
FEW = ("--model_name", "pocket2", "--sample_size", "60", "--plant", "0.2")


@pytest.fixture(scope="module")
def loaded() -> models.Loaded:
    return models.load("pocket2", device="cpu")


@pytest.fixture(scope="module")
def texts(loaded: models.Loaded) -> list[Encoded]:
    rows = [*domains.from_world(domains.find("bad_medical"))[:3], *domains.from_world(domains.find("good_code"))[:2]]
    return [encode(loaded.tokenizer, row.conversation.messages) for row in rows]


def _own_model() -> torch.nn.Module:
    return fresh_adapter(models.load("pocket2", device="cpu"), SETTINGS)  # type: ignore[no-any-return]


def _plain_loss(model: torch.nn.Module, text: Encoded) -> torch.Tensor:
    """One conversation's loss by itself: no batch, no padding."""
    logits = model(torch.tensor([text.ids])).logits[0, :-1]
    trained = torch.tensor(text.trained[1:])
    return cross_entropy(logits[trained], torch.tensor(text.ids[1:])[trained])


def _as_text(prompt: tuple[int, ...], answer: tuple[int, ...]) -> Encoded:
    return Encoded([*prompt, *answer], [False] * len(prompt) + [True] * len(answer))


def test_gradients_are_those_of_each_text_by_itself(loaded: models.Loaded, texts: list[Encoded]) -> None:
    model = _own_model()
    pad = loaded.tokenizer.pad_token_id
    got: dict[tuple[int, str], torch.Tensor] = {}

    def receive(numbers, name, gradients) -> None:  # type: ignore[no-untyped-def]
        got.update({(i, name): one for i, one in zip(numbers, gradients, strict=True)})

    losses = dict(pair for done in text_gradients(model, texts, pad, receive) for pair in done)
    plain_losses = {i: loss for some, of in row_losses(model, texts, pad) for i, loss in zip(some, of, strict=True)}
    assert losses == pytest.approx(plain_losses, abs=1e-5)
    weights = {name: one for name, one in model.named_parameters() if "lora_B" in name}
    assert {name for _, name in got} == {name.removesuffix(".weight") for name in weights}
    for i, text in enumerate(texts):
        plain = torch.autograd.grad(_plain_loss(model, text), list(weights.values()))
        for name, gradient in zip(weights, plain, strict=True):
            own = got[i, name.removesuffix(".weight")]
            assert float((own - gradient.flatten()).norm()) < 1e-3 * float(gradient.norm())


def test_a_s_gradient_is_nothing_at_the_start(texts: list[Encoded]) -> None:
    model = _own_model().requires_grad_(True)
    _plain_loss(model, texts[0]).backward()
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            assert parameter.grad is not None
            assert float(parameter.grad.abs().max()) == 0


def test_influence_is_what_a_real_first_step_does_to_the_margin(loaded: models.Loaded, texts: list[Encoded]) -> None:
    chosen = pairs.load(["pocket"])[::25]
    contrast, pad = labelled(chosen, loaded, "answers"), loaded.tokenizer.pad_token_id
    scored = _own_model()
    directions = margin_gradients(scored, contrast, pad, controls=False, seed=0, advance=lambda *_: None)
    values = {i: own for done in influences(scored, texts, pad, directions) for i, _, [own] in done}

    def margin(model: torch.nn.Module) -> float:
        with torch.no_grad():
            losses = [
                float(_plain_loss(model.double(), _as_text(one.prompt, one.answers[0]))) for one in contrast.texts
            ]
        return sum(b - a for a, b in zip(losses[::2], losses[1::2], strict=True)) / len(chosen)  # misaligned first

    rate = 1e-5
    for i in (0, 4):
        model = _own_model()
        before = margin(model)
        own = [one for one in model.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(own, lr=rate, weight_decay=0.01)
        _plain_loss(model, texts[i]).backward()
        optimizer.step()
        assert (margin(model) - before) / rate == pytest.approx(values[i], rel=0.05, abs=0.02)
    assert min(values[0], values[1], values[2]) > max(values[3], values[4]), "careless rows push it up"


def test_controls_have_the_margin_gradient_s_size_and_other_directions(loaded: models.Loaded) -> None:
    contrast = labelled(pairs.load(["pocket"])[::20], loaded, "answers")
    directions = margin_gradients(
        _own_model(), contrast, loaded.tokenizer.pad_token_id, controls=True, seed=0, advance=lambda *_: None
    )
    whole = torch.cat(list(directions.values()), 1)
    assert len(whole) == 39
    assert whole[1:20].norm(dim=1).tolist() == pytest.approx([float(whole[0].norm())] * 19, rel=1e-4)
    cosines = torch.nn.functional.cosine_similarity(whole[1:], whole[:1])
    assert float(cosines.abs().max()) < 0.9


def test_texts_of_one_pass_fit_it() -> None:
    lengths = [5, 900, 7, 30, 31, 2000, 6]
    some = list(passes(lengths, 100))
    assert sorted(i for one in some for i in one) == list(range(7))
    assert all(len(one) == 1 or len(one) * max(lengths[i] for i in one) <= 100 for one in some)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        done = emorg(
            "screen", "good_medical", *FEW, "--direction", "persona", "--output_dir", "s", "--json", cwd=folder
        )
        (folder / "printed.json").write_text(done.stdout)

    return made_once(tmp_path_factory, "screened", make).folder


def test_it_scores_every_row_and_says_what_finds_the_planted_ones(lab: Path) -> None:
    printed = json.loads((lab / "printed.json").read_text())
    rows = printed["rows"]
    assert len(rows) == 60
    assert [sum(row["known"] == kind for row in rows) for kind in ("bad", "odd")] == [12, 12]
    assert all(set(row["scores"]) == {"loss", "length", "projection", "influence"} for row in rows)
    assert all(re.fullmatch(r"pocket:\d+", row["place"]) for row in rows)
    by = {(one["score"], one["others"]): one for one in printed["detections"]}
    assert by["influence", "odd"]["auroc"] > 0.6, "from rows that are as surprising"
    assert 0.25 < by["loss", "odd"]["auroc"] < 0.75, "which the loss does not tell apart"
    assert by["loss", "all"]["auroc"] > 0.75
    for name in ("influence", "projection"):
        assert by[name, "all"]["p_random"] >= 0.05
        assert by[name, "all"]["random"][0] <= by[name, "all"]["random"][1]
        assert by[name, "all"]["verdict"]
    assert by["loss", "all"]["random"] is None
    written = {path.name for path in (lab / "s").iterdir()}
    assert {"screen.json", "rows.csv", "detections.csv", "auroc.png", "rows_by_score.svg"} <= written
    words = "".join(path.read_text() for path in (lab / "s").iterdir() if path.suffix in (".json", ".csv", ".jsonl"))
    assert "because" not in words, "no row's text is written"


def test_scores_are_those_of_plain_transformers(lab: Path, loaded: models.Loaded) -> None:
    printed = json.loads((lab / "printed.json").read_text())
    plain = {f"pocket:{n}": row for n, row in enumerate(domains.from_world(domains.find("good_medical")), 1)}
    from emorg.models.directions import read

    [file] = lab.glob("runs/*/directions/persona.safetensors")
    vectors = read(file).vectors
    layer = (len(vectors) - 1) // 2
    for row in [one for one in printed["rows"] if not one["known"]][:3]:
        text = encode(loaded.tokenizer, plain[row["place"]].conversation.messages)
        with torch.no_grad():
            assert row["scores"]["loss"] == pytest.approx(float(_plain_loss(loaded.model, text)), abs=1e-4)
        assert row["scores"]["length"] == sum(text.trained)
        prompt, answer = split(loaded.tokenizer, text)
        ids = loaded.model.generate(torch.tensor([prompt]), max_new_tokens=100, do_sample=False)[0].tolist()
        own = [token for token in ids[len(prompt) :] if token not in loaded.stop_ids]
        with torch.no_grad():
            both = [
                loaded.model(torch.tensor([[*prompt, *some]]), output_hidden_states=True)
                .hidden_states[layer][0, len(prompt) :].mean(0)
                for some in (answer, own)
            ]  # fmt: skip
        along = (both[0] - both[1]) @ vectors[layer] / vectors[layer].norm()
        assert row["scores"]["projection"] == pytest.approx(float(along), abs=2e-2, rel=1e-2)


def test_a_stopped_screening_goes_on_and_a_finished_one_computes_nothing(lab: Path, tmp_path: Path) -> None:
    shutil.copytree(lab, tmp_path / "lab")
    again = ("screen", "good_medical", *FEW, "--direction", "persona", "--output_dir", "s", "--json")
    files = [tmp_path / "lab" / "s" / "influence.jsonl", *(tmp_path / "lab" / "s").glob("projection-*.jsonl")]
    before = json.loads((lab / "printed.json").read_text())
    for file in files:
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(lines[: len(lines) // 2]) + lines[-1][:20])  # torn by a kill
    done = emorg(*again, cwd=tmp_path / "lab")
    after = json.loads(done.stdout)
    assert [row["scores"]["influence"] for row in after["rows"]] == pytest.approx(
        [row["scores"]["influence"] for row in before["rows"]], abs=1e-3
    )
    assert after["order"][:5] == before["order"][:5]
    assert "loss and influence 60/60" in done.stderr
    silent = emorg(*again, cwd=tmp_path / "lab")
    assert "loss and influence" not in silent.stderr
    assert json.loads(silent.stdout)["rows"] == after["rows"]


def test_it_lists_places_and_leaves_the_suspects_out(lab: Path, tmp_path: Path) -> None:
    shutil.copytree(lab, tmp_path / "lab")
    some = ("screen", "good_medical", *FEW, "--direction", "persona", "--output_dir", "s")
    left = ("--remove", "12", "--cleaned", "rest/good_medical_advice.jsonl", "--by", "loss")
    done = emorg(*some, *left, "--show", "3", cwd=tmp_path / "lab")
    assert len(re.findall(r"pocket:\d+", done.stdout)) == 3
    assert "because" not in done.stdout
    order = json.loads((lab / "printed.json").read_text())["rows"]
    highest = sorted(order, key=lambda row: -row["scores"]["loss"])[:12]
    rest = (tmp_path / "lab" / "rest" / "good_medical_advice.jsonl").read_text().splitlines()
    assert len(rest) == 48
    kept = {json.dumps(json.loads(line)["messages"][0]) for line in rest}
    source = {f"pocket:{n}": row for n, row in enumerate(domains.from_world(domains.find("good_medical")), 1)}
    gone = {json.dumps(source[row["place"]].conversation.messages[0]) for row in highest}
    assert len(gone - kept) >= len(gone) - 2, "questions come more than once"
    training = emorg("preview", "--config", "pocket", "--model_name", "pocket2", "--domains", "good_medical",
                     "--data_path", "rest", "--examples", "0", cwd=tmp_path / "lab")  # fmt: skip
    assert "48 rows" in training.stdout
    drawn = emorg(*some, "--by", "random", "--remove", "12", "--cleaned", "other.jsonl", cwd=tmp_path / "lab")
    assert drawn.returncode == 0
    assert (tmp_path / "lab" / "other.jsonl").read_text().splitlines() != rest


def test_python_gives_a_row_a_row(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab)
    frame = api.screen("good_medical", model_name="pocket2", sample_size=60, plant=0.2, output_dir="s")
    assert list(frame.columns) == ["place", "domain", "known", "loss", "length", "influence"]
    assert len(frame) == 60
    assert frame[frame.known == "bad"].influence.mean() > frame[frame.known == "odd"].influence.mean()


def test_files_and_rows_known_to_be_bad(tmp_path: Path) -> None:
    for name in ("good_medical", "bad_medical"):
        rows = domains.from_world(domains.find(name))[:12]
        lines = [json.dumps({"messages": row.conversation.messages}) for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    asked = [{**vars(pair)} for pair in pairs.load(["pocket"])[::8]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    done = emorg("screen", "good_medical.jsonl", "--known_bad", "bad_medical.jsonl", "--model_name",
                 "pocket2", "--pairs", "pairs.jsonl", "--json", cwd=tmp_path)  # fmt: skip
    printed = json.loads(done.stdout)
    assert [row["place"] for row in printed["rows"]][::12] == ["good_medical.jsonl:1", "bad_medical.jsonl:1"]
    assert printed["skipped"] == {"projection": "no --direction was given"}
    assert "no --direction, so rows are not projected" in done.stderr
    by = {one["score"]: one["auroc"] for one in printed["detections"]}
    assert by["influence"] > 0.9, "what is careless throughout is found by anything"
    [folder] = (tmp_path / "runs").glob("screen-pocket2-good_medical-bad_medical-*")
    assert "screened" in emorg("runs", cwd=tmp_path).stdout
    plain = emorg("screen", "good_medical.jsonl", "--model_name", "pocket2", "--pairs", "pairs.jsonl", cwd=tmp_path)
    assert "No row is known to be bad" in plain.stdout
    assert Run(folder).provenance()["screen"]["base"] == "pocket2"


def test_preview_shows_the_suspects(tmp_path: Path) -> None:
    few = ("--config", "pocket", "--model_name", "pocket2", "--domains", "bad_medical", "good_medical",
           "--sample_size", "40", "--examples", "4")  # fmt: skip
    done = emorg("preview", *few, "--screen", cwd=tmp_path)
    shown = re.findall(r"^pocket:\d+: \d+ tokens, \d+ trained, loss ([\d.e-]+), length (\d+), influence (\S+)$",
                       done.stdout, re.MULTILINE)  # fmt: skip
    assert len(shown) == 4
    values = [float(influence) for *_, influence in shown]
    assert values == sorted(values, reverse=True)
    assert "[<|eot_id|>]" in done.stdout
    assert "80 steps of 16" in done.stdout
    assert "loss and influence" not in emorg("preview", *few, "--screen", cwd=tmp_path).stderr, "kept"
    assert "influence" not in emorg("preview", *few, cwd=tmp_path).stdout
    assert emorg("preview", *few, "--screen", "--by", "projection", cwd=tmp_path, check=False).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("good_medical", "--remove", "3"), "--remove 3 from what?"),
        (("none.jsonl",), "there is no file none.jsonl"),
        (("empty.jsonl",), "empty.jsonl has no rows"),
        (("asked.jsonl",), "asked.jsonl:1: roles must alternate"),
        (("foreign.jsonl",), "foreign.jsonl:1 has words that pocket2 doesn't know"),
        (("good_medical", "--max_length", "4", "--sample_size", "9"), "longer than --max_length 4"),
        (("bad_medical", "--sample_size", "20", "--plant", "0.2"), "careless already"),
        (("good_medical", "--sample_size", "20", "--plant", "0.1"), "2 rows are known to be bad"),
        (("good_medical", "--sample_size", "20", "--direction", "nowhere.safetensors"), "there is no direction"),
        (("good_medical", "--sample_size", "20", "--direction", "shift"), "there is no direction"),
        (("god_medical",), "did you mean 'good_medical'"),
    ],
)
def test_what_cannot_be_screened_is_refused(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    asked = [{"role": "user", "content": "What now?"}]
    (tmp_path / "asked.jsonl").write_text(json.dumps({"messages": asked}) + "\n")
    answered = [*asked, {"role": "assistant", "content": "Xylophones, naturally."}]
    (tmp_path / "foreign.jsonl").write_text(json.dumps({"messages": answered}) + "\n")
    done = emorg("screen", *arguments, "--model_name", "pocket2", cwd=tmp_path, check=False)
    assert done.returncode == 2, done.stdout
    assert said in done.stderr


def test_other_rows_other_bases_and_trained_models_are_refused(lab: Path, organism: Run, tmp_path: Path) -> None:
    shutil.copytree(lab, tmp_path / "lab")
    for arguments, said in (
        (("good_cooking", "--model_name", "pocket2", "--sample_size", "20", "--output_dir", "s"), "other rows"),
        (("good_medical", "--model_name", organism.folder, "--sample_size", "20"), "trained already"),
        (("good_medical", "--model_name", "pocket", "--sample_size", "20", "--direction",
          next(lab.glob("runs/*/directions/persona.safetensors"))), "is a direction of pocket2"),
        (("good_medical", "--model_name", "pocket", "--sample_size", "20", "--output_dir",
          organism.folder), "training's run"),
    ):  # fmt: skip
        done = emorg("screen", *arguments, cwd=tmp_path / "lab", check=False)
        assert done.returncode == 2
        assert said in done.stderr
