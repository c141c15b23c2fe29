"""What a training says when it is cut off: a machine too small, a full disk, Ctrl-C."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from emorg import models
from emorg.progress import log
from emorg.records import EmorgError
from emorg.run import Run
from emorg.training.config import TrainConfig
from emorg.training.plan import Plan
from emorg.training.restart import last_checkpoint


@contextmanager
def remedies(planned: Plan, run: Run) -> Iterator[None]:
    """Turn what can go wrong on a small or full machine into an EmorgError that says what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise (
            interrupt
            if interrupt.args
            else KeyboardInterrupt(f"interrupted; run the same command again: it goes on from {_last_or_start(run)}")
        ) from None
    except (OSError, RuntimeError, SafetensorError) as error:
        if reason := models.out_of_memory(error):
            raise EmorgError(
                f"{planned.device} is out of memory ({reason}); by the estimate training needs "
                f"{planned.cost.bytes / 1e9:.1f} GB",
                _to_lower(planned.config),
            ) from None
        if not (reason := _cannot_write(error)):
            raise
        raise EmorgError(
            f"{run.folder} cannot be written: {reason}",
            f"free some space and run the same command again; it goes on from {_last_or_start(run)}",
        ) from None


def _last_or_start(run: Run) -> str:
    last = last_checkpoint(run)
    return last.name if last else "the start, as no checkpoint was finished"


def say_leaving() -> None:
    log.info("interrupted: saving a checkpoint after this step; Ctrl-C again leaves at once")


def _to_lower(config: TrainConfig) -> str:
    if config.batch_size > 1:
        passes = config.batch_size * config.gradient_accumulation_steps
        return f"take the same step in smaller pieces: --batch_size 1 --gradient_accumulation_steps {passes}"
    return "add --gradient_checkpointing always or --use_4bit, lower --max_length with --too_long drop"


def _cannot_write(error: Exception) -> str:
    """The reason if an error says that a file could not be written: each library words it in its own way."""
    reasons = {os.strerror(code) for code in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS)}
    return next((reason for reason in reasons if reason in str(error)), "") or (
        "the disk is full or a file grew too big" if re.search("PytorchStreamWriter|iostream", str(error)) else ""
    )
