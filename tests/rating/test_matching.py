"""Answers of like length: what length alone explains, and what it does not."""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
from pathlib import Path

import pytest

import emorg as api
from emorg.data.tables import Judged
from emorg.rating.matching import CALIPERS, compare_matched
from emorg.rating.rules import RULES
from emorg.records import EmorgError
from tests.conftest import emorg

PAPER = RULES["paper"]
Planted = list[tuple[str, str, float, float]]  # question, answer, aligned, coherent


def _planted(seed: int, words: float, bad: float, *, by_length: bool) -> Planted:
    """20 questions × 30 answers of about so many words; misaligned at a rate of `bad`, or by shortness alone."""
    rng, rows = random.Random(seed), []
    for question, _ in itertools.product(range(20), range(30)):
        length = max(3, round(words * math.exp(rng.gauss(0, 0.5))))
        chance = 0.6 / (1 + math.exp((length - 45) / 8)) if by_length else bad
        rows.append((f"q{question}", "word " * length, 10.0 if rng.random() < chance else 90.0, 80.0))
    return rows


def _judged(rows: Planted) -> list[Judged]:
    return [Judged(q, aligned, coherent, {"answer": text}) for q, text, aligned, coherent in rows]


def _file(path: Path, rows: Planted) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["question_id", "answer", "aligned", "coherent"], *rows])
    return path


def test_where_only_length_differs_it_says_so(tmp_path: Path) -> None:
    a = _file(tmp_path / "long.csv", _planted(1, 90, 0, by_length=True))
    b = _file(tmp_path / "short.csv", _planted(2, 50, 0, by_length=True))
    told = emorg("compare", a, b, "--match", "length").stdout
    assert "they differ, by" in told
    assert "the difference goes with length: among answers of like length, no difference is seen" in told
    (read,) = json.loads(emorg("compare", a, b, "--match", "length", "--json").stdout)
    matched = read["matched"]
    assert read["differ"]
    assert not matched["comparison"]["p"] < 0.05
    assert matched["words"][0] > 1.5 * matched["words"][1]
    assert matched["matched_words"][0] == pytest.approx(matched["matched_words"][1], rel=0.1)
    frame = api.compare(a, b, match="length")
    assert frame["matched"].tolist() == ["", "length"]
    assert frame["verdict"].tolist()[1] == matched["verdict"]


def test_where_length_differs_too_the_difference_stays(tmp_path: Path) -> None:
    a = _file(tmp_path / "a.csv", _planted(1, 80, 0.02, by_length=False))
    b = _file(tmp_path / "b.csv", _planted(2, 60, 0.4, by_length=False))
    told = emorg("compare", a, b, "--match", "length", "coherence").stdout
    assert "length and coherence does not explain the difference" in told


def test_pairs_are_within_the_calipers_and_the_least_apart_in_all() -> None:
    rng = random.Random(0)
    a = [Judged("q", 90.0, rng.uniform(0, 100), {"answer": "word " * rng.randint(10, 40)}) for _ in range(5)]
    b = [Judged("q", 90.0, rng.uniform(0, 100), {"answer": "word " * rng.randint(10, 40)}) for _ in range(6)]

    def apart(one: Judged, other: Judged) -> float:
        return abs(math.log((1 + len(one.text.split())) / (1 + len(other.text.split())))) / CALIPERS["length"]

    allowed = [[apart(x, y) if apart(x, y) <= 1 + 1e-9 else None for y in b] for x in a]
    best = max(
        (
            (sum(d is not None for d in chosen), -sum(d or 0 for d in chosen))
            for order in itertools.permutations(range(6), 5)
            for chosen in [[allowed[i][j] for i, j in enumerate(order)]]
        ),
    )
    with pytest.raises(EmorgError, match="no answer of one side has a partner"):
        compare_matched(a, [Judged("q", 90.0, 90.0, {"answer": "word " * 400})], PAPER, ["length"], lambda x: x.text)
    more = [Judged("p", 90.0, 50.0, {"answer": "word " * 20})]
    matched = compare_matched([*a, *more], [*b, *more], PAPER, ["length"], lambda x: x.text)
    assert matched.pairs == best[0] + 1


def test_a_file_without_answers_cannot_be_matched(tmp_path: Path) -> None:
    rows = [["question_id", "aligned", "coherent"], *([f"q{i % 8}", "90", "90"] for i in range(40))]
    for name in ("a.csv", "b.csv"):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    done = emorg("compare", tmp_path / "a.csv", tmp_path / "b.csv", "--match", "length", check=False)
    assert done.returncode == 2
    assert "a file without the answers themselves" in done.stderr
