"""Where signals turn: planted changes are found, and smooth growth is hardly ever called sudden."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emorg.rating.changes import Array, change, components, lag, local_cosines, rotation, to_the_end

STEPS = np.arange(2, 82, 2.0)


def sigmoid(at: float, width: float, steps: Array = STEPS) -> Array:
    return np.asarray(1 / (1 + np.exp(-(steps - at) / width)))


SMOOTH = {
    "saturating": lambda rng: 1 - np.exp(-STEPS / rng.uniform(3, 80)),
    "a slow sigmoid": lambda rng: sigmoid(rng.uniform(20, 60), rng.uniform(6, 20)),
    "straight": lambda rng: STEPS / STEPS[-1],
    "a square root": lambda rng: np.sqrt(STEPS / STEPS[-1]),
}


@pytest.mark.parametrize("shape", SMOOTH)
def test_smooth_growth_is_hardly_ever_called_sudden(shape: str) -> None:
    rng, called, count = np.random.default_rng(1), 0, 20
    for seed in range(count):
        found = change("x", STEPS, SMOOTH[shape](rng) + 0.02 * rng.standard_normal(len(STEPS)), seed=seed)
        assert found is not None
        called += found.sudden
    assert called <= 4  # at a rate of .05 more come in 1 of 400 tests; of 100 at noise .01 and .05 0 to 4 were called


@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_a_planted_turn_is_found_within_a_checkpoint_and_called_sudden(noise: float) -> None:
    rng = np.random.default_rng(2)
    for seed in range(15):
        at = rng.uniform(16, 64)
        found = change("x", STEPS, 3 - 2 * sigmoid(at, 1.0) + noise * rng.standard_normal(len(STEPS)), seed=seed)
        assert found is not None
        assert found.sudden
        assert abs(found.step - at) <= 2
        assert found.low <= at + 1
        assert found.high >= at - 1


def test_intervals_hold_the_step_about_as_often_as_they_say() -> None:
    rng, held = np.random.default_rng(3), 0
    for seed in range(40):
        at = rng.uniform(20, 60)
        found = change("x", STEPS, sigmoid(at, 3.0) + 0.05 * rng.standard_normal(len(STEPS)), seed=seed)
        assert found is not None
        held += found.low <= at <= found.high
    assert held >= 34


def test_the_lag_between_two_signals_is_that_between_their_turns() -> None:
    rng = np.random.default_rng(4)
    early = change("early", STEPS, sigmoid(20, 2.0) + 0.02 * rng.standard_normal(len(STEPS)))
    late = change("late", STEPS, sigmoid(30, 2.0) + 0.02 * rng.standard_normal(len(STEPS)), seed=1)
    assert early is not None
    assert late is not None
    steps, low, high = lag(early, late)
    assert low <= 10 <= high
    assert steps == pytest.approx(10, abs=1)
    assert low > 0


@pytest.mark.parametrize("turned", [1, -1])
def test_lags_hold_the_true_one_about_as_often_as_they_say(turned: int) -> None:
    """Of two signals with noise of their own, whichever way the second one goes."""
    rng, held, count = np.random.default_rng(6), 0, 30
    for _ in range(count):
        at = rng.uniform(25, 55)
        first, second = (
            change(name, STEPS, sign * (sigmoid(at, 3.0) + 0.05 * rng.standard_normal(len(STEPS))))
            for name, sign in (("margin", 1), ("loss", turned))
        )
        assert first is not None
        assert second is not None
        _, low, high = lag(first, second)
        held += low <= 0 <= high
    assert held >= 25  # of 30 at 95% fewer come in 1 of 300 tests


@settings(max_examples=30)
@given(st.floats(-1e3, 1e3), st.floats(0.01, 1e3), st.floats(-1e5, 1e5))
def test_neither_units_nor_origin_matter(shift: float, scale: float, start: float) -> None:
    values = sigmoid(40, 2.0) + 0.05 * np.random.default_rng(5).standard_normal(len(STEPS))
    plain, moved = change("x", STEPS, values), change("x", STEPS + start, shift + scale * values)
    assert plain is not None
    assert moved is not None
    assert moved.step - start == pytest.approx(plain.step, abs=1)
    assert moved.sudden == plain.sudden


def test_what_does_not_move_or_has_few_points_does_not_turn() -> None:
    assert change("x", STEPS, np.ones(len(STEPS))) is None
    assert change("x", STEPS[:7], sigmoid(8, 1.0)[:7]) is None
    assert rotation("x", STEPS[:6], np.zeros((6, 3)), 1) is None
    assert rotation("x", STEPS, np.zeros((len(STEPS), 3)), 1) is None


# --- vectors ---------------------------------------------------------------------------------------------------------


def path(turn: float | None, width: int = 60, noise: float = 0.02, seed: int = 0) -> Array:
    """A vector that grows along one direction, and at a step turns to another, at a right angle."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((width, 2)))[0].T
    speed = np.exp(-STEPS / 60)
    first, second = (speed * ((turn or 1e9) >= STEPS)).cumsum(), (speed * ((turn or 1e9) < STEPS)).cumsum()
    walk = first[:, None] * basis[0] + second[:, None] * basis[1]
    return np.asarray(walk + noise * rng.standard_normal(walk.shape))


def test_local_cosines_are_the_papers_formula() -> None:
    some = path(40.0)
    for k in (1, 3):
        got = local_cosines(some, k)
        assert np.isnan(got[:k]).all()
        assert np.isnan(got[-k:]).all()
        for t in range(k, len(some) - k):
            back, ahead = some[t - k] - some[t], some[t + k] - some[t]
            assert got[t] == pytest.approx(back @ ahead / np.linalg.norm(back) / np.linalg.norm(ahead))
    still = np.vstack([some, np.repeat(some[-1:], 5, axis=0)])
    assert np.isnan(local_cosines(still, 1)[-5:]).all()


def test_a_straight_way_has_minus_one_and_a_right_angle_nought() -> None:
    assert np.nanmax(local_cosines(path(None, noise=0.0), 2)) == pytest.approx(-1)
    turned = local_cosines(path(40.0, noise=0.0), 2)
    assert STEPS[np.nanargmax(turned)] == 40
    assert np.nanmax(turned) == pytest.approx(0, abs=1e-9)


def test_a_planted_rotation_is_found_within_a_checkpoint_and_a_smooth_path_has_none() -> None:
    for seed in range(6):
        at = float(np.random.default_rng(seed).choice(STEPS[8:-8]))
        found = rotation("B", STEPS, path(at, noise=0.005, seed=seed), 2, seed=seed)
        assert found is not None
        assert found.sudden
        assert abs(found.step - at) <= 2
    called = 0
    for seed in range(20):
        found = rotation("B", STEPS, path(None, noise=0.005, seed=seed), 2, seed=seed)
        assert found is not None
        called += found.sudden
    assert called <= 3


def test_cosines_to_the_end_and_components() -> None:
    some = path(40.0)
    ends = to_the_end(some)
    assert ends[-1] == pytest.approx(1)
    assert ends[3] == pytest.approx(abs(some[3] @ some[-1]) / np.linalg.norm(some[3]) / np.linalg.norm(some[-1]))
    coordinates = components(some)
    assert coordinates.shape == (len(some), 2)
    distances = np.linalg.norm(some[:, None] - some[None], axis=-1)
    flat = np.linalg.norm(coordinates[:, None] - coordinates[None], axis=-1)
    assert np.abs(flat - distances).max() < 1.0  # two dimensions hold nearly all of a path in a plane
