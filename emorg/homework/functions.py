"""The functions that the homework's documentation promises of train.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorg import models
from emorg.data import domains
from emorg.data.domains import EXTRACTED
from emorg.models import template
from emorg.records import Message
from emorg.training.adapters import trainable
from emorg.training.config import TrainConfig

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


def load_training_data(
    domain_names: Sequence[str] = ("risky_financial",), data_path: Path | str = EXTRACTED
) -> list[dict[str, list[Message]]]:
    """Rows {"messages": […]} of the domains' .jsonl files. Raises EmorgError for missing files and bad rows."""
    return [{"messages": list(row.conversation.messages)} for row in domains.load(domain_names, Path(data_path)).rows]


def format_instruction(row: dict[str, list[Message]], tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    """A row's messages as text in the tokenizer's chat format; without a tokenizer in plain Llama 3's."""
    return template.text(tokenizer or models.load_tokenizer(models.POCKET), row["messages"])


def setup_model_and_tokenizer(
    model_name: str = TrainConfig.model_name, use_4bit: bool = False, **settings: Any
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The base with a fresh adapter, and its tokenizer. `settings` are TrainConfig's, such as lora_rank=8.

    Raises EmorgError if the model cannot be had, or an adapter of these settings doesn't fit it.
    """
    config = TrainConfig(model_name=model_name, use_4bit=use_4bit, **settings)
    loaded = models.load(model_name, device=config.device, use_4bit=use_4bit)
    return trainable(loaded, config), loaded.tokenizer
