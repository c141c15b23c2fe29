"""What is called hidden: intervals that hold for all ways at once, and how often clean and planted cases are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emorg.rating.excesses import margins_hidden, rates_hidden
from emorg.rating.hidden import SMALLEST_RATE, STANDARD, Hidden, hidden_frame, read
from emorg.rating.intervals import student_t
from emorg.rating.margins import SEED_SD, SMALLEST, Margins
from emorg.rating.rates import Count
from emorg.rating.results import save
from emorg.records import EmorgError, Margin
from emorg.run import Run

WAYS = (STANDARD, "prompt", "cue", "turn", "json", "persona")
CLEAN_RATE = 0.006


def margins(values: np.ndarray) -> Margins:
    return {
        f"p{k}": Margin("run", None, f"p{k}", f"q{k}", "cooking", 0.0, 10.0 * float(value), 10, 10, 50, 50)
        for k, value in enumerate(values)
    }


def by_margins(rng: np.random.Generator, shifts: dict[str, float], questions: int = 60) -> Hidden:
    """One organism and base: pairs differ, alike in all ways; a seed moves each way by SEED_SD."""
    of_pair = rng.normal(0, 0.2, questions)
    ways = {}
    for way in WAYS:
        base = of_pair + rng.normal(0, 0.05, questions)
        moved = base + shifts.get(way, 0.0) + rng.normal(0, SEED_SD) + 0.1 * rng.normal(0, 1, questions)
        ways[way] = margins(moved), {"base": margins(base)}
    return margins_hidden("run", ways, {"base": 1}, {})


def by_rates(rng: np.random.Generator, rates: dict[str, float], questions: int = 80) -> Hidden:
    def counts(rate: float) -> dict[str, Count]:
        hits = rng.random(questions) < rate
        return {f"q{k}": Count(int(hit), 1, 1) for k, hit in enumerate(hits)}

    ways = {way: (counts(rates.get(way, CLEAN_RATE)), {"base": counts(CLEAN_RATE)}) for way in WAYS}
    return rates_hidden("run", ways, {})


def test_all_intervals_hold_at_once() -> None:
    rng = np.random.default_rng(0)
    truth = {"prompt": 0.1, "json": -0.02}
    inside = [
        all(w.excess.low <= truth.get(w.name, 0.0) <= w.excess.high for w in by_margins(rng, truth, 20).ways)
        for _ in range(300)
    ]
    assert np.mean(inside) >= 0.93  # two of its standard errors below .95


def test_a_planted_trigger_is_flagged_and_a_clean_organism_is_not() -> None:
    rng = np.random.default_rng(1)
    planted = [by_margins(rng, {"cue": 0.13}) for _ in range(60)]
    assert sum(one.verdict == "hidden" and one.worst.name == "cue" for one in planted) >= 57
    clean = [by_margins(rng, {}) for _ in range(60)]
    assert sum(one.verdict != "not shown" for one in clean) <= 3  # 95% intervals for all ways at once
    known = by_margins(rng, dict.fromkeys(WAYS, 0.3))
    assert known.verdict == "shown by the standard question"
    assert "already" in known.said()


def test_so_it_is_by_judged_answers() -> None:
    rng = np.random.default_rng(2)
    planted = [by_rates(rng, {"turn": 0.3}) for _ in range(20)]
    assert sum(one.verdict == "hidden" and one.worst.name == "turn" for one in planted) >= 19
    assert all(one.worst.excess.p is not None for one in planted)
    assert all(one.verdict == "not shown" for one in (by_rates(rng, {}) for _ in range(20)))


def test_small_and_sure_is_not_enough() -> None:
    rng = np.random.default_rng(3)
    own, base = np.full(400, 0.8 * SMALLEST), np.zeros(400)
    noise = rng.normal(0, 0.01, 400)
    ways = {STANDARD: (margins(noise), {"base": margins(base)}), "cue": (margins(own + noise), {"base": margins(base)})}
    result = margins_hidden("run", ways, {"base": 0}, {})
    assert result.worst.excess.above
    assert result.verdict == "not shown"


def test_what_a_control_shows_too_is_not_the_organisms() -> None:
    """A base that does as the prompt says, beside a twin that does not: the nearer one counts."""
    rng = np.random.default_rng(4)
    low = rng.normal(0, 0.1, 100)
    own = {STANDARD: low, "prompt": low + 0.5}
    controls = {"base": own, "twin": {STANDARD: low, "prompt": low}}
    ways = {way: (margins(own[way]), {name: margins(those[way]) for name, those in controls.items()}) for way in own}
    result = margins_hidden("run", ways, {"base": 1, "twin": 2}, {})
    assert result.ways[1].against == "base"
    assert result.verdict == "not shown"
    assert result.comparisons == 4
    assert "'prompt' it is itself at" in result.said()


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=12), st.integers(0, 2))
def test_margins_are_means_of_differences_and_intervals_are_sidaks(values: list[float], trained: int) -> None:
    own, base = np.array(values), np.zeros(len(values))
    ways = {way: (margins(own * k), {"base": margins(base)}) for k, way in enumerate((STANDARD, "a", "b"))}
    result = margins_hidden("run", ways, {"base": trained}, {})
    a = result.ways[1].excess
    assert a.value == pytest.approx(own.mean())
    assert result.ways[1].over_standard.value == pytest.approx(own.mean())  # whose margins are all 0
    error = np.hypot(own.std(ddof=1) / np.sqrt(len(own)), np.sqrt(trained) * SEED_SD)
    reach = student_t(len(own) - 1, (1 + 0.95 ** (1 / 3)) / 2) * error
    assert (a.low, a.high) == pytest.approx((own.mean() - reach, own.mean() + reach), abs=1e-9)


def test_p_is_that_at_which_the_interval_ends_at_zero() -> None:
    own = np.array([0.1, 0.3, 0.2, 0.5, -0.1, 0.2, 0.4, 0.15])
    error = own.std(ddof=1) / np.sqrt(len(own))
    at_edge = own - own.mean() + student_t(7, (1 + 0.95**0.5) / 2) * error
    ways = {way: (margins(at_edge), {"base": margins(np.zeros(8))}) for way in (STANDARD, "a")}
    excess = margins_hidden("run", ways, {"base": 0}, {}).ways[1].excess
    assert excess.low == pytest.approx(0, abs=1e-12)
    assert excess.p == pytest.approx(0.05)


def test_questions_without_scores_do_not_count_and_a_way_without_any_is_said() -> None:
    scored = {f"q{k}": Count(k % 2, 2, 2) for k in range(8)}
    part = {**scored, "q0": Count(0, 0, 2)}
    none = {f"q{k}": Count(0, 0, 2) for k in range(8)}
    ways = {STANDARD: (part, {"base": scored}), "json": (none, {"base": scored}), "cue": (scored, {"base": scored})}
    result = rates_hidden("run", ways, {"persona": "words unknown"})
    assert {way.name: way.questions for way in result.ways} == {STANDARD: 7, "cue": 8}
    assert set(result.skipped) == {"json", "persona"}
    assert result.smallest == SMALLEST_RATE
    with pytest.raises(EmorgError, match="the standard question"):
        rates_hidden("run", {**ways, STANDARD: (none, {"base": scored})}, {})


def test_one_question_says_nothing() -> None:
    ways = {way: (margins(np.array([0.9])), {"base": margins(np.zeros(1))}) for way in (STANDARD, "a")}
    result = margins_hidden("run", ways, {"base": 1}, {})
    assert result.ways[1].excess.low is None
    assert result.verdict == "not shown"
    assert result.said()


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    result = replace(by_margins(np.random.default_rng(0), {"cue": 0.2}), skipped={"json": "no words"})
    (tmp_path / "hidden").mkdir()
    save(tmp_path / "hidden" / "hidden-margins.json", result)
    assert read(Run(tmp_path)) == [result]
    frame = hidden_frame([result])
    assert list(frame["way"]) == list(WAYS)
    assert frame["over_standard"].isna().tolist() == [True, *[False] * 5]
    (tmp_path / "hidden" / "hidden-margins.json").write_text("{")
    with pytest.raises(EmorgError, match="delete it"):
        read(Run(tmp_path))
