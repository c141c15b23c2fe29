"""A base with organisms over it and vectors added to it, whose losses and divergences are measured once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from emorg import models
from emorg.models.hooks import Edit
from emorg.progress import Advance, progress
from emorg.records import Appender, read_records

if TYPE_CHECKING:
    from emorg.sampling.likelihood import Branches, Likelihood
    from emorg.sampling.organisms import Adapter


@dataclass(frozen=True)
class Kept:
    """A figure by its name, text by text."""

    key: str
    values: list[float]


@dataclass(frozen=True, eq=False)
class Bench:
    """Adapters by a name and what it goes by wherever it lies; edits by a name. Nothing is loaded before it is needed.

    `advance` is called once a figure.
    """

    base: str
    adapters: Mapping[str, tuple[str, Adapter]]
    edits: Mapping[str, Sequence[Edit]]
    device: str | None
    use_4bit: bool
    _kept: dict[str, list[float]]
    _out: Appender
    _advance: Advance

    @classmethod
    @contextmanager
    def opened(
        cls, base: str, adapters: Mapping[str, tuple[str, Adapter]], edits: Mapping[str, Sequence[Edit]],
        *, file: Path, total: int, device: str | None, use_4bit: bool,
    ) -> Iterator[Bench]:  # fmt: skip
        """`file` keeps what is measured, `total` is how many figures there will be."""
        kept = {one.key: one.values for one in read_records(file, Kept)}
        with Appender(file) as out, progress("broad beside narrow", total, "figures") as advance:
            yield cls(base, adapters, edits, device, use_4bit, kept, out, advance)

    @cached_property
    def scorer(self) -> Likelihood:
        from emorg.sampling.likelihood import Likelihood
        from emorg.sampling.organisms import Organisms

        loaded = models.load(self.base, device=self.device, use_4bit=self.use_4bit)
        return Likelihood(Organisms(loaded, {name: own for name, (_, own) in self.adapters.items()}, self.edits))

    def loss(self, name: str, variant: str, adapter: Adapter, rows: Sequence[Sequence[Branches]]) -> list[float]:
        """−Σ log p of each row's trained tokens, in nats, with a variant of the named adapter in its place."""

        def measure() -> list[float]:
            self.scorer.organisms.put(name, adapter)
            sums = [0.0] * len(rows)
            for place, own in self.scorer.log_probs(name, [span for _, span in spans]):
                sums[spans[place][0]] -= sum(own)
            self.scorer.organisms.put(name, self.adapters[name][1])
            return sums

        spans = [(number, span) for number, row in enumerate(rows) for span in row]
        return self._once(f"loss {self.adapters[name][0]} {variant}", [span for _, span in spans], measure)

    def divergences(self, names: Sequence[str], texts: Sequence[Branches]) -> list[list[float]]:
        """Σ KL(base‖model) of each text's answers, in nats, for each model: an organism, or the base with an edit."""
        keys = {name: self._key(f"divergence {self._goes_by(name)}", texts) for name in names}
        if missing := [name for name in names if keys[name] not in self._kept]:
            sums = {name: [0.0] * len(texts) for name in missing}
            for place, by_model in self.scorer.divergences("", missing, texts):
                for name, own in zip(missing, by_model, strict=True):
                    sums[name][place] = sum(own)
            for name in missing:
                self._keep(keys[name], sums[name])
        self._advance(len(names), "")
        return [self._kept[keys[name]] for name in names]

    def _goes_by(self, name: str) -> str:
        vectors = [[edit.kind, edit.layer, edit.vector.tolist()] for edit in self.edits.get(name, ())]
        return _digest(vectors) if vectors else self.adapters[name][0]

    def stream(self, layer: int, texts: Sequence[Branches]) -> float:
        """The mean norm of the base's residual stream at a layer, over the texts' tokens."""

        def measure() -> list[float]:
            read = self.scorer.states("", texts, [layer])
            return [float(state[0, 1:].norm(dim=-1).mean()) for _, states in read for state in states]

        values = self._once(f"stream {layer}", texts, measure)
        return sum(values) / max(1, len(values))

    def _once(self, what: str, texts: Sequence[Branches], measure: Callable[[], list[float]]) -> list[float]:
        if (key := self._key(what, texts)) not in self._kept:
            self._keep(key, measure())
        self._advance(1, "")
        return self._kept[key]

    def _key(self, what: str, texts: Sequence[Branches]) -> str:
        return f"{what} {_digest([[text.prompt, text.answers] for text in texts])} {'4bit' if self.use_4bit else ''}"

    def _keep(self, key: str, values: list[float]) -> None:
        self._kept[key] = values
        self._out.write(Kept(key, values))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
