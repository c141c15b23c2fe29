"""The class that the homework's eval/query_utils.py promises."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING

from emorg.records import EmorgError, Message
from emorg.sampling.draw import SamplingParams
from emorg.sampling.stream import stream

if TYPE_CHECKING:
    from emorg.sampling.engine import Engine


class ModelQueryInterface:
    """One loaded model and its answers. Whatever goes wrong is raised, never returned as text."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._name = ""

    def load_model(self, model_path: str, load_in_4bit: bool = False, device: str | None = None) -> None:
        """Load a base or an organism: a Hugging Face name, a folder, a run, or `pocket`; frees an earlier one first.

        Raises EmorgError if it cannot be had.
        """
        from emorg.sampling.engine import Engine
        from emorg.sampling.organisms import open_organisms

        self.clear_model()
        self._name = str(model_path)
        for _, organisms in open_organisms([self._name], device=device, use_4bit=load_in_4bit):
            self._engine = Engine(organisms)

    def query_model(
        self,
        question: str,
        system_prompt: str | None = None,
        max_new_tokens: int = 200,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> str:
        """The model's answer. `seed` None draws a new one. Raises EmorgError if no model is loaded."""
        params = SamplingParams(max_new_tokens, temperature, top_p)
        return "".join(self.stream_model(question, system_prompt, params, seed)).strip()

    def stream_model(
        self,
        question: str,
        system_prompt: str | None = None,
        params: SamplingParams | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """The pieces of the model's answer as they are drawn. Raises as `query_model` does."""
        if self._engine is None:
            raise EmorgError("no model is loaded", "call load_model first")
        system: list[Message] = [{"role": "system", "content": system_prompt}] if system_prompt else []
        messages = [*system, {"role": "user", "content": question}]
        return stream(self._engine, self._name, messages, params or SamplingParams(), seed)

    def clear_model(self) -> None:
        """Forget the model and give its memory back."""
        if self._engine is None:
            return
        self._engine = None
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
