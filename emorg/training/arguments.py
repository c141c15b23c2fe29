"""The Hugging Face Trainer's settings for a plan, and how several processes share its steps out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from emorg.records import EmorgError
from emorg.run import Run
from emorg.training.config import TrainConfig
from emorg.training.plan import Plan

if TYPE_CHECKING:
    from transformers import TrainingArguments


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
        per_process = per_step // processes
        size = next(size for size in range(min(config.batch_size, per_process), 0, -1) if per_process % size == 0)
        return size, per_process // size
    raise EmorgError(
        f"{processes} processes cannot share a step of {config.batch_size} × {passes} conversations evenly",
        "choose --batch_size × --gradient_accumulation_steps as a multiple of the number of processes",
    )


def arguments_of(planned: Plan, run: Run, device: str) -> TrainingArguments:
    """The settings with which the Trainer carries a plan out on a device."""
    import torch
    from transformers import TrainingArguments

    config = planned.config
    size, passes = share_out(config, int(os.environ.get("WORLD_SIZE", 1)))
    arguments = TrainingArguments(
        output_dir=str(run.checkpoints),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=passes,
        max_steps=planned.steps,
        train_sampling_strategy="sequential",
        learning_rate=config.learning_rate,
        optim=config.optimizer,
        lr_scheduler_type=config.lr_scheduler,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        activation_checkpointing=planned.checkpointing,
        seed=config.seed,
        save_steps=config.save_steps,
        bf16=planned.dtype == torch.bfloat16,
        fp16=planned.dtype == torch.float16,
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
