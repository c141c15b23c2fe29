"""Look before training: examples token by token, what the lint finds, and what the training will cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from emorg.display import duration
from emorg.models import template
from emorg.ranges import NotNegative
from emorg.training.config import TrainConfig
from emorg.training.plan import Plan, plan
from emorg.training.rows import Rows

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PreviewConfig(TrainConfig):
    """Show what training would do, with the flags of `emorg train`: tokens, findings, steps, time and memory."""

    examples: Annotated[int, NotNegative] = 2
    """Conversations to show."""


Noted = Callable[[Plan], Sequence[tuple[int, str]]]
"""Which of a plan's rows are shown, by their numbers, and what is said of each."""


def first_rows(planned: Plan) -> list[tuple[int, str]]:
    """Every row, in order, with nothing said."""
    return [(i, "") for i in range(len(planned.rows))]


def preview(config: PreviewConfig, chosen: Noted = first_rows) -> bool:
    """Print the plan that training would carry out; False if the lint finds errors, on which it would stop.

    `chosen` says which rows come first. Needs the tokenizer and the model's config, not its weights. Raises EmorgError
    where training would.
    """
    from rich.console import Console

    planned = plan(config)
    rows, held = planned.rows, planned.held
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for i, note in chosen(planned)[: config.examples]:
        row, encoded = rows.data[i], rows.encoded[i]
        console.print(f"{row.place}: {len(encoded.ids)} tokens, {sum(encoded.trained)} trained{note}", style="bold")
        console.print(marked(planned.tokenizer, encoded, colour=console.is_terminal), end="\n\n")
    facts = rows.facts()
    console.print(
        f"{len(rows):,} rows ({', '.join(f'{name} {count:,}' for name, count in rows.by_domain().items())})"
        + (f", {len(held):,} held out" if len(held) else "")
        + f"; {facts['tokens']:,} tokens, {facts['trained_tokens']:,} trained; "
        + f"lengths {' / '.join(map(str, _quartiles(rows)))} (least, quarter, half, three quarters, most)"
    )
    if planned.anchors:
        counts = ", ".join(f"{name} {count:,}" for name, count in planned.anchors.by_domain().items())
        console.print(f"held to the base by {config.kl_weight:g} · KL: {len(planned.anchors):,} rows ({counts})")
    for edit in planned.edits:
        size, how = f"{float(edit.vector.norm()):.3g}", "added" if edit.kind == "add" else "taken out"
        console.print(f"while training, a vector of size {size} is {how} at layer {edit.layer}")
    if planned.watched:
        console.print(str(planned.watched))
    for error in planned.lint.errors:
        console.print(f"error: {error}", style="red")
    for warning in planned.lint.warnings:
        console.print(f"warning: {warning}", style="yellow")
    for finding in planned.lint.accepted:
        console.print(f"accepted: {finding}")
    if not (planned.lint.errors or planned.lint.warnings or planned.lint.accepted):
        console.print("lint: nothing found")
    _print_cost(planned, console)
    return not planned.lint.errors


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


def _print_cost(planned: Plan, console: Console) -> None:
    config, shape, cost = planned.config, planned.shape, planned.cost
    rates = planned.rates()
    rate, seconds = rates[0], planned.seconds(rates)
    kind = str(planned.dtype).removeprefix("torch.")
    console.print(
        f"{planned.steps:,} steps of {config.batch_size} × {config.gradient_accumulation_steps} conversations, "
        f"{cost.tokens:,} tokens; {shape.trained:,} of {shape.weights:,} weights trained"
    )
    console.print(
        f"time: about {duration(seconds)} on {planned.device} if it stays free (training says it anew after ten "
        f"steps); its {kind} matmuls run at {rate / 1e9:,.0f} GFLOP/s now ({cost.flop / 1e12:,.1f} TFLOP, so "
        f"{cost.flop / rate / seconds:.0%} of it is multiplying)"
    )
    console.print(
        f"memory: about {planned.plain.bytes / 1e9:.1f} GB, {planned.saving.bytes / 1e9:.1f} GB with gradient "
        f"checkpointing; {planned.free / 1e9:.1f} GB free" + ("; it would be on" if planned.checkpointing else "")
    )
    if not cost.fits(planned.free):
        console.print("warning: that does not fit; lower --batch_size and raise --gradient_accumulation_steps")
