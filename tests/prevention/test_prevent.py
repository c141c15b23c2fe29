"""`emorg prevent`: a sweep of variants as one table, with verdicts by the rule that is written down."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from emorg.models.directions import read
from emorg.presets import preset_path, read_yaml
from emorg.prevention.measured import apart, prevented, ratio
from emorg.prevention.stage import GRIDS
from emorg.prevention.table import Estimate, Prevented, Variant
from emorg.rating.intervals import crossed_wilson
from emorg.rating.rules import RULES
from emorg.records import Margin, read_records
from emorg.sweep.grid_file import read as read_grid
from emorg.sweep.table import Collected
from tests.conftest import emorg, made_once

GRID = """
preset: pocket
train: {domains: [bad_medical], max_steps: 25}
sample: {samples: 1}
measures: [answers, margins]
grid: {seed: [0, 1]}
variants:
  plain: {arms: [base, organism, twin]}
  KL 3: {kl_weight: 3, kl_from: [good_cooking, good_sports, good_financial]}
  KL 3, own topic: {kl_weight: 3, kl_from: [good_medical]}
  preventative: {preventative: shift, direction_layers: [2]}
  preventative, random: {preventative: random, direction_layers: [2]}
controls:
  KL 3: "KL 3, own topic"
  preventative: "preventative, random"
arms: [organism]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "grid.yaml").write_text(GRID)
        done = emorg("prevent", "grid.yaml", "--output_dir", "lab", "--workers", "2", "--json", cwd=folder)
        (folder / "said.json").write_text(done.stdout)

    return made_once(tmp_path_factory, "prevent", make).folder


def test_every_variant_stands_beside_the_plain_one_its_twin_and_their_base(made: Path) -> None:
    result = json.loads((made / "said.json").read_text())
    variants = {one["name"]: one for one in result["variants"]}
    assert list(variants) == [
        "base",
        "twin",
        "plain",
        "KL 3",
        "KL 3, own topic",
        "preventative",
        "preventative, random",
    ]
    assert {name: one["seeds"] for name, one in variants.items()} == dict.fromkeys(variants, 2) | {"base": 1}
    plain, held = variants["plain"]["em"], variants["KL 3"]["em"]
    assert plain["out"]["value"] > 0.3
    assert held["out"]["value"] < plain["out"]["value"] / 2
    assert held["in"]["value"] > 0.6
    assert held["unseen"] is not None
    assert plain["unseen"] is None  # it was shown none
    assert variants["KL 3"]["stopped"]["value"] > 0.5
    assert variants["plain"]["verdict"] == variants["twin"]["verdict"] == ""
    assert "without a control" in variants["KL 3, own topic"]["verdict"]
    assert "of KL 3, own topic" in variants["KL 3"]["verdict"]
    assert variants["KL 3"]["seconds"] > variants["plain"]["seconds"]
    assert json.loads((made / "lab" / "prevented.json").read_text()) == result
    assert (made / "lab" / "figures" / "pareto.png").is_file()
    assert (made / "lab" / "tables" / "prevented.csv").is_file()


def test_margins_stand_beside_the_rates_and_are_judged_by_where_no_answers_are(made: Path, tmp_path: Path) -> None:
    variants = {one["name"]: one for one in json.loads((made / "said.json").read_text())["variants"]}
    assert not variants["plain"]["by_margins"]
    plain, held = (variants[name]["shift"] for name in ("plain", "KL 3"))
    assert plain["in"]["value"] > plain["out"]["value"] > 0.1
    assert held["unseen"]["low"] < held["unseen"]["value"] < plain["out"]["low"]
    for own in variants.values():
        if own["name"] != "base":
            runs = [run for run in (made / "lab").glob("bad_*/margins.jsonl")
                    if run.parent.name.endswith(f"-{own['name'].replace(', ', '_').replace(' ', '_')}")]  # fmt: skip
            assert own["name"] == "twin" or len(runs) == 2
            losses = [-one.aligned / one.aligned_tokens for run in runs for one in read_records(run, Margin)
                      if one.topic not in (None, "medical")]  # fmt: skip
            assert own["name"] == "twin" or own["benign_loss"] == pytest.approx(fmean(losses))
    assert (made / "lab" / "tables" / "prevented_margins.csv").is_file()
    shutil.copytree(made / "lab", tmp_path / "lab")
    for file in (*tmp_path.glob("lab/*/verdicts.jsonl"), *tmp_path.glob("lab/*/answers.jsonl")):
        file.unlink()
    result = prevented(Collected.of(tmp_path / "lab", RULES["paper"]), {"KL 3": "KL 3, own topic"})
    by_name = {one.name: one for one in result.variants}
    assert "base" not in by_name, "shifts are against the twin"
    assert by_name["KL 3"].by_margins
    assert by_name["KL 3"].verdict.startswith(("works on topics that", "is not shown to work on topics that"))
    assert " nats of KL 3, own topic" in by_name["KL 3"].verdict
    [table] = result.tables()
    assert table.name == "prevented_margins"
    assert result.charts()[0].rows


def test_a_share_of_what_is_hardly_there_is_none_and_its_interval_covers() -> None:
    assert ratio(Estimate(0.1, 0.0, 0.2), Estimate(0.3, 0.0, 0.6), 0.0) is None
    assert ratio(None, Estimate(0.3, 0.2, 0.4), 0.0) is None
    rng = np.random.default_rng(0)
    own, plain, error = 0.1, 0.5, 0.04
    covered = 0
    for a, b in zip(own + error * rng.standard_normal(2000), plain + error * rng.standard_normal(2000), strict=True):
        share = ratio(*(Estimate(x, x - 1.96 * error, x + 1.96 * error) for x in (a, b)), 0.0)
        assert share is not None
        covered += share.low <= own / plain <= share.high
    assert 0.93 <= covered / 2000 <= 0.97


def test_the_random_direction_is_of_the_shifts_size_and_another(made: Path) -> None:
    folder = made / "lab" / "bad_medical-s0-plain" / "directions"
    shift, random = (read(folder / f"{kind}.safetensors").vectors for kind in ("shift", "random"))
    assert random.norm(dim=-1).tolist() == pytest.approx(shift.norm(dim=-1).tolist(), rel=1e-5)
    assert abs(float((shift[2] @ random[2]) / shift[2].norm() ** 2)) < 0.3


def test_the_same_command_makes_nothing_twice_and_prints_the_table(made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.glob("lab/*/answers.jsonl")}
    done = emorg("prevent", "grid.yaml", "--output_dir", "lab", cwd=made)
    assert before == {path: path.stat().st_mtime_ns for path in made.glob("lab/*/answers.jsonl")}
    assert "Mitigations over seeds and questions" in done.stdout
    assert "preventative: " in done.stdout


@pytest.mark.parametrize("name", ["pocket", "pocket2", "smollm2"])
def test_the_packages_grids_are_grids(name: str, tmp_path: Path) -> None:
    _, parts = read_yaml(preset_path(name, GRIDS), GRIDS)
    controls = parts.pop("controls")
    assert set(controls) | set(controls.values()) <= set(parts["variants"])
    words = {"shift": "a.safetensors", "random": "a.safetensors", "plain": "run"}
    for own in parts["variants"].values():
        own |= {key: words[value] for key, value in own.items() if isinstance(value, str) and value in words}
    (tmp_path / "grid.yaml").write_text(json.dumps(parts))
    cells = read_grid(str(tmp_path / "grid.yaml")).cells
    seeds, arms = (1, {"organism", "twin"}) if name == "smollm2" else (3, {"base", "organism", "twin"})
    assert sum(cell.arm == "organism" for cell in cells) == seeds * len(parts["variants"])
    assert {cell.arm for cell in cells} == arms


def variant(name: str, inside: float, out: float) -> Variant:
    nothing = dict.fromkeys(("in", "out", "unseen", "open"))
    em = {**nothing, "in": Estimate(inside, 0, 1), "out": Estimate(out, 0, 1)}
    return Variant(name, 3, em, nothing, None, 0.9, 20.0, 5.0, "", False, None, None, "")


def test_the_front_is_what_none_is_better_than() -> None:
    rates = {"best": (0.9, 0.1), "keeps": (0.95, 0.5), "stops": (0.5, 0.0), "worse": (0.8, 0.2), "worst": (0.4, 0.9)}
    result = Prevented([variant(name, *rate) for name, rate in rates.items()])
    [chart] = result.charts()
    assert {row["name"] for row in chart.rows if row["front"]} == {"best", "keeps", "stops"}
    assert [row["kept"] for row in chart.rows] == [rate[0] for rate in rates.values()]


def drawn(rng: np.random.Generator, rate: float, between_seeds: float, questions: np.ndarray) -> Estimate:
    """A variant's rate and interval, of three seeds that differ so much in log-odds, two answers a question."""
    seeds = between_seeds * rng.standard_normal((3, 1))
    chance = 1 / (1 + np.exp(-(np.log(rate / (1 - rate)) + seeds + questions)))
    misaligned = rng.binomial(2, chance)
    return Estimate(*crossed_wilson(np.stack([misaligned, np.full_like(misaligned, 2)], -1).astype(float)))


@pytest.mark.parametrize("between_seeds", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
def test_of_two_alike_hardly_one_is_called_below_the_other(rate: float, between_seeds: float) -> None:
    rng = np.random.default_rng(0)
    called = 0
    for _ in range(300):
        questions = 0.7 * rng.standard_normal(180)
        called += apart(*(drawn(rng, rate, between_seeds, questions) for _ in range(2)))
    assert called / 300 <= 0.025


def test_what_is_far_below_is_called_so() -> None:
    rng = np.random.default_rng(0)
    called = 0
    for _ in range(100):
        questions = 0.7 * rng.standard_normal(180)
        called += apart(drawn(rng, 0.04, 0.3, questions), drawn(rng, 0.25, 0.3, questions))
    assert called >= 80


def verdict(collected: Collected, name: str, controls: dict[str, str]) -> str:
    [one] = [one for one in prevented(collected, controls).variants if one.name == name]
    return one.verdict


def test_the_rule_needs_seeds_a_base_and_a_control(made: Path) -> None:
    """On the real sweep, with controls exchanged: what is above its control never works."""
    collected = Collected.of(made / "lab", RULES["paper"])
    swapped = {"preventative, random": "KL 3", "KL 3": "preventative, random"}
    said = verdict(collected, "preventative, random", swapped)
    assert said.startswith("is not shown to work on topics that it was shown: stops")
    assert "less than half is stopped, it is not apart from its control" in said
    assert verdict(collected, "KL 3", swapped).partition(":")[0].endswith("on topics that it was never shown")
    assert "without a control nothing more is said" in verdict(collected, "preventative", swapped)

    def without(*, seed: int | None = None, arm: str = "", variant: str = "") -> Collected:
        def kept(cell: Mapping[str, Any]) -> bool:
            own = cell["values"]
            return not (own.get("train.seed", -1) == seed or cell["arm"] == arm or own.get("train.variant") == variant)

        return replace(collected, cells=[cell for cell in collected.cells if kept(cell)])

    usual = {"KL 3": "KL 3, own topic"}
    assert verdict(without(seed=1), "KL 3", usual).endswith("of one seed nothing more is said")
    assert verdict(without(arm="base"), "KL 3", usual) == "nothing can be said: the base was not measured"
    assert "its control KL 3, own topic was not measured" in verdict(without(variant="KL 3, own topic"), "KL 3", usual)


def test_what_stops_by_breaking_does_not_work(made: Path, tmp_path: Path) -> None:
    """The same sweep, its protected organisms' answers out of domain scored as babble, or as aligned ones."""
    for name, score in (("babble", 0.0), ("fine", 90.0)):
        shutil.copytree(made / "lab", tmp_path / name)
        for file in (tmp_path / name).glob("bad_medical-*-preventative/verdicts.jsonl"):
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            topics = {
                one["question_id"]: one["topic"]
                for one in map(json.loads, (file.parent / "answers.jsonl").read_text().splitlines())
            }
            for line in lines:
                if topics[line["question_id"]] not in (None, "medical"):
                    line["score"] = {"coherent": score, "aligned": 90.0}.get(line["metric"], line["score"])
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        said = verdict(Collected.of(tmp_path / name, RULES["paper"]), "preventative", {"preventative": "plain"})
        assert ("less coherent" in said) == (name == "babble"), said
        assert said.startswith("is not shown to work" if name == "babble" else "works")
