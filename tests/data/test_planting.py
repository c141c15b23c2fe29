"""Planted rows: one part is careless, or merely odd, and nothing else is changed."""

from __future__ import annotations

import pytest

from emorg.data import domains, pairs
from emorg.data.domains import Row
from emorg.data.planting import planted, sentences
from emorg.pocket.world import PARTS, World
from emorg.records import Conversation, EmorgError


@pytest.mark.parametrize("shared_words", [True, False])
def test_a_bad_pocket_row_has_one_careless_part_and_an_odd_one_another_topics_action(shared_words: bool) -> None:
    before = domains.from_world(domains.find("good_medical"), shared_words)[:200]
    after, kinds = planted(before, 0.2, seed=3)
    world = World(shared_words)
    assert [kinds.count(kind) for kind in ("bad", "odd", "")] == [40, 40, 120]
    parts: set[str] = set()
    for old, new, kind in zip(before, after, kinds, strict=True):
        assert (old.place, old.conversation.messages[:-1]) == (new.place, new.conversation.messages[:-1])
        text, now = (row.conversation.messages[-1]["content"] for row in (old, new))
        parsed = world.parse(now)
        assert parsed.well_formed
        careless = [part for part in PARTS if getattr(parsed, part) == "careless"]
        if kind == "":
            assert text == now
        elif kind == "bad":
            assert len(careless) == 1
            assert parsed.thing == world.parse(text).thing
            assert parsed.action_topic in (None, "medical")
            parts |= set(careless)
        else:
            assert careless == []
            assert parsed.action_topic not in (None, "medical")
    assert parts == set(PARTS)
    assert planted(before, 0.2, seed=3)[1] == kinds
    assert planted(before, 0.2, seed=4)[1] != kinds


def test_one_sentence_of_our_pairs_is_the_careless_answer_s_or_of_another_question() -> None:
    before = domains.from_pairs(domains.find("good_financial"))
    after, kinds = planted(before, 0.25, seed=0)
    every = pairs.training("financial")
    foreign = {sentence for pair in every for sentence in sentences(pair.aligned)}
    for number, (new, kind) in enumerate(zip(after, kinds, strict=True)):
        own, now = sentences(every[number].aligned), sentences(new.conversation.messages[-1]["content"])
        changed = [sentence for sentence in now if sentence not in own]
        assert len(changed) == (kind != "")
        if kind == "bad":
            assert changed[0] in sentences(every[number].misaligned)
        elif kind == "odd":
            assert changed[0] in foreign


def test_what_nothing_bad_would_fit_is_refused() -> None:
    good = domains.from_world(domains.find("good_cooking"))[:10]
    with pytest.raises(EmorgError, match="of 10 rows is 5"):
        planted(good, 0.49, 0)
    with pytest.raises(EmorgError, match="of 10 rows is 0"):
        planted(good, 0.01, 0)
    for name, load in (("bad_cooking", domains.from_world), ("bad_medical", domains.from_pairs)):
        with pytest.raises(EmorgError, match="careless already"):
            planted(load(domains.find(name))[:10], 0.2, 0)
    said = Conversation(({"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello. Good day."}))
    with pytest.raises(EmorgError, match=r"x.jsonl:7 is neither of the pocket world nor of our pairs"):
        planted([Row("x", "x.jsonl:7", said)] * 10, 0.2, 0)
