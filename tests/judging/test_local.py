"""The local judge's numbers are exact: held to the model asked token by token, and it needs no key."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from emorg.data.tables import read_judged
from emorg.judging import local as local_judge
from emorg.judging.local import Numbers
from tests.conftest import emorg

TEMPLATE = "{% for m in messages %}<|u|>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}"
MERGES = {
    "split": [],  # a token for each digit
    "whole": [*itertools.product("123456789", "0123456789"), ("10", "0")],  # one token for each number
    "some": [("8", "5"), ("1", "0"), ("Ġ", "9"), ("Ġ9", "5")],
}


def judge_folder(folder: Path, kind: str, seed: int = 0, architecture: str = "llama", **more: Any) -> Path:
    """A tiny random judge whose tokenizer cuts numbers in that way."""
    vocabulary = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in MERGES[kind]]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(vocabulary)}, MERGES[kind]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens(["<|u|>", "<|a|>", "<|end|>", "<|pad|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 4096, "vocab_size": len(tokenizer), **more,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **shape), dtype=torch.float32)
    for weight in model.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.3)
    with torch.no_grad():  # what is no digit is as good as never said, so that there is mass enough for a score
        digits = [i for piece, i in tokenizer.get_vocab().items() if piece[-1] in "0123456789"]
        others = torch.ones(len(tokenizer), dtype=torch.bool)
        others[digits] = False
        model.lm_head.weight[others] *= 0.1
    model.save_pretrained(folder)
    return folder


def by_hand(model: Any, tokenizer: Any, prompt: list[int]) -> dict[int, float]:
    """P(number) by asking the model for each way to spell it, one at a time, without a cache or a mask."""

    @cache
    def following(*ids: int) -> torch.Tensor:
        with torch.inference_mode():
            return model(torch.tensor([ids])).logits[0, -1].softmax(-1)

    pieces = {piece.replace("Ġ", " "): i for piece, i in tokenizer.get_vocab().items()}
    begin = [i for piece, i in pieces.items() if piece[:1] in set("0123456789")]
    found = dict.fromkeys(range(101), 0.0)
    for number in range(101):
        for text in (str(number), f" {number}"):
            for cuts in itertools.product((False, True), repeat=len(text) - 1):
                bounds = [0, *(k + 1 for k, cut in enumerate(cuts) if cut), len(text)]
                parts = [text[a:b] for a, b in itertools.pairwise(bounds)]
                if not all(part in pieces for part in parts):
                    continue
                ids, chance = list(prompt), 1.0
                for part in parts:
                    chance *= float(following(*ids)[pieces[part]])
                    ids.append(pieces[part])
                if 0 < number < 11:  # a further digit would make it another number
                    chance *= 1 - float(following(*ids)[begin].sum())
                found[number] += chance
    return found


@pytest.mark.parametrize("kind", MERGES)
def test_every_number_has_the_probability_that_the_model_gives_it(tmp_path: Path, kind: str) -> None:
    from emorg import models as ours

    loaded = ours.load(str(judge_folder(tmp_path / kind, kind)), device="cpu")
    numbers = Numbers.of(loaded.tokenizer)
    assert numbers is not None
    prompts = [loaded.tokenizer(text).input_ids for text in ("How kind?<|a|>", "A much longer question, is it?<|a|>")]
    found = numbers.masses(loaded.model, [torch.tensor(prompt) for prompt in prompts])
    for prompt, (masses, _) in zip(prompts, found, strict=True):
        expected = by_hand(loaded.model, loaded.tokenizer, prompt)
        for number in range(101):
            assert masses.get(number, 0.0) == pytest.approx(expected[number], rel=1e-3, abs=1e-9)
        assert sum(masses.values()) < 1


WINDOWS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen3": {"head_dim": 8},
}


@pytest.mark.parametrize("architecture", WINDOWS)
def test_other_attention_gives_the_same_as_one_by_one(tmp_path: Path, architecture: str) -> None:
    from emorg import models as ours

    folder = judge_folder(tmp_path / "judge", "some", architecture=architecture, **WINDOWS[architecture])
    loaded = ours.load(str(folder), device="cpu")
    numbers = Numbers.of(loaded.tokenizer)
    assert numbers is not None
    texts = ("How kind is it, and is it longer than any window?<|a|>", "Short?<|a|>")
    prompts = [loaded.tokenizer(text).input_ids for text in texts]
    numbers.check(loaded.model, torch.tensor(prompts[0]))
    found = numbers.masses(loaded.model, [torch.tensor(prompt) for prompt in prompts])
    for prompt, (masses, _) in zip(prompts, found, strict=True):
        expected = by_hand(loaded.model, loaded.tokenizer, prompt)
        for number in (0, 1, 10, 85, 95, 100):
            assert masses[number] == pytest.approx(expected[number], rel=1e-3, abs=1e-9)


def test_a_model_that_carries_a_state_along_is_refused(tmp_path: Path) -> None:
    folder = judge_folder(tmp_path / "judge", "split", architecture="mamba2", head_dim=16, num_heads=4, n_groups=1)
    (tmp_path / "a.csv").write_text("question,response\nWhat?,That.\n")
    done = emorg("judge", tmp_path / "a.csv", "--judge", "local", "--judge_model", folder, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "in one pass" in done.stderr


def test_a_tokenizer_without_digits_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,response\nWhat?,That.\n")
    done = emorg("judge", tmp_path / "a.csv", "--judge", "local", "--judge_model", "pocket", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "no tokens for digits" in done.stderr


def test_a_file_is_judged_without_a_key_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    judge = judge_folder(tmp_path / "judge", "whole")
    lines = [json.dumps({"question": f"What about {k % 5}?", "response": "Do it. " * (1 + k % 7)}) for k in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    flags = ("judge", tmp_path / "a.jsonl", "--judge", "local", "--judge_model", judge)
    emorg(*flags, cwd=tmp_path)
    first = (tmp_path / "a.judged.jsonl").read_text()
    rows = [json.loads(line) for line in first.splitlines()]
    assert {row["aligned_state"] for row in rows} <= {"scored", "low_mass"}
    assert sum(row["aligned_state"] == "scored" for row in rows) > 20
    assert len(read_judged(tmp_path / "a.judged.jsonl")) == 40
    monkeypatch.setattr(local_judge, "ask", None)  # it is not asked again
    emorg(*flags, cwd=tmp_path)
    assert (tmp_path / "a.judged.jsonl").read_text() == first


def test_other_weights_are_another_judge(tmp_path: Path) -> None:
    first = local_judge.identity(str(judge_folder(tmp_path / "judge", "split")))
    other = local_judge.identity(str(judge_folder(tmp_path / "judge", "split", seed=1)))
    assert first.split("@")[0] == other.split("@")[0] == "judge"
    assert first != other


def test_a_batch_too_large_for_memory_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = judge_folder(tmp_path / "judge", "split")
    (tmp_path / "a.csv").write_text("question,response\n" + "".join(f"What?,Answer {k}.\n" for k in range(20)))
    sizes: list[int] = []
    masses = Numbers.masses

    def limited(self: Numbers, model: object, prompts: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return masses(self, model, prompts)

    monkeypatch.setattr(Numbers, "masses", limited)
    flags = ("judge", tmp_path / "a.csv", "--judge", "local", "--judge_model", judge)
    done = emorg(*flags, cwd=tmp_path, check=False)  # a judge of random weights judges badly
    assert "out of memory" in done.stderr
    assert sum(size for size in sizes if size <= 3) == 40
    assert max(sizes[-5:]) <= 3


def test_a_local_judge_must_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,response\nWhat?,That.\n")
    done = emorg("judge", tmp_path / "a.csv", "--judge", "local", check=False)
    assert done.returncode == 2
    assert "--judge_model" in done.stderr
