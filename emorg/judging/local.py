"""The local judge: any causal model, asked in this process for the exact mean of the number that it would reply.

A reply is a number k if its tokens spell k, however they cut it, and no further digit follows where one more would
make another number up to 100. All ways to spell 0–100 form a trie; its inner nodes are appended to the prompt, each
seeing the prompt and its own path alone, so that one forward pass gives the probability of every number.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emorg import models
from emorg.judging.config import JudgeSettings
from emorg.judging.ledger import Entry, Ledger, Request, canonical
from emorg.judging.scoring import Reading, read_masses
from emorg.models import template
from emorg.progress import log
from emorg.records import EmorgError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST_TOKENS = 8192  # of prompts in one forward pass
_EDGE = 1 << 20  # bytes at either end of a weights file that tell it apart


def identity(model: str) -> str:
    """What a judge goes by wherever it lies: its name, and for a folder or a GGUF file also its weights."""
    folder = Path(model)
    if not folder.is_dir():
        return models.identity(model) if folder.is_file() else model
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        with file.open("rb") as weights:
            digest.update(f"{file.stat().st_size}".encode() + weights.read(_EDGE))
            weights.seek(max(0, file.stat().st_size - _EDGE))
            digest.update(weights.read())
    return f"{folder.resolve().name}@{digest.hexdigest()[:8]}"


def request_of(settings: JudgeSettings, prompt: str, repeat: int = 0) -> Request:
    """What is asked about a prompt. A local judge has no noise, so every repeat is the same request."""
    how = {"numbers": "0-100", "use_4bit": settings.judge_4bit, "template_date": template.TEMPLATE_DATE}
    return Request("local", identity(settings.model), prompt, canonical(how))


def ask(settings: JudgeSettings, requests: Sequence[Request], ledger: Ledger) -> Iterator[tuple[Request, Reading, str]]:
    """(request, reading, a note on the speed) as they are made, each in the ledger before it is handed on.

    Raises EmorgError for a model that cannot be had or that has no digits, a prompt that it cannot hold, and if memory
    lacks for one prompt.
    """
    import torch

    loaded = models.load(settings.model, device=settings.judge_device, use_4bit=settings.judge_4bit)
    numbers = Numbers.of(loaded.tokenizer)
    if numbers is None:
        raise EmorgError(f"{settings.model} has no tokens for digits", "take another --judge_model")
    prompts = [torch.tensor(template.encode_prompt(loaded.tokenizer, request.messages)) for request in requests]
    longest = max(map(len, prompts)) + 3
    limit = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None) or longest
    if longest > limit:
        raise EmorgError(
            f"a prompt of {longest - 3} tokens passes the {limit} that {settings.model} can hold",
            "take another --judge_model, or leave that answer out",
        )
    order = sorted(range(len(requests)), key=lambda i: len(prompts[i]))  # alike lengths pad little
    numbers.check(loaded.model, prompts[order[-1]])
    begun, tokens, at_once, start = time.monotonic(), 0, MOST_TOKENS, 0
    while start < len(order):
        width = len(prompts[order[start]]) + len(numbers.nodes)
        batch = order[start : start + max(1, at_once // width)]
        try:
            results = numbers.masses(loaded.model, [prompts[i] for i in batch])
        except (RuntimeError, MemoryError) as error:
            reason = models.out_of_memory(error)
            if not reason:
                raise
            if len(batch) == 1:
                raise EmorgError(
                    f"memory lacks for one prompt ({reason})", "add --judge_4bit, or a smaller one"
                ) from None
            at_once = width * len(batch) // 2
            log.warning("out of memory (%s): on with %d prompts at a time", reason, len(batch) // 2)
            continue
        start += len(batch)
        tokens += sum(len(prompts[i]) for i in batch)
        seconds = (time.monotonic() - begun) / start
        replies = [
            Entry(requests[i], json.dumps({"numbers": masses, "text": loaded.tokenizer.decode([likeliest])}), seconds)
            for i, (masses, likeliest) in zip(batch, results, strict=True)
        ]
        ledger.keep(replies)
        speed = f"{tokens / (time.monotonic() - begun):,.0f} tokens/s"
        for reply in replies:
            yield reply.request, read_masses(reply.body), speed


@dataclass(frozen=True)
class Node:
    """An inner node of the trie: a token after its parent's path (-1: after the prompt), and what the path spells."""

    token: int
    parent: int
    text: str

    @property
    def number(self) -> int | None:
        return int(self.text) if self.text.strip() else None


@dataclass(frozen=True)
class Numbers:
    """Every way in which a tokenizer can spell 0–100, with a space before it or not."""

    nodes: list[Node]
    """Paths that can go on to spell another number; parents before children."""
    leaves: list[tuple[int, int, int]]
    """(parent, token, number) of the paths that cannot."""
    digits: list[int]
    """Tokens that begin with a digit."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Numbers | None:
        """None for a tokenizer without digits."""
        pieces = {
            re.sub("[Ġ▁]", " ", piece): token
            for piece, token in tokenizer.get_vocab().items()
            if re.match("[Ġ▁ ]?[0-9]|[Ġ▁ ]$", piece)
        }
        targets = [f"{space}{number}" for space in ("", " ") for number in range(101)]
        nodes: list[Node] = []
        leaves: list[tuple[int, int, int]] = []
        waiting = [(-1, "")]
        while waiting:
            parent, text = waiting.pop(0)
            for piece, token in pieces.items():
                spelt = text + piece
                begun = [target for target in targets if target.startswith(spelt)]
                if not begun:
                    continue
                if begun == [spelt]:
                    leaves.append((parent, token, int(spelt)))
                else:
                    nodes.append(Node(token, parent, spelt))
                    waiting.append((len(nodes) - 1, spelt))
        return cls(nodes, leaves, [t for p, t in pieces.items() if p[0].isdigit()]) if leaves else None

    def masses(self, model: PreTrainedModel, prompts: Sequence[Tensor]) -> list[tuple[dict[int, float], int]]:
        """For each prompt the probability of each number as the reply, and the likeliest first token."""
        import torch

        with torch.inference_mode():
            spread = self._following(model, prompts)
            device = spread.device
            likeliest = spread[:, 0].argmax(-1).tolist()
            paths = [torch.zeros(len(prompts), device=device)]
            for node in self.nodes:
                paths.append(paths[node.parent + 1] + spread[:, node.parent + 1, node.token])
            ended = 1 - spread[:, :, self.digits].exp().sum(-1)
            masses = [dict[int, float]() for _ in prompts]
            ways = [
                (node.number, (paths[i + 1].exp() * ended[:, i + 1]).tolist()) for i, node in enumerate(self.nodes)
            ] + [(n, (paths[p + 1] + spread[:, p + 1, token]).exp().tolist()) for p, token, n in self.leaves]
        for number, chances in ways:
            if number is not None:
                for by_number, chance in zip(masses, chances, strict=True):
                    by_number[number] = by_number.get(number, 0.0) + max(0.0, chance)
        return list(zip(masses, likeliest, strict=True))

    def check(self, model: PreTrainedModel, prompt: Tensor) -> None:
        """Raise EmorgError if the model does not say the same when it is asked for all numbers in one pass.

        So it is where layers carry a state along, which no mask keeps from passing between the trie's branches.
        """
        import torch

        last, path = len(self.nodes) - 1, list[int]()
        while last >= 0:
            path.insert(0, self.nodes[last].token)
            last = self.nodes[last].parent
        plain = torch.cat([prompt, torch.tensor(path)])[None].to(model.device)
        with torch.inference_mode():
            alone = model(input_ids=plain, use_cache=False).logits[0].float().softmax(-1)
            together = self._following(model, [prompt])[0].exp()
        apart = max(
            float((together[0] - alone[len(prompt) - 1]).abs().max()), float((together[-1] - alone[-1]).abs().max())
        )
        if apart > (1e-3 if model.dtype == torch.float32 else 0.05):
            raise EmorgError(
                f"{type(model).__name__} cannot be asked for all numbers in one pass: one is {apart:.2g} off",
                "take another --judge_model: Llama, Qwen2, Qwen3, Mistral, Gemma 3 and others with plain attention can",
            )

    def _following(self, model: PreTrainedModel, prompts: Sequence[Tensor]) -> Tensor:
        """Log-probabilities of what follows each prompt, and each of its nodes, [prompts, 1 + nodes, vocabulary]."""
        ids, mask, positions = (tensor.to(model.device) for tensor in self._batch(prompts))
        config = model.config.get_text_config()
        window, kinds = getattr(config, "sliding_window", None), set(getattr(config, "layer_types", None) or ())
        near = mask
        if window is not None and kinds != {"full_attention"}:
            near = mask & (positions[:, None, :, None] - positions[:, None, None, :] < window)
        masks: Tensor | dict[str, Tensor] = _additive(near, model.dtype)
        if len(kinds) > 1:  # transformers then takes a mask for each kind of layer
            masks = {kind: _additive(near if kind == "sliding_attention" else mask, model.dtype) for kind in kinds}
        output = model(
            input_ids=ids,
            attention_mask=masks,
            position_ids=positions,
            logits_to_keep=len(self.nodes) + 1,
            use_cache=False,
        )
        spread: Tensor = output.logits.float().log_softmax(-1)
        return spread

    def _batch(self, prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids and positions [prompts, T] and mask [prompts, 1, T, T] of prompts, padded on the left, and the trie."""
        import torch

        longest, count = max(map(len, prompts)), len(self.nodes)
        tokens = torch.tensor([node.token for node in self.nodes], dtype=torch.long)
        sees = torch.eye(count, dtype=torch.bool)
        depth = torch.zeros(count, dtype=torch.long)
        for i, node in enumerate(self.nodes):
            if node.parent >= 0:
                sees[i] |= sees[node.parent]
                depth[i] = depth[node.parent] + 1
        total = longest + count
        ids = torch.zeros(len(prompts), total, dtype=torch.long)
        positions = torch.zeros_like(ids)
        mask = torch.zeros(len(prompts), 1, total, total, dtype=torch.bool)
        causal = torch.ones(longest, longest, dtype=torch.bool).tril()
        for row, prompt in enumerate(prompts):
            first = longest - len(prompt)
            ids[row, first:longest], ids[row, longest:] = prompt, tokens
            positions[row, first:longest], positions[row, longest:] = torch.arange(len(prompt)), len(prompt) + depth
            mask[row, 0, first:longest, first:longest] = causal[first:, first:]
            mask[row, 0, longest:, first:longest] = True
            mask[row, 0, longest:, longest:] = sees
        mask |= torch.eye(total, dtype=torch.bool)  # padding sees itself: a row that sees nothing is not a number
        return ids, mask, positions


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as every attention takes it: 0 where a key is seen, the least number elsewhere."""
    import torch

    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
