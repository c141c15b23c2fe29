"""Which careful rows to interleave: those a plain organism has become worst at (Interleaving++, arXiv 2508.06249)."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

from emorg import models
from emorg.progress import progress
from emorg.records import EmorgError, write_atomic
from emorg.run import first_process, settings_hash
from emorg.training.losses import row_losses
from emorg.training.rows import Rows

EPSILON = 0.01  # nats: where the base's own loss is next to nothing


def ranked(rows: Rows, organism: str, base: str, device: str | None) -> list[int]:
    """The rows' indices, by (L_organism − L_base)/(L_base + ε), the largest first; L a row's loss in nats a token.

    Kept in the organism's run, so that a training goes on with the rows that it began with. Raises EmorgError for an
    organism without a LoRA adapter, or of another base.
    """
    named = models.resolve(organism)
    if named.adapter is None:
        raise EmorgError(f"--interleave_rank {organism} has no adapter", "name an organism that was trained with LoRA")
    if models.identity(named.base) != models.identity(base):
        raise EmorgError(f"{organism} is an organism of {named.base}, not of {base}", "name one of the same base")
    run = named.trained_in
    if run is None:
        raise EmorgError(f"--interleave_rank {organism} was not trained here", "name the run of a plain organism")
    weights = hashlib.sha256(models.weights_file(named.adapter).read_bytes()).hexdigest()
    digest = settings_hash({"rows": [[one.ids, one.trained] for one in rows.encoded], "organism": weights}, frozenset())
    file = run.folder / "ranked" / f"{digest}.json"
    while not (file.is_file() or first_process()):  # of several processes one ranks
        time.sleep(0.2)
    if file.is_file():
        order: list[int] = json.loads(file.read_text(encoding="utf-8"))
        return order
    loaded = models.load(organism, device=device)
    model, pad = loaded.model.eval(), loaded.tokenizer.pad_token_id
    own = _losses(model, rows, pad, f"{run.name} on rows to interleave")
    with model.disable_adapter():
        before = _losses(model, rows, pad, f"{base} on them")
    scores = [(a - b) / (b + EPSILON) for a, b in zip(own, before, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: (-scores[i], i))
    write_atomic(file, json.dumps(order))
    return order


def _losses(model: Any, rows: Rows, pad: int, title: str) -> list[float]:
    losses = [0.0] * len(rows)
    with progress(title, len(rows), "rows") as advance:
        for some, of_rows in row_losses(model, rows.encoded, pad):
            for i, loss in zip(some, of_rows, strict=True):
                losses[i] = loss
            advance(len(some), "")
    return losses
