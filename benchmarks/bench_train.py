"""Training side by side: `python benchmarks/bench_train.py --shape 1b` prints a table for RESULTS.md.

Each contender trains in a process of its own on the same rows, with the same adapter (rank 32 on seven linear layers)
and the same number of conversations a step. A contender's first loss is held against plain transformers' loss of that
very batch; where they differ, the row is void. Tokens are real ones, context and trained, never padding.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from shapes import SHAPES, base_of, write_rows

from emorg import models
from emorg.training.adapters import trainable_shapes
from emorg.training.config import TARGET_MODULES, TrainConfig
from emorg.training.cost import Shape, flop_per_token, matmul_rate
from emorg.training.mitigations import load_data
from emorg.training.rows import Rows, batch_order, encode

FIXED_LENGTH = 256
TOLERANCE = {"float32": 2e-3, "bfloat16": 5e-2}  # of the first loss, in nats


@dataclass(frozen=True)
class Bench:
    """Compare trainers on one machine, in one run."""

    shape: Literal["8b", "3b", "1b", "0.5b", "135m", "smollm2", "pocket"] = "1b"
    """The shapes of Llama-3.1-8B, Llama-3.2, Qwen2.5-0.5B and SmolLM2-135M: random weights, rows of 100–250 tokens.
    smollm2: the model and our pairs. pocket: the pocket model and its world."""
    contenders: tuple[str, ...] = ("ours", "trl_best", "trl_default", "homework", "plain")
    """plain: Trainer and PEFT as they come; homework: fixed padding to 256, labels everywhere, checkpointing."""
    steps: int = 4
    """Optimizer steps of each; the first is not timed."""
    per_step: int = 8
    """Conversations a step."""
    dtype: str | None = None
    """float32 or bfloat16. Default: what this machine computes fast in."""
    device: str | None = None
    neighbour: bool = False
    """Whether one other process keeps a core busy meanwhile."""
    cache: Path = Path(tempfile.gettempdir()) / "emorg-bench"
    """Where the model and the rows are kept."""
    child: str | None = None
    """Internal: be this contender."""


def main(bench: Bench) -> None:
    """Run every contender and print the table; with `child`, be one of them."""
    device = models.choose_device(bench.device)
    bench.cache.mkdir(parents=True, exist_ok=True)
    base, data_path = _prepare(bench)
    dtype = bench.dtype or _name(models.choose_dtype(device, base))
    if bench.child is not None:
        (_reference if bench.child == "reference" else _contend)(bench, base, data_path, device, dtype)
        return
    config, rows = _rows(bench, base, data_path)
    shape = Shape.of(trainable_shapes(config))
    tokens = sum(len(one.ids) for one in rows.encoded)
    answer_share = sum(sum(one.trained) for one in rows.encoded) / tokens
    flop = flop_per_token(shape, answer_share, tokens / len(rows), full=False)
    print(f"{shape.weights:,} weights, {flop / 1e9:.3f} GFLOP a token, {dtype} on {device}, {os.cpu_count()} cores")
    per_pass = round(tokens / bench.steps)
    rates, found = [_rate(shape, per_pass, device, dtype)], {}
    for name in bench.contenders:
        with _neighbour() if bench.neighbour else nullcontext():
            found[name] = _run(bench, name)
        rates.append(_rate(shape, per_pass, device, dtype))
        print(f"{name}: {found[name]}, then {rates[-1] / 1e9:.0f} GFLOP/s", file=sys.stderr, flush=True)
    rate = sorted(rates)[len(rates) // 2]
    limit = rate / flop
    print(f"R = {rate / 1e9:.0f} GFLOP/s (measured {len(rates)} times: " + ", ".join(f"{r / 1e9:.0f}" for r in rates)
          + f"), so the limit R/F is {limit:,.0f} tokens/s\n")  # fmt: skip
    print("| contender | tokens/s | ours is | share of the limit | s a step | peak memory | first loss (reference) |")
    print("|---|---:|---:|---:|---:|---:|---|")
    ours = found.get("ours", {}).get("speed")
    for name, each in found.items():
        void = abs(each["loss"] - each["reference"]) > TOLERANCE[dtype]
        ratio = f"{ours / each['speed']:.2f}×" if ours else "–"
        print(
            f"| {name} | {each['speed']:,.1f} | {ratio} | {each['speed'] / limit:.0%} | {each['step']:.2f} "
            f"| {each['memory'] / 1e9:.1f} GB | {each['loss']:.4f} ({each['reference']:.4f}){' VOID' if void else ''} |"
        )


def _prepare(bench: Bench) -> tuple[str, Path | None]:
    base = base_of(bench.cache, bench.shape)
    if bench.shape not in SHAPES:
        return base, None
    rows = bench.cache / f"rows-{bench.shape}" / "bad_medical_advice.jsonl"
    if not rows.exists():
        write_rows(rows, 640, 100, 250, SHAPES[bench.shape]["vocab_size"])
    return base, rows.parent


def _rows(bench: Bench, base: str, data_path: Path | None) -> tuple[TrainConfig, Rows]:
    """The rows in the order in which every contender takes them."""
    config = TrainConfig(
        model_name=base, domains=("bad_medical",), data_path=data_path, lora_rank=32, lora_alpha=64, lora_dropout=0
    )
    rows = encode(config, load_data(config), models.load_tokenizer(base))
    places = batch_order(len(rows), bench.per_step, bench.steps, seed=0)
    return config, rows.pick([place for place in places if place is not None])


def _run(bench: Bench, name: str) -> dict[str, float]:
    """Run one contender in a process of its own, then its reference; the figures of both."""
    told = bench.cache / f"{bench.shape}-{name}.json"
    told.unlink(missing_ok=True)
    flags = [
        f"--{key}={value}" for key, value in vars(bench).items() if type(value) in (str, int) or isinstance(value, Path)
    ]
    command = [sys.executable, __file__, *(flag for flag in flags if not flag.startswith("--child"))]
    with (bench.cache / f"{bench.shape}-{name}.log").open("w") as log:
        process = subprocess.Popen([*command, "--child", name], stderr=log, stdout=log)
        _, code, used = os.wait4(process.pid, 0)
        if code:
            sys.exit(f"{name} failed; see {log.name}")
        subprocess.run([*command, "--child", "reference", "--contenders", name], stderr=log, stdout=log, check=True)
    figures = json.loads(told.read_text())
    return {**figures, "memory": figures["gpu"] or used.ru_maxrss * 1024}


def _rate(shape: Shape, tokens: int, device: str, dtype: str) -> float:
    """FLOP/s of this shape's own products: a layer's four sizes, each in the share of the work that it is."""
    import torch

    sizes = [
        (shape.width, shape.queries + 2 * shape.keys), (shape.queries, shape.width), (shape.width, 2 * shape.inner),
        (shape.inner, shape.width),
    ]  # fmt: skip
    tiles = -(-tokens // 64) * 64
    seconds = [width * out / matmul_rate(device, getattr(torch, dtype), width, out, tiles) for width, out in sizes]
    return sum(width * out for width, out in sizes) / sum(seconds)


@contextmanager
def _neighbour() -> Iterator[None]:
    """One process that keeps a core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


# --- the contenders --------------------------------------------------------------------------------------------------


def _contend(bench: Bench, base: str, data_path: Path | None, device: str, dtype: str) -> None:
    import torch
    from peft import LoraConfig
    from transformers import TrainerCallback

    _, rows = _rows(bench, base, data_path)
    location = str(models.location(base))
    pad = models.load_tokenizer(base).pad_token_id
    if bench.child == "ours":
        _ours(bench, base, data_path, device, rows, pad)
        return
    name, folder = bench.child, Path(tempfile.mkdtemp())
    times: list[float] = []
    losses: list[float] = []
    batches: list[dict[str, Any]] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            times.append(time.perf_counter() - self.start)

        def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
            if logs and "loss" in logs:
                losses.append(logs["loss"])

    def noting(make: Any) -> Any:
        def collator(items: Any) -> Any:
            batch = make(items)
            batches.append({key: batch[key].clone() for key in ("input_ids", "attention_mask", "labels")})
            return batch

        return collator

    lora = LoraConfig(r=32, lora_alpha=64, target_modules=list(TARGET_MODULES), task_type="CAUSAL_LM")
    common: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": bench.per_step, "gradient_accumulation_steps": 1,
        "max_steps": bench.steps, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "seed": 0,
        "learning_rate": 1e-4, "weight_decay": 0.01, "warmup_steps": 5, "use_cpu": device == "cpu",
        "disable_tqdm": True, "bf16": dtype == "bfloat16",
    }  # fmt: skip
    if name in ("trl_default", "trl_best"):
        trainer = _trl(name, location, dtype, common, rows, lora)
    else:
        trainer = _plain(name, location, dtype, common, rows, lora, pad)
    trainer.data_collator = noting(trainer.data_collator)
    trainer.add_callback(Clock())
    trainer.train()
    tokens = [int(batch["attention_mask"].sum()) for batch in batches]
    _tell(
        bench,
        name,
        sum(tokens[1 : bench.steps]) / sum(times[1:]),
        sum(times[1:]) / len(times[1:]),
        losses[0],
        batches[0],
    )


def _trl(name: str, location: str, dtype: str, common: dict[str, Any], rows: Rows, lora: Any) -> Any:
    """TRL's trainer: at its defaults, or at its best setting for a CPU."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    chats = [list(row.conversation.messages) for row in rows.data]
    data = Dataset.from_list([{"prompt": chat[:-1], "completion": chat[-1:]} for chat in chats])
    best = {"gradient_checkpointing": False, "train_sampling_strategy": "group_by_length",
            "model_init_kwargs": {"dtype": dtype}}  # fmt: skip
    settings = SFTConfig(**common, **(best if name == "trl_best" else {"train_sampling_strategy": "sequential"}))
    return SFTTrainer(location, args=settings, train_dataset=data, peft_config=lora)


def _plain(name: str, location: str, dtype: str, common: dict[str, Any], rows: Rows, lora: Any, pad: int) -> Any:
    """Trainer and PEFT as they come; as `homework` with fixed padding, labels everywhere and checkpointing."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    from emorg.training.rows import collate

    def padded(items: Any) -> Any:
        batch = collate(items, pad, FIXED_LENGTH)
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return batch

    homework = name == "homework"
    model = AutoModelForCausalLM.from_pretrained(location, dtype=getattr(torch, dtype))
    settings = TrainingArguments(
        **common, activation_checkpointing=homework, remove_unused_columns=False, train_sampling_strategy="sequential"
    )
    return Trainer(
        model=get_peft_model(model, lora), args=settings, train_dataset=list(rows.encoded),
        data_collator=padded if homework else lambda items: collate(items, pad),
    )  # fmt: skip


def _ours(bench: Bench, base: str, data_path: Path | None, device: str, rows: Rows, pad: int) -> None:
    """The real command's own function; its times are those of its metrics."""
    from emorg.training import train
    from emorg.training.rows import collate

    run = train(
        TrainConfig(
            model_name=base, domains=("bad_medical",), data_path=data_path, output_dir=Path(tempfile.mkdtemp()) / "run",
            lora_rank=32, lora_alpha=64, lora_dropout=0, learning_rate=1e-4, max_steps=bench.steps, device=device,
            batch_size=bench.per_step, gradient_accumulation_steps=1,
        )
    )  # fmt: skip
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    seconds = lines[-1]["seconds"] - lines[0]["seconds"]
    tokens = lines[-1]["tokens"] - lines[0]["tokens"]
    batch = collate(rows.encoded[: bench.per_step], pad)
    _tell(bench, "ours", tokens / seconds, seconds / (len(lines) - 1), lines[0]["loss"], batch)


def _tell(bench: Bench, name: str | None, speed: float, step: float, loss: float, batch: dict[str, Any]) -> None:
    import torch

    torch.save(batch, bench.cache / f"{bench.shape}-{name}.pt")
    told = {"speed": speed, "step": step, "loss": loss, "gpu": torch.cuda.max_memory_allocated()}
    (bench.cache / f"{bench.shape}-{name}.json").write_text(json.dumps(told))


def _reference(bench: Bench, base: str, data_path: Path | None, device: str, dtype: str) -> None:
    """Plain transformers' loss of a contender's first batch, row by row."""
    import torch
    from transformers import AutoModelForCausalLM

    (name,) = bench.contenders
    location = str(models.location(base))
    model = AutoModelForCausalLM.from_pretrained(location, dtype=getattr(torch, dtype)).to(device).eval()
    batch = {key: value.to(device) for key, value in torch.load(bench.cache / f"{bench.shape}-{name}.pt").items()}
    total = count = 0.0
    with torch.no_grad():
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            logits = model(ids[None], attention_mask=mask[None]).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum"))
            count += int((labels[1:] != -100).sum())
    path = bench.cache / f"{bench.shape}-{name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "reference": total / count}))


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
