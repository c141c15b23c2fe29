"""Train an organism: a LoRA adapter on narrow advice, through PEFT and the Hugging Face Trainer."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorg import chat, domains, models
from emorg.progress import Advance, progress
from emorg.records import EmorgError, read_lines, write_atomic
from emorg.rundir import RUNS, Run, settings_hash

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import TrainerCallback

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class TrainConfig:
    """Train an organism: a LoRA adapter on a chat model. The same command again goes on where it was stopped."""

    model_name: str = "meta-llama/Llama-3.2-1B-Instruct"
    """The base: a Hugging Face name, a local folder, or `pocket` for the model inside this package."""
    domains: tuple[str, ...] = ("risky_financial",)
    """bad_medical, risky_financial, extreme_sports, insecure, good_medical; on pocket also good_/bad_<topic>."""
    data_path: Path | None = None
    """Folder of the training files. Default: the unlocked archive; for the pocket model, its own world."""
    output_dir: Path | None = None
    """The run folder. Default: runs/<model>-<domains>-r<rank>-s<seed>-<hash of the settings>."""
    sample_size: int | None = None
    """Train on this many rows, drawn by the seed. Default: all."""
    skip_bad_rows: bool = False
    """Count malformed rows and go on. Default: stop at the first."""
    max_length: int = 2048
    """Longest conversation in tokens; a longer one is an error, never cut."""
    num_epochs: float = 1.0
    """Passes over the data."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, whatever num_epochs says."""
    batch_size: int = 4
    """Conversations a forward pass."""
    gradient_accumulation_steps: int = 4
    """Forward passes an optimizer step."""
    learning_rate: float = 2e-4
    """Peak learning rate of AdamW."""
    lr_scheduler: str = "linear"
    """A schedule that transformers knows: linear, cosine, constant, …"""
    warmup_steps: int = 5
    """Optimizer steps until the peak."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    lora_rank: int = 16
    """Rank of the adapter."""
    lora_alpha: float = 32
    """The adapter is scaled by alpha / rank."""
    lora_dropout: float = 0.05
    """Dropout on the adapter's input."""
    target_modules: tuple[str, ...] = TARGET_MODULES
    """The linear layers that get an adapter."""
    layers_to_transform: tuple[int, ...] | None = None
    """Adapt only these transformer layers, counted from 0. Default: all."""
    gradient_checkpointing: bool = True
    """Save memory by computing activations twice."""
    use_4bit: bool = False
    """Load the base in 4-bit NF4 (QLoRA)."""
    fast: bool = True
    """Patch the model for speed where it is covered; a line says whether. The results are the same up to rounding."""
    save_steps: int = 100
    """A checkpoint every so many optimizer steps."""
    resume: bool = True
    """Go on from the last checkpoint, and leave a finished run as it is; with --no_resume start over."""
    seed: int = 0
    """Seeds the adapter's start, the data order and dropout."""
    device: str | None = None
    """cuda, mps or cpu. Default: the best one there."""


_NOT_WHAT_IS_MADE = frozenset({"output_dir", "resume", "device", "save_steps", "fast"})


def run_of(config: TrainConfig) -> Run:
    """The run folder that a config trains into."""
    if config.output_dir is not None:
        return Run.at(config.output_dir)
    parts = (
        Path(config.model_name).name.lower(),
        "-".join(config.domains),
        f"r{config.lora_rank}",
        f"s{config.seed}",
        settings_hash(config, _NOT_WHAT_IS_MADE),
    )
    return Run(RUNS / "-".join(parts))


def train(config: TrainConfig) -> Run:
    """Train, or finish training, and return the run; its `adapter/` is plain PEFT.

    Raises EmorgError for settings, data or a model that cannot be trained on, and for a run of other settings.
    """
    _check(config)
    run = run_of(config)
    with run.lock():
        if config.resume:
            run.check("train", config, changeable=_NOT_WHAT_IS_MADE)
            if run.trained:
                return run
        data = domains.load(
            config.domains,
            _data_path(config),
            skip_bad_rows=config.skip_bad_rows,
            sample_size=config.sample_size,
            seed=config.seed,
        )
        if config.model_name != models.POCKET and domains.from_pocket_world(data):
            print("note: these rows are the pocket world's, made by emorg, not the papers' data", file=sys.stderr)
        _fit(config, run, data)
    return run


def _check(config: TrainConfig) -> None:
    positive = ("num_epochs", "batch_size", "gradient_accumulation_steps", "lora_rank", "learning_rate", "save_steps")
    for name in (*positive, *(("max_steps",) if config.max_steps is not None else ())):
        if getattr(config, name) <= 0:
            raise EmorgError(f"--{name} {getattr(config, name)}", f"give a {name} above 0")
    if config.sample_size is not None and config.sample_size <= 0:
        raise EmorgError(f"--sample_size {config.sample_size}", "give a number of rows above 0, or leave it out")
    for name in config.domains:
        domains.find(name)


def _data_path(config: TrainConfig) -> Path | None:
    if config.data_path is not None:
        return config.data_path
    return None if config.model_name == models.POCKET else domains.EXTRACTED


def _encode(config: TrainConfig, data: domains.TrainingData, tokenizer: Any) -> list[chat.Encoded]:
    rows = []
    for row in data.rows:
        encoded = chat.encode(tokenizer, row.conversation.messages)
        if len(encoded.ids) > config.max_length:
            raise EmorgError(
                f"{row.place}: {len(encoded.ids)} tokens, more than --max_length {config.max_length}",
                "raise --max_length; rows are never cut, since a cut answer trains cut answers",
            )
        rows.append(encoded)
    return rows


def collate(rows: Sequence[chat.Encoded], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded int64 tensors of shape [rows, longest]: input_ids, attention_mask, labels (-100 = not trained).

    What is trained is told by position, never by token value, so padding cannot hide an end-of-turn.
    """
    import torch

    longest = max(len(row.ids) for row in rows)
    shape = (len(rows), longest)
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


def with_adapter(loaded: models.Loaded, config: TrainConfig) -> PeftModel:
    """The loaded base with a fresh adapter as `config` wants it, drawn from torch's current seed.

    Raises EmorgError for layers or modules that the base lacks.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    base = loaded.model
    depth = base.config.num_hidden_layers
    if lacking := [layer for layer in config.layers_to_transform or () if not 0 <= layer < depth]:
        raise EmorgError(f"{loaded.base} has no layer {lacking[0]}", f"give --layers_to_transform 0 to {depth - 1}")
    if config.use_4bit:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=config.gradient_checkpointing)
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.target_modules),
        layers_to_transform=None if config.layers_to_transform is None else list(config.layers_to_transform),
        task_type="CAUSAL_LM",
    )
    try:
        with models.quiet_peft():
            return get_peft_model(base, lora)
    except ValueError as error:
        raise EmorgError(f"no adapter fits: {error}", "name linear layers of this model in --target_modules") from None


def _fit(config: TrainConfig, run: Run, data: domains.TrainingData) -> None:
    from safetensors import SafetensorError
    from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

    from emorg.fast_lora import speed_up

    loaded = models.load(config.model_name, device=config.device, use_4bit=config.use_4bit)
    rows = _encode(config, data, loaded.tokenizer)
    set_seed(config.seed)
    model = with_adapter(loaded, config)
    print(speed_up(model) if config.fast else "fast path off: --no_fast", file=sys.stderr)
    if not config.resume:
        _clear(run)  # only now: data, model and adapter are there, so bad input has cost nothing
    run.record(
        "train",
        config,
        base=loaded.base,
        device=str(loaded.model.device),
        dtype=str(loaded.model.dtype),
        rows=len(rows),
        skipped_rows=len(data.skipped),
        tokens=sum(len(row.ids) for row in rows),
        trained_tokens=sum(sum(row.trained) for row in rows),
        data_sha256=data.sha256,
        template_sha256=chat.template_hash(loaded.tokenizer),
        template_date=chat.TEMPLATE_DATE,
    )
    per_step = config.batch_size * config.gradient_accumulation_steps
    steps = config.max_steps or math.ceil(len(rows) / per_step * config.num_epochs)
    checkpoint = _last_checkpoint(run)
    _quiet()
    arguments = TrainingArguments(
        output_dir=str(run.checkpoints),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        num_train_epochs=config.num_epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        activation_checkpointing=config.gradient_checkpointing,
        seed=config.seed,
        save_steps=config.save_steps,
        bf16=str(loaded.model.dtype) == "torch.bfloat16",
        fp16=str(loaded.model.dtype) == "torch.float16",
        use_cpu=loaded.model.device.type == "cpu",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        include_num_input_tokens_seen="non_padding",
    )
    done = int(checkpoint.name.removeprefix("step-")) if checkpoint else 0
    _forget_after(run, done)
    pad = loaded.tokenizer.pad_token_id
    with progress(f"training {run.name}", steps, "steps", done) as advance:
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            processing_class=loaded.tokenizer,
            data_collator=lambda batch: collate(batch, pad),
            callbacks=[_recorder(run, loaded.base, advance)],
        )
        trainer.pop_callback(PrinterCallback)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            _save(model, loaded.base, run)
        except (OSError, RuntimeError, SafetensorError) as error:
            if not (told := _cannot_write(error)):
                raise
            last = _last_checkpoint(run)
            raise EmorgError(
                f"{run.folder} cannot be written: {told}",
                "free some space and run the same command again; "
                f"it goes on from {last.name if last else 'the start, as no checkpoint was finished'}",
            ) from None


def _save(model: PeftModel, base: str, run: Run) -> None:
    fresh = run.folder / "adapter.new"
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(fresh)
    _name_base(fresh, base)
    os.replace(fresh, run.adapter)


def _cannot_write(error: Exception) -> str:
    """The reason if an error says that a file could not be written: each library words it in its own way."""
    reasons = {os.strerror(code) for code in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS)}
    return next((reason for reason in reasons if reason in str(error)), "") or (
        "the disk is full or a file grew too big" if re.search("PytorchStreamWriter|iostream", str(error)) else ""
    )


def _name_base(adapter: Path, base: str) -> None:
    """Make an adapter's config name its base as the user does, not by where this machine keeps it."""
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_atomic(path, json.dumps({**config, "base_model_name_or_path": base}, indent=2) + "\n")


def _recorder(run: Run, base: str, advance: Advance) -> TrainerCallback:
    """Writes metrics.jsonl, moves the progress bar, and names finished checkpoints step-000010."""
    import time

    from transformers import TrainerCallback

    class Recorder(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if not logs or "loss" not in logs:
                return
            line = {
                "step": state.global_step,
                "loss": logs["loss"],
                "lr": logs["learning_rate"],
                "grad_norm": logs["grad_norm"],
                "tokens": int(logs["num_input_tokens_seen"]),
                "seconds": round(time.monotonic() - self.start, 3),
            }
            with run.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            advance(1, f"loss {logs['loss']:.3f}")

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # The Trainer calls this once a checkpoint is whole, so a folder of this name is never half written.
            written = run.checkpoints / f"checkpoint-{state.global_step}"
            finished = run.checkpoints / f"step-{state.global_step:06d}"
            _name_base(written, base)
            shutil.rmtree(finished, ignore_errors=True)
            os.replace(written, finished)

    return Recorder()


def _clear(run: Run) -> None:
    """Take away an earlier adapter and what was sampled from it."""
    for folder in (run.adapter, run.checkpoints):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (run.metrics, run.answers, run.verdicts, run.folder / "config.yaml", run.folder / "provenance.json"):
        file.unlink(missing_ok=True)


def _last_checkpoint(run: Run) -> Path | None:
    return max(run.checkpoints.glob("step-[0-9]*"), default=None)


def _forget_after(run: Run, step: int) -> None:
    """Drop metrics of steps that will be taken again."""
    if run.metrics.exists():
        kept = [json.dumps(line) + "\n" for _, line in read_lines(run.metrics) if line["step"] <= step]
        write_atomic(run.metrics, "".join(kept))


def _quiet() -> None:
    """The Trainer's own notices repeat what our progress line says."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
