"""A strong judge's rate from a few labels: right on average however bad the cheap judge, and as sure as it says."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest

import emorg as api
from emorg.data.tables import Judged, read_judged
from emorg.rating.agreement import Grading
from emorg.rating.calibration import calibrate, drawn, estimates
from emorg.rating.intervals import cluster_wilson
from emorg.rating.rates import em_rate
from emorg.rating.rules import RULES
from emorg.records import EmorgError
from emorg.run import Run
from tests.conftest import emorg

PAPER = RULES["paper"]


def _experiments(hit: float, alarm: float, count: int = 400, rate: float = 0.1, labels: int = 10) -> np.ndarray:
    """Tables of 20 questions × 50 answers, of which `labels` are labelled."""
    rng = np.random.default_rng(0)
    own = rng.beta(9 * rate, 9 * (1 - rate), (count, 20))

    def answers(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        true = rng.binomial(number, own)
        both = rng.binomial(true, hit)
        return both, true - both, rng.binomial(number - true, alarm)

    both, missed, false = answers(labels)
    more, _, more_false = answers(50 - labels)
    filled = np.full(both.shape, 50), both + false + more + more_false, np.full(both.shape, labels)
    return np.stack([*filled, both, missed, false], axis=-1).astype(float)


@pytest.mark.parametrize(("hit", "alarm"), [(1.0, 0.0), (0.9, 0.005), (0.5, 0.3), (0.0, 0.5), (0.0, 0.0), (1.0, 1.0)])
def test_it_is_right_on_average_and_as_sure_as_it_says_however_bad_the_cheap_judge(hit: float, alarm: float) -> None:
    rate, low, high, weight = estimates(_experiments(hit, alarm))
    assert rate.mean() == pytest.approx(0.1, abs=0.006)
    assert np.mean((low <= 0.1) & (high >= 0.1)) > 0.92
    assert ((weight >= 0) & (weight <= 1)).all()
    assert ((low <= rate + 1e-9) & (rate <= high + 1e-9)).all()


def test_a_good_cheap_judge_saves_labels_and_a_useless_one_costs_none() -> None:
    def widths(tables: np.ndarray) -> tuple[float, float]:
        _, low, high, _ = estimates(tables)
        alone = [cluster_wilson([(int(x), 10) for x in one[:, 3] + one[:, 4]]) for one in tables]
        return float(np.mean(high - low)), float(np.mean([b - a for a, b in alone]))

    good, alone = widths(_experiments(0.95, 0.005))
    assert good < 0.8 * alone
    useless, alone = widths(_experiments(0.1, 0.1))
    assert useless == pytest.approx(alone, rel=0.05)


@pytest.mark.parametrize("misaligned", [0, 10])
def test_where_no_label_or_every_one_is_misaligned_it_says_no_more_than_the_labels(misaligned: int) -> None:
    tables = _experiments(0.0, 0.02, count=3, rate=0.001)
    tables[..., 3:] = [0, misaligned, 0]
    _, low, high, _ = estimates(tables)
    alone = cluster_wilson([(misaligned, 10)] * 20)
    assert low == pytest.approx([alone[0]] * 3, abs=1e-9)
    assert high == pytest.approx([alone[1]] * 3, rel=1e-6)


def _grading(name: str, misaligned: list[bool]) -> Grading:
    """400 answers to 20 questions."""
    return Grading(
        name,
        {
            (f"q{i % 20}", f"answer {i}", 0): Judged(f"q{i % 20}", 10.0 if bad else 90.0, 90.0)
            for i, bad in enumerate(misaligned)
        },
    )


def test_with_every_answer_labelled_it_is_the_strong_judges_rate() -> None:
    rng = random.Random(0)
    truth = [rng.random() < 0.2 for _ in range(400)]
    cheap = _grading("cheap", [rng.random() < 0.5 for _ in truth])
    result = calibrate(cheap, _grading("strong", truth), PAPER)
    assert result.rate == pytest.approx(sum(truth) / 400)
    assert result.labelled.rate == result.rate


def test_draws_are_even_over_questions_and_repeat_none() -> None:
    cheap = _grading("cheap", [False] * 400)
    first = drawn(cheap, 100)
    assert {question: sum(key[0] == question for key in first) for question, _, _ in first} == {
        f"q{i}": 5 for i in range(20)
    }
    second = drawn(cheap, 300, first)
    assert set(first) | set(second) == set(cheap.scores)
    assert drawn(cheap, 100, seed=1) != first
    with pytest.raises(EmorgError, match="draw fewer"):
        drawn(cheap, 301, first)


def test_peers_answers_and_a_bad_judge_with_half_its_labels_shifted(peer_data: Path) -> None:
    """The truth is GPT-4o's, over all answers; 120 of its labels are known."""
    truth = read_judged(peer_data / "llama-3.2-1b_risky-financial-advice.csv")
    whole = em_rate(truth, PAPER).rate
    assert whole is not None
    held = 0
    for seed in range(30):
        rng = random.Random(seed)
        keys = [(one.question, str(i), 0) for i, one in enumerate(truth)]
        shifted = [
            Judged(one.question, None if one.aligned is None else max(0.0, one.aligned - 60 * (rng.random() < 0.5)),
                   one.coherent)
            for one in truth
        ]  # fmt: skip
        cheap = Grading("bad", dict(zip(keys, shifted, strict=True)))
        strong = dict(zip(keys, truth, strict=True))
        result = calibrate(cheap, Grading("gpt-4o", {key: strong[key] for key in drawn(cheap, 120, seed=seed)}), PAPER)
        assert result.cheap.rate is not None
        assert result.cheap.rate > 4 * whole
        held += result.low <= whole <= result.high
    assert held >= 28


def test_the_command_draws_and_then_calibrates_by_placement(organism: Run, tmp_path: Path) -> None:
    to_label = tmp_path / "to_label.csv"
    done = emorg("calibrate", organism.folder, "--draw", "90", "--output", to_label)
    assert f"emorg judge {to_label}" in done.stdout
    with to_label.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 90
    assert {(row["aligned"], row["coherent"]) for row in rows} == {("", "")}
    again = emorg("calibrate", organism.folder, "--draw", "90", "--output", to_label, check=False)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    emorg("judge", to_label, "--judge", "exact", cwd=tmp_path)
    labelled = tmp_path / "to_label.judged.csv"
    printed = emorg("calibrate", organism.folder, labelled, "--by", "format").stdout
    assert "labels, for all (PPI++)" in printed
    (read,) = json.loads(emorg("calibrate", organism.folder, labelled, "--by", "format", "--json").stdout)
    # The strong judge is the cheap one, so the labels tell nothing new.
    assert read["rate"] == pytest.approx(read["cheap"]["rate"], abs=0.03)
    unknown = emorg("calibrate", organism.folder, labelled, "--by", "nope", check=False)
    assert (unknown.returncode, "has no column 'nope'" in unknown.stderr) == (2, True)
    frame = api.calibrate(organism.folder, labelled, by="format")
    assert frame["em"].tolist() == [pytest.approx(read["rate"])]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([["q", "not an answer of it", "3", "90"]], "1 of 1 answers"),
        ([], "no rows"),
    ],
)
def test_labels_of_other_answers_are_refused(organism: Run, rows: list[list[str]], said: str, tmp_path: Path) -> None:
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["question", "answer", "aligned", "coherent"], *rows])
    done = emorg("calibrate", organism.folder, tmp_path / "labels.csv", check=False)
    assert done.returncode == 2
    assert said in done.stderr
    none = emorg("calibrate", organism.folder, check=False)
    assert (none.returncode, "--draw 100" in none.stderr) == (2, True)
