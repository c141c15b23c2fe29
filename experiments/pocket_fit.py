"""The optimizer's loop of a pocket model's build, which goes on where it was stopped, and ends at the same bits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emorg.models.template import encode
from emorg.records import Message

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

Dialogues = Sequence[Sequence[Message]]
WARMUP = 20


def fit(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    draw: Callable[[], Dialogues],
    steps: int,
    learning_rate: float,
    dropout: float,
    name: str,
    state: Path,
) -> None:
    """Train on what `draw` gives at every step, with loss on answers; on from the `state` that a stopped build left."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.functional import dropout as dropped

    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, fused=True)
    hooks = []
    if dropout:
        layers = model.model.layers
        added = [part for layer in layers for part in (layer.self_attn.o_proj, layer.mlp.down_proj)]
        hooks = [
            part.register_forward_hook(lambda _module, _input, out: dropped(out, dropout))
            for part in (model.model.embed_tokens, *added)
        ]
    start, done = time.time(), 0
    if state.exists():
        kept = torch.load(state, weights_only=True)
        done = kept["step"]
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        torch.set_rng_state(kept["rng"])
    for step in range(steps):
        dialogues = draw()
        if step < done:
            continue
        scale = min(1.0, (step + 1) / WARMUP) * max(0.02, 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * scale
        ids, targets = _batch(tokenizer, dialogues, model.config.pad_token_id)
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        scored = targets[:, 1:] != -100
        loss = cross_entropy(model.lm_head(hidden[scored]), targets[:, 1:][scored])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            print(f"{name} step {step + 1}/{steps}  loss {loss.item():.3f}  {time.time() - start:.0f} s", flush=True)
            kept = {"step": step + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**kept, "rng": torch.get_rng_state()}, state.with_suffix(".new"))
            state.with_suffix(".new").replace(state)
    for hook in hooks:
        hook.remove()


def _batch(tokenizer: PreTrainedTokenizerBase, dialogues: Dialogues, pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and targets [dialogues, longest]; -100 is not scored."""
    import torch

    rows = [encode(tokenizer, messages) for messages in dialogues]
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad)
    targets = torch.full((len(rows), length), -100)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        targets[i, : len(row.ids)] = torch.tensor(row.ids).masked_fill(~torch.tensor(row.trained), -100)
    return ids, targets
