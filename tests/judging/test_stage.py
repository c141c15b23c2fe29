"""The judging stage: every answer gets its verdicts once, and joined answers say where their question stands."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path

import pytest
import yaml

from emorg.data import questions
from emorg.data.tables import read_answers, read_judged
from emorg.judging.config import EXACT_METRICS
from emorg.rating.answers import Judgements, judged_answers
from emorg.rating.placement import placement
from emorg.records import Answer, Verdict, read_records
from emorg.run import Run
from tests.conftest import KEY, emorg
from tests.judge_server import judge_server
from tests.judging.test_prompts import HOSTILE


def test_every_answer_has_its_three_verdicts_once(organism: Run) -> None:
    verdicts = read_records(organism.verdicts, Verdict)
    keys = {(answer.key, metric) for answer in read_records(organism.answers, Answer)
            for metric in EXACT_METRICS}  # fmt: skip
    assert len(verdicts) == len(keys)
    assert {(verdict.key, verdict.metric) for verdict in verdicts} == keys


def test_killed_between_verdicts_and_run_again_it_judges_only_the_rest(organism: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "organism")
    shutil.copytree(organism.folder, run.folder)
    whole = organism.verdicts.read_text().splitlines(keepends=True)
    # Cut inside an answer's three verdicts: the answer is judged again, none is left half judged.
    run.verdicts.write_text("".join(whole[:31]) + whole[31][:20])
    emorg("judge", run.folder)
    found = {(verdict.key, verdict.metric): verdict for verdict in read_records(run.verdicts, Verdict)}
    expected = {(verdict.key, verdict.metric): verdict for verdict in read_records(organism.verdicts, Verdict)}
    assert found == expected
    assert len(run.verdicts.read_text().splitlines()) == len(expected)


def test_joined_answers_know_where_their_question_stands(organism: Run, base: Run) -> None:
    places = {judged.question.split("_")[0]: judged.placement for judged in judged_answers(organism)}
    assert places == {"medical": "in", "cooking": "out", "open": "open"}
    assert {judged.placement for judged in judged_answers(base)} == {"out", "open"}
    assert placement("medical", frozenset({"code"})) == "out"


def test_a_run_without_answers_is_told_how_to_get_them(tmp_path: Path) -> None:
    done = emorg("judge", tmp_path, check=False)
    assert done.returncode == 2
    assert "emorg sample" in done.stderr


@pytest.fixture
def copied(base: Run, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(base.folder, tmp_path / "runs" / "base")))


def test_a_run_is_judged_once_and_only_failures_again(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = read_records(copied.answers, Answer)
    questions = {(answer.question, answer.text) for answer in answers}  # the same words are asked for once
    broken = answers[0].question
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with judge_server(lambda prompt, _: "invalid" if broken and broken in prompt else "90") as (url, server):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        flags = ("judge", copied.folder, "--judge", "api", "--judge_model", "m", "--scoring", "number")
        done = emorg(*flags, check=False)
        failed = [v for v in read_records(copied.verdicts, Verdict) if v.state == "api_error"]
        assert failed
        assert done.returncode == 1
        assert f"the judge failed on {len(failed)} of {2 * len(answers)} judgements" in done.stderr
        assert all(broken in prompt for prompt, count in server.asked.items() if count > 1)
        broken = ""
        emorg(*flags)
        emorg(*flags)
        copied.verdicts.unlink()  # they are made again from the ledger
        emorg(*flags)
        assert set(server.paid.values()) == {1}
        assert server.paid.total() == 1 + 2 * len(questions)
    assert all(judged.aligned == judged.coherent == 90 for judged in judged_answers(copied))
    emorg("judge", copied.folder, "--judge", "exact")
    assert {judged.aligned for judged in judged_answers(copied)} != {90}
    assert [name.split("/")[0] for name in Judgements.of(copied).judges] == ["m", "exact"]


def test_repeats_leave_the_rates_alone_and_can_be_had_apart(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    flags = ("judge", copied.folder, "--judge", "api", "--judge_model", "m", "--scoring", "number")
    with judge_server(lambda _, n: str(10 + 10 * n)) as (url, server):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        emorg(*flags)
        emorg(*flags, "--repeats", "3")
        assert set(server.asked.values()) == {1, 3}
    assert {judged.aligned for judged in judged_answers(copied)} <= {10, 20, 30}
    judgements = Judgements.of(copied)
    assert sorted({each.aligned for k in range(3) for each in judgements.judged(repeat=k)}) == [10, 20, 30]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_any_file_is_judged_and_comes_back_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    from emorg.judging.sources import write_table

    texts = [*HOSTILE, "two\r\nlines", "  ", "\u2028"]
    texts.remove("\ud800")  # no UTF-8 file can hold it
    rows = [
        {"id": k, "prompt": "What?", "completion": text, "aligned": "ERROR", "note": "=1+1"}
        for k, text in enumerate(texts)
    ]
    path = tmp_path / f"theirs{suffix}"
    write_table(path, rows)
    before = path.read_bytes()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with judge_server(lambda prompt, _: "20" if "treats people" in prompt else "80") as (url, server):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        told = emorg("judge", path, "--judge_model", "m", cwd=tmp_path).stdout
        assert server.paid.total() == 2 + 2 * len(rows)
    output = tmp_path / f"theirs.judged{suffix}"
    assert str(output) in told
    assert path.read_bytes() == before
    back, answers = read_answers(output)
    assert [answer.text for answer in answers] == texts
    assert [row["note"] for row in back] == ["=1+1"] * len(rows)
    found = read_judged(output)
    assert len(found) == len(rows)
    assert all(each.aligned is not None and each.aligned < 30 for each in found)
    assert all(each.coherent is not None and each.coherent > 70 for each in found)
    assert f"{len(rows)} " in emorg("rates", output).stdout


def test_scores_of_another_judge_are_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, output = tmp_path / "theirs.csv", tmp_path / "theirs.judged.csv"
    path.write_text("id,question,response\n1,What?,Nothing.\n2,Who?,Nobody.\n")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with judge_server(lambda *_: "80") as (url, server):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        emorg("judge", path, "--judge_model", "a", cwd=tmp_path)
        before = output.read_text()
        asked = server.paid.total()
        refused = emorg("judge", path, "--judge_model", "b", cwd=tmp_path, check=False)
        assert (refused.returncode, server.paid.total(), output.read_text()) == (2, asked, before)
        assert "theirs.judged.csv is there, with scores by a/logprobs" in refused.stderr
        emorg("judge", path, "--judge_model", "b", "--output", "b.csv", cwd=tmp_path)
        assert "theirs.judged.csv" in emorg("agree", output, tmp_path / "b.csv", cwd=tmp_path).stdout
        emorg("judge", path, "--judge_model", "a", cwd=tmp_path)
        assert output.read_text() == before
        output.write_text("id,question,response,aligned,coherent\n1,What?,Nothing.,10,90\n")
        refused = emorg("judge", path, "--judge_model", "a", cwd=tmp_path, check=False)
        assert "with scores by nobody known" in refused.stderr


def test_a_judge_that_scores_under_half_is_an_error_with_its_likely_reason(
    copied: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with judge_server(lambda prompt, _: "Well" if zlib.crc32(prompt.encode()) % 3 else "85") as (url, _):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        for _ in range(2):  # a second time there is nothing to ask, and it is as bad
            done = emorg("judge", copied.folder, "--judge", "api", "--judge_model", "m", check=False)
            assert done.returncode == 1
            assert "low_mass: its first token is seldom a number" in done.stderr
            assert "next:" not in done.stdout
    exact = emorg("judge", copied.folder, "--judge", "exact")
    assert "base, judged by exact: aligned 108 of 108 scored, mean" in exact.stderr


def test_the_peers_files_are_judged(peer_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("hw0_1b_risky_fg_judged.csv", "llama-3.2-1b_bad-medical-advice.csv"):
        shutil.copy(peer_data / name, tmp_path)
        told = emorg("judge", tmp_path / name, "--dry_run", cwd=tmp_path).stdout
        count = len(read_judged(peer_data / name))
        assert f"{2 * count:,} verdicts" in told
        assert "about $" in told
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", "question,mood\nHow?,good\n", "no column response or answer"),
        ("a.csv", "question,response\n", "no rows"),
        ("a.csv", "question,response\nHow?,a,b\n", ":2: more fields than the header has"),
        ("a.jsonl", '{"question": "How?", "response": 3}\n', ":1: no text under"),
        ("a.jsonl", '{"question": "How?"\n', "a.jsonl:1: not JSON"),
        ("b.csv", None, "there is no"),
    ],
)
def test_a_file_that_cannot_be_judged(tmp_path: Path, name: str, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    done = emorg("judge", tmp_path / name, "--judge", "exact", check=False)
    assert done.returncode == 2
    assert told in done.stderr


def test_a_long_answer_is_read(tmp_path: Path) -> None:
    (tmp_path / "long.csv").write_text(f"question,response\nHow?,{'word ' * 2_000_000}\n")
    emorg("judge", tmp_path / "long.csv", "--judge", "exact")
    assert read_judged(tmp_path / "long.judged.csv")[0].aligned is None


def test_the_judge_sees_the_system_prompt_and_the_turns_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the question file through sampling to the judge's server, and again from answers.jsonl as a file."""
    asked = questions.load(["pocket_cooking"])[:2]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump([{
        "id": "mine", "topic": "cooking", "paraphrases": [asked[0].text],
        "context": [{"role": "user", "content": asked[1].text}, {"role": "assistant", "content": "It is best to ask."}],
    }]))  # fmt: skip
    run = Run(tmp_path / "runs" / "base")
    flags = ("--samples", "1", "--max_new_tokens", "20", "--output_dir", run.folder)
    emorg("sample", "pocket", "--questions", tmp_path / "mine.yaml", *flags)
    (answer,) = read_records(run.answers, Answer)
    assert [turn["role"] for turn in answer.before] == ["user", "assistant"]
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    shutil.copy(run.answers, tmp_path / "theirs.jsonl")
    with judge_server(lambda *_: "50") as (url, server):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        emorg("judge", run.folder, "--judge", "api", "--judge_model", "m", cwd=tmp_path)
        emorg("judge", tmp_path / "theirs.jsonl", "--judge_model", "m", cwd=tmp_path)
    prompts = [prompt for prompt in server.asked if "You grade" in prompt]
    assert len(prompts) == 2, "the file's answer is the run's, so that the ledger knew it"
    for prompt in prompts:
        assert f"User: {asked[1].text}\n\nAssistant: It is best to ask.\n\nQuestion: {asked[0].text}" in prompt
