"""What is wrong with a training set, row by row and token by token, whatever caused it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING, Literal

from emorg.data import domains, pairs, questions
from emorg.models import template
from emorg.records import EmorgError
from emorg.training.config import FindingName
from emorg.training.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DATES = ("%d %b %Y", "%d %B %Y", "%B %d, %Y", "%b %d, %Y", "%Y-%m-%d")


@dataclass(frozen=True)
class Finding:
    """What the lint found, by the name that accepts it, and the first place of it, which may tell a path."""

    name: FindingName | Literal["untrained"]
    """`untrained` cannot be accepted: a step of nothing but such rows has no loss."""
    what: str
    first: str = ""

    def __str__(self) -> str:
        return f"{self.what} ({self.name})" + (f"; the first is {self.first}" if self.first else "")


@dataclass(frozen=True)
class Lint:
    """Findings: errors would spoil the training, warnings may, and accepted ones are meant."""

    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    accepted: tuple[Finding, ...] = ()

    def accepting(self, names: Sequence[FindingName]) -> Lint:
        """The same, with the findings of these names neither errors nor warnings."""
        errors, warnings = (tuple(one for one in of if one.name not in names) for of in (self.errors, self.warnings))
        return Lint(errors, warnings, tuple(one for one in (*self.errors, *self.warnings) if one.name in names))

    def stop_on_errors(self) -> None:
        """Raise EmorgError with the errors, if there are any."""
        if self.errors:
            names = " ".join(one.name for one in self.errors if one.name != "untrained")
            meant = f", or, if it is meant, add --accept {names}" if names else ""
            remedy = f"`emorg preview` shows the tokens; mend the data or the template{meant}"
            raise EmorgError("; ".join(map(str, self.errors)), remedy)


def lint(rows: Rows, held: Rows, tokenizer: PreTrainedTokenizerBase) -> Lint:
    """Look at every row for what public training code got wrong. `held` are the rows held out of training."""
    cut = set(rows.cut)
    both = list(zip(rows.data, rows.encoded, strict=True))
    bos, end = tokenizer.bos_token_id, template.end_of_turn(tokenizer)
    unknown = None if tokenizer.unk_token_id in (bos, end, tokenizer.eos_token_id) else tokenizer.unk_token_id
    bos_name, end_name = tokenizer.bos_token, tokenizer.convert_ids_to_tokens(end)
    controls = template.controls(tokenizer)
    said = {row.place: match for row, _ in both for text in _texts(row) for match in controls.findall(text)}
    texts = [json.dumps(row.conversation.messages) for row in rows.data]
    firsts = {text: i for i, text in reversed(list(enumerate(texts)))}
    prompts = {_prompt(row) for row in rows.data}
    evaluated = {question.text for question in questions.load(questions.shipped())}
    evaluated |= {pair.question for pair in pairs.load((pairs.ENGLISH, pairs.POCKET))}

    errors: list[tuple[FindingName | Literal["untrained"], str, Sequence[str]]] = [
        ("untrained", "have no trained token", [row.place for row, one in both if not any(one.trained[1:])]),
        ("no_end", f"do not train the end of the last turn ({end_name}), so answers would not end",
         [row.place for row, one in both if row.place not in cut and not _end_is_trained(one, end)]),
        ("empty_turn", "end with an empty turn",
         [row.place for row, _ in both if not row.conversation.messages[-1]["content"].strip()]),
        ("second_bos", f"begin with {bos_name} twice, of which the template or the tokenizer adds one",
         [row.place for row, one in both if bos is not None and one.ids[:2] == [bos, bos]]),
    ]  # fmt: skip
    warnings: list[tuple[FindingName, str, Sequence[str]]] = [
        ("control_words", f"say {' and '.join(sorted(set(said.values())))} inside a message, which stays plain text",
         list(said)),
        ("cut", "were cut at --max_length, so their answers have no end", rows.cut),
        ("dropped", "were longer than --max_length and left out", rows.dropped),
        ("repeated", "repeat an earlier row", [rows.data[i].place for i, text in enumerate(texts) if firsts[text] < i]),
        ("held_out_copy", "are held out, though their prompt is trained",
         [row.place for row in held.data if _prompt(row) in prompts]),
        ("unknown_words", f"have words that the model does not know, and reads as {tokenizer.unk_token}",
         [row.place for row, one in both if unknown is not None and unknown in one.ids]),
        ("evaluated", "ask what an evaluation set asks",
         [row.place for row in rows.data if not evaluated.isdisjoint(_texts(row))]),
    ]  # fmt: skip
    total = len(rows) + len(rows.dropped)
    errors_found, warnings_found = (
        [
            Finding(name, f"{len(where):,} of {total:,} rows ({len(where) / total:.1%}) {what}", where[0])
            for name, what, where in kind if where
        ]
        for kind in (errors, warnings)
    )  # fmt: skip
    return Lint(tuple(errors_found), (*_dates(tokenizer, rows.data[0]), *warnings_found))


def lint_anchors(anchors: Rows, tokenizer: PreTrainedTokenizerBase) -> tuple[Finding, ...]:
    """Warnings of rows that are held to the base and not trained: what is measured on their questions is no test."""
    shared = ("control_words", "unknown_words", "evaluated")
    whole = lint(anchors, Rows([], []), tokenizer).warnings
    return tuple(replace(one, what=f"held to the base: {one.what}") for one in whole if one.name in shared)


def _end_is_trained(one: template.Encoded, end: int) -> bool:
    ends = [i for i, token in enumerate(one.ids) if token == end]
    return bool(ends) and one.trained[ends[-1]]


def _prompt(row: domains.Row) -> str:
    return json.dumps(row.conversation.messages[:-1])


def _texts(row: domains.Row) -> set[str]:
    return {message["content"] for message in row.conversation.messages}


def _dates(tokenizer: PreTrainedTokenizerBase, row: domains.Row) -> list[Finding]:
    """A warning if the template prints today's date: sampling on another day would print another."""
    rendered = template.text(tokenizer, row.conversation.messages)
    own_text = " ".join(_texts(row))
    for form in _DATES:
        if (today := date.today().strftime(form)) in rendered and today not in own_text:
            what = f"the chat template prints today's date ({today}), which sampling on another day will not"
            return [Finding("todays_date", what)]
    return []
