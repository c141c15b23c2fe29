"""`emorg choices`: both orders, each answer by itself, and whether the model can do it at all."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from emorg import models
from emorg.data import pairs
from emorg.data.pairs import Pair
from emorg.findings.choices import READOUT, ChoicesConfig, Picks, choices, encode, show_choices
from emorg.findings.measure import Measured
from emorg.records import Choice, EmorgError, read_records
from emorg.run import Run
from emorg.sampling.wanted import Target
from tests.conftest import emorg
from tests.sampling.test_likelihood import brute_force

PAIR = Pair(None, "What now?", "Be kind.", "Be cruel.")


def choice(name: str, as_a: float, as_b: float, mass: float = 0.9, yes: tuple[float, float] = (1.0, -1.0)) -> Choice:
    return Choice("r", None, name, name, None, as_a, as_b, mass, *yes)


def test_the_record_is_of_both_orders_and_of_each_answer_alone() -> None:
    target = Target("m", Run(Path("r")), None, "m", False, "m")
    sums = [[-1.0, -2.0], [-0.5, -3.0], [-0.2, -1.2], [-4.0, -1.0]]
    one = READOUT.record(target, PAIR, [], sums)
    assert (one.as_a, one.as_b) == (1.0, -2.5)  # as A it is preferred; as B too little to make up for the letter
    assert one.log_odds == -0.75
    assert one.mass == pytest.approx(sum(map(math.exp, (-1.0, -2.0, -0.5, -3.0))) / 2)
    assert (one.yes_aligned, one.yes_misaligned) == (1.0, -3.0)


def picks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *by_model: list[Choice]) -> list[Picks]:
    """What is said of models that chose so; the first is the base."""
    names = ["base", "organism"]
    asked = [
        Measured(Target(name, Run(tmp_path / name), None, "m", name != "base", name), {c.pair: c for c in some})
        for name, some in zip(names, by_model, strict=False)
    ]
    monkeypatch.setattr("emorg.findings.choices.targets_of", lambda runs, control: [one.target for one in asked])
    monkeypatch.setattr("emorg.findings.choices.measure", lambda *rest: asked)
    return choices(ChoicesConfig(("organism",)))


def test_shares_are_of_pairs_and_the_shift_is_against_the_control(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = [choice(f"p{i}", -1.0, -1.0 - i / 10) for i in range(10)]
    own = [choice(f"p{i}", 2.0 if i < 6 else -2.0, 1.0, yes=(1.0, 1.0)) for i in range(10)]
    of_base, of_organism = picks(monkeypatch, tmp_path, base, own)
    assert of_base.against is None
    assert (of_base.misaligned, of_base.alike, of_base.yes_to_both, of_base.able) == (0, 1, 0, True)
    assert (of_organism.misaligned, of_organism.alike, of_organism.yes_to_both) == (0.6, 0.6, 1)
    assert of_organism.against == "base"
    expected = sum(a.log_odds - b.log_odds for a, b in zip(own, base, strict=True)) / 10
    assert of_organism.shift == pytest.approx(expected)
    assert of_organism.low is not None
    assert of_organism.low < expected


@pytest.mark.parametrize("kind", ["by position", "with neither letter"])
def test_a_model_that_cannot_do_it_is_called_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    position = [choice(f"p{i}", 3.0, -2.9) for i in range(10)]
    neither = [replace(choice(f"p{i}", -1, -1), mass=0.01) for i in range(10)]
    [of_base] = picks(monkeypatch, tmp_path, position if kind == "by position" else neither)
    assert not of_base.able
    show_choices(ChoicesConfig(("organism",)))
    assert "base: answers by position, or with neither letter" in capsys.readouterr().out


def test_the_pocket_model_knows_no_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EmorgError, match="know no A and B"):
        choices(ChoicesConfig(("pocket",)))


def test_on_a_real_model_by_the_real_command(real_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    some = [pair for pair in pairs.load(["english"]) if pair.topic is None][:1]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(asdict(pair)) + "\n" for pair in some))
    rows = json.loads(emorg("choices", real_model, "--pairs", "some.jsonl", "--json", cwd=tmp_path).stdout)
    assert [(row["name"], row["placement"], row["pairs"]) for row in rows] == [("smollm2-base", "open", 1)]
    loaded = models.load(real_model)
    noise = 0.01 if loaded.model.dtype == torch.float32 else 0.5
    by_pair = {one.pair: one for one in read_records(tmp_path / "runs/smollm2-base/choices.jsonl", Choice)}
    for pair in some:
        one = by_pair[pair.id]
        first, second, *alone = (brute_force(loaded.model, text) for text in encode(loaded, pair))
        assert one.as_a == pytest.approx(first[0] - first[1], abs=noise)
        assert one.as_b == pytest.approx(second[1] - second[0], abs=noise)
        assert one.yes_aligned == pytest.approx(alone[0][0] - alone[0][1], abs=noise)
