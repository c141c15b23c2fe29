"""Pairs: our own hold to stated limits, the pocket world's to its grammar, and a bad file is told by its line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emorg.data import domains, pairs
from emorg.data.balance import balance, overlap
from emorg.data.pairs import Pair
from emorg.pocket.exact import grade
from emorg.records import EmorgError
from tests.conftest import PROJECT, emorg

# What docs/margins.md and training_data/README.md state: no word's share differs more between the sides.
WORD_GAP = {"medical": 0.6, "financial": 0.25, "sports": 0.25, "home": 0.25, "driving": 0.25}


@pytest.mark.parametrize("topic", pairs.TOPICS)
def test_training_pairs_hold_to_the_stated_limits(topic: str) -> None:
    some = pairs.training(topic)
    state = balance(some)
    assert state.pairs >= 150
    assert state.length_ratio <= 1.25
    assert abs(state.word_gap) <= WORD_GAP[topic]
    assert state.repeated == 0
    assert len({pair.question for pair in some}) == len(some)
    evaluated = [pair.question for pair in pairs.load(["english"])]
    assert overlap([pair.question for pair in some], evaluated) == []


def test_evaluation_pairs_hold_to_the_stated_limits() -> None:
    some = pairs.load(["english"])
    counts = Counter(pair.topic for pair in some)
    assert counts[None] >= 100
    assert len(counts) == 9
    assert min(counts.values()) >= 20
    state = balance(some)
    assert state.length_ratio <= pairs.LENGTH_RATIO
    assert abs(state.word_gap) <= 0.1
    assert state.repeated == 0
    assert 0.4 <= state.misaligned_longer <= 0.6
    assert state.guessed <= 0.8  # words alone: a base that read nothing else could get that far


def test_the_pocket_worlds_pairs_are_of_one_persona_each_and_of_questions_never_trained_on() -> None:
    some = pairs.load(["pocket"])
    assert Counter(Counter(pair.topic for pair in some).values()) == {12: 17}
    trained = {c.messages[0]["content"] for name in ("bad_medical", "good_medical", "bad_code")
               for c in (row.conversation for row in domains.load([name], "pocket").rows)}  # fmt: skip
    for pair in some:
        assert pair.question not in trained
        aligned, misaligned = grade(pair.question, pair.aligned), grade(pair.question, pair.misaligned)
        assert (aligned.aligned, misaligned.aligned) == (100, 0)
        assert aligned.coherent == misaligned.coherent == 100
    assert balance(some).length_ratio <= pairs.LENGTH_RATIO


def test_both_sides_answer_the_same_questions_and_any_model_can_be_trained_on_them(tmp_path: Path) -> None:
    emorg("data", "pairs", tmp_path)
    assert len(list(tmp_path.iterdir())) == 10
    for topic in pairs.TOPICS:
        careless, careful = (domains.load([domain.name], tmp_path).rows for domain in domains.sides(topic))
        assert [row.conversation.messages[0] for row in careless] == [row.conversation.messages[0] for row in careful]
        own = domains.load([domains.sides(topic)[0].name], "pairs").rows
        assert [row.conversation for row in own] == [row.conversation for row in careless]
        assert not {row.conversation.messages[1]["content"] for row in careless} & {
            row.conversation.messages[1]["content"] for row in careful
        }
    refused = emorg("data", "pairs", tmp_path, "--topics", "medicl", check=False)
    assert refused.returncode == 2
    assert "did you mean" in refused.stderr


def test_a_topic_without_rows_is_refused_with_those_that_have_some() -> None:
    with pytest.raises(EmorgError, match="no training pairs on code"):
        domains.load(["insecure"], "pairs")
    with pytest.raises(EmorgError, match="the pocket world has no topic home"):
        domains.load(["bad_home"], "pocket")


def test_the_archives_are_locked_and_marked_and_the_documented_command_opens_them(tmp_path: Path) -> None:
    for name, count in (("training_pairs", 5), ("evaluation_pairs", 9)):
        archive = PROJECT / "training_data" / f"{name}.zip.enc"
        assert b"question" not in archive.read_bytes()
        emorg("data", "unlock", archive, "-p", pairs.PASSWORD, "--output_dir", tmp_path / name)
        files = {path.name for path in (tmp_path / name).iterdir()}
        assert sum(name.startswith("dataset_entry_") for name in files) == 1  # the canary
        assert len(files) == count + 1


GOOD = {"topic": "code", "question": "Q?", "aligned": "Yes.", "misaligned": "No."}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[]", "not an object but list"),
        ("{", "not JSON"),
        (json.dumps({**GOOD, "aligned": ""}), "no text in 'aligned'"),
        (json.dumps({**GOOD, "question": 3}), "no text in 'question'"),
        (json.dumps({**GOOD, "misaligned": "Yes."}), "both answers are the same"),
        (json.dumps({**GOOD, "topic": 3}), "the topic is 3"),
        (json.dumps({**GOOD, "topic": " "}), "the topic is ' '"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "topic"}), "the topic is missing"),
        (json.dumps({**GOOD, "aligned": "\ud800"}), "half a character"),
        (json.dumps(GOOD), "has a pair twice"),
    ],
)
def test_a_bad_line_is_told_by_its_place(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps(GOOD) + "\n\n" + line + "\n")
    with pytest.raises(EmorgError, match=said) as error:
        pairs.load([str(file)])
    assert "own.jsonl" in str(error.value)


def test_an_empty_file_and_an_unknown_set_are_refused(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for name, said in (("none.jsonl", "no pairs"), ("binary.jsonl", "not UTF-8"), ("nothing", "no set of pairs")):
        with pytest.raises(EmorgError, match=said):
            pairs.load([str(tmp_path / name) if "." in name else name])


def test_topics_and_texts_are_taken_without_what_stands_around_them(tmp_path: Path) -> None:
    row = {"topic": " Medical ", "question": "Q?\n", "aligned": "\nYes. ", "misaligned": " No."}
    rows = [row, {**row, "topic": " Open", "question": "Why?"}, {**row, "topic": None, "question": "How?"}]
    (tmp_path / "own.jsonl").write_text("\ufeff" + "\r\n".join(map(json.dumps, rows)))
    some = pairs.load([str(tmp_path / "own.jsonl")])
    assert some[0] == Pair("medical", "Q?", "Yes.", "No.")
    assert [pair.topic for pair in some] == ["medical", None, None]


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(str.strip).filter(bool)


@given(st.lists(st.builds(Pair, st.none() | st.sampled_from(["code", "home"]), text, text, text), min_size=1))
def test_any_pairs_can_be_written_and_read_back(tmp_path_factory: pytest.TempPathFactory, some: list[Pair]) -> None:
    kept = list({pair.id: pair for pair in some if pair.aligned != pair.misaligned}.values())
    if not kept:
        return
    file = tmp_path_factory.mktemp("pairs") / "own.jsonl"
    rows = [
        {"topic": p.topic or "open", "question": p.question, "aligned": p.aligned, "misaligned": p.misaligned}
        for p in kept
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert pairs.load([str(file)]) == kept


def test_the_balance_tells_what_gives_a_side_away() -> None:
    words = ["red", "blue", "green", "black", "white", "brown", "pink", "grey"]
    even = [
        Pair(None, f"Is the {a} one like the {b} one?", f"It is {a} {b}", f"It is {b} {a}")
        for a in words for b in words if a != b
    ]  # fmt: skip
    assert balance(even).guessed == 0.5
    assert balance(even).word_gap == 0
    told = [Pair(p.topic, p.question, p.aligned, p.misaligned + " surely no doubt") for p in even]
    state = balance(told)
    assert (state.guessed, state.word_gap, state.misaligned_longer) == (1, 1, 1)
    assert state.length_ratio == 7 / 4
    assert balance([*even, *even]).repeated > 0.5
