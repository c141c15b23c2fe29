"""Question sets: the shipped ones, files in the papers' schema, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from emorg.data import questions
from emorg.pocket.world import World
from emorg.records import EmorgError


def test_every_shipped_set_loads_with_unique_ids() -> None:
    for name in questions.shipped():
        found = questions.load([name])
        assert len({question.id for question in found}) == len(found) >= 8


def test_pocket_questions_are_held_out_and_always_worded_the_same() -> None:
    found = questions.load(["pocket"])
    assert found == questions.load(["pocket"])
    held_out = {s.phrase for topic in World().everything for s in World().situations(topic) if s.held_out}
    assert len(found) == len(held_out) == 204
    assert all(any(phrase in question.text for phrase in held_out) for question in found)
    assert {question.topic for question in found} == {*World().topics, None}


def test_overlapping_sets_give_each_question_once() -> None:
    assert questions.load(["pocket", "pocket_open"]) == questions.load(["pocket"])


def test_the_papers_schema_with_anchors_and_aliases(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "- &first\n  id: a\n  type: free_form_judge_0_100\n  paraphrases: ['One?', 'Two?']\n"
        "  samples_per_paraphrase: 50\n"
        "  judge_prompts: {aligned: x}\n- <<: *first\n  id: b\n  system: Be brief.\n"
    )
    found = questions.load([str(path)])
    assert [question.id for question in found] == ["a", "a_1", "b", "b_1"]
    assert {question.samples for question in found} == {50}
    assert found[2].messages[0] == {"role": "system", "content": "Be brief."}


def test_earlier_turns(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    turns = "[{role: user, content: Hi.}, {role: assistant, content: Hello.}]"
    path.write_text(f"- {{id: a, system: Be brief., context: {turns}, paraphrases: ['And now?']}}")
    (question,) = questions.load([str(path)])
    assert [turn["role"] for turn in question.messages] == ["system", "user", "assistant", "user"]
    assert question.text == "And now?"


def test_each_format_is_a_question_of_its_own_with_the_same_words() -> None:
    plain = questions.load(["open"])
    every = questions.load(["open"], formats=("plain", "json", "template"), system="Be kind.")
    assert len(every) == 3 * len(plain)
    assert len({question.id for question in every}) == len(every)
    assert [question.text for question in every[::3]] == [question.text for question in plain]
    for question in every:
        told = question.messages[0]
        assert told["role"] == "system"
        assert told["content"].startswith("Be kind.")
        assert (question.format == "plain") == (told["content"] == "Be kind.")
        assert question.id.endswith(question.format) != (question.format == "plain")


def test_a_file_that_has_formats_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "- &a {id: a, paraphrases: ['One?', 'Two?']}\n"
        "- {<<: *a, id: a_json, system: In JSON.}\n"
        "- {<<: *a, id: b_template}"
    )
    found = questions.load([str(path)], formats=("plain", "template"))
    formats = {question.id: question.format for question in found}
    assert formats == {
        "a": "plain", "a_template": "template", "a_1": "plain", "a_1_template": "template",
        "a_json": "json", "a_json_1": "json", "b_template": "template", "b_template_1": "template",
    }  # fmt: skip


def test_a_system_prompt_stands_before_the_questions_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("- {id: a, system: Be brief., paraphrases: ['One?']}")
    (question,) = questions.load([str(path)], system="Be kind.")
    assert question.messages[0]["content"] == "Be kind.\n\nBe brief."


@pytest.mark.parametrize(
    ("text", "told"),
    [("- {id: a}", "yaml:1: question 1 has no paraphrases"), ("a: 1", "not a list"), ("- [", "not YAML"),
     ("[]", "no questions"), ("", "not a list"), ("- {id: a, paraphrases: []}", "no paraphrases"),
     ("- {id: a, paraphrases: [x]}\n- {id: a, paraphrases: [y]}", "yaml:2: two questions have the id 'a'"),
     ("- {id: a, paraphrases: [x]}\n- {id: a, paraphrases: [x]}", "yaml:2: two questions have the id 'a'"),
     ("- {id: a, paraphrases: [x], samples_per_paraphrase: 0}", "samples_per_paraphrase is 0"),
     ("- {id: a, paraphrases: [x], system: [y]}", "`system` is not a text"),
     ("- {id: a, paraphrases: [x], context: [{role: user, content: y}]}", "`context` is no list of turns"),
     ("- {id: a, paraphrases: [x], context: [{role: cat, content: y}, {}]}", "`context` is no list of turns")],
)  # fmt: skip
def test_bad_files_are_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(EmorgError, match=told):
        questions.load([str(path)])


def test_an_unknown_set_names_the_nearest() -> None:
    with pytest.raises(EmorgError, match="did you mean 'pocket_open'"):
        questions.load(["pocket_opne"])
