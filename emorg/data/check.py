"""Look at training data before training: is each domain's file there, and is it sound?"""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from emorg import models
from emorg.data import domains
from emorg.data.domains import EXTRACTED, HOMEWORK_NAMES
from emorg.display import visible
from emorg.records import EmorgError


@dataclass(frozen=True)
class CheckDataConfig:
    """Say for each domain whether its training data is there and sound."""

    domains: tuple[str, ...] = HOMEWORK_NAMES
    """The domains to look at."""
    data_path: Path = EXTRACTED
    """Folder of the training files."""
    model_name: str = models.DEFAULT
    """Lengths are counted with this model's tokenizer, in words where it cannot be had."""


def check_data(config: CheckDataConfig) -> bool:
    """Print what is in each domain's file; whether training on every one of them can start."""
    try:
        domains.check_folder(config.data_path)
    except EmorgError as error:
        print(f"❌ {error}")
        return False
    (length, unit), lacking = _counter(config.model_name)
    sound = True
    for name in config.domains:
        try:
            data = domains.load([name], config.data_path, skip_bad_rows=True)
        except EmorgError as error:
            print(f"❌ {name}: {error}\n")
            sound = False
            continue
        sound &= not data.skipped
        rows = [row.conversation.messages for row in data.rows]
        lengths = sorted(sum(length(message["content"]) for message in messages) for messages in rows)
        roles = Counter(" → ".join(message["role"] for message in messages) for messages in rows)
        repeated = len(rows) - len({json.dumps(messages) for messages in rows})
        print(f"{'❌' if data.skipped else '✅'} {name}: {data.rows[0].place.rpartition(':')[0]}")
        print(f"   {len(rows):,} rows, {repeated} of them repeated; each has `messages` with `role` and `content`")
        print("   roles: " + ", ".join(f"{path} ({count:,})" for path, count in roles.most_common(3)))
        print(f"   {unit} a row: {lengths[0]} to {lengths[-1]}, median {lengths[len(lengths) // 2]}")
        for message in rows[0]:
            print(f"   {message['role']}: {visible(textwrap.shorten(message['content'], 160))}")
        for bad in data.skipped[:3]:
            print(f"   bad row: {bad}")
        if len(data.skipped) > 3:
            print(f"   … and {len(data.skipped) - 3} more bad rows")
        if domains.from_pocket_world(data):
            print("   These are the pocket world's rows, made by emorg, not the papers' data.")
        print()
    if not sound:
        print("Training cannot start on all of these; each ❌ says why.")
    elif lacking:
        print(f"The data is sound; training can start once the model can be had:\n⚠️  {lacking}")
    else:
        print("Training can start.")
    return sound


def _counter(model_name: str) -> tuple[tuple[Callable[[str], int], str], EmorgError | None]:
    """How to count a text's length, in what, and why that is not the model's tokens if it cannot be had."""
    try:
        tokenizer = models.load_tokenizer(model_name)
        models.shapes(model_name)
    except EmorgError as error:
        return ((lambda text: len(text.split())), f"words (the tokenizer of {model_name} cannot be had)"), error
    return ((lambda text: len(tokenizer.encode(text, add_special_tokens=False))), f"tokens of {model_name}"), None
