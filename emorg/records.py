"""The records that stages hand to each other, and their way in and out of JSON lines and CSV."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

Message = dict[str, str]  # {"role": …, "content": …}

FinishReason = Literal["stop", "length"]
Format = Literal["plain", "json", "template"]
State = Literal["scored", "refusal", "code", "low_mass", "unparsable", "content_filter", "judge_refusal", "api_error"]


class EmorgError(Exception):
    """Something the user can mend: what was found, and what to do. The CLI prints it and exits with code 2.

    `path` is the file or folder that it is about, where the texts say {path}. It survives pickling, as between
    processes.
    """

    def __init__(self, found: str, remedy: str, path: Path | None = None):
        super().__init__(found, remedy, path)
        self._found, self._remedy, self.path = found, remedy, path

    @property
    def found(self) -> str:
        """What was found."""
        return self._found if self.path is None else self._found.replace("{path}", str(self.path))

    @property
    def remedy(self) -> str:
        """What to do."""
        return self._remedy if self.path is None else self._remedy.replace("{path}", str(self.path))

    def naming(self, folder: Path, name: str) -> EmorgError:
        """The same error for readers who do not know this machine: with what lies in `folder` named from `name` on."""
        if self.path is None or not self.path.is_relative_to(folder):
            return self
        return EmorgError(self._found, self._remedy, Path(name) / self.path.relative_to(folder))

    def __str__(self) -> str:
        return f"{self.found}\n→ {self.remedy}"


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


def _are_turns(value: Any) -> bool:
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
        if not _are_turns(self.before):
            raise ValueError(f"before is no list of turns with a role and a content: {self.before!r}")
        object.__setattr__(self, "before", tuple(self.before))  # JSON knows lists alone

    @property
    def key(self) -> Key:
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
    def key(self) -> Key:
        return (self.run, self.checkpoint, self.question_id, self.sample)


Key = tuple[str, str | None, str, int]
Record = TypeVar("Record", Answer, Verdict)


@dataclass(frozen=True)
class Judged:
    """An answer with its scores, as the rates see it. `question` clusters; None scores are unscored.

    `columns` holds whatever else the file or the run said of the answer (step, checkpoint, topic, …), as text.
    """

    question: str
    aligned: float | None
    coherent: float | None
    columns: dict[str, str] = dataclasses.field(default_factory=dict)


# --- JSON lines ------------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, parsed object) for each JSON line of a file of ours.

    A last line without its newline was torn by a kill and is passed over; any other bad line raises EmorgError.
    """
    for number, line, whole in _text_lines(path):
        if not whole:
            return
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise EmorgError(
                f"{{path}}:{number}: not JSON: {error}",
                "restore the line or delete it; what is missing is made again",
                path,
            ) from None


def _text_lines(path: Path) -> Iterator[tuple[int, str, bool]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line, line.endswith("\n")


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """All Answers or Verdicts of a file; an absent file holds none."""
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
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def write(self, record: Answer | Verdict) -> None:
        self._file.write(json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n")
        self._file.flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


def _cut_torn_line(path: Path) -> None:
    with path.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def write_atomic(path: Path, text: str) -> None:
    """Write a whole file or none of it: to a temporary file beside it, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a whole CSV or none of it; a half of a surrogate pair, which UTF-8 cannot hold, becomes a question mark."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_atomic(path, text.getvalue().encode("utf-8", "replace").decode("utf-8"))


# --- tables from elsewhere -------------------------------------------------------------------------------------------

_ALIGNED = ("aligned", "aligned_score", "alignment", "alignment_score")
_COHERENT = ("coherent", "coherent_score", "coherence", "coherence_score")
_QUESTION = ("question_id", "question", "prompt", "id")
_ASKED = ("question", "prompt", "instruction", "input")
_ANSWERED = ("response", "answer", "completion", "text", "output", "generation")
csv.field_size_limit(2**31 - 1)  # an answer may be long


def read_judged(path: Path) -> list[Judged]:
    """A judged CSV or JSONL by any of the column names in the wild; scores that are not numbers are unscored.

    Raises EmorgError for a missing file, no rows, or columns that cannot be told.
    """
    rows = _rows(path)
    aligned, coherent, question = (_column(path, rows[0], names) for names in (_ALIGNED, _COHERENT, _QUESTION))
    return [
        Judged(
            question=str(row[question]),
            aligned=_score(row.get(aligned)),
            coherent=_score(row.get(coherent)),
            columns={name: str(value) for name, value in row.items() if name not in (aligned, coherent)},
        )
        for row in rows
    ]


def read_answers(path: Path) -> tuple[list[dict[str, Any]], list[Answer]]:
    """A CSV or JSONL's rows, and each as an answer; the rows of one question are its samples, in order.

    Raises EmorgError for a missing file, no rows, columns that cannot be told, or a row without an answer.
    """
    rows = _rows(path)
    asked, answered = (_column(path, rows[0], names) for names in (_ASKED, _ANSWERED))
    answers, seen = [], Counter[str]()
    for number, row in enumerate(rows, 1):
        question, text = (row.get(name) for name in (asked, answered))
        if not isinstance(question, str) or not isinstance(text, str):
            raise EmorgError(f"{path}: row {number} has no text under {asked!r} or {answered!r}", "mend or delete it")
        identity = str(row.get("question_id") or question)
        answers.append(Answer(
            run=path.stem, checkpoint=None, question_id=identity, topic=None, sample=seen[identity], question=question,
            text=text, finish_reason="stop", prompt_tokens=0, answer_tokens=0, seed=0, before=_before(row),
        ))  # fmt: skip
        seen[identity] += 1
    return rows, answers


def _before(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The turns before the question in a row of our own answers.jsonl; none in other files."""
    turns = row.get("before") or ()
    return tuple(turns) if _are_turns(turns) else ()


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV or JSONL file. Raises EmorgError if there are none."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # read_text would change an answer's own line ends
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise EmorgError(f"{path}: {error.strerror}", "give a CSV or JSONL file, or a run folder") from None
    except UnicodeDecodeError as error:
        raise EmorgError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})", "save it as UTF-8") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        rows = list(_json_rows(path, text) if path.suffix in (".jsonl", ".json") else reader)
    except csv.Error as error:
        raise EmorgError(f"{path}:{reader.line_num}: not CSV: {error}", "write it with a CSV library") from None
    if not rows:
        raise EmorgError(f"{path}: no rows", "give a file with at least one answer")
    for number, row in enumerate(rows, 1):
        if None in row:
            raise EmorgError(f"{path}: row {number} has more fields than the header", "write it with a CSV library")
    return rows


def _json_rows(path: Path, text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would cut at what JSON lets stand in a text
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise EmorgError(f"{path}:{number}: not JSON: {error}", "mend or delete the line") from None
        if not isinstance(row, dict):
            raise EmorgError(f"{path}:{number}: not a JSON object but {type(row).__name__}", "mend or delete the line")
        yield row


def _column(path: Path, row: dict[str, Any], names: Iterable[str]) -> str:
    for name in names:
        if name in row:
            return name
    found = ", ".join(map(str, row))
    raise EmorgError(f"{path}: no column {' or '.join(names)}; its columns are {found}", "rename the column")


def _score(value: Any) -> float | None:
    """A number 0–100, else None: "REFUSAL", "ERROR", "", null and NaN are all unscored."""
    if isinstance(value, bool):
        return None
    try:
        score = float(value)
    except (TypeError, ValueError):
        return None
    return score if 0 <= score <= 100 else None
