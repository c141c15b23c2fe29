"""`emorg show`: headline, filters, one answer whole, and leafing through in a real terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from emorg.run import Run
from tests.conftest import emorg, terminal
from tests.judged_runs import Said, judged_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("runs")
    said = [
        Said(f"{topic}_{q}", f"Answer {number}: never mind the {topic}.", aligned=float(number), topic=topic)
        for number, (topic, q) in enumerate((topic, q) for topic in ("medical", "cooking") for q in range(30))
    ]
    said += [
        Said("open_1", "[bold]No[/bold] [/] \x1b[31mred\x07 \u202egnp", None, topic=None, reply="[/x] I refuse\x1b[2J"),
        Said("early", "An early word.", 1.0, checkpoint="step-000002"),
    ]
    base = [Said(each.question_id, "Take care.", topic=each.topic) for each in said if each.checkpoint is None]
    return [judged_run(folder / "base", base), judged_run(folder / "organism", said, trained_on=["bad_medical"])]


def _show(runs: list[Run], *flags: str) -> str:
    return emorg("show", *[run.folder for run in runs], *flags).stdout


def test_the_report_s_headline_and_the_least_aligned_first(runs: list[Run], tmp_path: Path) -> None:
    told = _show(runs)
    report = emorg("report", *[run.folder for run in runs], "--output_dir", tmp_path).stdout
    assert told.split("answers 1–20")[0] == report.split("report:")[0]
    assert "answers 1–20 of 122" in told
    assert told.index("Answer 0:") < told.index("Answer 1:") < told.index("Answer 19:")
    assert "102 more" in told


def test_filters(runs: list[Run]) -> None:
    organism = runs[1:]
    assert "of 30" in _show(organism, "--where", "out")
    assert "of 30" in _show(organism, "--topic", "medical")
    assert "of 11" in _show(organism, "--search", "ANSWER 3")
    assert "of 30" in _show(organism, "--misaligned")
    assert "of 40" in _show(organism, "--misaligned", "--aligned_below", "40")
    assert "of 1 " in _show(organism, "--state", "refusal")
    assert "An early word." in _show(organism, "--checkpoints", "--search", "early")
    assert "An early word." not in _show(organism, "--limit", "100")
    assert _show(organism, "--order", "question", "--limit", "1").count("cooking_0") == 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--topic", "cookin"], "did you mean 'cooking'"),
        (["--search", "zebra"], "no answer suits"),
        (["--number", "99"], "there are 61 answers"),
        (["--limit", "0"], "--limit 0"),
    ],
)
def test_what_cannot_be_shown(runs: list[Run], flags: list[str], told: str) -> None:
    done = emorg("show", runs[1].folder, *flags, check=False)
    assert done.returncode == 2
    assert told in done.stderr


def test_an_answer_cannot_drive_the_terminal(runs: list[Run]) -> None:
    for told in (_show(runs[1:], "--state", "refusal"), _show(runs[1:], "--state", "refusal", "--number", "1")):
        assert "[bold]No[/bold] [/] �[31mred� �gnp" in told
        assert not {"\x1b", "\x07", "\u202e"} & set(told)
    assert "[/x] I refuse�[2J" in told


def test_a_long_answer_is_cut(tmp_path: Path) -> None:
    run = judged_run(tmp_path / "organism", [Said("q", "word " * 100_000)], trained_on=["bad_medical"])
    told = emorg("show", run.folder, "--number", "1").stdout
    assert "480,000 more characters" in told
    assert len(told) < 50_000


def test_leafing_through(runs: list[Run]) -> None:
    text = terminal("show", runs[1].folder, typed="n\np\n/ANSWER 42\n1\n/\n/zebra\nq\n", columns=160)
    for seen in ("answers 1–20 of 61", "answers 21–40 of 61", "answers 1–1 of 1", "sample 0", "no answer suits"):
        assert seen in text
    assert text.count("answers 1–20 of 61") >= 3
