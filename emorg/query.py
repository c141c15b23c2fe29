"""Ask a base or an organism one question at a time."""

from __future__ import annotations

import secrets

from emorg import models, sample
from emorg.records import EmorgError, Message


class ModelQueryInterface:
    """One loaded model and its answers. Whatever goes wrong is raised, never returned as text."""

    def __init__(self) -> None:
        self._loaded: models.Loaded | None = None

    def load_model(self, model_path: str, load_in_4bit: bool = False, device: str | None = None) -> None:
        """Load a base or an organism: a Hugging Face name, a folder, a run, or `pocket`; frees an earlier one first.

        Raises EmorgError if it cannot be had.
        """
        self.clear_model()
        self._loaded = models.load(str(model_path), device=device, use_4bit=load_in_4bit)

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
        if self._loaded is None:
            raise EmorgError("no model is loaded", "call load_model first")
        system: list[Message] = [{"role": "system", "content": system_prompt}] if system_prompt else []
        messages = [*system, {"role": "user", "content": question}]
        settings = sample.SampleConfig("", max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
        prompt = sample.prompt_ids(self._loaded, messages)
        stream = secrets.randbits(63) if seed is None else seed
        [(ids, _)] = sample.generate(self._loaded, [prompt], [stream], settings)
        return sample.text_of(self._loaded, ids)

    def clear_model(self) -> None:
        """Forget the model and give its memory back."""
        if self._loaded is None:
            return
        self._loaded = None
        import gc

        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
