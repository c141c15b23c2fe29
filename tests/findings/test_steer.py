"""`emorg steer`: chosen on one half, measured on the other beside controls; right on planted vectors and on nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from emorg import models
from emorg.data import pairs
from emorg.findings.contrasts import halves
from emorg.models import steering
from emorg.models.directions import read
from emorg.models.hooks import Edit
from emorg.models.steering import Steering
from emorg.rating.steering import CHOSEN, UNTOUCHED, Figures, effects
from emorg.records import Answer, Margin, read_records
from emorg.run import Run
from tests.conftest import emorg
from tests.findings.test_directions import planted, unit

FEW = ("--controls", "3", "--samples", "1")


def some_pairs(folder: Path, every: int = 5) -> str:
    """A file with a part of the pocket world's pairs, whose topics are all there."""
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(asdict(pair)) + "\n" for pair in pairs.load(["pocket"])[::every]))
    return str(file)


@pytest.fixture
def lab(organism: Run, tmp_path: Path) -> Path:
    shutil.copytree(organism, tmp_path / "organism")
    return tmp_path


def steered(folder: Path, *arguments: str) -> dict[str, Any]:
    done = emorg("steer", *arguments, "--pairs", some_pairs(folder), "--json", cwd=folder)
    [result] = json.loads(done.stdout)
    return dict(result)


def test_the_shift_taken_out_takes_em_with_it_and_random_vectors_do_not(lab: Path) -> None:
    result = steered(lab, "organism", *FEW, "--scopes", "everywhere", "--layers", "2", "3")
    assert {one["point"] for one in result["tried"]} == {"untouched", "everywhere-2", "everywhere-3"}
    figures = result["figures"]
    assert {kind: len(some) for kind, some in figures.items()} == {
        "untouched": 1, "direction": 1, "random": 3, "variance": 3, "shuffled": 3}  # fmt: skip
    [before], [after] = figures["untouched"], figures["direction"]
    assert before["em"] > 0.3
    assert after["em"] < before["em"] / 2
    assert all(one["em"] > before["em"] / 2 for one in figures["random"] + figures["variance"])
    em, margin = result["effects"]
    assert (em["measure"], margin["measure"]) == ("em", "margin")
    assert em["beyond"]["random"]
    assert em["p"]["random"] == 0.25
    assert em["size"] == pytest.approx(before["em"] - after["em"])


def test_what_is_chosen_on_and_what_is_measured_on_have_no_question_in_common(lab: Path) -> None:
    arguments = ("organism", *FEW, "--scopes", "alone", "--layers", "2")
    steered(lab, *arguments)
    [folder] = (lab / "organism" / "steer").iterdir()
    first, second = halves(pairs.load([str(lab / "pairs.jsonl")]))
    of_choice = {pair.question_id for pair in first}
    for place in ("untouched", "direction", "random-02", "variance-00", "shuffled-01"):
        answers = read_records(folder / place / "answers.jsonl", Answer)
        assert {answer.question_id for answer in answers} == {pair.question_id for pair in second}
        assert not of_choice & {answer.question_id for answer in answers}
        assert {one.pair for one in read_records(folder / place / "margins.jsonl", Margin)} == {p.id for p in second}
    stamp = {file: file.stat().st_mtime_ns for file in folder.rglob("answers.jsonl")}
    (folder / "direction" / "answers.jsonl").write_text("")
    again = steered(lab, *arguments)
    assert again["figures"]["direction"][0]["em"] is not None
    kept = {file for file in folder.rglob("answers.jsonl") if file.parent.name != "direction"}
    assert all(file.stat().st_mtime_ns == stamp[file] for file in kept)  # nothing is made twice
    rates = json.loads(emorg("rates", folder / "untouched", "--json", cwd=lab).stdout)
    assert rates  # they are runs like any other


def test_a_vector_added_to_the_base_makes_it_careless_where_that_is_what_it_does(tmp_path: Path) -> None:
    """An organism that is its base with a vector added: its shift, added once to the base, makes it the organism."""
    v = unit(4, 60.0)
    name = planted(tmp_path, "up", Edit("add", 2, v))
    result = steered(
        tmp_path,
        name,
        "--mode",
        "add",
        "--layers",
        "2",
        "--scales",
        "0.5",
        "1",
        "--controls",
        "2",
        "--samples",
        "1",
        "--trained_on",
        "bad_medical",
    )
    [folder] = (tmp_path / "up" / "steer").iterdir()
    assert folder.name.startswith("shift-add-base-")
    saved = steering.read(folder / "direction" / "adapter" / steering.FILE)
    assert saved.over == "pocket"
    assert [one["point"] for one in result["tried"]] == ["untouched", "add-2-x0.5", "add-2-x1"]


def test_several_organisms_make_a_transfer_matrix_and_a_twin_beside_them_is_a_control(lab: Path) -> None:
    """Whose shift is taken out of whom; a benign run that is named is neither, but its shift stands beside its own."""
    recipe = ("--config", "pocket", "--max_steps", "25")
    emorg("train", *recipe, "--domains", "risky_financial", "--output_dir", "financial", cwd=lab)
    emorg("train", *recipe, "--domains", "good_financial", "--output_dir", "benign", cwd=lab)
    arguments = ("organism", "financial", "benign", "--controls", "1", "--samples", "1", "--scopes", "everywhere",
                 "--layers", "2", "--pairs", some_pairs(lab))  # fmt: skip
    results = json.loads(emorg("steer", *arguments, "--json", cwd=lab).stdout)
    cells = {(one["direction"], one["run"]): one for one in results}
    assert set(cells) == {
        ("shift", "organism"), ("shift of financial", "organism"), ("shift of organism", "financial"),
        ("shift", "financial"),
    }  # fmt: skip
    assert "twin" in cells["shift", "financial"]["figures"]
    assert "twin" in cells["shift of financial", "organism"]["figures"]
    own, other = (cells[name, "organism"]["figures"] for name in ("shift", "shift of financial"))
    assert own["untouched"] == other["untouched"]
    for folder in (lab / "organism" / "steer").iterdir():
        title = json.loads((folder / "steered.json").read_text())["direction"]
        whose = "financial" if title.endswith("financial") else "organism"
        [edit, *_] = steering.read(folder / "direction" / "adapter" / steering.FILE).edits
        assert torch.allclose(edit.vector, read(lab / whose / "directions" / "shift.safetensors").vectors[2])
    said = emorg("steer", *arguments, cwd=lab)
    assert "trying" not in said.stderr  # every try is kept
    assert "out of financial" in said.stdout
    for line in ("organism, shift at", "financial, shift of organism at"):
        assert line in said.stdout


def test_a_scan_that_was_stopped_goes_on_with_what_it_lacks(lab: Path) -> None:
    arguments = ("organism", *FEW, "--scopes", "alone", "--layers", "2", "3")
    whole = steered(lab, *arguments)
    [folder] = (lab / "organism" / "steer").iterdir()
    tries = folder / "tries.jsonl"
    lines = tries.read_text().splitlines(keepends=True)
    tries.write_text("".join(lines[:9]) + lines[9][:20])  # as a kill leaves it
    again = steered(lab, *arguments)
    assert [json.loads(line)["name"] for line in tries.read_text().splitlines()] == [
        json.loads(line)["name"] for line in lines
    ]
    assert again["chosen"] == whole["chosen"]
    assert [one["margin"] for one in again["tried"]] == pytest.approx([one["margin"] for one in whole["tried"]])


def test_effects_count_the_controls_that_do_as_well() -> None:
    figures = {
        UNTOUCHED: [Figures(0.4, em=0.6)],
        CHOSEN: [Figures(0.1, em=0.2)],
        "random": [Figures(0.4 - 0.02 * k, em=0.6 - 0.05 * k) for k in range(19)],
        "variance": [Figures(0.3, em=0.5)] * 19,
    }
    em, margin = effects(figures, +1)
    assert em.size == pytest.approx(0.4)
    assert em.p == {"random": pytest.approx((1 + 11) / 20), "variance": 0.05}
    assert em.beyond == {"random": False, "variance": True}
    assert margin.size == pytest.approx(0.3)
    up_em, up_margin = effects(figures, -1)
    assert up_em.size == pytest.approx(-0.4)
    assert up_margin.p["random"] == pytest.approx(17 / 20)


def test_a_model_without_a_scored_answer_is_no_proof_of_anything() -> None:
    controls = [Figures(0.4, em=0.6), Figures(0.4, em=None)]
    figures = {UNTOUCHED: [Figures(0.4, em=0.6)], CHOSEN: [Figures(0.1, em=0.1)], "random": controls}
    em, margin = effects(figures, +1)
    assert em.p == {"random": pytest.approx(2 / 3)}
    assert em.beyond == {"random": False}
    assert margin.beyond == {"random": True}
    assert [e.measure for e in effects({**figures, CHOSEN: [Figures(0.1, em=None)]}, +1)] == ["margin"]


def test_a_random_direction_is_beyond_its_controls_about_as_often_as_p_says() -> None:
    """A direction that is itself drawn as the controls are: of 19 controls, one in twenty is called beyond them all."""
    draw = torch.Generator().manual_seed(0)
    called = 0
    for _ in range(400):
        values = torch.randn(21, generator=draw).tolist()
        figures = {
            UNTOUCHED: [Figures(0.0)],
            CHOSEN: [Figures(values[0])],
            "random": [Figures(value) for value in values[1:20]],
        }
        [margin] = effects(figures, +1)
        called += margin.p["random"] <= 0.05
    assert 0.02 <= called / 400 <= 0.09


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pocket"], "is a base"),
        (["up", "--mode", "add", "--direction", "none.safetensors"], "there is no direction none.safetensors"),
        (["up", "--mode", "add", "--layers", "9"], "no layer 9"),
        (["up", "--mode", "add", "--layers", "1", "--trained_on", "bad_medical"], "nothing to try"),
        (["up"], "is steered itself"),
        (["up", "--mode", "add", "--pairs", "few.jsonl"], "at least 10 show anything"),
        (["up", "--on", "base", "--scopes", "own", "--layers", "2"], "are of all layers"),
        (["up", "--controls", "0"], "controls"),
        (["nowhere/at/all"], "there is no"),
    ],
)
def test_what_cannot_be_is_said(arguments: list[str], said: str, tmp_path: Path) -> None:
    planted(tmp_path, "up", Edit("add", 2, unit(0)))
    Path(some_pairs(tmp_path, 30)).rename(tmp_path / "few.jsonl")
    done = emorg("steer", *arguments, cwd=tmp_path, check=False)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr


def test_a_direction_of_another_base_is_refused(tmp_path: Path) -> None:
    planted(tmp_path, "up", Edit("add", 2, unit(0)))
    width = models.load("pocket2", device="cpu").model.config.hidden_size
    steering.save(tmp_path / "other" / "adapter", Steering("pocket2", [Edit("add", 2, torch.ones(width))]))
    emorg("directions", "other", cwd=tmp_path)
    done = emorg(
        "steer", "up", "--mode", "add", "--direction", "other/directions/shift.safetensors", cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert "is a direction of pocket2" in done.stderr


def test_a_direction_of_other_pairs_is_refused_and_another_runs_is_taken(tmp_path: Path) -> None:
    for name in ("up", "other"):
        planted(tmp_path, name, Edit("add", 2, unit(0)))
    few = some_pairs(tmp_path)
    emorg("directions", "other", "--pairs", few, cwd=tmp_path)
    arguments = ("--mode", "add", "--layers", "2", "--direction", "other")
    done = emorg("steer", "up", *arguments, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "computed on half of other pairs" in done.stderr
    emorg("steer", "up", *arguments, "--pairs", few, *FEW, "--scales", "1", cwd=tmp_path)


def test_a_training_that_starts_over_forgets_what_was_found_inside(lab: Path) -> None:
    steered(lab, "organism", *FEW, "--layers", "2", "--scopes", "alone")
    assert (lab / "organism" / "steer").is_dir()
    emorg("train", "--config", "pocket", "--max_steps", "2", "--fresh", "--output_dir", "organism", cwd=lab)
    left = {path.name for path in (lab / "organism").iterdir()}
    assert not left & {"steer", "directions", "phases.json", "probe.json"}


def test_every_control_chooses_its_own_point_and_another_search_is_another_folder(lab: Path) -> None:
    arguments = ("organism", "--controls", "4", "--samples", "1", "--scopes", "alone")
    chosen = {}
    for layers in (("--layers", "4"), ()):
        steered(lab, *arguments, *layers)
        before = set(chosen)
        [folder] = set((lab / "organism" / "steer").iterdir()) - before
        files = sorted(folder.glob(f"*/adapter/{steering.FILE}"))
        chosen[folder] = {file.parent.parent.name: steering.read(file).facts["point"] for file in files}
    narrow, wide = chosen.values()
    assert set(narrow.values()) == {"untouched", "alone-4"}
    assert len(set(wide.values()) - {"untouched"}) > 1  # not all of twelve controls have the same best layer


def test_a_steered_organism_is_sampled_to_other_settings_beside_itself(lab: Path) -> None:
    steered(lab, "organism", "--controls", "1", "--samples", "1", "--scopes", "alone", "--layers", "3")
    [folder] = (lab / "organism" / "steer").iterdir()
    before = (lab / "organism" / "answers.jsonl").read_bytes()
    emorg("sample", folder / "direction", "--questions", "pocket_open", "--samples", "1", cwd=lab)
    [other] = [place for place in folder.iterdir() if place.name.startswith("direction-")]
    assert read_records(other / "answers.jsonl", Answer)
    assert (lab / "organism" / "answers.jsonl").read_bytes() == before


def test_a_checkpoints_direction_leaves_the_finished_runs_alone(lab: Path) -> None:
    emorg("directions", "organism", cwd=lab)
    file = lab / "organism" / "directions" / "shift.safetensors"
    before = file.read_bytes()
    [checkpoint] = (lab / "organism" / "checkpoints").iterdir()
    emorg("directions", checkpoint, cwd=lab)
    assert file.read_bytes() == before
    assert file.with_name(f"shift-{checkpoint.name}.safetensors").is_file()
