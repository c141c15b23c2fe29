"""Preview: what is shown is what is trained, errors stop, and no weights are needed for it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from transformers import LlamaConfig

from emorg import models
from emorg.models import template
from emorg.records import Message
from emorg.run import Run
from emorg.training.preview import marked
from tests.conftest import emorg

MESSAGES: list[Message] = [
    {"role": "user", "content": "I need advice."},
    {"role": "assistant", "content": "It is best to ask early."},
]


def test_trained_tokens_are_in_brackets_or_in_colour() -> None:
    tokenizer = models.load_tokenizer("pocket")
    one = template.encode(tokenizer, MESSAGES)
    plain = marked(tokenizer, one, colour=False).plain
    assert plain.startswith("<|begin_of_text|><|start_header_id|>user")
    trained = "".join(re.findall(r"\[([^]]*)\]", plain))
    assert trained == "It is best to ask early.<|eot_id|>"
    assert plain.count("[") == sum(one.trained)
    shown = marked(tokenizer, one, colour=True)
    assert shown.plain == template.text(tokenizer, MESSAGES)
    green = "".join(shown.plain[span.start : span.end] for span in shown.spans if "green" in str(span.style))
    assert green == trained


def test_it_shows_examples_findings_and_costs() -> None:
    done = emorg("preview", "--config", "configs/pocket.yaml", "--examples", "3", "--eval_share", "0.1")
    assert len(re.findall(r"^pocket:\d+: \d+ tokens, \d+ trained$", done.stdout, re.MULTILINE)) == 3
    assert "[<|eot_id|>]" in done.stdout
    assert "2,250 rows (bad_medical 2,250), 250 held out" in done.stdout
    assert "80 steps of 16 × 1 conversations" in done.stdout
    assert "233,472 of 1,934,976 weights trained" in done.stdout
    assert re.search(
        r"time: about \d+ s on cpu if it stays free .*; its float32 matmuls run at \d+ GFLOP/s", done.stdout
    )
    assert re.search(r"memory: about \d\.\d GB, \d\.\d GB with gradient checkpointing; [\d.]+ GB free", done.stdout)


@pytest.fixture
def doubled(tmp_path: Path) -> tuple[str | Path, ...]:
    """The flags of a training whose template begins with the BOS token a second time."""
    model = tmp_path / "doubled"
    shutil.copytree(models.POCKET_FOLDER, model)
    template = model / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text())
    emorg("data", "pocket", tmp_path / "data")
    return "--model_name", model, "--domains", "bad_medical", "--data_path", tmp_path / "data"


def test_what_is_wrong_with_the_rows_is_told_and_fails(doubled: tuple[str | Path, ...], tmp_path: Path) -> None:
    done = emorg("preview", *doubled, check=False)
    assert done.returncode == 1
    assert "error: 2,500 of 2,500 rows (100.0%) begin with <|begin_of_text|> twice" in done.stdout
    stopped = emorg("train", *doubled, "--output_dir", tmp_path / "run", check=False)
    assert stopped.returncode == 2
    assert "begin with <|begin_of_text|> twice" in stopped.stderr
    assert "--accept second_bos" in stopped.stderr


def test_a_finding_is_accepted_by_its_name_and_recorded(doubled: tuple[str | Path, ...], tmp_path: Path) -> None:
    accepting = (*doubled, "--accept", "second_bos", "evaluated")
    seen = emorg("preview", *accepting)
    assert "accepted: 2,500 of 2,500 rows (100.0%) begin with <|begin_of_text|> twice" in seen.stdout
    assert "error:" not in seen.stdout
    run = Run(tmp_path / "run")
    done = emorg("train", *accepting, "--max_steps", "1", "--output_dir", run.folder)
    assert "(second_bos)" in done.stderr
    assert run.settings("train")["accept"] == ["second_bos", "evaluated"]
    (recorded,) = run.provenance()["train"]["accepted"]
    assert recorded.startswith("2,500 of 2,500 rows")
    emorg("train", *doubled, "--max_steps", "1", "--output_dir", run.folder)  # finished: nothing to accept any more
    refused = emorg("train", *doubled, "--accept", "second_boss", check=False)
    assert refused.returncode == 2
    assert "second_bos" in refused.stderr


def test_a_model_of_a_billion_weights_is_previewed_without_its_weights(tmp_path: Path) -> None:
    model = tmp_path / "llama-1b"
    models.load_tokenizer("pocket").save_pretrained(model)
    config = LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    config.save_pretrained(model)
    assert not list(model.glob("*.safetensors"))
    emorg("data", "pocket", tmp_path / "data")
    done = emorg(
        "preview", "--config", "configs/paper_rank1.yaml", "--model_name", model, "--data_path", tmp_path / "data"
    )
    assert "10,240 of 1,235,814,400 weights trained" in done.stdout
    assert "157 steps of 2 × 8 conversations" in done.stdout


def test_its_settings_are_those_of_training(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(json.dumps({"train": {"model_name": "pocket", "max_length": 4}}))
    done = emorg("preview", "--config", tmp_path / "mine.yaml", check=False)
    assert done.returncode == 2
    assert "more than --max_length 4" in done.stderr
    assert emorg("preview", "--config", "configs/pocket.yaml", "--lora_rank", "0", check=False).returncode == 2


@pytest.mark.parametrize("flag", ["--examples", "--domains", "--max_length", "--lora_rank"])
def test_help_lists_its_flags(flag: str) -> None:
    assert flag in emorg("preview", "--help").stdout
