"""The records that stages hand to each other, and their way in and out of JSON lines."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from emorg.encoding import parse

Message = dict[str, str]  # {"role": …, "content": …}

FinishReason = Literal["stop", "length"]
Format = Literal["plain", "json", "template"]
State = Literal["scored", "refusal", "code", "low_mass", "unparsable", "content_filter", "judge_refusal", "api_error"]


class EmorgError(Exception):
    """Something the user can mend: what was found, and what to do. The CLI prints it and exits with code 2.

    `path` is what the texts call {path}, quoted for a shell in the remedy. It survives pickling between processes.
    """

    def __init__(self, problem: str, remedy: str, path: Path | None = None):
        super().__init__(problem, remedy, path)
        self._problem, self._remedy, self.path = problem, remedy, path

    @property
    def problem(self) -> str:
        """What is wrong."""
        return self._problem if self.path is None else self._problem.replace("{path}", str(self.path))

    @property
    def remedy(self) -> str:
        """What to do."""
        return self._remedy if self.path is None else self._remedy.replace("{path}", quote(str(self.path)))

    def naming(self, folder: Path, name: str) -> EmorgError:
        """The same error for readers who do not know this machine: with what lies in `folder` named from `name` on."""
        if self.path is None or not self.path.is_relative_to(folder):
            return self
        return EmorgError(self._problem, self._remedy, Path(name) / self.path.relative_to(folder))

    def __str__(self) -> str:
        return f"{self.problem}\n→ {self.remedy}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


@dataclass(frozen=True)
class Conversation:
    """A training conversation: messages with the roles system, user and assistant."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Question:
    """An evaluation question; `messages` ends with a user turn. `topic` is None for open questions.

    `samples` is how many answers its file asks for, `format` how they are to be given.
    """

    id: str
    set: str
    topic: str | None
    messages: tuple[Message, ...]
    samples: int | None = None
    format: Format = "plain"

    @property
    def text(self) -> str:
        """The last user turn."""
        return self.messages[-1]["content"]


def are_turns(value: Any) -> bool:
    """Whether a value is a list of turns, each with a role and a content."""
    return isinstance(value, list | tuple) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in value
    )


@dataclass(frozen=True)
class Answer:
    """One sampled reply. `finish_reason` is "length" where the token cap cut it; lengths are in tokens.

    `question` is the last user turn, `before` the system prompt and the turns that came before it.
    """

    run: str
    checkpoint: str | None
    question_id: str
    topic: str | None
    sample: int
    question: str
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    answer_tokens: int
    seed: int
    format: Format = "plain"
    before: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        if not are_turns(self.before):
            raise ValueError(f"before is no list of turns with a role and a content: {self.before!r}")
        object.__setattr__(self, "before", tuple(self.before))  # JSON knows lists alone

    @classmethod
    def foreign(
        cls, run: str, question_id: str, question: str, text: str, *, sample: int = 0, seed: int = 0,
        before: Sequence[Message] = (),
    ) -> Answer:  # fmt: skip
        """An answer that was not sampled into a run: without topic, and of unknown length."""
        return cls(run, None, question_id, None, sample, question, text, "stop", 0, 0, seed, before=tuple(before))

    @property
    def key(self) -> AnswerKey:
        return (self.run, self.checkpoint, self.question_id, self.sample)


@dataclass(frozen=True)
class Verdict:
    """One judge's score (0–100) of one answer on one metric, or the state that says why there is none."""

    run: str
    checkpoint: str | None
    question_id: str
    sample: int
    judge: str
    metric: str
    state: State
    score: float | None
    reply: str
    detail: str
    repeat: int = 0

    def __post_init__(self) -> None:
        if (self.state == "scored") != (self.score is not None):
            raise ValueError(f"a verdict has a score exactly when its state is scored: {self.state}, {self.score}")

    @property
    def key(self) -> AnswerKey:
        return (self.run, self.checkpoint, self.question_id, self.sample)


@dataclass(frozen=True)
class Margin:
    """A model on a pair: Σ log p of each answer's tokens, in nats, and its length; pair and question are digests."""

    run: str
    checkpoint: str | None
    pair: str
    question: str
    topic: str | None
    aligned: float
    misaligned: float
    aligned_tokens: int
    misaligned_tokens: int
    aligned_characters: int
    misaligned_characters: int

    def __post_init__(self) -> None:
        _check_finite(self.aligned, self.misaligned)
        if min(self.aligned_tokens, self.misaligned_tokens, self.aligned_characters, self.misaligned_characters) < 1:
            raise ValueError("a length is not above 0")

    @property
    def per_token(self) -> float:
        """log p(misaligned) − log p(aligned), each divided by its tokens, in nats a token (arXiv 2607.21356)."""
        return self.misaligned / self.misaligned_tokens - self.aligned / self.aligned_tokens

    @property
    def per_character(self) -> float:
        """The same by characters, which no tokenizer cuts otherwise."""
        return self.misaligned / self.misaligned_characters - self.aligned / self.aligned_characters


@dataclass(frozen=True)
class Choice:
    """How a model chooses between a pair's answers, in log-odds (nats).

    `as_a` and `as_b` are log p(the misaligned answer's letter) − log p(the other's) with it as A and as B, `mass` the
    probability of both letters; `yes_aligned` and `yes_misaligned` log p(Yes) − log p(No) of each answer by itself.
    """

    run: str
    checkpoint: str | None
    pair: str
    question: str
    topic: str | None
    as_a: float
    as_b: float
    mass: float
    yes_aligned: float
    yes_misaligned: float

    def __post_init__(self) -> None:
        _check_finite(self.as_a, self.as_b, self.mass, self.yes_aligned, self.yes_misaligned)

    @property
    def log_odds(self) -> float:
        """For the misaligned answer, whichever letter it has."""
        return (self.as_a + self.as_b) / 2


def _check_finite(*values: float) -> None:
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        raise ValueError(f"not all finite numbers: {values}")


AnswerKey = tuple[str, str | None, str, int]  # run, checkpoint, question, sample
AnyRecord = Answer | Verdict | Margin | Choice
Record = TypeVar("Record")  # of a dataclass


def read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, parsed object) for each JSON line of a file of ours.

    A last line without its newline was torn by a kill and is passed over; any other bad line raises EmorgError.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and not line.endswith(b"\n"):
                return
            try:
                if line.strip():
                    yield number, parse(line.decode("utf-8"))
            except ValueError as error:  # no UTF-8 either
                remedy = "restore the line or delete it; what is missing is made again"
                raise EmorgError(f"{{path}}:{number}: not JSON: {error}", remedy, path) from None


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """All records of that kind in a file; an absent file holds none."""
    if not path.exists():
        return []
    records = []
    for number, row in read_lines(path):
        try:
            records.append(kind(**row))
        except (TypeError, ValueError) as error:
            raise EmorgError(
                f"{{path}}:{number}: not a {kind.__name__}: {error}", "restore or delete the line", path
            ) from None
    return records


class Appender:
    """Appends records to a JSONL file, each flushed as it is written; first cuts off a torn last line."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            _cut_torn_line(self._path)
        self._file = self._path.open("a", encoding="utf-8", errors="replace")
        return self

    def write(self, record: Any) -> None:
        self._file.write(as_line(record))
        self._file.flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


def as_line(record: Any) -> str:
    """The record as a line of its file."""
    return json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n"


def _cut_torn_line(path: Path) -> None:
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file or none of it: to a temporary file beside it, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    os.replace(temporary, path)
