"""Probes: planted features are found and only they, and nothing is read where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from emorg.rating.probes import auroc, probe_of

NAMES = ["a", "b", "c", "d"]
QUESTIONS = np.repeat([f"q{k}" for k in range(60)], 2)
LABELS = np.tile([0, 1], 60)


def features(planted: dict[int, float], seed: int = 0) -> NDArray[np.float64]:
    """Own and random features of 120 answers; planted ones are larger in misaligned answers by so many deviations."""
    rng = np.random.default_rng(seed)
    some = rng.standard_normal((120, 20, 4)) + rng.standard_normal((60, 20, 4)).repeat(2, axis=0)
    for column, size in planted.items():
        some[:, 0, column] += size * LABELS
    return np.asarray(some)


def test_planted_features_are_found_and_only_they() -> None:
    extra = 0
    for seed in range(8):
        found = probe_of(features({1: 4.0, 3: -4.0}, seed), LABELS, QUESTIONS, NAMES, seed)
        assert {"b", "d"} <= set(found.telling)
        extra += len(found.telling) - 2
        assert found.auroc > 0.95
        assert found.p == 0.05
        assert found.auroc > max(found.shuffled, found.random[1])
        assert found.alone["b"] > 0.9
        assert found.alone["d"] < 0.1
    assert extra <= 2  # the bar is the largest of 19 shuffles: one of twenty is passed by chance


def test_nothing_is_read_from_nothing() -> None:
    found = [probe_of(features({}, seed), LABELS, QUESTIONS, NAMES, seed) for seed in range(40)]
    assert sum(one.p <= 0.05 for one in found) <= 6
    assert sum(bool(one.telling) for one in found) <= 6
    assert abs(np.mean([one.auroc for one in found]) - 0.5) < 0.04


def test_what_every_projection_of_the_text_tells_is_not_the_adapters() -> None:
    """Where random rows read the answers as well as A does, p says so."""
    some = features({}) + 4.0 * LABELS[:, None, None]
    found = probe_of(some, LABELS, QUESTIONS, NAMES, 0)
    assert found.auroc > 0.95
    assert found.random[0] > 0.95
    assert found.p > 0.05


def test_a_question_is_never_in_both_parts_of_a_split() -> None:
    """A feature that names the question, and nothing else, would be read perfectly by a split over answers."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60).repeat(2)
    some = np.repeat(rng.standard_normal((60, 20, 4)), 2, axis=0)
    found = probe_of(some, labels, QUESTIONS, NAMES, 0)
    assert found.auroc < 0.7


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 1)), min_size=1, max_size=40))
def test_auroc_is_the_chance_that_a_positive_is_above(pairs: list[tuple[int, int]]) -> None:
    scores, labels = (np.array(side) for side in zip(*pairs, strict=True))
    above = [
        (a > b) + 0.5 * (a == b)
        for a, one in zip(scores, labels, strict=True) if one == 1
        for b, other in zip(scores, labels, strict=True) if other == 0
    ]  # fmt: skip
    assert auroc(scores.astype(float), labels) == pytest.approx(float(np.mean(above)) if above else 0.5)
