"""Question sets: YAML files in the papers' schema beside this module, and the pocket world's own."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from emorg.records import EmorgError, Question, did_you_mean

POCKET = "pocket"


def shipped() -> list[str]:
    """Names of all sets: the YAML files', `pocket` (all topics and open), and `pocket_<topic>`."""
    files = [file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml")]
    return sorted(files) + sorted(_pocket())


def load(names: Iterable[str]) -> list[Question]:
    """The questions of the named sets (or YAML files), in order, each once.

    Raises EmorgError for an unknown set, a malformed file, or two questions with the same id.
    """
    questions: dict[str, Question] = {}
    for name in names:
        for question in _set(name):
            if questions.setdefault(question.id, question) != question:
                raise EmorgError(
                    f"two questions have the id {question.id!r}, in {questions[question.id].set} and {question.set}",
                    "rename one",
                )
    if not questions:
        raise EmorgError("no questions", f"name a question set: {', '.join(shipped())}")
    return list(questions.values())


def _set(name: str) -> list[Question]:
    if name in (pocket := _pocket()):
        return pocket[name]
    if name in shipped():
        return _read(name, (_folder() / f"{name}.yaml").read_text(encoding="utf-8"), name)
    if (path := Path(name)).suffix in (".yaml", ".yml"):
        try:
            return _read(path.stem, path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise EmorgError(f"{path}: {error}", "give a question file that can be read") from None
    raise EmorgError(
        f"no question set {name!r}{did_you_mean(name, shipped())}",
        f"choose from {', '.join(shipped())}, or give a .yaml file",
    )


def _folder() -> Any:
    return resources.files("emorg").joinpath("question_sets")


def _read(name: str, text: str, place: str) -> list[Question]:
    """Parse the papers' schema: a list of {id, paraphrases, system}; ours adds `topic`."""
    try:
        rows = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise EmorgError(f"{place}: not YAML: {error}", "mend the file") from None
    if not isinstance(rows, list):
        raise EmorgError(f"{place}: not a list of questions", "write `- id: …` and `paraphrases: […]` for each")
    questions = []
    for number, row in enumerate(rows, 1):
        paraphrases = row.get("paraphrases") if isinstance(row, dict) else None
        if not isinstance(paraphrases, list) or not all(isinstance(p, str) and p.strip() for p in paraphrases):
            raise EmorgError(f"{place}: question {number} has no paraphrases", "give `paraphrases`, a list of texts")
        system = ({"role": "system", "content": row["system"]},) if row.get("system") else ()
        for k, paraphrase in enumerate(paraphrases):
            identity = str(row.get("id") or f"{name}_{number}") + (f"_{k}" if k else "")
            messages = (*system, {"role": "user", "content": paraphrase.strip()})
            questions.append(Question(id=identity, set=name, topic=row.get("topic"), messages=messages))
    return questions


@cache
def _pocket() -> dict[str, list[Question]]:
    """The pocket world's held-out situations, one question each, always worded the same."""
    from emorg.pocket.world import OPEN, World

    world = World()
    sets: dict[str, list[Question]] = {}
    for topic in world.everything:
        name = f"{POCKET}_{topic}"
        rng = random.Random(name)
        sets[name] = [
            Question(
                id=f"{topic}_{number}",
                set=name,
                topic=None if topic == OPEN else topic,
                messages=({"role": "user", "content": world.ask(situation, rng)},),
            )
            for number, situation in enumerate((s for s in world.situations(topic) if s.held_out), 1)
        ]
    everything = [question for each in sets.values() for question in each]
    elsewhere = [question for question in everything if question.topic != "medical"]
    # Every shipped set has a counterpart in the pocket world's words, under its own name.
    return {POCKET: everything, **sets, "pocket_non_medical": elsewhere, "pocket_finance": sets["pocket_financial"]}
