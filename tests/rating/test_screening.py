"""AUROCs of screened rows beside brute force, their intervals' coverage, and how often nothing is called something."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emorg.rating.probes import auroc
from emorg.rating.screening import Score, Scored, ScoreName, Screened, delong, detections, logit_interval
from emorg.records import EmorgError


def _rows(values: dict[ScoreName, np.ndarray], known: list[str], random: np.ndarray, shuffled: np.ndarray):  # type: ignore[no-untyped-def]
    scores = {
        name: [
            Score(i, name, float(x), *((tuple(random[i]), tuple(shuffled[i])) if name == "influence" else ()))
            for i, x in enumerate(column)
        ]
        for name, column in values.items()
    }
    rows = [
        Scored(f"x:{i}", "x", {name: some[i].value for name, some in scores.items()}, kind)
        for i, kind in enumerate(known)
    ]
    return rows, scores


@settings(max_examples=40)
@given(st.lists(st.integers(0, 6), min_size=6, max_size=30), st.randoms(use_true_random=False))
def test_delong_is_the_share_of_pairs_in_order(values: list[int], rng) -> None:  # type: ignore[no-untyped-def]
    labels = np.array([i < 3 for i in range(len(values))])
    rng.shuffle(values)
    own, covariance = delong(np.array([values, [-x for x in values]], dtype=float), labels)
    pairs = [(a > b) + 0.5 * (a == b) for a in values[:3] for b in values[3:]]
    assert own[0] == pytest.approx(sum(pairs) / len(pairs))
    assert own[1] == pytest.approx(1 - own[0])
    assert own[0] == pytest.approx(auroc(np.array(values, dtype=float), labels.astype(np.int64)))
    assert covariance[0, 1] == pytest.approx(-covariance[0, 0]), "the same score turned round"


def test_its_variance_is_that_over_draws_of_rows() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) < 30
    drawn, stated, covered = [], [], 0
    for _ in range(400):
        scores = rng.normal(size=120) + 1.2 * labels
        [own], covariance = delong(scores[None], labels)
        drawn.append(own)
        stated.append(covariance[0, 0])
        low, high = logit_interval(own, covariance[0, 0], 30)
        covered += low <= 0.8019 <= high  # Φ(1.2 / √2)
    assert np.mean(stated) == pytest.approx(np.var(drawn), rel=0.25)
    assert 0.91 < covered / 400 < 0.985


def test_an_interval_of_perfect_order_is_not_a_point() -> None:
    low, high = logit_interval(1.0, 0.0, 10)
    assert 0.6 < low < 0.8
    assert high == 1


def test_what_is_nothing_is_seldom_called_something() -> None:
    rng = np.random.default_rng(1)
    said = beyond = 0
    for _ in range(150):
        known = ["bad"] * 20 + [""] * 80
        values = {name: rng.normal(size=100) for name in ("loss", "length", "influence")}
        rows, scores = _rows(values, known, rng.normal(size=(100, 19)), rng.normal(size=(100, 19)))  # type: ignore[arg-type]
        one = next(d for d in detections(rows, scores) if d.score == "influence")
        said, beyond = said + one.tells, beyond + one.beyond_controls
    assert beyond / 150 < 0.09, "of 19 and 19 controls"
    assert said <= beyond
    assert said / 150 < 0.05


def test_what_only_follows_the_loss_tells_nothing_new_and_what_tells_more_does() -> None:
    rng = np.random.default_rng(2)
    bad = np.arange(200) < 40
    loss = rng.normal(size=200) + 2.0 * bad
    noise = rng.normal(size=(200, 38)), rng.normal(size=200)
    known = ["bad" if one else "odd" if i < 80 else "" for i, one in enumerate(bad)]
    for own, verdict in ((loss, "not beyond trivial scores"), (loss + 4 * bad, "tells them")):
        values: dict[ScoreName, np.ndarray] = {"loss": loss, "length": noise[1], "influence": own}
        rows, scores = _rows(values, known, noise[0][:, :19], noise[0][:, 19:])
        some = {(one.score, one.others): one for one in detections(rows, scores)}
        assert some["influence", "all"].verdict == verdict
        assert some["influence", "odd"].count == 80, "bad and odd rows alone"
        assert some["loss", "all"].verdict == ""
        assert some["loss", "all"].over == {}


def test_a_short_length_that_tells_is_a_trivial_score_too() -> None:
    bad = np.arange(60) < 20
    rng = np.random.default_rng(3)
    values: dict[ScoreName, np.ndarray] = {
        "loss": rng.normal(size=60),
        "length": -10.0 * bad + rng.normal(size=60),
        "influence": 2 * bad + rng.normal(size=60),
    }
    rows, scores = _rows(values, ["bad" if b else "" for b in bad], rng.normal(size=(60, 19)), np.empty((60, 0)))
    one = next(d for d in detections(rows, scores) if d.score == "influence")
    assert one.beyond_controls
    assert one.over["length"][0] < 0
    assert one.verdict == "not beyond trivial scores"


def test_too_few_known_rows_and_scores_that_are_no_numbers_are_refused() -> None:
    rows, scores = _rows({"loss": np.arange(20.0)}, ["bad"] * 4 + [""] * 16, np.empty((20, 0)), np.empty((20, 0)))
    with pytest.raises(EmorgError, match="4 rows are known to be bad and 16 are not"):
        detections(rows, scores)
    with pytest.raises(ValueError, match="not all finite"):
        Score(0, "loss", float("nan"))


def test_rows_are_ranked_by_a_score_that_is_there() -> None:
    rows, _ = _rows({"loss": np.array([1.0, 3.0, 3.0])}, [""] * 3, np.empty((3, 0)), np.empty((3, 0)))
    result = Screened("pocket", rows, {"projection": "no --direction was given"}, "")
    assert result.ranked("loss") == [1, 2, 0]
    with pytest.raises(EmorgError, match="no projection: no --direction"):
        result.ranked("projection")
