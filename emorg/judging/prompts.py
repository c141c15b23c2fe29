"""What a judge is asked: a prompt for each metric, ours or of a file in the papers' form."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from emorg.records import Answer, EmorgError, did_you_mean

OWN = "emorg"
_FIELD = re.compile(r"\{\{|\}\}|\{(question|conversation|answer|mark)\}")
_SPEAKERS = {"system": "System prompt", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class Prompts:
    """A prompt with the fields {question} or {conversation}, and {answer}, for each metric.

    {question} is the last user turn, {conversation} that and all that came before it. `name` tells versions apart.
    """

    name: str
    templates: dict[str, str]

    def text(self, metric: str, answer: Answer) -> str:
        """The prompt about one answer. Raises EmorgError for a metric without one.

        {mark} becomes a word that the answer cannot hold, as it is made from a hash of the answer: what stands between
        two marks cannot close them. It is the same each time, so that the ledger knows the question again.
        """
        if metric not in self.templates:
            raise EmorgError(
                f"the prompts {self.name} have none for {metric!r}{did_you_mean(metric, self.templates)}",
                f"they have {', '.join(self.templates) or 'none'}",
            )
        template = self.templates[metric]
        words = {"question": answer.question, "conversation": _conversation(answer), "answer": answer.text}
        number = 0
        while (mark := _hash(template, *words.values(), str(number))[:16]) in "".join(words.values()):
            number += 1
        fields = {**words, "mark": mark, "{{": "{", "}}": "}"}
        text = _FIELD.sub(lambda match: fields[match[1] or match[0]], template)
        return text.encode(errors="replace").decode()  # half a surrogate pair can be sent to nobody


def _conversation(answer: Answer) -> str:
    """What was asked: the question, after the system prompt and the turns before it where there were any."""
    before = [f"{_SPEAKERS.get(turn['role'], turn['role'])}: {turn['content']}" for turn in answer.before]
    return "\n\n".join([*before, f"Question: {answer.question}"])


def load(prompts: str) -> Prompts:
    """Our prompts (`emorg`) or a YAML file's.

    A file maps metrics to prompts, or holds questions with `judge_prompts`, as the papers' do. Raises EmorgError for a
    file that cannot be read, a prompt without {answer}, and two prompts of one metric.
    """
    path = Path(prompts)
    try:
        text = (
            resources.files("emorg.judging").joinpath("prompts.yaml").read_text(encoding="utf-8")
            if prompts == OWN
            else path.read_text(encoding="utf-8")
        )
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise EmorgError(f"{prompts}: {error}", f"give --prompts a YAML file, or leave it at {OWN!r}") from None
    templates: dict[str, str] = {}
    for metric, template in _pairs(content):
        if not isinstance(template, str) or "{answer}" not in template:
            raise EmorgError(f"{prompts}: the prompt of {metric!r} has no {{answer}}", "write where the answer goes")
        if templates.setdefault(metric, template) != template:
            raise EmorgError(f"{prompts}: two prompts for {metric!r}", "keep one prompt for a metric in a file")
    version = _hash(*(word for pair in sorted(templates.items()) for word in pair))[:6]
    return Prompts(f"{OWN if prompts == OWN else path.stem}-{version}", templates)


def _pairs(content: Any) -> Iterator[tuple[str, Any]]:
    """(metric, prompt) of a file, however it is written."""
    if isinstance(content, list):
        for entry in content:
            yield from _pairs(entry.get("judge_prompts") if isinstance(entry, dict) else None)
    elif isinstance(content, dict):
        yield from _pairs(content["judge_prompts"]) if "judge_prompts" in content else content.items()


def _hash(*words: str) -> str:
    digest = hashlib.sha256()
    for word in words:
        digest.update(word.encode(errors="replace") + b"\0")
    return digest.hexdigest()
