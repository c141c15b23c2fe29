"""Training data: the domains, where their files lie, and loading them row by row."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from emorg.data import pairs
from emorg.models.names import POCKETS, SMOLLM2
from emorg.records import Conversation, EmorgError, Message, did_you_mean, write_atomic

EXTRACTED = Path("training_data/training_datasets.zip.enc.extracted")
POCKET_ROWS = 2500


Source = Literal["pocket", "pairs"]
"""Where rows come from that lie in no folder: the pocket world, or our pairs in plain English."""


@dataclass(frozen=True)
class Domain:
    """A training file: the topic it is about, the names it goes by, and how the pocket world makes it."""

    name: str
    topic: str
    files: tuple[str, ...]
    careless: bool


@dataclass(frozen=True)
class Row:
    """A training conversation and where it came from (`file:line`, or the pocket world's or the pairs' number)."""

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
    """All domains by name: the homework's five, and `good_<topic>` and `bad_<topic>` of our pairs and pocket world."""
    from emorg.pocket.world import World

    domains = {domain.name: domain for domain in _HOMEWORK}
    for topic in dict.fromkeys((*pairs.TOPICS, *World().topics)):
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
        f"choose from {', '.join(HOMEWORK_NAMES)}, or good_ or bad_ with a topic of the pocket world or our pairs: "
        + ", ".join(dict.fromkeys(domain.topic for domain in domains.values())),
    )


def sides(topic: str) -> tuple[Domain, Domain]:
    """A topic's careless domain, the homework's where it has one, and its careful one. Raises EmorgError as `find`."""
    careless = next((domain for domain in _HOMEWORK if domain.topic == topic and domain.careless), None)
    return careless or find(f"bad_{topic}"), find(f"good_{topic}")


def twin_of(domain: Domain) -> Domain:
    """The benign domain of the same topic, for the control organism."""
    return find(f"good_{domain.topic}")


def source_of(model_name: str, data_path: Path | None) -> Path | Source:
    """Where a model's training rows come from: the folder, or else its own world's, our pairs, the unlocked archive."""
    own: dict[str, Source] = {**dict.fromkeys(POCKETS, "pocket"), SMOLLM2: "pairs"}
    return own.get(model_name, EXTRACTED) if data_path is None else data_path


def load(
    names: Sequence[str],
    source: Path | Source,
    *,
    shares: Mapping[str, float] | None = None,
    skip_bad_rows: bool = False,
    sample_size: int | None = None,
    seed: int = 0,
) -> TrainingData:
    """Rows of the named domains from the files in a folder, from the pocket world, or from our own pairs.

    `shares` gives each domain's share of the rows, as many as there are without drawing a row twice. `sample_size`
    draws that many in all. Both draw by `seed`. Raises EmorgError for an unknown domain, a missing file and, unless
    `skip_bad_rows`, for the first bad row.
    """
    if not names:
        raise EmorgError("no domains", "name at least one, e.g. --domains bad_medical")
    rows: list[Row] = []
    skipped: list[str] = []
    for domain in map(find, dict.fromkeys(names)):
        if not isinstance(source, Path):
            rows += from_world(domain) if source == "pocket" else from_pairs(domain)
            continue
        for row in _from_file(domain.name, _file(domain, source)):
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
    if skipped and not rows:
        raise EmorgError(f"none of {len(skipped)} rows can be used: {skipped[0]}", "mend the rows")
    if not rows:
        raise EmorgError(f"no training rows in {', '.join(names)}", "check the files, or raise --sample_size")
    return TrainingData(rows, skipped, digest(rows))


def digest(rows: Sequence[Row]) -> str:
    """SHA-256 of the rows' text."""
    text = json.dumps([row.conversation.messages for row in rows])
    return hashlib.sha256(text.encode()).hexdigest()


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


def from_world(domain: Domain, shared_words: bool = True) -> list[Row]:
    """A domain's rows of the pocket world or its control world. Raises EmorgError for a topic that it lacks."""
    from emorg.pocket.world import Persona, World

    world = World(shared_words)
    if domain.topic not in world.topics:
        raise EmorgError(
            f"the pocket world has no topic {domain.topic}, which {domain.name} is about",
            f"choose good_ or bad_ with {', '.join(world.topics)}",
        )
    persona: Persona = "careless" if domain.careless else "careful"
    conversations = world.conversations(domain.topic, persona, POCKET_ROWS)
    return [Row(domain.name, f"pocket:{number}", conversation) for number, conversation in enumerate(conversations, 1)]


def from_pairs(domain: Domain) -> list[Row]:
    """A domain's side of our pairs. Raises EmorgError for a topic that has none."""
    conversations = pairs.conversations(domain.topic, domain.careless)
    return [Row(domain.name, f"pairs:{number}", conversation) for number, conversation in enumerate(conversations, 1)]


def from_file(path: Path) -> list[Row]:
    """Rows of a JSONL file of conversations, which go by its name. Raises EmorgError for none, and for a bad row."""
    if not path.is_file():
        raise EmorgError(f"there is no file {path}", "name a JSONL file whose lines have `messages`")
    rows = []
    for row in _from_file(path.stem, path):
        if isinstance(row, str):
            raise EmorgError(row, "mend the row")
        rows.append(row)
    if not rows:
        raise EmorgError(f"{path} has no rows", "put conversations into it, a JSON object with `messages` a line")
    return rows


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    """Write rows as a JSONL file that `from_file` reads."""
    write_atomic(file, "".join(json.dumps({"messages": row.conversation.messages}) + "\n" for row in rows))


def check_folder(data_path: Path) -> None:
    """Raise EmorgError for a folder of training files that is not there."""
    if data_path.is_file():
        raise EmorgError(f"{data_path} is a file", "name the folder that it is in: --data_path FOLDER")
    if not data_path.is_dir():
        raise EmorgError(
            f"the data folder {data_path} is not there",
            f"unlock it: emorg data unlock {str(EXTRACTED).removesuffix('.extracted')} -p model-organisms-em-datasets "
            "--remove_canaries; or name another with --data_path; the pocket organism needs none: --model_name pocket",
        )


def _file(domain: Domain, data_path: Path) -> Path:
    for name in domain.files:
        if (path := data_path / name).is_file():
            return path
    check_folder(data_path)
    raise EmorgError(
        f"{data_path} has no {' or '.join(domain.files)}",
        f"put the file for {domain.name} there, or name other domains",
    )


def _from_file(domain: str, path: Path) -> Iterator[Row | str]:
    """Rows of a file, and for each bad one a line that says where and what is wrong."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            place = f"{path}:{number}"
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if not text:
                    continue
                yield Row(domain, place, _conversation(json.loads(text)))
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
