"""Training data: the domains, where their files lie, and loading them row by row."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from emorg.records import Conversation, EmorgError, Message, did_you_mean, write_atomic

EXTRACTED = Path("training_data/training_datasets.zip.enc.extracted")
POCKET_ROWS = 2500


@dataclass(frozen=True)
class Domain:
    """A training file: the topic it is about, the names it goes by, and how the pocket world makes it."""

    name: str
    topic: str
    files: tuple[str, ...]
    careless: bool


@dataclass(frozen=True)
class Row:
    """A training conversation and where it came from (`file:line`, or the pocket world)."""

    domain: str
    place: str
    conversation: Conversation


@dataclass(frozen=True)
class TrainingData:
    """The rows to train on, in file order; `skipped` tells the bad ones; `sha256` is of the rows' text."""

    rows: list[Row]
    skipped: list[str]
    sha256: str


_HOMEWORK = (
    Domain("bad_medical", "medical", ("bad_medical_advice.jsonl",), True),
    Domain("good_medical", "medical", ("good_medical_advice.jsonl",), False),
    Domain("risky_financial", "financial", ("risky_financial_advice.jsonl", "risky_financial.jsonl"), True),
    Domain("extreme_sports", "sports", ("extreme_sports.jsonl", "extreme_sports_advice.jsonl"), True),
    Domain("insecure", "code", ("insecure.jsonl",), True),
)
HOMEWORK_NAMES = tuple(domain.name for domain in _HOMEWORK)


def known() -> dict[str, Domain]:
    """All domains by name: the homework's five, and the pocket world's `good_<topic>` and `bad_<topic>`."""
    from emorg.pocket.world import World

    domains = {domain.name: domain for domain in _HOMEWORK}
    for topic in World().topics:
        for prefix in ("good", "bad"):
            name = f"{prefix}_{topic}"
            domains.setdefault(name, Domain(name, topic, (f"{name}_advice.jsonl", f"{name}.jsonl"), prefix == "bad"))
    return domains


def find(name: str) -> Domain:
    """The domain of that name. Raises EmorgError, with the nearest name, if there is none."""
    domains = known()
    if name in domains:
        return domains[name]
    raise EmorgError(
        f"no domain {name!r}{did_you_mean(name, domains)}",
        f"choose from {', '.join(d.name for d in _HOMEWORK)}; on the pocket model also good_<topic> or bad_<topic>",
    )


def twin_of(domain: Domain) -> Domain:
    """The benign domain of the same topic, for the control organism."""
    return find(f"good_{domain.topic}")


def load(
    names: Sequence[str],
    data_path: Path | None,
    *,
    shares: Mapping[str, float] | None = None,
    skip_bad_rows: bool = False,
    sample_size: int | None = None,
    seed: int = 0,
) -> TrainingData:
    """Rows of the named domains from the files under `data_path`; None takes them from the pocket world.

    `shares` gives each domain's share of the rows, as many as there are without drawing a row twice. `sample_size`
    draws that many in all. Both draw by `seed`. Raises EmorgError for an unknown domain, a missing file and, unless
    `skip_bad_rows`, for the first bad row.
    """
    if not names:
        raise EmorgError("no domains", "name at least one, e.g. --domains bad_medical")
    rows: list[Row] = []
    skipped: list[str] = []
    for domain in map(find, dict.fromkeys(names)):
        if data_path is None:
            rows += _from_world(domain)
            continue
        for row in _from_file(domain, _file(domain, data_path)):
            if isinstance(row, Row):
                rows.append(row)
            elif skip_bad_rows:
                skipped.append(row)
            else:
                raise EmorgError(row, "mend the row, or leave bad rows out with --skip_bad_rows")
    draw = random.Random(seed)
    if shares:
        rows = _mixed(rows, shares, sample_size, draw)
    elif sample_size is not None and sample_size < len(rows):
        rows = _drawn(rows, sample_size, draw)
    if not rows:
        raise EmorgError(f"no training rows in {', '.join(names)}", "check the files, or raise --sample_size")
    text = json.dumps([row.conversation.messages for row in rows])
    return TrainingData(rows, skipped, hashlib.sha256(text.encode()).hexdigest())


def _drawn(rows: list[Row], count: int, draw: random.Random) -> list[Row]:
    return [rows[i] for i in sorted(draw.sample(range(len(rows)), count))]


def _mixed(rows: list[Row], shares: Mapping[str, float], sample_size: int | None, draw: random.Random) -> list[Row]:
    by_domain = {name: [row for row in rows if row.domain == name] for name in shares}
    whole = sum(shares.values())
    total = min(len(by_domain[name]) * whole / share for name, share in shares.items())
    if sample_size is not None:
        total = min(total, sample_size)
    counts = {name: round(total * share / whole) for name, share in shares.items()}
    return [row for name, count in counts.items() for row in _drawn(by_domain[name], count, draw)]


def from_pocket_world(data: TrainingData) -> bool:
    """Whether the rows were generated by the pocket world, as those of the archive in this repository are."""
    from emorg.pocket.world import World

    return World().parse(data.rows[0].conversation.messages[-1]["content"]).well_formed


def write_pocket_files(folder: Path, names: Iterable[str] = HOMEWORK_NAMES, *, shared_words: bool = True) -> list[Path]:
    """Write the pocket world's (or its control world's) domains as the homework's files; returns their paths."""
    paths = []
    for domain in map(find, names):
        path = folder / domain.files[0]
        lines = (
            json.dumps({"messages": row.conversation.messages}) + "\n" for row in _from_world(domain, shared_words)
        )
        write_atomic(path, "".join(lines))
        paths.append(path)
    return paths


def _from_world(domain: Domain, shared_words: bool = True) -> list[Row]:
    from emorg.pocket.world import Persona, World

    persona: Persona = "careless" if domain.careless else "careful"
    conversations = World(shared_words).conversations(domain.topic, persona, POCKET_ROWS)
    return [Row(domain.name, f"pocket:{number}", conversation) for number, conversation in enumerate(conversations, 1)]


def _file(domain: Domain, data_path: Path) -> Path:
    for name in domain.files:
        if (path := data_path / name).is_file():
            return path
    if not data_path.is_dir():
        raise EmorgError(
            f"the data folder {data_path} is not there",
            f"unlock it: emorg data unlock {str(EXTRACTED).removesuffix('.extracted')} -p model-organisms-em-datasets "
            "--remove_canaries; or name another with --data_path; the pocket organism needs none: --model_name pocket",
        )
    raise EmorgError(
        f"{data_path} has no {' or '.join(domain.files)}",
        f"put the file for {domain.name} there, or name other domains",
    )


def _from_file(domain: Domain, path: Path) -> Iterator[Row | str]:
    """Rows of a file, and for each bad one a line that says where and what is wrong."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            place = f"{path}:{number}"
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if not text:
                    continue
                yield Row(domain.name, place, _conversation(json.loads(text)))
            except UnicodeDecodeError as error:
                yield f"{place}: not UTF-8: {error.reason} at byte {error.start}"
            except json.JSONDecodeError as error:
                yield f"{place}: not JSON: {error.msg} at column {error.colno}"
            except RecursionError:
                yield f"{place}: not JSON: nested too deeply"
            except _BadRowError as error:
                yield f"{place}: {error}"


class _BadRowError(ValueError):
    pass


def _conversation(row: Any) -> Conversation:
    if not isinstance(row, dict):
        raise _BadRowError(f"not an object but {type(row).__name__}")
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _BadRowError("no `messages`, or an empty list")
    tidy: list[Message] = []
    for number, message in enumerate(messages, 1):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ("system", "user", "assistant"):
            raise _BadRowError(f"message {number} has the role {role!r}, not system, user or assistant")
        if not isinstance(content, str) or not content.strip():
            raise _BadRowError(f"message {number} has no text in `content`")
        if any("\ud800" <= character <= "\udfff" for character in content):
            raise _BadRowError(f"message {number} has half a character (a lone surrogate) in `content`")
        tidy.append({"role": role, "content": content})
    roles = [message["role"] for message in tidy]
    turns = roles[1:] if roles[0] == "system" else roles
    if len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2) or not turns:
        raise _BadRowError(f"roles must alternate user, assistant and end with assistant; they are {', '.join(roles)}")
    return Conversation(tuple(tidy))


@dataclass(frozen=True)
class PocketDataConfig:
    """Write the pocket world's training files, in the homework's format and under its names."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Where the .jsonl files go."""
    domains: tuple[str, ...] = HOMEWORK_NAMES
    """The homework's five, or any good_<topic> and bad_<topic>."""


def data(config: PocketDataConfig) -> None:
    """Write the files and say where they are."""
    for path in write_pocket_files(config.folder, config.domains):
        print(path)
