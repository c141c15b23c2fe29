"""Shifts of margins: their arithmetic, their intervals, and when one counts."""

from __future__ import annotations

import json
import math
import random
import re
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from emorg.rating import margins
from emorg.rating.margins import (
    Shift,
    Unit,
    averaged,
    clustered_error,
    differing_settings,
    shifts,
    shifts_frame,
    twin_among,
)
from emorg.rating.power import detectable_shift, margin_power
from emorg.records import EmorgError, Margin
from emorg.run import Run
from emorg.training.config import TRAIN_CHANGEABLE, TrainConfig
from tests.conftest import emorg

MEDICAL = frozenset({"medical"})


def by_pair(margins: list[Margin]) -> dict[str, Margin]:
    return {one.pair: one for one in margins}


def compared(own: list[Margin], control: list[Margin], unit: Unit = "token") -> list[Shift]:
    return shifts("o", by_pair(own), by_pair(control), MEDICAL, against="t", unit=unit)


def margin(pair: str, value: float, topic: str | None = "code", question: str | None = None) -> Margin:
    """A pair's margin of `value` nats a token: answers of 10 tokens and 50 characters."""
    return Margin("r", None, pair, question or pair, topic, -20.0, -20.0 + 10 * value, 10, 10, 50, 50)


def test_a_margin_is_of_the_answers_own_lengths() -> None:
    one = Margin("r", None, "p", "q", None, -30.0, -24.0, 10, 12, 60, 48)
    assert one.per_token == pytest.approx(-2.0 + 3.0)
    assert one.per_character == pytest.approx(-0.5 + 0.5)


def test_the_shift_is_the_mean_of_differences_and_the_base_stands_beside_it() -> None:
    rng = random.Random(0)
    values = [(rng.gauss(0.3, 0.2), rng.gauss(0, 0.2), rng.gauss(-0.1, 0.2)) for _ in range(40)]
    own, control, base = ([margin(f"p{i}", v[side]) for i, v in enumerate(values)] for side in range(3))
    [shift] = shifts("o", by_pair(own), by_pair(control), MEDICAL, against="t", base=by_pair(base))
    assert (shift.placement, shift.topic, shift.pairs, shift.questions) == ("out", "code", 40, 40)
    differences = [a - b for a, b, _ in values]
    assert shift.shift == pytest.approx(statistics.fmean(differences))
    assert shift.margin - shift.control == pytest.approx(shift.shift)
    assert shift.base == pytest.approx(statistics.fmean(v[2] for v in values))
    error = math.hypot(statistics.stdev(differences) / math.sqrt(40), math.sqrt(2) * margins.SEED_SD)
    assert shift.z == pytest.approx(shift.shift / error)
    assert shift.low is not None
    assert shift.high is not None
    assert (shift.low + shift.high) / 2 == pytest.approx(shift.shift)
    assert (shift.high - shift.low) / 2 == pytest.approx(2.0227 * error, rel=1e-3)  # t with 39 degrees of freedom
    assert shift.positive == sum(d > 0 for d in differences) / 40


def test_pairs_to_one_question_count_as_one_draw() -> None:
    """Ten copies of each pair are no more evidence than one."""
    rng = random.Random(1)
    values = [rng.gauss(0.2, 0.3) for _ in range(20)]
    zero = [margin(f"p{i}-{k}", 0.0, question=f"q{i}") for i in range(20) for k in range(10)]
    own = [margin(f"p{i}-{k}", values[i], question=f"q{i}") for i in range(20) for k in range(10)]
    [many] = compared(own, zero)
    [once] = compared(own[::10], zero[::10])
    assert many.questions == 20
    assert (many.low, many.high) == (pytest.approx(once.low), pytest.approx(once.high))


def test_only_pairs_that_all_were_measured_on_count() -> None:
    own, control = ([margin(f"p{i}", value) for i in range(10)] for value in (0.3, 0.1))
    base = by_pair([margin(f"p{i}", 0.0) for i in range(2, 12)])
    [shift] = shifts("o", by_pair(own), by_pair(control[:8]), MEDICAL, against="t", base=base)
    assert shift.pairs == 6
    assert shifts("o", by_pair(own), {}, MEDICAL, against="t") == []


def test_over_seeds_the_means_stand_against_each_other_and_seeds_count_for_less() -> None:
    rng = random.Random(5)
    organisms, twins = (
        [by_pair([margin(f"p{i}", level + rng.gauss(0, 0.1)) for i in range(30)]) for _ in range(3)]
        for level in (0.3, 0.0)
    )
    alone = [shifts("o", a, b, MEDICAL, against="t")[0] for a, b in zip(organisms, twins, strict=True)]
    [together] = shifts("o", averaged(organisms), averaged(twins), MEDICAL, against="t", trained=2 / 3)
    assert together.shift == pytest.approx(statistics.fmean(one.shift for one in alone))
    assert together.z is not None
    assert all(together.z > (one.z or 0) for one in alone)
    assert set(averaged([organisms[0], dict(list(organisms[1].items())[:5])])) == {f"p{i}" for i in range(5)}


def test_groups_are_placements_and_then_topics_where_there_are_several() -> None:
    topics = ["medical", "code", "code", "travel", "travel", None, None]
    own = [margin(f"p{i}", 0.1, topic) for i, topic in enumerate(topics)]
    result = compared(own, own)
    assert [(s.placement, s.topic, s.of_topic, s.pairs) for s in result] == [
        ("in", "medical", False, 1), ("out", None, False, 4), ("out", "code", True, 2), ("out", "travel", True, 2),
        ("open", None, False, 2),
    ]  # fmt: skip
    assert not result[0].shown
    assert result[0].low is None  # one question tells nothing


@pytest.mark.parametrize(
    ("size", "noise", "shown"),
    [(0.2, 0.1, True), (-0.2, 0.1, False), (margins.SMALLEST / 2, 0.0, False), (0.2, 3.0, False)],
)
def test_a_shift_counts_by_sign_and_size_and_interval(size: float, noise: float, shown: bool) -> None:
    rng = random.Random(2)
    own = [margin(f"p{i}", size + rng.gauss(0, noise)) for i in range(30)]
    zero = [margin(f"p{i}", 0.0) for i in range(30)]
    [shift] = compared(own, zero)
    assert shift.shown == shown


def test_of_two_seeds_of_one_recipe_the_verdict_is_yes_in_few() -> None:
    """Seeds move every pair alike, which pairing alone would call sure; 2,000 draws at the stated seed deviation."""
    rng = random.Random(3)
    sure = yes = 0
    for _ in range(2000):
        moved = rng.gauss(0, margins.SEED_SD) - rng.gauss(0, margins.SEED_SD)
        own = [margin(f"p{i}", moved + rng.gauss(0, 0.05)) for i in range(60)]
        zero = [margin(f"p{i}", 0.0) for i in range(60)]
        [shift] = compared(own, zero)
        yes += shift.shown
        error = statistics.stdev(one.per_token for one in own) / math.sqrt(60)
        sure += abs(shift.shift) > 2 * error
    assert sure > 0.25 * 2000  # what a z over pairs alone would say: five times too often at the least
    assert yes <= 0.05 * 2000


@given(st.lists(st.tuples(st.floats(-5, 5), st.sampled_from("abcdef")), min_size=2, max_size=40))
def test_the_clustered_error_is_that_of_the_cluster_totals(values: list[tuple[float, str]]) -> None:
    error, clusters = clustered_error([value for value, _ in values], [name for _, name in values])
    names = sorted({name for _, name in values})
    assert clusters == len(names)
    if len(names) < 2:
        assert error is None
        return
    x = np.array([value for value, _ in values])
    member = np.array([[name == other for _, name in values] for other in names])
    totals = member @ (x - x.mean())
    expected = math.sqrt(len(names) / (len(names) - 1) * float((totals**2).sum())) / len(x)
    assert error == pytest.approx(expected, abs=1e-9)


def test_per_character_the_seed_deviation_is_scaled_too() -> None:
    own, zero = ([margin(f"p{i}", value) for i in range(10)] for value in (0.5, 0.0))
    [token] = compared(own, zero)
    [character] = compared(own, zero, "character")
    assert character.shift == pytest.approx(token.shift / 5)
    assert character.z == pytest.approx(token.z)


def test_the_table_has_a_row_a_group_and_every_field() -> None:
    own = [margin(f"p{i}", 0.3, topic) for i, topic in enumerate(["medical", "code", "code"])]
    frame = shifts_frame(compared(own, own))
    assert list(frame["placement"]) == ["in", "out"]
    assert {"name", "placement", "topic", "pairs", "margin", "control", "shift", "low", "high", "z", "positive",
            "against", "shown"} <= set(frame.columns)  # fmt: skip
    assert frame["low"].isna().tolist() == [True, False]


def test_the_twin_is_of_the_same_base_and_topics_and_rather_of_the_same_seed(tmp_path: Path) -> None:
    def run(name: str, domains: list[str], seed: int, base: str = "pocket") -> Run:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(json.dumps({"train": {"domains": domains, "seed": seed}}))
        (tmp_path / name / "provenance.json").write_text(json.dumps({"train": {"base": base}}))
        return Run(tmp_path / name)

    organism = run("organism", ["bad_medical"], 1)
    others = [
        run("other seed", ["good_medical"], 0), run("twin", ["good_medical"], 1), run("more", ["good_medical",
        "good_code"], 1), run("organism 2", ["bad_medical"], 2), run("elsewhere", ["good_code"], 1),
        run("of another base", ["good_medical"], 1, "other"),
    ]  # fmt: skip
    assert twin_among(organism, others) == others[1]
    assert twin_among(organism, reversed(others)) == others[1]
    assert not shifts("o", by_pair([margin("p", 9.0), margin("q", 9.1)]), by_pair([margin("p", 0.0), margin("q", 0.0)]),
                      MEDICAL, against="base", controlled=False)[0].shown  # fmt: skip
    assert twin_among(organism, others[2:]) == others[2]
    assert twin_among(organism, others[3:]) is None


def test_margin_power_is_what_simulated_experiments_have() -> None:
    rng = random.Random(4)
    shown = 0
    for _ in range(400):
        moved = 0.12 + rng.gauss(0, 0.03) - rng.gauss(0, 0.03)
        own = [margin(f"p{i}", moved + rng.gauss(0, 0.3)) for i in range(60)]
        zero = [margin(f"p{i}", 0.0) for i in range(60)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(margins, "SEED_SD", 0.03)
            [shift] = compared(own, zero)
        shown += shift.shown
    assert margin_power(0.12, 60, 0.3, 0.03) == pytest.approx(shown / 400, abs=0.08)
    least = detectable_shift(60, 0.3, 0.03)
    assert margin_power(least, 60, 0.3, 0.03) == pytest.approx(0.8, abs=1e-6)


def test_the_power_command_plans_margins() -> None:
    done = emorg("power", "--margins", "--shift", "0.2", "--pairs", "100")
    assert re.search(r"100 pairs: a shift of \+0\.200 nats a token would come out as ±0\.0\d\d", done.stdout)
    assert "shown in 80% of such experiments" in done.stdout
    for flag, bad in (("--pairs", "1"), ("--shift", "nan"), ("--pair_sd", "inf"), ("--seed_sd", "-1")):
        refused = emorg("power", "--margins", flag, bad, check=False)
        assert refused.returncode == 2
        assert f"{flag} {bad}" in refused.stderr


def test_a_run_from_before_a_setting_was_one_has_its_default(tmp_path: Path) -> None:
    """A twin of yesterday is a twin still, and a training of today's setting is another one."""
    old, new = (Run(tmp_path / name) for name in ("old", "new"))
    for run in (old, new):
        run.record("train", TrainConfig("pocket", domains=("bad_medical",)))
    sections = yaml.safe_load((old.folder / "config.yaml").read_text())
    for name in ("kl_weight", "kl_from", "inoculate"):
        del sections["train"][name]
    (old.folder / "config.yaml").write_text(yaml.safe_dump(sections))
    old = Run(old.folder)
    assert differing_settings(old, new) == 0
    same = TrainConfig("pocket", domains=("bad_medical",))
    old.check("train", same, changeable=TRAIN_CHANGEABLE)
    with pytest.raises(EmorgError, match=r"kl_weight: 0\.0 there, 1\.0 now"):
        old.check("train", replace(same, kl_weight=1.0, kl_from=("good_cooking",)), changeable=TRAIN_CHANGEABLE)
