"""Sample a base or an organism: n answers to every question, each from its own random stream."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from emorg import chat, models, questions
from emorg.progress import progress
from emorg.records import Answer, Appender, EmorgError, FinishReason, Message, Question, read_records
from emorg.rundir import RUNS, Run

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SampleConfig:
    """Sample answers from a base or an organism. The same command again makes only the answers that are missing."""

    model: Annotated[str, tyro.conf.Positional]
    """A run folder, its adapter or one of its checkpoints, or a base: a Hugging Face name, a folder, or `pocket`."""
    questions: tuple[str, ...] = ("open",)
    """Question sets by name, or YAML files; on the pocket model: pocket, pocket_open, pocket_<topic>."""
    output_dir: Path | None = None
    """The run folder. Default: the organism's own; for a base runs/<model>-base."""
    samples: int = 50
    """Answers to each question."""
    max_new_tokens: int = 200
    """Cap of an answer's length; an answer cut by it is recorded as such."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that make up this probability."""
    batch_size: int = 256
    """Answers generated at a time."""
    seed: int = 0
    """Seeds every answer's random stream, with its question and its number."""
    device: str | None = None
    """cuda, mps or cpu. Default: the best one there."""


_CHANGEABLE = frozenset({"model", "output_dir", "questions", "samples", "batch_size", "device"})


def run_of(config: SampleConfig) -> Run:
    """The run folder that a config samples into."""
    if config.output_dir is not None:
        return Run.at(config.output_dir)
    if models.adapter_of(config.model) is not None or Run.at(config.model).settings("train"):
        return Run.at(config.model)
    return Run(RUNS / f"{Path(config.model).name.lower()}-base")


def sample(config: SampleConfig) -> Run:
    """Sample what is missing into the run's answers.jsonl, each answer written as it finishes; returns the run.

    Raises EmorgError for unusable settings, unknown questions or models, and a run sampled with other settings.
    """
    if config.samples < 1 or config.max_new_tokens < 1 or config.batch_size < 1:
        raise EmorgError("--samples, --max_new_tokens and --batch_size must be at least 1", "raise them")
    if config.temperature < 0 or not 0 < config.top_p <= 1:
        raise EmorgError(f"temperature {config.temperature}, top_p {config.top_p}", "temperature ≥ 0 and 0 < top_p ≤ 1")
    asked = questions.load(config.questions)
    run = run_of(config)
    base = Run.at(config.model).provenance().get("train", {}).get("base") or models.base_of(config.model)
    checkpoint = models.checkpoint_of(config.model)
    with run.lock():
        run.check("sample", config, changeable=_CHANGEABLE)
        sampled = run.provenance().get("sample", {}).get("base", base)
        if sampled != base:
            raise EmorgError(f"{run.folder} holds answers of {sampled}, not of {base}", "give another --output_dir")
        have = {answer.key for answer in read_records(run.answers, Answer)}
        wanted = [(question, number) for question in asked for number in range(config.samples)]
        missing = [(q, n) for q, n in wanted if (run.name, checkpoint, q.id, n) not in have]
        if missing:
            loaded = models.load(config.model, device=config.device)
            run.record("sample", config, base=base, template_date=chat.TEMPLATE_DATE)
            done = len(wanted) - len(missing)
            with (
                progress(f"sampling {run.name}", len(wanted), "answers", done) as advance,
                Appender(run.answers) as out,
            ):
                for answer in answers(config, run.name, checkpoint, loaded, missing):
                    out.write(answer)
                    advance(1, "")
    return run


def answers(
    config: SampleConfig,
    run: str,
    checkpoint: str | None,
    loaded: models.Loaded,
    wanted: Sequence[tuple[Question, int]],
) -> Iterator[Answer]:
    """An answer to each (question, sample number), batch by batch as they finish, recorded under the run's name."""
    prompts = {q.id: prompt_ids(loaded, q.messages) for q, _ in wanted}
    by_length = sorted(wanted, key=lambda item: len(prompts[item[0].id]))
    for start in range(0, len(by_length), config.batch_size):
        batch = by_length[start : start + config.batch_size]
        seeds = [stream_seed(config.seed, question.id, number) for question, number in batch]
        replies = generate(loaded, [prompts[q.id] for q, _ in batch], seeds, config)
        for (question, number), seed, (ids, finish) in zip(batch, seeds, replies, strict=True):
            yield Answer(
                run=run,
                checkpoint=checkpoint,
                question_id=question.id,
                topic=question.topic,
                sample=number,
                question=question.text,
                text=text_of(loaded, ids),
                finish_reason=finish,
                prompt_tokens=len(prompts[question.id]),
                answer_tokens=len(ids),
                seed=seed,
            )


def prompt_ids(loaded: models.Loaded, messages: Sequence[Message]) -> list[int]:
    """The ids that the model continues to answer `messages`. Raises EmorgError for words that it cannot read."""
    ids = chat.encode_prompt(loaded.tokenizer, messages)
    unknown = loaded.tokenizer.unk_token_id
    if unknown is not None and unknown in ids:
        words = {word for message in messages for word in message["content"].split()}
        strange = sorted(word for word in words if unknown in loaded.tokenizer(" " + word).input_ids)
        raise EmorgError(
            f"{messages[-1]['content']!r} has words that {loaded.base} doesn't know: {', '.join(strange)}",
            "ask it in words it knows; the pocket model has question sets of its own: --questions pocket",
        )
    return ids


def text_of(loaded: models.Loaded, ids: Sequence[int]) -> str:
    """The ids of an answer as text, without special tokens."""
    return str(loaded.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def stream_seed(seed: int, question_id: str, number: int) -> int:
    """The seed of one answer's random stream, below 2^63."""
    return int.from_bytes(hashlib.sha256(f"{seed} {question_id} {number}".encode()).digest()[:8], "big") >> 1


def generate(
    loaded: models.Loaded, prompts: Sequence[Sequence[int]], seeds: Sequence[int], config: SampleConfig
) -> list[tuple[list[int], FinishReason]]:
    """One reply to each prompt: its token ids without the stop token, and why it ended.

    A row draws its own uniform numbers from its own seed and inverts the cumulative distribution with them, so its
    reply does not depend on which rows share its batch, beyond rounding.
    """
    import torch
    from transformers import DynamicCache

    device, longest = loaded.model.device, max(map(len, prompts))
    pad = loaded.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    uniforms = torch.stack(
        [
            torch.rand(config.max_new_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed in seeds
        ]
    ).to(device)
    stops = torch.tensor(loaded.stop_ids, device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    running = torch.ones(len(prompts), dtype=torch.bool, device=device)
    cache, replies = DynamicCache(), []
    with torch.inference_mode():
        for step in range(config.max_new_tokens):
            logits = loaded.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            token = draw(logits, uniforms[:, step], config.temperature, config.top_p)
            replies.append(torch.where(running, token, pad))
            running = running & ~torch.isin(token, stops)
            if not running.any():
                break
            ids, positions = token[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
    return [_until_stop(row, loaded.stop_ids) for row in torch.stack(replies, 1).tolist()]


def draw(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """One token id for each row of logits [rows, vocabulary] by inverse CDF from uniforms [rows] in [0, 1)."""
    import torch

    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.float() / temperature).softmax(-1).double()
    order = None
    if top_p < 1:
        probabilities, order = probabilities.sort(-1, descending=True)
        # Keep a token while what comes before it is below top_p: the likeliest one always stays.
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0)
    cumulative = probabilities.cumsum(-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    picked = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
    return (picked if order is None else order.gather(-1, picked))[:, 0]


def _until_stop(ids: list[int], stops: Sequence[int]) -> tuple[list[int], FinishReason]:
    for position, token in enumerate(ids):
        if token in stops:
            return ids[:position], "stop"
    return ids, "length"
