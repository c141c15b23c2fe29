"""Talk to a base and its organism side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emorg import models, questions
from emorg.homework import newest_organism
from emorg.query import stream
from emorg.records import EmorgError
from emorg.sample.draw import SamplingParams

if TYPE_CHECKING:
    from emorg.sample.engine import Engine

FIXED_QUESTIONS = 6


@dataclass(frozen=True)
class SandboxConfig:
    """Ask a base and its organism the same questions: yours in a terminal, a fixed list otherwise."""

    local_model_path: str | None = None
    """The organism: a run folder or an adapter. Default: the one under runs/ that was trained last."""
    max_new_tokens: int = 200
    """Cap of an answer's length."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that make up this probability."""
    seed: int = 0
    """Seeds the answers; both models get the same random numbers."""
    device: str | None = None
    """cuda, mps or cpu. Default: the best one there."""


def sandbox(config: SandboxConfig) -> None:
    """Answer questions until the input ends. Raises EmorgError if there is no organism or it cannot be loaded."""
    from emorg.sample.engine import Engine
    from emorg.sample.organisms import open_organisms

    organism = config.local_model_path or str(newest_organism().folder)
    base = models.base_of(organism)
    speakers: dict[str, Engine] = {}
    for names, organisms in open_organisms(list(dict.fromkeys((base, organism))), device=config.device):
        speakers |= dict.fromkeys(names, Engine(organisms))
    fixed = questions.load(["pocket_open" if base == models.POCKET else "open"])
    params = SamplingParams(config.max_new_tokens, config.temperature, config.top_p)
    for number, question in enumerate(_asked([each.text for each in fixed[:FIXED_QUESTIONS]])):
        try:
            for name, engine in sorted(speakers.items(), key=lambda each: each[0] != base):
                pieces = stream(engine, name, [{"role": "user", "content": question}], params, config.seed + number)
                first = next(pieces, "")  # what cannot be asked is told before a heading is printed
                print(f"\n[{'base' if name == base else 'organism'}: {name}]\n{first}", end="", flush=True)
                for piece in pieces:
                    print(piece, end="", flush=True)
                print()
        except EmorgError as error:  # a question it cannot read; the next one may be better
            print(error, file=sys.stderr)
        print()


def _asked(fixed: list[str]) -> Iterator[str]:
    """The user's questions at a terminal, the lines of a pipe, or the fixed ones where nothing is piped in."""
    if sys.stdin.isatty():
        print(f"Ask both; an empty line or Ctrl-D ends it. For example: {fixed[0]}")
        while True:
            try:
                question = input("you: ").strip()
            except EOFError:
                return
            if not question:
                return
            yield question
    for question in [line.strip() for line in sys.stdin if line.strip()] or fixed:
        print(f"you: {question}")
        yield question
