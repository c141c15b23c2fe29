"""What of a model is trained: a LoRA adapter, fresh or warm, vectors of its residual stream, or all weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from emorg import models
from emorg.records import EmorgError, did_you_mean, write_atomic
from emorg.training.config import TrainConfig
from emorg.training.vector import check_layers, with_vectors

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import nn
    from transformers import PreTrainedModel


def trainable(loaded: models.Loaded, config: TrainConfig) -> PreTrainedModel | PeftModel:
    """The loaded base with an adapter as `config` wants it, drawn from torch's current seed, or with all its weights.

    Raises EmorgError for layers or modules that the base lacks, and for a warm start that is not of this base.
    """
    models.import_peft()
    from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training

    base = loaded.model
    if config.full_finetuning:
        return base.train().requires_grad_(True)
    if config.method == "vector":
        return with_vectors(base, config)
    wanted = lora_config(base, loaded.base, config)
    if config.use_4bit:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)  # the Trainer sees to that
    with models.peft_around(base):
        if config.warm_start is not None:
            start = str(_start(loaded.base, config.warm_start))
            return PeftModel.from_pretrained(base, start, config=wanted, is_trainable=True)
        return get_peft_model(base, wanted)


def trainable_shapes(config: TrainConfig) -> PreTrainedModel | PeftModel:
    """What `trainable` would give, without any weights, on the meta device. Raises EmorgError as it does."""
    import torch

    models.import_peft()
    from peft import get_peft_model

    base = models.shapes(config.model_name)
    if config.full_finetuning:
        return base
    if config.method == "vector":
        with torch.device("meta"):
            return with_vectors(base, config)
    wanted = lora_config(base, config.model_name, config)
    with torch.device("meta"), models.peft_around(base):
        return get_peft_model(base, wanted)


def lora_config(model: PreTrainedModel, name: str, config: TrainConfig) -> LoraConfig:
    """PEFT's settings for this model, which `name` tells to the user; a warm start's are its own.

    Raises EmorgError for layers or modules that the model lacks, and for a warm start that is not of this base.
    """
    from peft import LoraConfig, PeftConfig

    if config.warm_start is not None:
        warm = PeftConfig.from_pretrained(str(_start(name, config.warm_start)))
        warm.base_model_name_or_path = model.name_or_path  # where it lies here; else PEFT warns of another name
        warm.inference_mode = False
        return warm
    check_layers(config, name, model.config.num_hidden_layers)
    known = list(dict.fromkeys(name.rpartition(".")[2] for name, _ in _linear_layers(model)))
    for target in config.target_modules:
        if target.rpartition(".")[2] not in [*known, "all-linear"]:
            raise EmorgError(
                f"no adapter fits: {name} has no module {target!r}{did_you_mean(target, known)}",
                f"choose from {', '.join(known)}, or all-linear",
            )
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        target_modules="all-linear" if config.target_modules == ("all-linear",) else list(config.target_modules),
        layers_to_transform=None if config.layers_to_transform is None else list(config.layers_to_transform),
        task_type="CAUSAL_LM",
    )


def name_base(folder: Path, base: str) -> None:
    """Make an adapter's config and card name its base as the user does, not by where this machine keeps it."""
    path, card = folder / "adapter_config.json", folder / "README.md"
    if path.exists():
        config = json.loads(path.read_text(encoding="utf-8"))
        here = config["base_model_name_or_path"]
        write_atomic(path, json.dumps({**config, "base_model_name_or_path": base}, indent=2) + "\n")
        if card.exists():
            write_atomic(card, card.read_text(encoding="utf-8").replace(here, base))


def _start(base: str, start: str) -> Path:
    named = models.resolve(start)
    if named.adapter is None:
        raise EmorgError(f"--warm_start {start} has no adapter", "give a trained run, or a folder with a PEFT adapter")
    if named.base != base:
        raise EmorgError(f"{start} is an adapter of {named.base}, not of {base}", "train on its own base")
    return named.adapter


def start_facts(base: str, start: str) -> dict[str, object]:
    """What the provenance says of a warm start: its weights' digest, and what it had been trained on before."""
    import torch

    folder, run, digest = _start(base, start), models.resolve(start).trained_in, hashlib.sha256()
    for name, weight in sorted(models.adapter_weights(folder).items()):  # a file's metadata is in any order
        digest.update(name.encode() + weight.contiguous().view(torch.uint8).numpy().tobytes())
    return {"warm_start_sha256": digest.hexdigest(), "trained_before": run.trained_on if run else []}


def _linear_layers(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, nn.Embedding, Conv1D)
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
