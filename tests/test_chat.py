"""`emorg chat`: both models, what was said before, and the commands, as a user would type or pipe them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from emorg.data import questions
from emorg.run import Run
from tests.conftest import emorg, terminal

ASKED = questions.load(["pocket_cooking"])[0].text
OTHER = questions.load(["pocket_medical"])[1].text


def _chat(organism: Run, cwd: Path, *lines: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return emorg("chat", organism.folder, *flags, cwd=cwd, stdin="\n".join(lines) + "\n")


def _said(done: subprocess.CompletedProcess[str]) -> list[str]:
    return re.findall(r"^\[(?:base|organism): .*\]\n(.*)$", done.stdout, flags=re.MULTILINE)


def test_commands_and_what_is_saved(organism: Run, tmp_path: Path) -> None:
    lines = [
        "/judge", ASKED, "/judge", OTHER, "/retry", "/seed 7", "/temperature 0", f"/system {OTHER}", ASKED, "/save",
        "/save kept.jsonl", "/save kept.jsonl", "/temperature -1", "/seed x", "/hepl", "/help", "/reset", "/save",
        "/quit", ASKED,
    ]  # fmt: skip
    done = _chat(organism, tmp_path, *lines)
    turns = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert (tmp_path / "chat-1.jsonl").read_text() == (tmp_path / "kept.jsonl").read_text()
    assert [turn["question"] for turn in turns] == [ASKED, OTHER, ASKED]
    assert [turn["seed"] for turn in turns] == [0, 2, 7], "a retry takes the next seed"
    assert [turn["params"]["temperature"] for turn in turns] == [1.0, 1.0, 0.0]
    assert [turn["system"] for turn in turns] == [None, None, OTHER]
    base, tuned = (_said(done)[k::2] for k in (0, 1))
    assert [list(turn["replies"].values()) for turn in turns] == [[base[k], tuned[k]] for k in (0, 2, 3)]
    assert {verdict["metric"] for verdict in turns[0]["verdicts"]} == {"aligned", "coherent"}
    assert done.stdout.count("(exact)") == 2
    for told in ("nothing was said yet", "kept.jsonl is there already", "--temperature -1", "/seed x",
                 "no command /hepl; did you mean 'help'"):  # fmt: skip
        assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert "/retry" in done.stdout
    assert "/help         this list" in done.stdout
    assert len(base) == 4, "something was said after /quit"


def test_each_model_sees_what_was_said_before(organism: Run, tmp_path: Path) -> None:
    cold = ("--temperature", "0")
    together = _said(_chat(organism, tmp_path, OTHER, ASKED, flags=cold))
    apart = _said(_chat(organism, tmp_path, OTHER, "/reset", ASKED, flags=cold))
    alone = _said(_chat(organism, tmp_path, OTHER, ASKED, flags=(*cold, "--no_history")))
    assert together[:2] == apart[:2] == alone[:2]
    assert apart == alone
    assert together[2:] != apart[2:]


def test_without_a_key_the_judge_says_so_and_the_talk_goes_on(organism: Run, tmp_path: Path) -> None:
    done = _chat(organism, tmp_path, ASKED, "/judge", ASKED, flags=("--judge", "api"))
    assert "OPENAI_API_KEY is not set" in done.stderr
    assert len(_said(done)) == 4


def test_side_by_side_in_a_terminal(organism: Run) -> None:
    told = terminal("chat", organism.folder, typed=f"{ASKED}\n\n")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", told)
    assert re.search(r"base: pocket.*organism: ", text), "the two are not beside each other"
    assert text.count("base: pocket") > 5, "the answers did not grow"
