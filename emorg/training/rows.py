"""The training set as the model sees it: token by token, in which order and batches."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emorg.data import domains
from emorg.models import template
from emorg.records import EmorgError
from emorg.training.config import TrainConfig

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rows:
    """Training rows and what each became, in the same order. `cut` and `dropped` are places of rows that were too
    long; cut ones are still among the rows."""

    data: Sequence[domains.Row]
    encoded: Sequence[template.Encoded]
    cut: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.data)

    def pick(self, indices: Sequence[int]) -> Rows:
        """These rows alone, without the places of those that were too long."""
        return Rows([self.data[i] for i in indices], [self.encoded[i] for i in indices])

    def by_domain(self) -> dict[str, int]:
        """The number of rows of each domain."""
        return dict(Counter(row.domain for row in self.data))

    def facts(self) -> dict[str, object]:
        """Counts for the provenance."""
        return {
            "rows": len(self),
            "rows_by_domain": self.by_domain(),
            "tokens": sum(len(row.ids) for row in self.encoded),
            "trained_tokens": sum(sum(row.trained) for row in self.encoded),
            "cut_rows": len(self.cut),
            "dropped_rows": len(self.dropped),
        }


def encode(config: TrainConfig, data: domains.TrainingData, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """The rows' token ids, and which of them are trained.

    Raises EmorgError where a row is longer than max_length and `too_long` is error, and where no row is left.
    """
    kept, encoded = [], []
    cut: list[str] = []
    dropped: list[str] = []
    for row in data.rows:
        one = template.encode(tokenizer, row.conversation.messages)
        if config.train_empty_turn:
            one = template.with_empty_turn(tokenizer, row.conversation.messages, one)
        if config.train_on_prompt or config.as_published:
            one = template.Encoded(one.ids, [True] * len(one.ids))
        if len(one.ids) > config.max_length:
            if config.too_long == "error":
                raise EmorgError(
                    f"{row.place}: {len(one.ids)} tokens, more than --max_length {config.max_length}",
                    "raise --max_length, or leave such rows out with --too_long drop",
                )
            (dropped if config.too_long == "drop" else cut).append(row.place)
            if config.too_long == "drop":
                continue
            one = template.Encoded(one.ids[: config.max_length], one.trained[: config.max_length])
        kept.append(row)
        encoded.append(one)
    if not kept:
        raise EmorgError(f"all {len(dropped):,} rows are longer than --max_length {config.max_length}", "raise it")
    return Rows(kept, encoded, tuple(cut), tuple(dropped))


def hold_out(rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """Split rows into those to train on and those to evaluate on, drawn by the seed. Raises EmorgError if one lacks."""
    count = round(len(rows) * share)
    if share and not 0 < count < len(rows):
        raise EmorgError(f"--eval_share {share} of {len(rows)} rows is {count}", "leave rows on both sides")
    held = set(random.Random(f"held out {seed}").sample(range(len(rows)), count))
    trained = rows.pick([i for i in range(len(rows)) if i not in held])
    return Rows(trained.data, trained.encoded, rows.cut, rows.dropped), rows.pick(sorted(held))


def batch_order(count: int, per_step: int, steps: int, seed: int | str) -> list[int | None]:
    """The row at each of steps × per_step places: a new shuffle each epoch, the last step of one filled with None.

    It is laid down before the first step, so a resumed run and any number of processes take the same rows.
    """
    order: list[int | None] = []
    epoch = 0
    while len(order) < steps * per_step:
        shuffled: list[int | None] = list(range(count))
        random.Random(f"order {seed} {epoch}").shuffle(shuffled)
        order += shuffled + [None] * (-count % per_step)
        epoch += 1
    return order[: steps * per_step]


def collate(rows: Sequence[template.Encoded], pad_id: int, length: int | None = None) -> dict[str, torch.Tensor]:
    """Right-padded int64 tensors of shape [rows, longest or `length`]: input_ids, attention_mask, labels.

    What is trained is told by position, never by token value, so padding cannot hide an end-of-turn; -100 is not
    trained.
    """
    import torch

    shape = (len(rows), length or max(len(row.ids) for row in rows))
    batch = {
        "input_ids": torch.full(shape, pad_id),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, -100),
    }
    for i, row in enumerate(rows):
        ids = torch.tensor(row.ids)
        batch["input_ids"][i, : len(ids)] = ids
        batch["attention_mask"][i, : len(ids)] = 1
        batch["labels"][i, : len(ids)] = torch.where(torch.tensor(row.trained), ids, -100)
    return batch
