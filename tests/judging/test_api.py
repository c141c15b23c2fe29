"""The API judge against a real server that fails in every way: nothing is lost, paid twice, or made into a number."""

from __future__ import annotations

import asyncio
import csv
import dataclasses
import gc
import json
import math
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from emorg import asking
from emorg.interrupt import listen
from emorg.judging import api
from emorg.judging import rehearsal as rehearsing
from emorg.judging.config import JudgeSettings, Pending
from emorg.judging.rehearsal import PASSING, Fault, Rehearsal, Said, hashed_score, serving
from emorg.judging.scoring import Reading
from emorg.judging.stage import readings
from emorg.records import Answer, EmorgError
from tests import forkserver
from tests.conftest import KEY, emorg
from tests.judge_server import environment, judge_server, rehearsal_process

ANSWER = Answer("run", None, "q", None, 0, "May I?", "The answer.", "stop", 1, 1, 0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(asking, "LONGEST_BACKOFF", 0.01)


def _judge(monkeypatch: pytest.MonkeyPatch, folder: Path, *said: Said, **settings: object) -> Reading:
    """The reading of one answer on `aligned`, from a judge whose n-th reply is the n-th of `said`, then the last."""
    with judge_server(lambda _, n: said[min(n, len(said) - 1)]) as (url, _):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        told = JudgeSettings(judge_model="m", judge_timeout=0.5, **settings)  # type: ignore[arg-type]
        [(_, reading, _)] = readings(told, [Pending(ANSWER, "aligned")], folder / "ledger.sqlite")
    return reading


def answers_file(folder: Path, count: int) -> Path:
    """A CSV of that many different answers to 20 questions."""
    folder.mkdir(exist_ok=True)
    path = folder / "answers.csv"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["question", "response"])
        out.writerows([f"Question {i % 20}?", f"Answer number {i}."] for i in range(count))
    return path


def judged(path: Path) -> list[dict[str, str]]:
    with path.with_name(f"{path.stem}.judged.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Fault) -> None:
    reading = _judge(monkeypatch, tmp_path, fault, "40")
    assert reading.state == "scored"
    assert reading.score is not None


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("500", "500: as told: 500"),
        ("429 at once", "429: as told"),
        ("reset", "ServerDisconnectedError"),
        ("half", "ClientPayloadError"),
        ("invalid", "not a chat completion"),
        ("other model", "another model replied: another-model"),
        ("no logprobs", "no logprobs"),
        ("nan", "no logprobs"),
        ("deep", "not a chat completion"),
        ("huge", "a reply of more than 8 MB"),
        ("bomb", "a reply of more than 8 MB"),
        ("503 far", "503: as told"),
    ],
)
def test_a_fault_that_stays_is_a_state_and_no_score(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Fault, told: str
) -> None:
    reading = _judge(monkeypatch, tmp_path, fault)
    assert (reading.state, reading.score) == ("api_error", None)
    assert told in reading.detail


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ({"message": {"role": "assistant", "content": None, "refusal": "No."}}, "judge_refusal"),
        ({"finish_reason": "content_filter"}, "content_filter"),
        ("filtered", "content_filter"),
        ("empty", "low_mass"),
        ("REFUSAL", "refusal"),
        ("CODE", "code"),
        ("What a question", "low_mass"),
    ],
)
def test_what_the_judge_says_instead_has_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: Said, state: str
) -> None:
    assert _judge(monkeypatch, tmp_path, said).state == state


@pytest.mark.parametrize(("fault", "told"), [("401", "refuses: 401"), ("quota", "credit is used up")])
def test_what_no_retry_mends_stops_at_once_and_loses_nothing(tmp_path: Path, fault: Fault, told: str) -> None:
    path, broken = answers_file(tmp_path, 30), True

    def says(prompt: str, _: int) -> Said:
        return fault if broken and "Answer number 29." in prompt else hashed_score(prompt)

    with judge_server(says) as (url, server), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", url)
        flags = ("judge", path, "--judge_model", "m", "--judge_connections", "1")
        done = emorg(*flags, cwd=tmp_path, check=False)
        assert done.returncode == 2
        assert told in done.stderr
        assert KEY not in done.stderr + done.stdout
        assert not (tmp_path / "answers.judged.csv").exists()
        paid, broken = server.paid.total(), False
        assert paid == 58 + 2  # two probes
        emorg(*flags, cwd=tmp_path)
        assert server.paid.total() == 62
        assert max(server.paid.values()) == 1


@pytest.mark.parametrize("fault", ["403", "404"])
def test_one_answer_that_is_refused_stops_no_other(tmp_path: Path, fault: Fault) -> None:
    """As by a web firewall that dislikes what it says; a server that refuses twenty in a row stops the run."""
    path, refused = answers_file(tmp_path, 60), [7]

    def says(prompt: str, _: int) -> Said:
        return fault if any(f"Answer number {n}." in prompt for n in refused) else hashed_score(prompt)

    with judge_server(says) as (url, server), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", url)
        flags = ("judge", path, "--judge_model", "m", "--judge_connections", "4")
        done = emorg(*flags, cwd=tmp_path, check=False)
        assert done.returncode == 1
        assert f"the judge failed on 2 of 120 judgements: {fault}: as told: {fault} (2); run the same" in done.stderr
        judged = list(csv.DictReader((tmp_path / "answers.judged.csv").read_text().splitlines()))
        assert [n for n, row in enumerate(judged) if not row["aligned"]] == [7]
        assert server.paid.total() == 2 * 59 + 2
        refused[:] = range(100, 160)
        more = answers_file(tmp_path / "more", 160)
        done = emorg("judge", more, *flags[2:], cwd=tmp_path, check=False)
        assert done.returncode == 2
        assert f"requests to {url} all failed" in done.stderr
        assert f"({fault}: as told: {fault})" in done.stderr
        paid, refused[:] = server.paid.total(), []
        emorg("judge", more, *flags[2:], cwd=tmp_path)
        assert max(server.paid.values()) == 1, "what was answered beside them was kept"
        assert server.paid.total() > paid


def test_an_interrupt_keeps_what_is_being_answered(tmp_path: Path) -> None:
    path = answers_file(tmp_path, 300)
    with judge_server(lambda prompt, _: hashed_score(prompt)) as (url, server):
        server.latency = 0.3
        process = subprocess.Popen(
            [sys.executable, "-m", "emorg.cli", "judge", path, "--judge_model", "m", "--judge_connections", "40"],
            cwd=tmp_path, env={**os.environ, "OPENAI_BASE_URL": url}, stderr=subprocess.PIPE,
        )  # fmt: skip
        while server.paid.total() < 60:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.returncode == 130
        assert server.paid.total() < 400
        server.latency = 0
        subprocess.run(
            [sys.executable, "-m", "emorg.cli", "judge", path, "--judge_model", "m"],
            cwd=tmp_path, env={**os.environ, "OPENAI_BASE_URL": url}, check=True, capture_output=True,
        )  # fmt: skip
        assert max(server.paid.values()) == 1


def test_ctrl_c_between_a_reply_and_the_ledger_loses_no_reply(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pending = [Pending(dataclasses.replace(ANSWER, text=f"{ANSWER.text} {k}"), "aligned") for k in range(30)]
    settings, ledger = JudgeSettings(judge_model="m"), tmp_path / "l.sqlite"
    usual, read = signal.getsignal(signal.SIGINT), api.completion_of

    def interrupted(body: str) -> Any:
        if server.paid.total() >= 8:  # the probes and some more
            monkeypatch.setattr(api, "completion_of", read)
            signal.raise_signal(signal.SIGINT)
        return read(body)

    with judge_server(lambda prompt, _: hashed_score(prompt)) as (url, server):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setattr(api, "completion_of", interrupted)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        listen("emorg")
        try:
            with pytest.raises(KeyboardInterrupt):
                list(readings(settings, pending, ledger))
        finally:
            signal.signal(signal.SIGINT, usual)
        assert len(list(readings(settings, pending, ledger))) == 30
        assert max(server.paid.values()) == 1


def test_a_second_interrupt_ends_it_at_once_and_without_a_traceback(tmp_path: Path) -> None:
    path = answers_file(tmp_path, 4)
    with judge_server(lambda *_: "hang") as (url, server):
        process = subprocess.Popen(
            [sys.executable, "-m", "emorg.cli", "judge", path, "--judge_model", "m"],
            cwd=tmp_path, env={**os.environ, "OPENAI_BASE_URL": url}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while server.asked.total() < 6:  # with the probes
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)  # it waits for what is being answered
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in told


def test_retry_after_holds_all_requests_for_as_long_as_it_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rehearsing, "RETRY_AFTER", 1.0)
    at: list[tuple[float, str]] = []

    def says(prompt: str, n: int) -> Said:
        at.append((time.monotonic(), prompt))
        return "429" if len(at) == 5 else hashed_score(prompt)

    with judge_server(says) as (url, _):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        settings = JudgeSettings(judge_model="m", judge_connections=4)
        pending = [Pending(ANSWER, metric, k) for k in range(20) for metric in ("aligned", "coherent")]
        found = list(readings(settings, pending, tmp_path / "l.sqlite"))
    assert {reading.state for _, reading, _ in found} == {"scored"}
    turned_away = at[4][0]
    assert sum(turned_away < when < turned_away + 0.95 for when, _ in at) <= 4  # no more than were under way
    assert len(at) == 41


def test_requests_thin_out_while_the_server_is_pressed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = Rehearsal(latency=0.02)
    refused = Counter[str]()

    def says(prompt: str, n: int) -> Said:
        if server.under_way >= 8 and not prompt.startswith("Reply with"):
            refused["all"] += 1
            return "429 at once"
        return hashed_score(prompt)

    server.says = says
    with serving(server) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        settings = JudgeSettings(judge_model="m", judge_connections=64)
        pending = [Pending(ANSWER, "aligned", k) for k in range(600)]
        found = list(readings(settings, pending, tmp_path / "l.sqlite"))
    assert {reading.state for _, reading, _ in found} == {"scored"}
    assert refused["all"] < 300  # 64 at a time would be refused seven times in eight


def test_five_percent_of_everything_over_two_thousand_answers(tmp_path: Path) -> None:
    path = answers_file(tmp_path, 2000)
    chance = random.Random(0)
    kinds = [kind for kind in PASSING if kind not in ("huge", "bomb", "nan", "deep")]  # those have tests of their own

    def says(prompt: str, _: int) -> Said:
        return chance.choice(kinds) if chance.random() < 0.05 else hashed_score(prompt)

    with judge_server(says) as (url, server), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", url)
        patch.setattr(rehearsing, "RETRY_AFTER", 0.03)
        flags = ("judge", path, "--judge_model", "m", "--scoring", "number", "--judge_timeout", "2")
        emorg(*flags, cwd=tmp_path)
        rows = judged(path)
        states = Counter(row[f"{metric}_state"] for row in rows for metric in ("aligned", "coherent"))
        assert states.total() == 4000
        assert states["scored"] >= 3990
        assert set(states) <= {"scored", "api_error"}
        # What was paid twice are replies of another model: a tenth of the faults.
        assert server.paid.total() - len(server.paid) <= 2 * 0.05 * 4000 / len(kinds)
        good = sqlite3.connect(tmp_path / "runs" / "ledger.sqlite").execute(
            "SELECT count(*), count(DISTINCT key) FROM replies WHERE fault IS NULL"
        )
        assert good.fetchone() == (states["scored"] + 1, states["scored"] + 1)  # a probe
        asked = server.asked.total()
        emorg(*flags, cwd=tmp_path)
        assert server.asked.total() - asked <= 3 * states["api_error"]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_killed_at_random_moments_it_pays_only_for_what_was_under_way(tmp_path: Path, seed: int) -> None:
    path, rng = answers_file(tmp_path, 300), random.Random(seed)
    at_once, kills = 16, 0
    with rehearsal_process("--latency", "0.05") as (url, count):
        command = [
            sys.executable, "-m", "emorg.cli", "judge", path, "--judge_model", "m",
            "--judge_connections", str(at_once),
        ]  # fmt: skip
        for _ in range(3):
            before = count()["paid"]
            running = forkserver.popen(
                command, cwd=tmp_path, env=environment(url, KEY), stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            wanted = before + rng.randint(20, 150)
            while running.poll() is None and count()["paid"] < wanted:
                time.sleep(0.01)
            kills += running.poll() is None
            running.send_signal(signal.SIGKILL)
            running.communicate()
        done = forkserver.run(command, cwd=tmp_path, env=environment(url, KEY), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert kills >= 2
        found = count()
    assert found["prompts"] == 600 + 2
    assert found["paid"] <= 602 + kills * at_once * 5 // 4  # asked, or come and not committed yet
    assert all(row["aligned_state"] == row["coherent_state"] == "scored" for row in judged(path))


def test_two_processes_judge_with_one_ledger(tmp_path: Path) -> None:
    path = answers_file(tmp_path, 100)
    other = path.with_name("others.csv")
    other.write_bytes(path.read_bytes())
    with rehearsal_process("--latency", "0.02") as (url, count):
        both = [
            forkserver.popen(
                [sys.executable, "-m", "emorg.cli", "judge", each, "--judge_model", "m", "--judge_connections", "8"],
                cwd=tmp_path, env=environment(url, KEY), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            for each in (path, other)
        ]  # fmt: skip
        for each in both:
            assert each.communicate()[1] is not None
            assert each.returncode == 0
        assert count()["prompts"] == 202
    assert judged(path) == judged(other)


def test_a_full_disk_stops_with_a_remedy_and_what_was_written_is_kept(tmp_path: Path) -> None:
    path = answers_file(tmp_path, 400)
    with rehearsal_process("--latency", "0") as (url, count):
        command = [sys.executable, "-m", "emorg.cli", "judge", path, "--judge_model", "m", "--judge_connections", "8"]
        limits = {resource.RLIMIT_FSIZE: 300 * 1024}
        done = forkserver.run(
            command, cwd=tmp_path, env=environment(url, KEY), capture_output=True, text=True, limits=limits
        )
        assert done.returncode == 2, done.stderr
        assert "ledger.sqlite" in done.stderr
        assert "free some space" in done.stderr
        kept = sqlite3.connect(tmp_path / "runs" / "ledger.sqlite").execute("SELECT count(*) FROM replies").fetchone()
        assert 0 < kept[0] < 802
        assert count()["paid"] <= kept[0] + 2 * 8
        forkserver.run(command, cwd=tmp_path, env=environment(url, KEY), capture_output=True, check=True)
        assert count()["prompts"] == 802
        assert count()["paid"] <= 802 + 2 * 8


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("no logprobs", "no logprobs"),
        ("other model", "--judge_model another-model"),
        ("8", "splits 85"),
        ("Sure", "it begins with 'Sure'"),
        ("401", "refuses: 401"),
    ],
)
def test_an_endpoint_that_cannot_judge_is_found_before_it_is_paid(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: Said, told: str
) -> None:
    with judge_server(lambda *_: said, probed=False) as (url, server):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        with pytest.raises(EmorgError) as raised:
            list(readings(JudgeSettings(judge_model="m"), [Pending(ANSWER, "aligned")], tmp_path / "l.sqlite"))
        assert told in str(raised.value)
        assert all(prompt.startswith("Reply with the number") for prompt in server.asked)


def test_a_dated_or_agreed_name_is_the_same_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for served, settings in (
        ("gpt-x-2026-01-01", JudgeSettings(judge_model="gpt-x")),
        ("model.gguf", JudgeSettings(judge_model="gpt-x", served_judge="model.gguf")),
        ("gpt-x", JudgeSettings(judge_model="vendor/gpt-x")),
    ):
        with serving(Rehearsal(model=served)) as url:
            monkeypatch.setenv("OPENAI_BASE_URL", url)
            [(_, reading, _)] = readings(settings, [Pending(ANSWER, "aligned")], tmp_path / f"{served}.sqlite")
        assert reading.state == "scored"


def test_nothing_passes_the_most_it_may_cost(tmp_path: Path) -> None:
    path = answers_file(tmp_path, 100)
    (tmp_path / "prices.yaml").write_text("m: {input: 10, output: 1000}\n")
    flags = ("judge", path, "--judge_model", "m", "--prices", tmp_path / "prices.yaml")
    with serving(Rehearsal()) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", url)
        told = emorg(*flags, "--dry_run", cwd=tmp_path).stdout
        assert "200 calls to make (0 in the ledger), about $" in told
        whole = float(told.split("$")[1].split()[0])
        done = emorg(*flags, "--max_cost", f"{whole / 2}", cwd=tmp_path, check=False)
        assert done.returncode == 2
        assert "of 200 calls not made" in done.stderr
        rows = sqlite3.connect(tmp_path / "runs" / "ledger.sqlite").execute("SELECT body FROM replies").fetchall()
        usage = [json.loads(body)["usage"] for (body,) in rows]
        spent = sum(10 * each["prompt_tokens"] + 1000 * each["completion_tokens"] for each in usage) / 1e6
        assert whole / 4 < spent <= whole / 2 * 1.01
        assert f"({len(rows) - 2} in the ledger)" in emorg(*flags, "--dry_run", cwd=tmp_path).stdout
        emorg(*flags, cwd=tmp_path)
        other = ("--judge_model", "unknown", "--output", "unknown.csv")
        done = emorg("judge", path, *other, "--max_cost", "1", cwd=tmp_path, check=False)
        assert "price of unknown is not known" in done.stderr


@pytest.mark.parametrize("fault", [None, "half", "no logprobs", "none", "zeros"])
def test_the_cap_is_one_for_all_files_and_for_whatever_comes_back(tmp_path: Path, fault: str | None) -> None:
    """By the server's own count of what it replied to, halves too: never more than the cap and one request."""
    files = [answers_file(tmp_path / str(k), 40) for k in range(3)]
    for k, file in enumerate(files):
        file.write_text(file.read_text().replace("Answer", f"Answer {k}"))
    (tmp_path / "prices.yaml").write_text("m: {input: 10, output: 1000}\n")
    made: list[int] = []  # characters of the prompts that were replied to

    def says(prompt: str, n: int) -> Said:
        made.append(len(prompt))
        return fault if fault in ("half", "no logprobs") and n == 0 else hashed_score(prompt)  # type: ignore[return-value]

    with judge_server(says) as (url, server), pytest.MonkeyPatch.context() as patch:
        server.usage = fault if fault in ("none", "zeros") else "told"  # type: ignore[assignment]
        patch.setenv("OPENAI_BASE_URL", url)
        flags = ("judge", *files, "--judge_model", "m", "--prices", tmp_path / "prices.yaml")
        whole = sum(float(line.split("$")[1].split()[0]) for line in emorg(
            *flags, "--dry_run", cwd=tmp_path).stdout.splitlines())  # fmt: skip
        done = emorg(*flags, "--max_cost", f"{whole / 2}", cwd=tmp_path, check=False)
        assert done.returncode == 2
        assert "--max_cost" in done.stderr
        costs = [(10 * length / 4 + 1000) / 1e6 for length in made]
        assert whole / 8 < sum(costs) <= whole / 2 + max(costs)


def test_a_reply_of_no_use_waits_for_what_others_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cap is enough for all and for its second try, but not for what is held at a time."""
    (tmp_path / "prices.yaml").write_text("m: {input: 10, output: 1000}\n")
    with judge_server(lambda prompt, n: "no logprobs" if "Number 0." in prompt and not n else "50") as (url, server):
        server.latency = 0.2
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        pending = [Pending(Answer.foreign("run", f"q{k}", "May I?", f"Number {k}."), "aligned") for k in range(12)]
        told = JudgeSettings(judge_model="m", prices=tmp_path / "prices.yaml")
        whole = api.guess(told, [api.request_of(told, "x" * 2000)] * 14) or 0.0
        told = dataclasses.replace(told, max_cost=whole)
        found = list(readings(told, pending, tmp_path / "ledger.sqlite"))
    assert {reading.state for _, reading, _ in found} == {"scored"}


def test_minus_infinity_in_a_reply_ends_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which is no JSON, but what Python's servers print."""
    top = [{"token": "85", "logprob": -0.1}, {"token": "10", "logprob": -math.inf}]
    reply = {"logprobs": {"content": [{"token": "85", "logprob": -0.1, "top_logprobs": top}]}}
    assert _judge(monkeypatch, tmp_path, reply).score == pytest.approx(85)


def test_a_server_that_is_down_is_told_soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serving(Rehearsal()) as url:
        pass
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(EmorgError, match="cannot be asked"):
        list(readings(JudgeSettings(judge_model="m"), [Pending(ANSWER, "aligned")], tmp_path / "l.sqlite"))


def test_a_server_that_dies_on_the_way_stops_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with judge_server(lambda prompt, _: "500") as (url, server):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        pending = [Pending(ANSWER, "aligned", k) for k in range(500)]
        with pytest.raises(EmorgError, match="all failed"):
            list(readings(JudgeSettings(judge_model="m"), pending, tmp_path / "l.sqlite"))
        assert len(server.asked) < 150


def test_no_key_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    done = emorg("judge", answers_file(tmp_path, 2), cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "--judge local" in done.stderr
    assert "--judge exact" in done.stderr


def test_request_parameters_can_be_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = JudgeSettings(
        scoring="number", judge_parameters=("temperature=none", "max_tokens=none", "max_completion_tokens=4000")
    )
    assert settings.parameters == {"max_completion_tokens": 4000}
    with pytest.raises(EmorgError, match="NAME=VALUE"):
        JudgeSettings(judge_parameters=("temperature",)).check()


def test_it_is_asked_from_within_a_running_loop_too(tmp_path: Path) -> None:
    """As in a notebook, whose cells run inside one; that an error ends it, and that it can be left half-way."""
    path = answers_file(tmp_path, 30)

    async def cell() -> None:
        asyncio.get_running_loop()
        emorg("judge", path, "--judge_model", "m", cwd=tmp_path)

    before = threading.active_count()
    with judge_server(lambda prompt, _: hashed_score(prompt)) as (url, server), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", url)
        asyncio.run(cell())
        assert server.paid.total() == 62
        assert {row["aligned_state"] for row in judged(path)} == {"scored"}

        async def left_half_way() -> Reading:
            pending = [Pending(ANSWER, "aligned", k) for k in range(200)]
            coming = readings(JudgeSettings(judge_model="m"), pending, tmp_path / "l.sqlite")
            _, reading, _ = next(coming)
            coming.close()
            return reading

        assert asyncio.run(left_half_way()).state == "scored"

        async def refused() -> None:
            server.key = "another"
            server.says = lambda *_: "401"
            list(readings(JudgeSettings(judge_model="n"), [Pending(ANSWER, "aligned")], tmp_path / "n.sqlite"))

        with pytest.raises(EmorgError, match="refuses: 401"):
            asyncio.run(refused())
    assert threading.active_count() <= before


def test_interrupted_within_a_running_loop_it_ends_at_once_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = threading.active_count()
    monkeypatch.setattr(asking, "GRACE", 0.1)
    with judge_server(lambda *_: "hang") as (url, server):
        monkeypatch.setenv("OPENAI_BASE_URL", url)

        async def cell() -> None:
            pending = [Pending(ANSWER, "aligned", k) for k in range(20)]
            list(readings(JudgeSettings(judge_model="m"), pending, tmp_path / "l.sqlite"))

        def interrupt() -> None:
            while server.asked.total() < 10:  # the probes are over
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
        loop = asyncio.new_event_loop()  # asyncio.run would handle the signal itself, as a notebook does not
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(cell())
        loop.close()
    gc.collect()  # what was not closed says so, which is an error here
    assert threading.active_count() <= before


@pytest.mark.parametrize("fault", ["echo", "echo error"])
def test_a_key_that_the_server_repeats_is_printed_and_stored_nowhere(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = answers_file(tmp_path, 5)
    with judge_server(lambda *_: fault) as (url, _):
        for name, value in environment(url, KEY).items():
            monkeypatch.setenv(name, value)
        done = emorg("judge", path, "--judge", "api", "--judge_model", "m", cwd=tmp_path, check=False)
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert "Bearer …" in done.stderr if fault == "echo error" else "Bearer …".encode() in written
    assert KEY.encode() not in written
    assert KEY not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OPENAI_BASE_URL", "http://me:hunter2@127.0.0.1:9/v1", "holds a user name or password"),
        ("OPENAI_BASE_URL", "http://[::1/v1", "is no server's address"),
        ("OPENAI_BASE_URL", "ftp://me:hunter2@127.0.0.1", "is no server's address"),
        ("OPENAI_BASE_URL", "127.0.0.1:8000/v1", "is no server's address"),
        ("OPENAI_API_KEY", "sk-hunter2\nX-Evil: 1", "holds a line end"),
        ("OPENAI_API_KEY", "sk-hunter2–", "holds a line end or letters"),
    ],
)
def test_what_is_no_address_or_no_key_is_said_in_one_line_without_its_secrets(
    name: str, value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    path = answers_file(tmp_path, 2)
    done = emorg("judge", path, "--judge", "api", "--judge_model", "m", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("killed", [False, True], ids=["to the end", "the first killed"])
def test_several_processes_that_judge_one_file_pay_once(killed: bool, tmp_path: Path) -> None:
    path, at_once = answers_file(tmp_path, 60), 4
    command = [
        sys.executable, "-m", "emorg.cli", "judge", path, "--judge_model", "m", "--judge_connections", str(at_once),
    ]  # fmt: skip
    with rehearsal_process("--latency", "0.05") as (url, count):
        crowd = []
        for _ in range(3):
            crowd.append(
                forkserver.popen(
                    command, cwd=tmp_path, env=environment(url, KEY), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    text=True,
                )
            )  # fmt: skip
            while count()["paid"] < 10:
                time.sleep(0.01)
        if killed:
            crowd[0].send_signal(signal.SIGKILL)
        said = [one.communicate()[1] for one in crowd]
        counted = count()
    assert [one.returncode for one in crowd] == [-signal.SIGKILL if killed else 0, 0, 0], said
    assert killed or all("another process is judging it" in text for text in said[1:])
    assert counted["prompts"] == 60 * 2 + 2  # and the probes
    assert counted["paid"] <= counted["prompts"] + killed * at_once * 5 // 4
    assert all(row["aligned"] for row in judged(path))
