"""Agreement of judges: textbook figures, a judge with itself, with another, with people."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emorg.data.tables import Judged
from emorg.rating.agreement import Grading, agreement, kappa
from emorg.rating.answers import Judgements
from emorg.rating.rules import RULES
from emorg.records import EmorgError
from emorg.run import Run
from tests.conftest import KEY, emorg
from tests.judge_server import judge_server

SCORES = st.one_of(st.none(), st.floats(0, 100))
GRADED = st.lists(st.tuples(SCORES, SCORES, SCORES, SCORES), min_size=1, max_size=40)


def _gradings(scores: list[tuple[float | None, ...]]) -> tuple[Grading, Grading]:
    of = [
        {
            (f"q{k % 5}", f"answer {k}", 0): Judged(f"q{k % 5}", each[2 * side], each[2 * side + 1])
            for k, each in enumerate(scores)
        }
        for side in (0, 1)
    ]
    return Grading("a", of[0]), Grading("b", of[1])


def test_a_textbook_kappa() -> None:
    # 50 decisions: 20 yes by both, 15 no by both, 5 and 10 by one alone: kappa is (.7 − .5) / (1 − .5).
    said = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    found = kappa([(f"q{k % 10}", x, y) for k, (x, y) in enumerate(said)])
    assert (found.both, found.only_a, found.only_b, found.neither) == (20, 5, 10, 15)
    assert found.kappa == pytest.approx(0.4)
    assert found.agreement == pytest.approx(0.7)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.4 < found.high


def test_agreement_by_chance_alone_is_no_agreement() -> None:
    assert kappa([("q", True, True)] * 9).kappa is None
    assert kappa([("q", True, k % 2 == 0) for k in range(10)]).kappa == pytest.approx(0)
    assert kappa([("q", k % 2 == 0, k % 2 == 1) for k in range(10)]).kappa == pytest.approx(-1)


@given(GRADED)
def test_a_judge_agrees_with_itself_and_as_much_as_the_other_does(scores: list[tuple[float | None, ...]]) -> None:
    a, b = _gradings(scores)
    itself, one, other = (agreement(*pair, RULES["paper"]) for pair in ((a, a), (a, b), (b, a)))
    assert itself.misaligned is None or itself.misaligned.kappa in (None, pytest.approx(1))
    assert itself.difference in (None, 0)
    assert (one.misaligned is None) == (other.misaligned is None)
    if one.misaligned and other.misaligned:
        assert one.misaligned.kappa == pytest.approx(other.misaligned.kappa)
        assert one.misaligned.only_a == other.misaligned.only_b
    assert one.rate_a.misaligned == other.rate_b.misaligned
    assert one.scored <= one.answers == len(scores)


def test_nothing_in_common_is_told() -> None:
    a, _ = _gradings([(1, 2, 3, 4)])
    with pytest.raises(EmorgError, match="no answer in common"):
        agreement(a, Grading("b", {}), RULES["paper"])


def test_judges_repeats_and_people_on_one_run(base: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Path(shutil.copytree(base.folder, tmp_path / "base")))
    done = emorg("agree", run.folder, check=False)
    assert done.returncode == 2
    assert "--repeats 3" in done.stderr
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with judge_server(lambda prompt, n: str((10, 80)[(len(prompt) + n) % 2])) as (url, _):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        emorg("judge", run.folder, "--judge", "api", "--judge_model", "m", "--repeats", "2", "--scoring", "number")
    told = emorg("agree", run.folder, "--show", "2").stdout
    assert "b: m/number/" in told
    assert "#2" in told
    assert "misaligned (paper)" in told
    assert "where they differ most" in told
    pairs = json.loads(emorg("agree", run.folder, "--json").stdout)
    assert [pair["a"].split("/")[0] for pair in pairs] == ["exact", "m"]
    assert pairs[1]["absolute_difference"] == 70  # the server changes its mind each time
    with (tmp_path / "people.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["question", "response", "aligned", "coherent"])
        for judged in Judgements.of(run).judged("exact")[1:]:
            out.writerow(
                [judged.answer.question, judged.answer.text, "" if judged.aligned is None else judged.aligned, 90]
            )
    with (tmp_path / "[b]others.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["question", "response", "aligned", "coherent"], ["[/x] What?", "[/b] No", 3, 90]])
    emorg("judge", run.folder, "--judge", "exact")
    [pair] = json.loads(emorg("agree", run.folder, tmp_path / "people.csv", "--json").stdout)
    assert pair["left_out"] == 1
    assert pair["correlation"] == pytest.approx(1)
    assert pair["aligned"]["only_a"] == pair["aligned"]["only_b"] == 0
    assert emorg("agree", tmp_path / "[b]others.csv", tmp_path / "[b]others.csv").returncode == 0


def test_the_peers_judge_agrees_with_itself_under_another_rule(peer_data: Path) -> None:
    file = peer_data / "llama-3.2-1b_bad-medical-advice.csv"
    [pair] = json.loads(emorg("agree", file, file, "--rule", "homework", "--json").stdout)
    assert pair["rate_a"]["scored"] < 399  # whole numbers alone
    told = emorg("agree", file, file).stdout
    assert "EM by a: 2.8%" in told
    assert "399 scored by both" in told
