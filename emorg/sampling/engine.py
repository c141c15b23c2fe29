"""The sampling engine: answers of many organisms in one batch that finished ones leave and waiting ones enter.

A prompt is computed once for all its answers. Every forward pass is one row of tokens, the next of each answer under
way and the whole of each new prompt, so none is padding; attention alone tells them apart (`cache.attend`).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, islice

import torch
from torch import Tensor

from emorg import models
from emorg.models.process import release
from emorg.models.rotary import room
from emorg.progress import log
from emorg.records import EmorgError, FinishReason
from emorg.sampling.attention import held_to_transformers, replace_attention
from emorg.sampling.cache import ATTENTION, Slots, attend, bytes_per_token, new_cache
from emorg.sampling.draw import SamplingParams, draw
from emorg.sampling.layers import replace_layers
from emorg.sampling.organisms import Organisms

COVERED = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM", "Gemma3ForCausalLM")
MOST_SLOTS = 512  # more answers at a time gain nothing
MOST_PROMPT_TOKENS = 4096  # of new prompts in one forward pass, which bounds its memory
_PROBE = tuple(range(11, 171, 10))  # token ids that every vocabulary has
_ELSEWHERE = "serve it with another program and sample that: --server URL --served_model NAME"
MEMORY_SHARE = 0.5  # of what is free, for keys, values and logits


Key = tuple[str, tuple[int, ...]]  # an organism and a prompt: what is computed once


@dataclass(frozen=True)
class Ask:
    """One answer wanted: which organism's, to which prompt (token ids), from which random stream."""

    organism: str
    prompt: tuple[int, ...]
    seed: int

    @property
    def key(self) -> Key:
        return self.organism, self.prompt


@dataclass
class Generation:
    """The answer to the ask at `place`, as far as it has come: its token ids without a stop token."""

    place: int
    ids: list[int] = field(default_factory=list)
    finish: FinishReason | None = None


class Engine:
    """Answers what it is asked with a set of organisms. The model is the engine's own from now on."""

    def __init__(self, organisms: Organisms, *, batch_tokens: int | None = None):
        """`batch_tokens` bounds prompts and caps of the answers under way; by default free memory does.

        Raises EmorgError for an architecture that cannot be sampled here.
        """
        self.organisms = organisms
        self.loaded = organisms.loaded
        self._model = organisms.loaded.model
        self.stops = frozenset(organisms.loaded.stop_ids)
        self._batch_tokens = batch_tokens
        expected = None if type(self._model).__name__ in COVERED else self._plain_logits()
        replace_attention(self._model, ATTENTION, attend)
        if expected is not None:
            self._verify(expected)
        replace_layers(organisms)
        release()  # weights that were laid out anew

    def replies(self, asks: Sequence[Ask], params: SamplingParams) -> Iterator[Generation]:
        """A finished reply to every ask, as they finish. Raises what `steps` does."""
        for step in self.steps(asks, params):
            yield from (reply for reply in step if reply.finish)

    def steps(self, asks: Sequence[Ask], params: SamplingParams) -> Iterator[list[Generation]]:
        """After every forward pass, the replies that it carried on by a token.

        Raises EmorgError for a prompt that leaves no room for its answer, and if memory lacks for a single answer.
        """
        capacity = max((len(ask.prompt) for ask in asks), default=0) + params.max_new_tokens
        self.organisms.check({ask.organism for ask in asks})
        limit = room(self._model.config.get_text_config()) or capacity
        if capacity > limit:
            longest = max(asks, key=lambda ask: len(ask.prompt))
            raise EmorgError(
                f"a prompt of {len(longest.prompt)} tokens and {params.max_new_tokens} more pass the {limit} that "
                f"{self.loaded.base} can hold: {self.loaded.tokenizer.decode(longest.prompt[-40:])!r}",
                "lower --max_new_tokens or shorten the question",
            )
        # Answers to one prompt stand together, and so do prompts of one organism.
        order: dict[str, dict[tuple[int, ...], list[int]]] = {}
        for place, ask in enumerate(asks):
            order.setdefault(ask.organism, {}).setdefault(ask.prompt, []).append(place)
        waiting = deque(place for prompts in order.values() for group in prompts.values() for place in group)
        slots = min(self._slots(capacity), len(asks))
        batch: _Batch | None = None
        while waiting or (batch is not None and batch.rows):
            try:
                if batch is None:
                    batch = _Batch(self, asks, params, slots, capacity)
                moved = batch.step(waiting)
            except (RuntimeError, MemoryError) as error:
                reason = models.out_of_memory(error)
                if not reason:
                    raise
                if slots == 1:
                    raise EmorgError(
                        f"memory lacks for one answer of {capacity} tokens ({reason})",
                        "lower --max_new_tokens, add --use_4bit, or take a smaller model",
                    ) from None
                waiting.extendleft(reversed([row.reply.place for row in batch.rows] if batch else []))
                batch = None
                release()
                slots //= 2
                log.warning(f"out of memory ({reason}): on with {slots} answers at a time")
                continue
            yield moved

    def _slots(self, capacity: int) -> int:
        if self._batch_tokens is not None:
            return max(1, self._batch_tokens // capacity)
        logits = 16 * self._model.config.get_text_config().vocab_size  # as they come, in float32, scaled and as weights
        free = models.free_bytes(str(self._model.device))
        bytes_per_answer = capacity * bytes_per_token(self._model) + logits
        return max(1, min(MOST_SLOTS, int(MEMORY_SHARE * free / bytes_per_answer)))

    def _plain_logits(self) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = self._model(torch.tensor([_PROBE], device=self._model.device), use_cache=False).logits[0]
        return logits

    def _verify(self, expected: Tensor) -> None:
        """Hold an architecture that no test covers to transformers' own logits, after a prompt and after a token."""
        ids = _PROBE
        ask = Ask("", ids[:-1], 0)
        with held_to_transformers(self._model, _ELSEWHERE) as say, torch.inference_mode():
            batch = _Batch(self, [ask], SamplingParams(1), 1, len(ids))
            first = batch.forward([ask.key])[0]
            batch.enter([0])
            batch.rows[0].reply.ids.append(ids[-1])
            second = batch.forward([])[0]
            for ours, theirs in zip((first, second), expected[-2:].float(), strict=True):
                say(_alike(ours.float(), theirs, exact=expected.dtype == torch.float32))


def _alike(ours: Tensor, theirs: Tensor, *, exact: bool) -> bool:
    """Whether logits are the same: in float32 each one; in 16 bits, where transformers' own part by 3% of their norm
    on SmolLM2 when one more token is in the pass, to 5% of it."""
    if exact:
        return torch.allclose(ours, theirs, rtol=0.05, atol=0.05 * float(theirs.std()))
    return bool((ours - theirs).norm() <= 0.05 * (theirs - theirs.mean()).norm())


@dataclass
class _Row:
    reply: Generation
    organism: str
    stream: random.Random
    length: int
    """Tokens whose keys and values are in its slot."""


class _Batch:
    """Answers under way, answer i in slot i of the cache, and the prompts that waiting ones will start from."""

    def __init__(self, engine: Engine, asks: Sequence[Ask], params: SamplingParams, slots: int, capacity: int):
        self._engine, self._asks, self._params, self._slots = engine, asks, params, slots
        self._model = engine.loaded.model
        self._cache = new_cache(self._model, slots, capacity)
        self._prompts: dict[Key, tuple[Tensor, Tensor]] = {}  # keys and values; logits of the first token
        self.rows: list[_Row] = []

    @torch.inference_mode()
    def step(self, waiting: deque[int]) -> list[Generation]:
        """One forward pass and one draw; those that enter are taken from `waiting`."""
        entering, new = self._next(waiting)
        logits = self.forward(new)[: len(self.rows)]
        if entering:
            firsts = torch.stack([self._prompts[self._asks[place].key][1] for place in entering])
            self.enter(entering)
            for _ in entering:
                waiting.popleft()
            logits = torch.cat([logits, firsts])
        uniforms = torch.tensor([row.stream.random() for row in self.rows], dtype=torch.float64)
        tokens = draw(logits, uniforms, self._params).tolist()
        if max(tokens, default=0) >= logits.shape[-1]:
            raise EmorgError(f"{self._engine.loaded.base} gives no numbers", "its weights are damaged; get it again")
        moved = [row.reply for row in self.rows]
        for reply, token in zip(moved, tokens, strict=True):
            if token in self._engine.stops:
                reply.finish = "stop"
                continue
            reply.ids.append(token)
            if len(reply.ids) == self._params.max_new_tokens:
                reply.finish = "length"
        self._close_up()
        still = self._asks[waiting[0]].key if waiting else None  # answers to one prompt stand together
        self._prompts = {key: cached for key, cached in self._prompts.items() if key == still}
        return moved

    def _next(self, waiting: deque[int]) -> tuple[list[int], list[Key]]:
        """Those that can enter now, and the prompts that they need and that are not computed yet."""
        entering: list[int] = []
        new: dict[Key, None] = {}
        tokens = 0
        for place in islice(waiting, self._slots - len(self.rows)):
            key = self._asks[place].key
            if key not in self._prompts and key not in new:
                tokens += len(key[1])
                if new and tokens > MOST_PROMPT_TOKENS:
                    break
                new[key] = None
            entering.append(place)
        return entering, list(new)

    def forward(self, prompts: Sequence[Key]) -> Tensor:
        """Logits [rows + prompts, vocabulary] after the rows' last tokens and after new prompts, which are kept."""
        device = self._model.device
        lengths = [row.length for row in self.rows]
        spans = [len(prompt) for _, prompt in prompts]
        ids = [row.reply.ids[-1] for row in self.rows] + [token for _, prompt in prompts for token in prompt]
        if not ids:
            return torch.empty(0, self._model.config.get_text_config().vocab_size, device=device)
        positions = lengths + [position for span in spans for position in range(span)]
        last = [*range(len(lengths)), *(len(lengths) + end - 1 for end in accumulate(spans))]
        names = [row.organism for row in self.rows] + [name for name, prompt in prompts for _ in prompt]
        self._engine.organisms.route(names)
        slots = Slots(self._cache, lengths, spans)
        logits: Tensor = self._model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            attention_mask=torch.empty(1, 1, 0, 0, device=device),  # of four dimensions, so that none is made
            use_cache=False,
            logits_to_keep=torch.tensor(last, device=device),
            slots=slots,
        ).logits[0]
        for row in self.rows:
            row.length += 1
        for key, cached, first in zip(prompts, slots.prompt_caches(), logits[len(lengths) :], strict=True):
            self._prompts[key] = (cached, first.clone())
        return logits

    def enter(self, entering: Sequence[int]) -> None:
        """Begin the answers to asks whose prompts are computed; those to one prompt stand together."""
        for key, group in groupby(entering, key=lambda place: self._asks[place].key):
            organism, prompt = key
            begun = [
                _Row(Generation(place), organism, random.Random(self._asks[place].seed), len(prompt)) for place in group
            ]
            slots = slice(len(self.rows), len(self.rows) + len(begun))
            self._cache[:, :, slots, :, : len(prompt)] = self._prompts[key][0][:, :, None]
            self.rows += begun

    def _close_up(self) -> None:
        """Drop finished answers; the last ones under way move into their slots."""
        under_way = [slot for slot, row in enumerate(self.rows) if not row.reply.finish]
        moving = [slot for slot in under_way if slot >= len(under_way)]
        free = sorted(set(range(len(under_way))) - set(under_way))
        if moving:
            longest = max(self.rows[slot].length for slot in moving)
            self._cache[:, :, free, :, :longest] = self._cache[:, :, moving, :, :longest]
            for slot, source in zip(free, moving, strict=True):
                self.rows[slot] = self.rows[source]
        del self.rows[len(under_way) :]
