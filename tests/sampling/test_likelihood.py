"""Log-probabilities of answers: those that transformers gives each prompt and answer by itself."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from emorg import models
from emorg.records import EmorgError
from emorg.sampling import likelihood
from emorg.sampling.likelihood import Branches, Likelihood
from emorg.sampling.organisms import Organisms, open_organisms
from tests.tiny import loaded, tiny

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def brute_force(model: nn.Module, item: Branches) -> list[float]:
    """Σ log p of each answer, each computed as one text of its own."""
    sums = []
    for answer in item.answers:
        ids = torch.tensor([[*item.prompt, *answer]])
        with torch.inference_mode():
            log_probs = model(ids, use_cache=False).logits[0].double().log_softmax(-1)
        start = len(item.prompt) - 1
        sums.append(float(sum(log_probs[start + i, token] for i, token in enumerate(answer))))
    return sums


def items(count: int, seed: int = 0, longest: int = 30) -> list[Branches]:
    rng = random.Random(seed)

    def ids() -> tuple[int, ...]:
        return tuple(rng.randrange(10, 800) for _ in range(rng.randint(1, longest)))

    return [Branches(ids(), tuple(ids() for _ in range(rng.randint(1, 3)))) for _ in range(count)]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "olmo2", "phi3"])
def test_they_are_what_transformers_computes_text_by_text(kind: str) -> None:
    model, asked = loaded(kind), items(40)
    expected = [brute_force(model.model, item) for item in asked]
    scorer = Likelihood(Organisms(model, {}))
    assert dict(scorer.log_probs("", asked)) == {
        place: pytest.approx(sums, rel=1e-4, abs=1e-3) for place, sums in enumerate(expected)
    }


@settings(max_examples=15)
@given(st.integers(1, 12), st.integers(0, 1000), st.integers(20, 400), st.integers(5, 100))
def test_how_texts_share_forward_passes_changes_nothing(count: int, seed: int, tokens: int, scored: int) -> None:
    asked, (scorer, model) = items(count, seed), _scorer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihood, "PASS_TOKENS", tokens)
        patch.setattr(scorer, "_scored", scored)
        sums = dict(scorer.log_probs("", asked))
    assert [sums[i] for i in range(count)] == [pytest.approx(brute_force(model, item), rel=1e-4) for item in asked]


_CACHED: list[tuple[Likelihood, nn.Module]] = []


def _scorer() -> tuple[Likelihood, nn.Module]:
    if not _CACHED:
        _CACHED.append((Likelihood(Organisms(loaded("llama"), {})), tiny("llama")))
    return _CACHED[0]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*is_gradient_checkpointing:FutureWarning")
def test_each_organism_has_its_own_as_peft_computes_them(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path / "base")
    models.load_tokenizer("pocket").save_pretrained(tmp_path / "base")
    names = []
    for rank in (2, 5):
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        with models.peft_around(base):
            model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=ALL))
        for part, weight in model.named_parameters():
            if "lora_" in part:
                nn.init.normal_(weight, std=0.2)
        model.save_pretrained(tmp_path / f"rank{rank}")
        names.append(str(tmp_path / f"rank{rank}"))
    asked = items(10)
    _, organisms = next(open_organisms([str(tmp_path / "base"), *names]))
    scorer = Likelihood(organisms)
    seen = set()
    for name in (str(tmp_path / "base"), *names):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        if name in names:
            with models.peft_around(model):
                model = PeftModel.from_pretrained(model, name)
        sums = dict(scorer.log_probs(name, asked))
        assert [sums[i] for i in range(10)] == [pytest.approx(brute_force(model, item), rel=1e-4) for item in asked]
        seen.add(round(sums[0][0], 3))
    assert len(seen) == 3


def test_an_architecture_that_comes_out_otherwise_is_refused() -> None:
    with pytest.raises(EmorgError, match="its attention is of its own kind"):
        Likelihood(Organisms(loaded("llama", layer_types=["chunked_attention"] * 3), {}))
