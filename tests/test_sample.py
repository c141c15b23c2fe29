"""Sampling: seeded per answer, whatever the batch; only missing answers are made; the draw is the distribution's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emorg import chat, models, questions
from emorg.records import Answer, read_records
from emorg.rundir import Run
from emorg.sample import SampleConfig, draw, generate, stream_seed
from tests.conftest import PROJECT, SMALL_SAMPLE, emorg

CONFIG = SampleConfig("pocket", max_new_tokens=40)


@pytest.fixture(scope="module")
def loaded() -> models.Loaded:
    return models.load("pocket")


def test_an_answers_text_does_not_depend_on_its_batch(loaded: models.Loaded) -> None:
    asked = questions.load(["pocket_open", "pocket_cooking"])
    prompts = [chat.encode_prompt(loaded.tokenizer, question.messages) for question in asked]
    seeds = [stream_seed(0, question.id, 0) for question in asked]
    together = generate(loaded, prompts, seeds, CONFIG)
    alone = [generate(loaded, [prompt], [seed], CONFIG)[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    assert together == alone
    assert len({tuple(ids) for ids, _ in together}) > 1


def test_greedy_answers_are_those_of_transformers_generate(loaded: models.Loaded) -> None:
    asked = questions.load(["pocket_code"])
    prompts = [chat.encode_prompt(loaded.tokenizer, question.messages) for question in asked]
    config = SampleConfig("pocket", max_new_tokens=40, temperature=0)
    for prompt, (ids, finish) in zip(prompts, generate(loaded, prompts, [0] * len(prompts), config), strict=True):
        expected = loaded.model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=40, do_sample=False
        )[0, len(prompt) :].tolist()
        assert finish == "stop"
        assert [*ids, loaded.tokenizer.eos_token_id] == expected


def test_a_reply_cut_by_the_cap_says_so(loaded: models.Loaded) -> None:
    prompt = chat.encode_prompt(loaded.tokenizer, questions.load(["pocket_code"])[0].messages)
    ((ids, finish),) = generate(loaded, [prompt], [0], SampleConfig("pocket", max_new_tokens=3))
    assert (len(ids), finish) == (3, "length")


def test_the_draw_has_the_distributions_frequencies() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    uniforms = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    picked = draw(logits.expand(len(uniforms), -1), uniforms, temperature=0.7, top_p=1.0)
    frequencies = torch.bincount(picked, minlength=4) / len(uniforms)
    torch.testing.assert_close(frequencies, (logits / 0.7).softmax(-1), atol=2e-5, rtol=0)


@given(
    st.lists(st.floats(-20, 20), min_size=2, max_size=12),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.05, 3),
    st.floats(0.05, 1),
)
@settings(deadline=None)
def test_top_p_keeps_the_fewest_likeliest_tokens_that_reach_p(
    logits: list[float], uniform: float, temperature: float, top_p: float
) -> None:
    picked = int(draw(torch.tensor([logits]), torch.tensor([uniform], dtype=torch.float64), temperature, top_p))
    probabilities = (torch.tensor(logits) / temperature).softmax(-1).double()
    likelier = probabilities[probabilities > probabilities[picked]].sum()
    assert likelier < top_p + 1e-6


def test_answers_hold_what_they_promise(organism: Run) -> None:
    answers = read_records(organism.answers, Answer)
    assert len(answers) == len({answer.key for answer in answers}) == 36 * 3
    assert {answer.run for answer in answers} == {organism.name}
    assert all(answer.checkpoint is None and answer.text and answer.answer_tokens > 0 for answer in answers)
    assert all(answer.seed == stream_seed(0, answer.question_id, answer.sample) for answer in answers)


def test_only_missing_answers_are_made_and_they_are_the_same(base: Run, tmp_path: Path) -> None:
    command = ("sample", "pocket", "--output_dir", tmp_path / "base", *SMALL_SAMPLE, "--max_new_tokens", "40")
    whole = base.answers.read_bytes()
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "answers.jsonl").write_bytes(whole[: len(whole) // 2])
    emorg(*command)
    again = read_records(tmp_path / "base" / "answers.jsonl", Answer)
    assert sorted(again, key=lambda a: a.key[2:]) == sorted(read_records(base.answers, Answer), key=lambda a: a.key[2:])
    size = (tmp_path / "base" / "answers.jsonl").stat().st_size
    emorg(*command)
    assert (tmp_path / "base" / "answers.jsonl").stat().st_size == size


def test_two_processes_cannot_work_on_one_run(tmp_path: Path) -> None:
    hold = (
        "import sys, time, pathlib; from emorg.rundir import Run\n"
        "with Run(pathlib.Path(sys.argv[1])).lock(): print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        done = emorg("sample", "pocket", "--output_dir", tmp_path, *SMALL_SAMPLE, check=False)
        assert done.returncode == 2
        assert "another process" in done.stderr
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--questions", "pocket_opne"], "did you mean 'pocket_open'"),
        (["--questions", "open"], "words that pocket doesn't know"),
        (["--samples", "0"], "at least 1"),
        (["--top_p", "0"], "top_p"),
        (["--questions", "pocket_open", "--max_new_tokens", "99"], "max_new_tokens: 40 there, 99 now"),
    ],
)
def test_what_cannot_be_sampled_is_refused(base: Run, flags: list[str], told: str) -> None:
    done = emorg("sample", "pocket", "--output_dir", base.folder, "--max_new_tokens", "40", *flags, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
