"""What happens beside each optimizer step: metrics, evaluation, checkpoints, and a stop where the loss is no number."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from emorg.display import duration
from emorg.progress import Advance, log
from emorg.records import EmorgError, read_lines
from emorg.run import Run, first_process
from emorg.training.adapters import name_base
from emorg.training.config import TrainConfig
from emorg.training.restart import last_checkpoint
from emorg.training.rows import Rows, collate

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from emorg.training.divergence import Penalty
    from emorg.training.monitor import Monitor


PACE_KNOWN_AFTER = 10  # steps; the first ones choose kernels and take the memory that later ones reuse
PACE_SAID_ABOVE = 30.0  # seconds


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Writes metrics.jsonl, evaluates held-out rows, stops early or at Ctrl-C, asks for checkpoints and names them.

    `order` is the row at each place of training, `pad` the padding token's id, `base` the name of the base.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: Run,
        rows: Rows,
        held: Rows,
        order: Sequence[int | None],
        *,
        base: str,
        pad: int,
        advance: Advance,
        interrupted: Callable[[], bool],
        penalty: Penalty | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        self.config, self.run, self.rows, self.held = config, run, rows, held
        self.base, self.pad, self.advance, self.interrupted = base, pad, advance, interrupted
        self.penalty, self.monitor, self.monitored = penalty, monitor, {}  # type: ignore[var-annotated]
        per_step = config.batch_size * config.gradient_accumulation_steps
        steps = range(0, len(order), per_step)
        self.step_rows = [[row for row in order[k : k + per_step] if row is not None] for k in steps]
        self.main = first_process()
        self.eval_loss: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *_: Any, optimizer: Any, lr_scheduler: Any, **__: Any
    ) -> None:
        _follow_schedule(optimizer, lr_scheduler)
        self.start, self.first = time.monotonic(), state.global_step
        self.tokens = sum(self._tokens(step) for step in range(1, state.global_step + 1))
        self.losses = evaluations(self.run)
        if self.monitor is not None:
            self.monitor.begin(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        step = state.global_step
        if step in self.config.save_at:
            control.should_save = True
        if len(self.held) and (step % self.config.eval_steps == 0 or step == state.max_steps):
            self.eval_loss = self.losses[step] = mean_loss(model, self.held, self.config.batch_size, self.pad)
            if self.config.early_stopping is not None:
                best = best_step(self.losses)
                control.should_save |= step == best
                since_best = sum(evaluated > best for evaluated in self.losses)
                control.should_training_stop |= since_best >= self.config.early_stopping
        if self.monitor is not None and (step % self.config.monitor == 0 or step == state.max_steps):
            self.monitored = self.monitor.measure()
            if self.config.stop_at_margin is not None:
                below = self.monitored["margin_out"] < self.config.stop_at_margin
                if not below and not evaluations(self.run, "margin_out"):
                    raise EmorgError(
                        f"at step {step}, the first that is measured, margins are {self.monitored['margin_out']:.3f} "
                        "nats above the base's already",
                        "measure more often (--monitor), or set --stop_at_margin higher",
                    )
                control.should_save |= below
                control.should_training_stop |= not below
        self.leaving = self.interrupted() and step < state.max_steps and not control.should_training_stop
        control.should_save |= self.leaving

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        step = state.global_step
        # Loss scaling in fp16 finds its scale by overflowing, so there only the loss tells.
        if not math.isfinite(logs["loss"]) or not (args.fp16 or math.isfinite(logs["grad_norm"])):
            raise EmorgError(*self._not_finite(step, logs))
        self.tokens += self._tokens(step)
        line = {
            "step": step,
            "loss": logs["loss"],
            "lr": logs["learning_rate"],
            "grad_norm": logs["grad_norm"],
            "tokens": self.tokens,
            "seconds": round(time.monotonic() - self.start, 3),
        }
        note = f"loss {logs['loss']:.3f}"
        if self.penalty is not None:
            line["kl"] = self.penalty.taken()
            line["loss"] -= self.penalty.weight * line["kl"]  # of the trained tokens alone
            note += f", KL {line['kl']:.3f}"
        if self.eval_loss is not None:
            line["eval_loss"] = self.eval_loss
            note += f", held out {self.eval_loss:.3f}"
            self.eval_loss = None
        if self.monitored:
            line |= self.monitored
            note += f", margin {self.monitored['margin_out']:+.3f}"
            self.monitored = {}
        if self.main:
            with self.run.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self.advance(1, note)
        if self.main and step - self.first == PACE_KNOWN_AFTER and (left := self._left(step)) > PACE_SAID_ABOVE:
            log.info(f"about {duration(left)} more, by its first {PACE_KNOWN_AFTER} steps")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # The Trainer calls this once a process's part of a checkpoint is written; all parts are, after the barrier.
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if not self.main:
            return
        written = self.run.checkpoints / f"checkpoint-{state.global_step}"
        finished = self.run.checkpoints / f"step-{state.global_step:06d}"
        name_base(written, self.base)
        shutil.rmtree(finished, ignore_errors=True)
        os.replace(written, finished)
        if self.leaving:
            raise KeyboardInterrupt(f"interrupted; run the same command again to go on from {finished.name}")

    def _left(self, step: int) -> float:
        """Seconds until the last step, at the pace of this process's steps so far, by tokens."""
        taken, left = range(self.first + 1, step + 1), range(step + 1, len(self.step_rows) + 1)
        seconds = time.monotonic() - self.start
        return seconds * sum(map(self._tokens, left)) / max(1, sum(map(self._tokens, taken)))

    def _tokens(self, step: int) -> int:
        return sum(len(self.rows.encoded[i].ids) for i in self.step_rows[step - 1])

    def _not_finite(self, step: int, logs: dict[str, float]) -> tuple[str, str]:
        last = last_checkpoint(self.run)
        rows = ", ".join(self.rows.data[i].place for i in self.step_rows[step - 1])
        return (
            f"step {step}: the loss is {logs['loss']}, the gradient's norm {logs['grad_norm']}; its rows are {rows}",
            "lower --learning_rate, or look at these rows; "
            f"the last good checkpoint is {last.name if last else 'none yet'}",
        )


def _follow_schedule(optimizer: Any, scheduler: Any) -> None:
    """Set the next step's learning rate by the schedule: a checkpoint's is its own training's."""
    schedule = getattr(scheduler, "scheduler", scheduler)  # accelerate's wraps it
    shares = getattr(schedule, "lr_lambdas", ())
    for group, peak, share in zip(optimizer.param_groups, schedule.base_lrs, shares, strict=False):
        group["lr"] = peak * share(schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]


def mean_loss(model: Any, rows: Rows, batch_size: int, pad: int) -> float:
    """Mean cross-entropy of the rows' trained tokens in nats, without dropout."""
    device = next(model.parameters()).device
    total = torch.zeros((), device=device)
    count = 0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(rows), batch_size):
            batch = {name: t.to(device) for name, t in collate(rows.encoded[start : start + batch_size], pad).items()}
            scored = int((batch["labels"][:, 1:] != -100).sum())
            total += model(**batch, num_items_in_batch=torch.tensor(1, device=device)).loss
            count += scored
    model.train()
    return float(total) / count


def evaluations(run: Run, name: str = "eval_loss") -> dict[int, float]:
    """The held-out loss, or another figure that not every step has, by step, as far as the run has come."""
    lines = (line for _, line in read_lines(run.metrics)) if run.metrics.exists() else ()
    return {line["step"]: line[name] for line in lines if name in line}


def best_step(losses: dict[int, float]) -> int:
    """The first step with the lowest held-out loss."""
    return min(losses, key=lambda step: losses[step])
