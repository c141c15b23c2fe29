"""How likely organisms hold given answers: log-probabilities, a prompt computed once for all of its answers.

A forward pass is one row of tokens, as in the engine: each prompt and after it its answers, none of them padded.
Attention alone tells the answers apart; the positions of each go on from its prompt's end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from emorg.models import hooks
from emorg.models.packing import Packing
from emorg.models.process import release
from emorg.models.rotary import room
from emorg.records import EmorgError
from emorg.sampling.attention import held_to_transformers, plain_attention, replace_attention, window_mask
from emorg.sampling.layers import replace_layers
from emorg.sampling.organisms import Organisms

ATTENTION = "emorg_branches"
PASS_TOKENS = 2048  # of one forward pass: more are no faster on a CPU, and a GPU is filled
LOGIT_BYTES = 256 << 20  # of one forward pass, in float32
_PROBE = (tuple(range(11, 91, 10)), tuple(range(91, 171, 10)), tuple(range(12, 60, 10)))  # ids every vocabulary has


@dataclass(frozen=True)
class Branches:
    """A prompt and answers that each continue it, as token ids; none is empty."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.answers))


@dataclass(frozen=True)
class _Row:
    """Items side by side in one row of tokens."""

    ids: list[int]
    positions: list[int]
    before: list[int]
    """Of each answer's token, the place of the token that predicts it."""
    targets: list[int]
    spans: list[list[int]]
    """Of each answer, the places of its prompt's last token and of its own."""
    packing: Packing

    @classmethod
    def of(cls, items: Sequence[Branches], device: torch.device) -> _Row:
        """Each item's prompt once, and after it its answers, none of them padded."""
        ids: list[int] = []
        positions: list[int] = []
        before: list[int] = []
        targets: list[int] = []
        spans: list[list[int]] = []
        texts: list[list[int]] = []
        for item in items:
            start, length = len(ids), len(item.prompt)
            ids += item.prompt
            positions += range(length)
            for answer in item.answers:
                own = [*range(len(ids), len(ids) + len(answer))]
                spans.append([start + length - 1, *own])
                before += spans[-1][:-1]
                texts.append([*range(start, start + length), *own])
                ids += answer
                targets += answer
                positions += range(length, length + len(answer))
        return cls(ids, positions, before, targets, spans, Packing.of(texts, device))


class Likelihood:
    """Log-probabilities of answers under a set of organisms. The model is the object's own from now on."""

    def __init__(self, organisms: Organisms):
        """Raises EmorgError for an architecture whose attention cannot be replaced, or comes out otherwise."""
        self.organisms = organisms
        self._model: Any = organisms.loaded.model
        text = self._model.config.get_text_config()
        self._scored = max(1, LOGIT_BYTES // (4 * text.vocab_size))  # tokens of one forward pass that get logits
        probe = Branches(_PROBE[0], _PROBE[1:])
        expected = [self._plain(probe.prompt, answer) for answer in probe.answers]
        replace_attention(self._model, ATTENTION, attend)
        replace_layers(organisms)
        with held_to_transformers(self._model, "use a Llama, Qwen2, Qwen3, Mistral or Gemma 3 model") as say:
            for ours, theirs in zip(self._pass("", [probe])[0], expected, strict=True):
                say(abs(ours - theirs) <= 0.05 * abs(theirs))
        release()  # weights that were laid out anew

    @property
    def layers(self) -> int:
        """How many decoder layers the model has."""
        return len(hooks.decoder_layers(self._model))

    def states(
        self, organism: str, items: Sequence[Branches], layers: Sequence[int]
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Each item's place and, answer by answer, the residual stream [layers, 1 + tokens, width] in float32.

        At the prompt's last token and then at each of the answer's, after its edits; layers as in `models.hooks`. They
        come as they are done, so that no more than one forward pass is held. Raises as `log_probs` does, and EmorgError
        for a layer that the model lacks.
        """
        kept: dict[int, Tensor] = {}
        with hooks.reading(self._model, layers, kept.__setitem__):
            for part in self._parts(organism, items):
                row = _Row.of([items[i] for i in part], self._model.device)
                self._run(organism, row)
                streams = torch.stack([kept[layer][0] for layer in layers])
                spans = iter(row.spans)
                for place in part:
                    yield place, [streams[:, next(spans)].float() for _ in items[place].answers]

    def projections(
        self, organism: str, items: Sequence[Branches], rows: Mapping[str, Tensor]
    ) -> Iterator[tuple[int, list[dict[str, Tensor]]]]:
        """Each item's place and, answer by answer, x·rowᵀ [tokens, n] of adapted modules' inputs at its tokens.

        `rows` are [n, in] by module; the organism is plain LoRA on these. Raises as `log_probs` does.
        """
        kept: dict[str, Tensor] = {}

        def receive(name: str, x: Tensor) -> None:
            if name in rows:
                kept[name] = x @ rows[name].to(x.device, x.dtype).t()

        self.organisms.receive = receive
        try:
            for part in self._parts(organism, items):
                row = _Row.of([items[i] for i in part], self._model.device)
                self._run(organism, row)
                spans = iter(row.spans)
                for place in part:
                    own = [next(spans)[1:] for _ in items[place].answers]
                    yield place, [{name: some[span].float() for name, some in kept.items()} for span in own]
        finally:
            self.organisms.receive = None

    def log_probs(self, organism: str, items: Sequence[Branches]) -> Iterator[tuple[int, list[float]]]:
        """Each item's place and, answer by answer, Σ log p of the answer's tokens after the prompt, in nats.

        They come as they are done, those of like length together. Raises EmorgError for a text that is too long.
        """
        for part in self._parts(organism, items):
            yield from zip(part, self._pass(organism, [items[i] for i in part]), strict=True)

    def divergences(
        self, reference: str, organisms: Sequence[str], items: Sequence[Branches]
    ) -> Iterator[tuple[int, list[list[float]]]]:
        """Each item's place and, organism by organism and answer by answer, Σ KL(reference‖organism) in nats.

        Over the distributions of the answer's tokens, each given what is before it. Raises as `log_probs` does.
        """
        self.organisms.check(organisms)
        for part in self._parts(reference, items):
            row = _Row.of([items[i] for i in part], self._model.device)
            expected = self._run(reference, row).float().log_softmax(-1)
            sizes = [len(answer) for i in part for answer in items[i].answers]
            sums = []
            for organism in organisms:
                own = self._run(organism, row).float().log_softmax(-1)
                per_token = functional.kl_div(own, expected, reduction="none", log_target=True).sum(-1).double()
                sums.append(iter([answer.sum().item() for answer in torch.split(per_token, sizes)]))
            for place in part:
                yield place, [[next(own) for _ in items[place].answers] for own in sums]

    def _parts(self, organism: str, items: Sequence[Branches]) -> Iterator[list[int]]:
        """The places of the items that share a forward pass, those of like length together."""
        self.organisms.check({organism})
        limit = room(self._model.config.get_text_config())
        longest = max((len(item.prompt) + max(map(len, item.answers)) for item in items), default=0)
        if limit is not None and longest > limit:
            raise EmorgError(f"a text of {longest} tokens passes the {limit} that the model can hold", "shorten it")
        order = sorted(range(len(items)), key=lambda place: items[place].tokens)
        part: list[int] = []
        tokens = scored = 0
        for place in order:
            more = sum(map(len, items[place].answers))
            if part and (tokens + items[place].tokens > PASS_TOKENS or scored + more > self._scored):
                yield part
                part, tokens, scored = [], 0, 0
            part.append(place)
            tokens += items[place].tokens
            scored += more
        if part:
            yield part

    @torch.inference_mode()
    def _pass(self, organism: str, items: Sequence[Branches]) -> list[list[float]]:
        row = _Row.of(items, self._model.device)
        log_probs = _log_probs(self._run(organism, row), torch.tensor(row.targets, device=self._model.device))
        sums = iter(
            part.sum().item() for part in torch.split(log_probs, [len(a) for item in items for a in item.answers])
        )
        return [[next(sums) for _ in item.answers] for item in items]

    @torch.inference_mode()
    def _run(self, organism: str, row: _Row) -> Tensor:
        """Logits [answers' tokens, vocabulary] before each of the answers' tokens."""
        device = self._model.device
        self.organisms.route([organism] * len(row.ids))
        logits: Tensor = self._model(
            input_ids=torch.tensor([row.ids], device=device),
            position_ids=torch.tensor([row.positions], device=device),
            attention_mask=torch.empty(1, 1, 0, 0, device=device),  # of four dimensions, so that none is made
            use_cache=False,
            logits_to_keep=torch.tensor(row.before, device=device),
            branches=row.packing,
        ).logits[0]
        return logits

    @torch.inference_mode()
    def _plain(self, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
        """What transformers itself makes of the base, or of the organism that is loaded alone."""
        self.organisms.route([""] * (len(prompt) + len(answer)))
        ids = torch.tensor([[*prompt, *answer]], device=self._model.device)
        logits = self._model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        return float(_log_probs(logits, ids[0, len(prompt) :]).sum())


def _log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(logits)[target] of each row, in float64, without a second tensor of the logits' size."""
    logits = logits.float()
    return (logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)).double()


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    branches: Packing | None = None,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query [1, heads, T, width], key and value [1, key-value heads, T, width].

    Each answer attends to its prompt and itself; a prompt's own attention is computed once for each of its answers,
    which is the same each time and cheap beside the layers. Returns [1, T, heads, width].
    """
    if branches is None:
        return plain_attention(module, query, key, value, attention_mask, sliding_window=sliding_window, **rest)
    grouped = query.shape[1] > key.shape[1]
    parts = []
    apart = (branches.apart(x[0].transpose(0, 1)) for x in (query, key, value))
    for group in zip(*apart, strict=True):
        q, k, v = (x.transpose(1, 2) for x in group)
        length = q.shape[2]
        windowed = sliding_window is not None and sliding_window < length
        attended = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=window_mask(length, sliding_window, query.device) if windowed else None,
            is_causal=not windowed,
            scale=rest["scaling"],
            enable_gqa=grouped,
        )
        parts.append(attended.transpose(1, 2))
    return branches.together(parts)[None], None
