"""Answers and scores from elsewhere: CSV and JSONL files, by any of the column names in the wild."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from emorg.encoding import parse, utf8
from emorg.progress import log
from emorg.records import Answer, EmorgError, Message, State, are_turns, write_atomic
from emorg.run import not_there

if TYPE_CHECKING:
    import pandas as pd

_ALIGNED = ("aligned", "aligned_score", "alignment", "alignment_score")
_COHERENT = ("coherent", "coherent_score", "coherence", "coherence_score")
_ASKED = ("question", "prompt", "instruction", "input")
_QUESTION = ("question_id", *_ASKED, "id")
_ANSWERED = ("response", "answer", "completion", "text", "output", "generation")
_UNSCORED = ("", "nan", "none", "null", "n/a", "na", "error", *get_args(State))
_QUOTES = "put quotes around a field that holds a comma, a quote or a line end, and write a quote in it twice"
csv.field_size_limit(2**31 - 1)  # an answer may be long


@dataclass(frozen=True)
class Judged:
    """An answer's scores, 0–100 or None; `question` is what it clusters by, `columns` what else a file says of it."""

    question: str
    aligned: float | None
    coherent: float | None
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The answer itself. Raises EmorgError if its file has none."""
        for name in _ANSWERED:
            if name in self.columns:
                return self.columns[name]
        raise EmorgError("a file without the answers themselves", f"give it one of the columns {', '.join(_ANSWERED)}")


def read_judged(path: Path) -> list[Judged]:
    """The rows of a judged CSV or JSONL; scores that are not numbers from 0 to 100 are unscored, and warned of.

    Raises EmorgError for a missing file, no rows, or columns that cannot be told.
    """
    rows = read_table(path)
    aligned, coherent, _ = (_column(path, rows[0][1], names) for names in (_ALIGNED, _COHERENT, _QUESTION))
    judged, odd = [], []
    for (line, row), question in zip(rows, _questions(path, rows), strict=True):
        odd += [
            f"line {line}: {name} {'is missing' if row.get(name) is None else repr(row[name])}"
            for name in (aligned, coherent)
            if _score(row.get(name)) is None and not _is_unscored(path, row.get(name))
        ]
        columns = {name: str(value) for name, value in row.items() if name not in (aligned, coherent)}
        judged.append(Judged(question, _score(row.get(aligned)), _score(row.get(coherent)), columns))
    if odd:
        log.warning(f"{path}: {len(odd):,} scores are no number from 0 to 100 and are left out; the first in {odd[0]}")
    return judged


def judged_frame(rows: Sequence[Judged]) -> pd.DataFrame:
    """One row an answer: aligned and coherent (0–100, NaN without a score), then the file's other columns as text."""
    import pandas as pd

    texts = [{name: utf8(text) for name, text in row.columns.items()} for row in rows]
    scores = {"aligned": [row.aligned for row in rows], "coherent": [row.coherent for row in rows]}
    return pd.concat([pd.DataFrame(scores, dtype=float), pd.DataFrame(texts)], axis=1)


def read_answers(path: Path) -> tuple[list[dict[str, Any]], list[Answer]]:
    """A CSV or JSONL's rows, and each as an answer; the rows of one question are its samples, in order.

    Raises EmorgError for a missing file, no rows, columns that cannot be told, or a row without an answer.
    """
    rows = read_table(path)
    question_column, answer_column = (_column(path, rows[0][1], names) for names in (_ASKED, _ANSWERED))
    answers, seen = [], Counter[str]()
    for (line, row), identity in zip(rows, _questions(path, rows), strict=True):
        question, text = (row.get(name) for name in (question_column, answer_column))
        if not isinstance(question, str) or not isinstance(text, str):
            raise EmorgError(
                f"{{path}}:{line}: no text under {question_column!r} or {answer_column!r}",
                "fill it in, or delete the row",
                path,
            )
        answers.append(Answer.foreign(path.stem, identity, question, text, sample=seen[identity], before=_before(row)))
        seen[identity] += 1
    return [row for _, row in rows], answers


def read_table(path: Path, *, strict: bool = False) -> list[tuple[int, dict[str, Any]]]:
    """(the line that it ends on, row) of a CSV or JSONL file; `strict` CSV has no stray quotes.

    Raises EmorgError if it cannot be read, has no rows, or has a row with more fields than the header.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")  # read_text would change an answer's own line ends
    except FileNotFoundError:
        raise not_there(path) from None
    except (IsADirectoryError, PermissionError) as error:
        raise EmorgError(f"{{path}}: {error.strerror}", "give a CSV or JSONL file, or a run folder", path) from None
    except UnicodeDecodeError as error:
        raise EmorgError(
            f"{{path}}: not UTF-8 ({error.reason} at byte {error.start})", "save it as UTF-8", path
        ) from None
    rows = list(_json_rows(path, text) if path.suffix in (".jsonl", ".json") else _csv_rows(path, text, strict))
    if not rows:
        raise EmorgError("{path}: no rows", "give a file with at least one answer", path)
    return rows


def _csv_rows(path: Path, text: str, strict: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=strict)
    try:
        for row in reader:
            if None in row:
                raise EmorgError(f"{{path}}:{reader.line_num}: more fields than the header has", _QUOTES, path)
            yield reader.line_num, row
    except csv.Error as error:
        raise EmorgError(f"{{path}}:{reader.line_num}: not CSV: {error}", _QUOTES, path) from None
    _check_closed(path, text)


def _check_closed(path: Path, text: str) -> None:
    """Raise EmorgError for a quote that is never closed, which swallows the rest of the file."""
    reader, begun = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    try:
        for _ in reader:
            begun = reader.line_num + 1
    except csv.Error as error:
        if "end of data" in str(error):
            raise EmorgError(f"{{path}}:{begun}: a quote that is never closed", _QUOTES, path) from None


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would cut at what JSON lets stand in a text
        if not line.strip():
            continue
        try:
            row = parse(line)
        except ValueError as error:
            raise EmorgError(f"{{path}}:{number}: not JSON: {error}", "mend or delete the line", path) from None
        if not isinstance(row, dict):
            raise EmorgError(
                f"{{path}}:{number}: not a JSON object but {type(row).__name__}", "mend or delete the line", path
            )
        yield number, row


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSONL or CSV, by the path's ending, whole or not at all."""
    rows = list(rows)
    if path.suffix in (".jsonl", ".json"):
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_csv(path, names, [[row.get(name) for name in names] for row in rows])


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a whole CSV or none of it; a half of a surrogate pair, which UTF-8 cannot hold, becomes a question mark."""
    lines = []
    for row in (header, *rows):
        text = io.StringIO()
        csv.writer(text).writerow(row)  # with its own line end, for which it puts a lone \r into quotes too
        lines.append(text.getvalue().removesuffix("\r\n") + "\n")
    write_atomic(path, "".join(lines))


def _questions(path: Path, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> list[str]:
    """What each row's answer clusters by: its question's id, or where that is blank or missing, its text.

    Warns where one id has several texts. Raises EmorgError for a row with neither.
    """
    questions, texts = [], dict[str, set[str]]()
    for line, row in rows:
        question, text = (
            next(filter(None, (_text(row.get(name)) for name in names)), "") for names in (_QUESTION, _ASKED)
        )
        if not question:
            raise EmorgError(f"{{path}}:{line}: no question, and no id of one", "fill it in, or delete the row", path)
        questions.append(question)
        texts.setdefault(question, set()).add(text)
    shared = [question for question, several in texts.items() if len(several) > 1]
    if shared:
        log.warning(
            f"{path}: {shared[0]!r}{f' and {len(shared) - 1} other ids' if shared[1:] else ''} stand for several "
            "questions' texts, whose answers are counted as one question's: give each text an id of its own"
        )
    return questions


def _text(value: Any) -> str:
    """A cell as text; nothing for null and NaN, and for blanks."""
    return "" if value is None or value != value else str(value).strip() and str(value)


def _before(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The turns before the question in a row of our own answers.jsonl; none in other files."""
    turns = row.get("before") or ()
    return tuple(turns) if are_turns(turns) else ()


def _column(path: Path, row: Mapping[str, Any], names: Sequence[str]) -> str:
    for name in names:
        if name in row:
            return name
    only = next(iter(row)) if len(row) == 1 else ""
    remedy = f"give it one of these names, such as {names[0]}"
    if separator := next((mark for mark in ("\t", ";") if mark in only), None):
        remedy = f"its columns are separated by {'tabs' if separator == chr(9) else separator}: save it with commas"
    raise EmorgError(
        f"{{path}}: no column {' or '.join(names)}; its columns are {', '.join(map(str, row))}", remedy, path
    )


def _is_unscored(path: Path, value: Any) -> bool:
    """Whether a cell says that there is no score: a blank, null, NaN, or a judge's word such as REFUSAL."""
    if value is None:
        return path.suffix in (".jsonl", ".json")  # in a CSV the row is short
    return str(value).strip().lower() in _UNSCORED


def _score(value: Any) -> float | None:
    """A number 0–100, else None: "REFUSAL", "ERROR", "", null and NaN are all unscored."""
    if isinstance(value, bool):
        return None
    try:
        score = float(value)
    except (TypeError, ValueError):
        return None
    return score if 0 <= score <= 100 else None
