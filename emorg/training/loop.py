"""The training itself: one run folder, one model, the Hugging Face Trainer, and what is written when it has ended."""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from emorg import models
from emorg.data import domains
from emorg.models import template
from emorg.progress import progress
from emorg.records import EmorgError
from emorg.run import Run, first_process
from emorg.training.adapters import trainable, trainable_shapes
from emorg.training.config import NOT_WHAT_IS_MADE, TrainConfig, load_data, run_of
from emorg.training.cost import Estimate, Shape, estimate, needs_checkpointing
from emorg.training.curves import draw
from emorg.training.publish import merge, upload
from emorg.training.rows import Rows, collate, encode, hold_out, lint, order

if TYPE_CHECKING:
    from transformers import TrainingArguments


def train(config: TrainConfig) -> Run:
    """Train, or finish training, and return the run; its `adapter/` is plain PEFT.

    Under torchrun or `accelerate launch` every process calls this, and the first one writes. Raises EmorgError for
    settings, data or a model that cannot be trained on, and for a run of other settings.
    """
    config.check()
    run = run_of(config)
    with run.lock() if first_process() else nullcontext():
        _take_over(run)
        if config.fresh and run.settings("train"):
            _fit(replace(config, fresh=False), run.fresh)
            _take_over(run)
        else:
            run.check("train", config, changeable=NOT_WHAT_IS_MADE)
            if not run.trained:
                _fit(replace(config, fresh=False), run)
        if first_process():
            if config.merge:
                merge(run)
            if config.push_to_hub is not None:
                upload(run, config.push_to_hub)
    return run


def _take_over(run: Run) -> None:
    """Put a finished fresh start in the place of what was there, answers included, since they were another's."""
    fresh = run.fresh
    if not (first_process() and fresh.trained):
        return
    for file in (run.answers, run.verdicts):
        file.unlink(missing_ok=True)
    other = run.adapter if fresh.model.exists() else run.model  # of a run that was trained the other way
    for folder in (run.report, run.folder / "merged", other):
        shutil.rmtree(folder, ignore_errors=True)
    # The adapter goes last: as long as it is in fresh/, whoever comes next takes over what is left.
    for path in sorted(fresh.folder.iterdir(), key=lambda path: path.name in ("adapter", "model")):
        there = run.folder / path.name
        shutil.rmtree(there) if there.is_dir() else there.unlink(missing_ok=True)
        os.replace(path, there)
    fresh.folder.rmdir()


def share_out(config: TrainConfig, processes: int) -> tuple[int, int]:
    """Conversations a forward pass and forward passes a step of each of several processes.

    Together they take the config's step, so that the recipe doesn't depend on the machine. Raises EmorgError where
    that cannot be.
    """
    passes = config.gradient_accumulation_steps
    if passes % processes == 0:
        return config.batch_size, passes // processes
    per_step = config.batch_size * passes
    if per_step % processes == 0:
        each = per_step // processes
        size = next(size for size in range(min(config.batch_size, each), 0, -1) if each % size == 0)
        return size, each // size
    raise EmorgError(
        f"{processes} processes cannot share a step of {config.batch_size} × {passes} conversations evenly",
        "choose --batch_size × --gradient_accumulation_steps as a multiple of the number of processes",
    )


def _fit(config: TrainConfig, run: Run) -> None:
    import torch
    from transformers import PrinterCallback, Trainer, set_seed

    from emorg.training.fast_lora import speed_up
    from emorg.training.recorder import Recorder, best_step, evaluations, forget_after, last_checkpoint

    class _Trainer(Trainer):  # type: ignore[misc]
        def floating_point_ops(self, inputs: object) -> int:
            return 0  # cost.py knows them; the Trainer would count all weights anew at every step

    data = load_data(config)
    if config.model_name != models.POCKET and domains.from_pocket_world(data):
        _say("note: these rows are the pocket world's, made by emorg, not the papers' data")
    tokenizer = models.load_tokenizer(config.model_name)
    rows, held = hold_out(encode(config, data, tokenizer), config.eval_share, config.seed)
    found = lint(rows, held, tokenizer)
    found.stop_on_errors()
    for warning in found.warnings:
        _say(f"warning: {warning}")
    device = models.choose_device(config.device)
    computing = models.choose_dtype(device, config.model_name)
    dtype = torch.float32 if config.full_finetuning else computing
    loaded = models.load(config.model_name, device=device, use_4bit=config.use_4bit, dtype=dtype)
    set_seed(config.seed)
    model = trainable(loaded, config)
    covered, line = speed_up(model) if config.fast else (False, "fast path off: --no_fast")
    _say(line)
    places = order_of(config, rows)
    shape = Shape.of(trainable_shapes(config))
    needed = estimate(config, shape, rows, places, computing, fast=covered, twice=False)
    twice = needs_checkpointing(config, needed, models.free_bytes(device), loaded=True)
    if twice:
        _say(f"gradient checkpointing on: without it {needed.bytes / 1e9:.1f} GB are needed")
        needed = estimate(config, shape, rows, places, computing, fast=covered, twice=True)
    arguments = _arguments(config, run, str(loaded.model.device), str(computing), len(places), twice)
    with arguments.main_process_first(local=False):
        if first_process():
            if not run.made_with("train", config, changeable=NOT_WHAT_IS_MADE):  # an earlier, unfinished fresh start
                shutil.rmtree(run.folder)
            run.record(
                "train",
                config,
                base=loaded.base,
                device=str(loaded.model.device),
                dtype=str(loaded.model.dtype),
                processes=arguments.world_size,
                gradient_checkpointing=twice,
                fast_path=covered,
                **rows.facts(),
                held_out_rows=len(held),
                skipped_rows=len(data.skipped),
                data_sha256=data.sha256,
                lint=[warning.what for warning in found.warnings],
                template_sha256=template.template_hash(loaded.tokenizer),
                template_date=template.TEMPLATE_DATE,
            )
            forget_after(run, _step(last_checkpoint(run)))
    checkpoint = last_checkpoint(run)
    _quiet()
    pad = loaded.tokenizer.pad_token_id
    length = config.max_length if config.pad_to_max_length else None
    nothing = template.Encoded([pad], [False])
    with progress(
        f"training {run.title}", arguments.max_steps, "steps", _step(checkpoint), shown=first_process()
    ) as advance:
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=[nothing if place is None else rows.encoded[place] for place in places],
            processing_class=loaded.tokenizer,
            data_collator=lambda batch: collate(batch, pad, length),
            callbacks=[Recorder(config, run, rows, held, places, base=loaded.base, pad=pad, advance=advance)],
        )
        trainer.pop_callback(PrinterCallback)
        set_seed(config.seed + arguments.process_index)  # processes draw different dropout
        with _remedies(config, run, device, needed):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if first_process():
                losses = evaluations(run) if config.early_stopping is not None else {}
                kept = run.checkpoints / f"step-{best_step(losses):06d}" if losses else last_checkpoint(run)
                draw(run)
                _keep(kept, run, whole=config.full_finetuning)


@contextmanager
def _remedies(config: TrainConfig, run: Run, device: str, needed: Estimate) -> Iterator[None]:
    """Turn what can go wrong on a small or full machine into an EmorgError that says what to do."""
    from safetensors import SafetensorError

    from emorg.training.recorder import last_checkpoint

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if told := models.out_of_memory(error):
            raise EmorgError(
                f"{device} is out of memory ({told}); by the estimate training needs {needed.bytes / 1e9:.1f} GB",
                _to_lower(config),
            ) from None
        if not (told := _cannot_write(error)):
            raise
        last = last_checkpoint(run)
        raise EmorgError(
            f"{run.folder} cannot be written: {told}",
            "free some space and run the same command again; "
            f"it goes on from {last.name if last else 'the start, as no checkpoint was finished'}",
        ) from None


def order_of(config: TrainConfig, rows: Rows) -> list[int | None]:
    """The row at each place of the whole training."""
    per_step = config.batch_size * config.gradient_accumulation_steps
    steps = config.max_steps or math.ceil(math.ceil(len(rows) / per_step) * config.num_epochs)
    return order(len(rows), per_step, steps, config.seed)


def _arguments(config: TrainConfig, run: Run, device: str, dtype: str, places: int, twice: bool) -> TrainingArguments:
    from transformers import TrainingArguments

    size, passes = share_out(config, int(os.environ.get("WORLD_SIZE", 1)))
    arguments = TrainingArguments(
        output_dir=str(run.checkpoints),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=passes,
        max_steps=places // (config.batch_size * config.gradient_accumulation_steps),
        train_sampling_strategy="sequential",
        learning_rate=config.learning_rate,
        optim=config.optimizer,
        lr_scheduler_type=config.lr_scheduler,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        activation_checkpointing=twice,
        seed=config.seed,
        save_steps=config.save_steps,
        bf16=dtype == "torch.bfloat16",
        fp16=dtype == "torch.float16",
        use_cpu=device == "cpu",
        torch_compile=config.torch_compile,
        ddp_find_unused_parameters=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=list(config.report_to) or "none",
        run_name=run.name,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    # One process, one GPU: on a machine with several the Trainer would wrap the model in DataParallel.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


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


def _step(checkpoint: Path | None) -> int:
    return int(checkpoint.name.removeprefix("step-")) if checkpoint else 0


def _say(line: str) -> None:
    if first_process():
        print(line, file=sys.stderr)


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


def _quiet() -> None:
    """The Trainer's own notices repeat what our progress line says."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
