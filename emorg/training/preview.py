"""Look before training: examples token by token, what the lint finds, and what the training will cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from emorg import models
from emorg.models import template
from emorg.training.adapters import trainable_shapes
from emorg.training.config import TrainConfig, load_data
from emorg.training.cost import REACHED, Shape, estimate, matmul_rate, needs_checkpointing
from emorg.training.loop import order_of
from emorg.training.rows import Rows, encode, hold_out, lint

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PreviewConfig(TrainConfig):
    """Show what training would do, with the flags of `emorg train`: tokens, findings, steps, time and memory."""

    examples: int = 2
    """Conversations to show."""


def preview(config: PreviewConfig) -> bool:
    """Print the preview; False if the lint finds errors, on which training would stop.

    Needs the tokenizer and the model's config, not its weights. Raises EmorgError where training would.
    """
    from rich.console import Console

    config.check()
    data = load_data(config)
    tokenizer = models.load_tokenizer(config.model_name)
    rows, held = hold_out(encode(config, data, tokenizer), config.eval_share, config.seed)
    console = Console(highlight=False, soft_wrap=True)
    for row, one in list(zip(rows.data, rows.encoded, strict=True))[: config.examples]:
        console.print(f"{row.place}: {len(one.ids)} tokens, {sum(one.trained)} trained", style="bold")
        console.print(marked(tokenizer, one, colour=console.is_terminal), end="\n\n")
    found = lint(rows, held, tokenizer)
    facts = rows.facts()
    console.print(
        f"{len(rows):,} rows ({', '.join(f'{name} {count:,}' for name, count in rows.by_domain().items())})"
        + (f", {len(held):,} held out" if len(held) else "")
        + f"; {facts['tokens']:,} tokens, {facts['trained_tokens']:,} trained; "
        + f"lengths {' / '.join(map(str, _quartiles(rows)))} (least, quarter, half, three quarters, most)"
    )
    for error in found.errors:
        console.print(f"error: {error}", style="red")
    for warning in found.warnings:
        console.print(f"warning: {warning}", style="yellow")
    if not (found.errors or found.warnings):
        console.print("lint: nothing found")
    _print_cost(config, rows, console)
    return not found.errors


def marked(tokenizer: PreTrainedTokenizerBase, one: template.Encoded, *, colour: bool) -> Text:
    """The conversation's tokens as text: trained ones in green by turns light and dark, or each in brackets."""
    from rich.text import Text

    text = Text()
    for i, (token, trained) in enumerate(zip(one.ids, one.trained, strict=True)):
        piece = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
        if trained and not colour:
            piece = f"[{piece}]"
        shade = ("bold green", "green")[i % 2] if trained else ("", "dim")[i % 2]
        text.append(piece, style=shade if colour else "")
    return text


def _quartiles(rows: Rows) -> list[int]:
    lengths = sorted(len(one.ids) for one in rows.encoded)
    return [lengths[round(share * (len(lengths) - 1))] for share in (0, 0.25, 0.5, 0.75, 1)]


def _print_cost(config: TrainConfig, rows: Rows, console: Console) -> None:
    from emorg.training.fast_lora import speed_up

    device = models.choose_device(config.device)
    dtype = models.choose_dtype(device, config.model_name)
    model = trainable_shapes(config)
    shape = Shape.of(model)
    fast = config.fast and not config.use_4bit and speed_up(model)[0]
    places = order_of(config, rows)
    plain, saving = (estimate(config, shape, rows, places, dtype, fast=fast, twice=twice) for twice in (False, True))
    free = models.free_bytes(device)
    twice = needs_checkpointing(config, plain, free, loaded=False)
    chosen = saving if twice else plain
    rate = matmul_rate(device, dtype, shape.width, shape.inner)
    kind = str(dtype).removeprefix("torch.")
    console.print(
        f"{chosen.steps:,} steps of {config.batch_size} × {config.gradient_accumulation_steps} conversations, "
        f"{chosen.tokens:,} tokens; {shape.trained:,} of {shape.weights:,} weights trained"
    )
    console.print(
        f"time: about {_duration(chosen.seconds(rate))} on {device}, whose {kind} matmuls run at {rate / 1e9:,.0f} "
        f"GFLOP/s now ({chosen.flop / 1e12:,.1f} TFLOP, at {REACHED:.0%} of that)"
    )
    console.print(
        f"memory: about {plain.bytes / 1e9:.1f} GB, {saving.bytes / 1e9:.1f} GB with gradient checkpointing; "
        f"{free / 1e9:.1f} GB free" + ("; it would be on" if twice else "")
    )
    if not chosen.fits(free, loaded=False):
        console.print("warning: that does not fit; lower --batch_size and raise --gradient_accumulation_steps")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
