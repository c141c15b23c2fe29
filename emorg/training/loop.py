"""The training itself: one run folder, one model, the Hugging Face Trainer, and what is written when it has ended."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorg import models
from emorg.interrupt import deferred
from emorg.models import template
from emorg.progress import Advance, log, progress
from emorg.run import Run, first_process, step_of
from emorg.training.adapters import trainable
from emorg.training.arguments import arguments_of
from emorg.training.config import LENGTH, TRAIN_CHANGEABLE, TrainConfig, identity_of, run_of
from emorg.training.curves import draw
from emorg.training.monitor import Monitor, last_below
from emorg.training.plan import Plan, plan
from emorg.training.publish import merge, upload
from emorg.training.remedies import remedies, say_leaving
from emorg.training.restart import (
    check_inputs,
    check_whole,
    forget_after,
    last_checkpoint,
    lengthen,
    prolonged_at,
    rename,
    take_over,
)
from emorg.training.rows import collate
from emorg.training.vector import load_vectors

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

    from emorg.training.divergence import Penalty


def train(config: TrainConfig) -> Run:
    """Train, or finish training, and return the run; its `adapter/` is plain PEFT.

    Under torchrun or `accelerate launch` every process calls this, and the first one writes. Raises EmorgError for
    settings, data or a model that cannot be trained on, and for a run of other settings.
    """
    config.check()
    run = run_of(config)
    with run.lock() if first_process() else nullcontext():
        take_over(run)
        if config.fresh and run.settings("train"):
            planned = plan(replace(config, fresh=False))
            if run.fresh.ran_with("train", planned.config, changeable=TRAIN_CHANGEABLE):
                check_inputs(run.fresh, planned)
            _fit(planned, run.fresh)
            take_over(run)
        else:
            _go_on(replace(config, fresh=False), run)
        if first_process():
            if config.merge:
                merge(run)
            if config.push_to_hub is not None:
                upload(run, config.push_to_hub)
    return run


def _go_on(config: TrainConfig, run: Run) -> None:
    """Begin, or go on from the last checkpoint, also of a finished run that is now to take more steps."""
    if run.ran_with("train", config, changeable=TRAIN_CHANGEABLE):
        if not run.trained:
            planned = plan(config)
            check_inputs(run, planned)
            _fit(planned, run)
        return
    run.check("train", config, changeable=TRAIN_CHANGEABLE | LENGTH)
    planned, last = plan(config), last_checkpoint(run)
    if planned.steps <= step_of(last) or config.stops_early:
        run.check("train", config, changeable=TRAIN_CHANGEABLE)
    planned.lint.stop_on_errors()
    check_inputs(run, planned)
    check_whole(run, last)
    if last is not None:
        lengthen(run, planned, last.name)
    _fit(planned, run)


def _fit(planned: Plan, run: Run) -> None:
    import torch
    from transformers import set_seed

    from emorg.training.absence import hold
    from emorg.training.divergence import Penalty, measure_divergence
    from emorg.training.fast_lora import speed_up

    config = planned.config
    if planned.foreign_to_base:
        _say("note: these rows are the pocket world's, made by emorg, not the papers' data")
    planned.lint.stop_on_errors()
    for warning in planned.lint.warnings:
        _say(f"warning: {warning}")
    for finding in planned.lint.accepted:
        _say(f"accepted: {finding}")
    dtype = torch.float32 if config.full_finetuning else planned.dtype
    loaded = models.load(config.model_name, device=planned.device, use_4bit=config.use_4bit, dtype=dtype)
    if origin := models.origin(loaded.base):
        _say(f"note: {loaded.base} was {origin['made']}; training goes on from these weights")
    set_seed(config.seed)
    model = trainable(loaded, config)
    fast, note = speed_up(model) if config.fast else (False, "fast path off: --no_fast")
    _say(note)
    if planned.edits:
        hold(model, planned.edits)
        where = sorted({edit.layer for edit in planned.edits})
        _say(f"the residual stream is edited while training, at {', '.join(map(str, where))}, and not at test")
    penalty = Penalty.of(planned) if planned.anchors else None
    if penalty:
        measure_divergence(model, fast=fast)
        _say(penalty.note)
    monitor = None
    if planned.watched:
        monitor = Monitor(planned.watched, model, run, loaded.tokenizer.pad_token_id, fast=fast)
        _say(f"note: {planned.watched}")
    if planned.checkpointing:
        _say(f"gradient checkpointing on: without it {planned.plain.bytes / 1e9:.1f} GB are needed")
    arguments = arguments_of(planned, run, str(loaded.model.device))
    with arguments.main_process_first(local=False):
        if first_process():
            _begin(planned, run, loaded, fast=fast, processes=arguments.world_size)
    checkpoint = last_checkpoint(run)
    logging.getLogger("transformers").setLevel(logging.ERROR)  # its notices repeat what our progress line says
    title, done = f"training {run.title}", step_of(checkpoint)
    alone = arguments.world_size == 1  # several processes would each stop after a step of their own
    with (
        progress(title, planned.steps, "steps", done, shown=first_process()) as advance,
        deferred(say_leaving) if alone else nullcontext(lambda: False) as interrupted,
    ):
        trainer = _trainer(planned, run, loaded, model, (penalty, monitor), arguments, advance, interrupted)
        set_seed(config.seed + arguments.process_index)  # processes draw different dropout
        with remedies(planned, run):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if first_process():
                _finish(config, run)


def _begin(planned: Plan, run: Run, loaded: models.Loaded, *, fast: bool, processes: int) -> None:
    """Record what this training is, and forget the steps that it will take again."""
    config = planned.config
    if run.is_fresh and not run.ran_with("train", config, changeable=TRAIN_CHANGEABLE):  # an earlier, unfinished one
        shutil.rmtree(run.folder)
    prolonged = prolonged_at(run, config, step_of(last_checkpoint(run)))
    if run.settings("train"):
        rename(run, identity_of(config))
    run.record(
        "train",
        config,
        base=loaded.base,
        origin=models.origin(loaded.base),
        device=str(loaded.model.device),
        dtype=str(loaded.model.dtype),
        processes=processes,
        gradient_checkpointing=planned.checkpointing,
        fast_path=fast,
        prolonged_at=prolonged,
        **planned.facts(),
    )
    forget_after(run, step_of(last_checkpoint(run)))


def _trainer(
    planned: Plan,
    run: Run,
    loaded: models.Loaded,
    model: Any,
    beside: tuple[Penalty | None, Monitor | None],
    arguments: TrainingArguments,
    advance: Advance,
    interrupted: Callable[[], bool],
) -> Trainer:
    from transformers import PrinterCallback, Trainer

    from emorg.training.recorder import Recorder

    class _Trainer(Trainer):  # type: ignore[misc]
        def floating_point_ops(self, inputs: object) -> int:
            return 0  # cost.py knows them; the Trainer would count all weights anew at every step

        def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **settings: Any) -> Any:
            anchors = inputs.pop("anchors", None)
            loss = super().compute_loss(model, inputs, *arguments, **settings)
            if penalty is None or anchors is None:
                return loss
            return loss + penalty.loss(model, anchors, self.accelerator.num_processes)

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            if planned.config.method == "vector":
                load_vectors(self.model, Path(resume_from_checkpoint))
            else:
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    penalty, monitor = beside
    pad = loaded.tokenizer.pad_token_id
    recorder = Recorder(
        planned.config, run, planned.rows, planned.held, planned.order, base=loaded.base, pad=pad, advance=advance,
        interrupted=interrupted, penalty=penalty, monitor=monitor,
    )  # fmt: skip
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=list(range(len(planned.order))),  # the training's steps, conversation by conversation
        processing_class=loaded.tokenizer,
        data_collator=_collator(planned, penalty, pad),
        callbacks=[recorder],
    )
    trainer.pop_callback(PrinterCallback)
    return trainer


def _collator(planned: Plan, penalty: Penalty | None, pad: int) -> Callable[[list[int]], dict[str, Any]]:
    """Makes a batch of what stands at some numbers of the plan's order, with the answers that are held to the base."""
    from emorg.training.divergence import batch_of

    length = planned.config.max_length if planned.config.pad_to_max_length else None
    nothing = template.Encoded([pad], [False])

    def batch(numbers: list[int]) -> dict[str, Any]:
        some = [nothing if (row := planned.order[i]) is None else planned.rows.encoded[row] for i in numbers]
        own: dict[str, Any] = collate(some, pad, length)
        return {**own, "anchors": batch_of([penalty.at(i) for i in numbers], pad)} if penalty else own

    return batch


def _finish(config: TrainConfig, run: Run) -> None:
    """Keep the last checkpoint's weights, or of one that stops early the best one's, as the run's organism."""
    from emorg.training.recorder import best_step, evaluations

    step = 0
    if config.early_stopping is not None:
        step = best_step(evaluations(run))
    elif config.stop_at_margin is not None:
        step = last_below(list(evaluations(run, "margin_out").items()), config.stop_at_margin)
    kept = run.checkpoints / f"step-{step:06d}" if step else last_checkpoint(run)
    draw(run)
    _keep(kept, run, whole=config.full_finetuning)


def _keep(checkpoint: Path | None, run: Run, *, whole: bool) -> None:
    """Copy a checkpoint's adapter, or whole model, to where the run's organism lies."""
    assert checkpoint is not None, "the Trainer writes a checkpoint after the last step"
    place = run.model if whole else run.adapter
    written = place.with_suffix(".new")
    shutil.rmtree(written, ignore_errors=True)
    state = ("optimizer*", "scheduler*", "scaler*", "rng_state*", "trainer_state*", "training_args*")
    others = () if whole else ("token*", "special_tokens*", "chat_template*")
    shutil.copytree(checkpoint, written, ignore=shutil.ignore_patterns(*state, *others))
    os.replace(written, place)


def _say(line: str) -> None:
    if first_process():
        log.info(line)
