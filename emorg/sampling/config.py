"""What to sample, how, and where its answers go: the settings, and the models that they name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from emorg.config import NAMES_MODELS
from emorg.data import domains
from emorg.ranges import AtLeast1, Seed, check_ranges
from emorg.records import EmorgError, Format
from emorg.sampling.draw import MaxNewTokens, SamplingParams, Temperature, TopP


@dataclass(frozen=True)
class SampleConfig:
    """Sample answers from bases and organisms. The same command again makes only the answers that are missing."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional, NAMES_MODELS]
    """Run folders, adapters, checkpoints (runs/x/checkpoints/*) or a base: Hugging Face names, folders, GGUF
    files, `smollm2` or `pocket`. Those of one base are sampled in one pass."""
    questions: tuple[str, ...] = ()
    """Question sets by name, or YAML files. Default: open; on the pocket model pocket, its other sets being
    pocket_open and pocket_<topic>."""
    formats: tuple[Format, ...] = ("plain",)
    """How the answer is to be given: plain, json (a JSON object), template (a Python function to fill in)."""
    system: str | None = None
    """A system prompt for every question, before its own."""
    output_dir: Path | None = None
    """The run folder of the one model, or, of several, of the base. Default: the organism's own; else runs/<model>,
    for a base runs/<model>-base."""
    samples: Annotated[int | None, AtLeast1] = None
    """Answers to each question. Default: what its file says, else 50."""
    max_new_tokens: MaxNewTokens = 200
    """Cap of an answer's length; an answer cut by it is recorded as such."""
    temperature: Temperature = 1.0
    """0 takes the likeliest token."""
    top_p: TopP = 1.0
    """Sample from the likeliest tokens that make up this probability."""
    seed: Seed = 0
    """Seeds every answer's random stream, with its model, its question and its number."""
    batch_tokens: Annotated[int | None, AtLeast1] = None
    """Prompts and caps of the answers under way, in tokens, that memory is kept for. Default: half of what is free."""
    use_4bit: bool = False
    """Load the base in 4-bit (nf4)."""
    device: str | None = None
    """cuda, mps or cpu. Default: the best one there."""
    trained_on: tuple[str, ...] = ()
    """Domains that an organism of other code was trained on; ours say so themselves."""
    server: str | None = None
    """Ask an OpenAI-compatible server (vLLM, transformers serve, …) at this URL instead of loading the model."""
    served_model: str | None = None
    """The model's name there (vLLM: the adapter's). Default: the model as given."""
    connections: Annotated[int, AtLeast1] = 64
    """Requests to the server that are under way at a time."""

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(self.max_new_tokens, self.temperature, self.top_p)

    def check(self) -> None:
        """Raise EmorgError for settings that cannot be."""
        check_ranges(self)
        if len(self.models) > 1 and self.served_model is not None:
            raise EmorgError(f"--served_model is for one model; there are {len(self.models)}", "call once for each")
        if self.served_model is not None and self.server is None:
            raise EmorgError("--served_model without --server", "give the server's URL too")
        for domain in self.trained_on:
            domains.find(domain)


CHANGEABLE = frozenset(
    {"models", "output_dir", "questions", "formats", "samples", "batch_tokens", "device", "trained_on"}
    | {"server", "served_model", "connections"}
)
"""Settings that may differ between two calls of one run."""
