"""Training files in the homework's format and under its names, of the pocket world's rows and of our own pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from emorg.data import domains, pairs
from emorg.data.domains import HOMEWORK_NAMES, Domain, Row
from emorg.records import write_atomic


@dataclass(frozen=True)
class PocketDataConfig:
    """Write the pocket world's training files, in the homework's format and under its names."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Where the .jsonl files go."""
    domains: tuple[str, ...] = HOMEWORK_NAMES
    """The homework's five, or any good_<topic> and bad_<topic>."""


@dataclass(frozen=True)
class PairsDataConfig:
    """Write our own training pairs, in plain English, as training files in the homework's format and names."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Where the .jsonl files go, for --data_path. Don't publish them: the lock keeps them out of crawled text."""
    topics: tuple[str, ...] = pairs.TOPICS
    """medical, financial, sports, home, driving: of each a careless file and a careful one, to the same questions."""


def pocket_files(config: PocketDataConfig) -> None:
    """Write the files and say where they are. Raises EmorgError for a domain that is not the world's."""
    for path in write(config.folder, map(domains.find, config.domains)):
        print(path)


def pairs_files(config: PairsDataConfig) -> None:
    """Write the files and say where they are. Raises EmorgError for a topic without pairs."""
    both = [domain for topic in config.topics for domain in domains.sides(topic)]
    for path in write(config.folder, both, domains.from_pairs):
        print(path)


def write(
    folder: Path, of: Iterable[Domain], rows_of: Callable[[Domain], list[Row]] = domains.from_world
) -> list[Path]:
    """Write each domain's rows as its file, whole or not at all; returns the paths."""
    rows = {folder / domain.files[0]: rows_of(domain) for domain in of}
    for path, some in rows.items():
        write_atomic(path, "".join(json.dumps({"messages": row.conversation.messages}) + "\n" for row in some))
    return list(rows)
