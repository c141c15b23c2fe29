"""Question sets: the shipped ones, files in the papers' schema, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from emorg import questions
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
    assert found[2].messages[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("text", "told"),
    [("- {id: a}", "no paraphrases"), ("a: 1", "not a list"), ("- [", "not YAML"), ("[]", "no questions"),
     ("- {id: a, paraphrases: [x]}\n- {id: a, paraphrases: [y]}", "have the id 'a'")],
)  # fmt: skip
def test_bad_files_are_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(EmorgError, match=told):
        questions.load([str(path)])


def test_an_unknown_set_names_the_nearest() -> None:
    with pytest.raises(EmorgError, match="did you mean 'pocket_open'"):
        questions.load(["pocket_opne"])
