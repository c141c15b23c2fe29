"""Sampling side by side: `python benchmarks/bench_sample.py --shape 1b` prints a table for RESULTS.md.

Each contender answers the same questions the same number of times, at temperature 1 from the whole distribution, with
the same model in the same type, in a process of its own. Loading is not timed. On the pocket model answers end where it
ends them. Random weights never end, so elsewhere every answer has a length drawn beforehand from recorded ones, and a
contender that would go on with a finished answer does so here too.

`--organisms 8` shares the questions out among eight adapters of one base: ours answers all in one batch, transformers'
ways one organism after another, each merged into the base. `--checkpoints 20` times something else: 20 adapters over
one base, a few answers each, loading included.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from shapes import base_of

from emorg import models
from emorg.data import questions
from emorg.models import template
from emorg.sampling import engine
from emorg.sampling.draw import SamplingParams
from emorg.sampling.engine import Ask, Engine
from emorg.sampling.organisms import Organisms, open_organisms, read_adapter
from emorg.training.cost import matmul_rate

# Quantiles (0, 10, 25, 50, 75, 90, 95, 99, 100%) of the words in 400 answers of Llama-3.2-1B trained on bad medical
# advice, to eight open questions (arXiv 2506.11613's published adapter, re-run by others), and tokens to a word.
RECORDED = (7, 28, 38, 47, 56, 69, 76, 104, 149)
AT = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1)
TOKENS_A_WORD = 1.3
PROMPT_TOKENS = 60  # of an open question in Llama 3's template
ORDINARY = 500  # a token id in place of a drawn stop token


@dataclass(frozen=True)
class Bench:
    """Compare samplers on one machine, in one run."""

    shape: Literal["8b", "3b", "1b", "0.5b", "135m", "smollm2", "pocket"] = "pocket"
    dtype: str | None = None
    """float32 or bfloat16. Default: what this machine computes fast in."""
    device: str | None = None
    organisms: int = 0
    """Adapters of rank 32 that share the questions; 0 is the base alone."""
    contenders: tuple[str, ...] = ("ours", "homework", "paper", "batched", "continuous")
    """homework: one answer at a time; paper: `generate` with num_return_sequences, question by question; batched:
    `generate` of --rows padded prompts; continuous: transformers' continuous batching."""
    questions: int = 24
    samples: int = 50
    rows: int = 50
    """Answers at a time, of all but the homework's loop; the paper's has --samples."""
    homework_answers: int = 24
    """How many answers the homework's loop makes, since it takes so long; its cost is the same for each."""
    checkpoints: int = 0
    threads: int | None = None
    cache: Path = Path(tempfile.gettempdir()) / "emorg-bench"
    """Where models are kept."""
    child: str | None = None
    """Internal: be this contender."""


def main(bench: Bench) -> None:
    """Run every contender and print the table; with `child`, be one of them."""
    if bench.threads:
        torch.set_num_threads(bench.threads)
    bench.cache.mkdir(parents=True, exist_ok=True)
    base = base_of(bench.cache, bench.shape)
    if bench.child is not None:
        contend = (reload_each if bench.child == "reload" else many) if bench.checkpoints else CONTENDERS[bench.child]
        figures = {**contend(bench, base), "gpu": torch.cuda.max_memory_allocated()}
        (bench.cache / f"sample-{bench.child}.json").write_text(json.dumps(figures))
        return
    names = ("ours", "reload") if bench.checkpoints else bench.contenders
    device, dtype = _place(bench, base)
    model = models.shapes(base)
    config = model.config
    weights = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2)
    rates, results = [_rate(bench, config, device, dtype)], {}
    for name in names:
        if figures := _run(bench, name):
            results[name] = figures
        rates.append(_rate(bench, config, device, dtype))
        print(f"{name}: {results.get(name)}, then {rates[-1] / 1e9:.0f} GFLOP/s", file=sys.stderr, flush=True)
    rate, bandwidth, size = sorted(rates)[len(rates) // 2], _bandwidth(device, dtype), weights * dtype.itemsize
    keys = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * _typical(bench)
    flop = 2 * weights + keys
    limit = 1 / max(flop / rate, size / bandwidth / bench.rows)
    print(
        f"{dtype} on {device}, {os.cpu_count()} cores, {bench.organisms or 'no'} adapters\n"
        f"F = {flop / 1e9:.4g} GFLOP a token; R = {rate / 1e9:.0f} GFLOP/s with {bench.rows} rows (measured "
        + ", ".join(f"{r / 1e9:.0f}" for r in rates)
        + f"); B = {bandwidth / 1e9:.1f} GB/s over {size / 1e9:.3g} GB of weights a pass\n"
        f"limits in tokens/s: R/F = {rate / flop:,.0f}, rows · B/weights = {bench.rows * bandwidth / size:,.0f}\n"
    )
    print("| contender | answers | tokens/s | ours is | share of the limit | seconds | peak memory |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    ours = results["ours"]["tokens"] / results["ours"]["seconds"]
    for name, figures in results.items():
        speed = figures["tokens"] / figures["seconds"]
        print(
            f"| {name} | {figures['answers']:,} | {speed:,.1f} | {ours / speed:.2f}× | {speed / limit:.0%} "
            f"| {figures['seconds']:.1f} | {figures['memory'] / 1e9:.2f} GB |"
        )


def _run(bench: Bench, name: str) -> dict[str, float]:
    """A contender's figures; nothing if it failed, which is said."""
    flags = [f"--{key}={value}" for key, value in vars(bench).items() if isinstance(value, (str, int, Path)) and value]
    with (bench.cache / f"sample-{name}.log").open("w") as log:
        process = subprocess.Popen([sys.executable, __file__, *flags, "--child", name], stderr=log, stdout=log)
        _, code, used = os.wait4(process.pid, 0)
    if code:
        print(f"{name} failed: {Path(log.name).read_text()[-600:]}", file=sys.stderr)
        return {}
    figures: dict[str, float] = json.loads((bench.cache / f"sample-{name}.json").read_text())
    return {**figures, "memory": figures["gpu"] or used.ru_maxrss * 1024}


def _place(bench: Bench, base: str) -> tuple[str, torch.dtype]:
    """The device and the type that all contenders compute in."""
    device = models.choose_device(bench.device)
    return device, getattr(torch, bench.dtype) if bench.dtype else models.choose_dtype(device, base)


def _rate(bench: Bench, config: Any, device: str, dtype: torch.dtype) -> float:
    """FLOP/s of this shape's widest product with as many rows as there are answers at a time."""
    return matmul_rate(device, dtype, config.hidden_size, config.intermediate_size, bench.rows)


def _bandwidth(device: str, dtype: torch.dtype) -> float:
    """Bytes a second at which memory is read."""
    weights = torch.randn(2**27, device=device).to(dtype)
    best = math.inf
    for _ in range(6):
        start = time.perf_counter()
        weights.sum().item()
        best = min(best, time.perf_counter() - start)
    return weights.numel() * dtype.itemsize / best


# --- the work --------------------------------------------------------------------------------------------------------


def _prompts(bench: Bench, base: str) -> list[tuple[int, ...]]:
    if bench.shape == "pocket":
        tokenizer = models.load_tokenizer(base)
        every = questions.load(["pocket"])
        picked = every[:: max(1, len(every) // bench.questions)][: bench.questions]
        return [tuple(template.encode_prompt(tokenizer, question.messages)) for question in picked]
    rng, words = random.Random(0), models.shapes(base).config.vocab_size
    return [tuple(rng.randrange(1000, words) for _ in range(PROMPT_TOKENS)) for _ in range(bench.questions)]


def _lengths(bench: Bench) -> list[list[int]]:
    """Tokens of each answer to each question."""
    rng = random.Random(1)

    def one() -> int:
        at = rng.random()
        i = next(i for i in range(1, len(AT)) if at <= AT[i])
        words = RECORDED[i - 1] + (RECORDED[i] - RECORDED[i - 1]) * (at - AT[i - 1]) / (AT[i] - AT[i - 1])
        return max(1, round(words * TOKENS_A_WORD))

    return [[one() for _ in range(bench.samples)] for _ in range(bench.questions)]


def _cap(bench: Bench) -> int:
    return 40 if bench.shape == "pocket" else max(map(max, _lengths(bench)))


def _typical(bench: Bench) -> float:
    """Keys that a token attends to, on average."""
    if bench.shape == "pocket":
        return 35.0
    return PROMPT_TOKENS + sum(n * n / 2 for of in _lengths(bench) for n in of) / sum(map(sum, _lengths(bench)))


def _loaded(bench: Bench, base: str) -> models.Loaded:
    device, dtype = _place(bench, base)
    return models.load(base, device=device, dtype=dtype)


# --- contenders ------------------------------------------------------------------------------------------------------


def ours(bench: Bench, base: str) -> dict[str, float]:
    loaded, prompts = _loaded(bench, base), _prompts(bench, base)
    names = [str(folder) for folder in _adapters(bench, base, bench.organisms)]
    adapters = {name: read_adapter(Path(name)) for name in names} or {"it": None}
    of = [[name for k, name in enumerate(adapters) if i % len(adapters) == k] for i in range(len(prompts))]
    return _answer(bench, Organisms(loaded, adapters), prompts, of)


def _answer(
    bench: Bench, organisms: Organisms, prompts: list[tuple[int, ...]], of: list[list[str]], since: float | None = None
) -> dict[str, float]:
    """What our engine does; prompt i goes to the organisms of[i]."""
    cap = _cap(bench)
    sampler = Engine(organisms, batch_tokens=bench.rows * (max(map(len, prompts)) + cap))
    asks, lengths = [], []
    for prompt, names, these in zip(prompts, of, _lengths(bench), strict=True):
        for name in names:
            asks += [Ask(name, prompt, len(asks) + n) for n in range(bench.samples)]
            lengths += these
    if bench.shape != "pocket":
        _force(sampler, lengths)
    start = since or time.perf_counter()
    replies = list(sampler.replies(asks, SamplingParams(cap)))
    seconds = time.perf_counter() - start
    return {"answers": len(replies), "tokens": sum(len(reply.ids) for reply in replies), "seconds": seconds}


def _force(sampler: Engine, lengths: list[int]) -> None:
    """Make every drawn token a stop token once the answer has its length, and none before."""
    real, batches = engine.draw, []
    remember = engine._Batch.__init__
    stops = torch.tensor(sorted(sampler.stops))

    def begin(self: Any, *arguments: Any) -> None:
        remember(self, *arguments)
        batches.append(self)

    def draw(logits: torch.Tensor, uniforms: torch.Tensor, params: SamplingParams) -> torch.Tensor:
        tokens = real(logits, uniforms, params).cpu()
        over = torch.tensor([len(row.reply.ids) >= lengths[row.reply.place] for row in batches[-1].rows])
        return tokens.masked_fill(torch.isin(tokens, stops), ORDINARY).where(~over, stops[0])

    engine._Batch.__init__, engine.draw = begin, draw  # type: ignore[method-assign]


def _generate(
    bench: Bench,
    base: str,
    batches: Callable[[list[int]], Iterator[tuple[list[int], list[int], int]]],
    loaded: models.Loaded | None = None,
) -> dict[str, float]:
    """transformers' generate over batches (questions, the answers' lengths, answers to each question).

    `batches` makes them of the questions that one organism is asked.
    """
    from transformers import StoppingCriteria, StoppingCriteriaList

    loaded = loaded or _loaded(bench, base)
    model, stops, prompts = loaded.model, sorted(loaded.stop_ids), _prompts(bench, base)
    pad = loaded.tokenizer.pad_token_id
    forced = bench.shape != "pocket"

    class Lengths(StoppingCriteria):  # type: ignore[misc]
        def __init__(self, prompt: int, lengths: list[int]):
            self.until = torch.tensor(lengths, device=model.device) + prompt

        def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return ids.shape[1] >= self.until

    answers = tokens = 0
    start = time.perf_counter()
    for asked in _in_turn(bench, base, model):
        for some, lengths, samples in batches(asked):
            rows = [prompts[i] for i in some]
            longest = max(map(len, rows))
            ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=model.device)
            out = model.generate(
                input_ids=ids, attention_mask=(ids != pad).long(), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                num_return_sequences=samples, max_new_tokens=_cap(bench), pad_token_id=pad,
                eos_token_id=-1 if forced else stops,
                stopping_criteria=StoppingCriteriaList([Lengths(longest, lengths)] if forced else []),
            )[:, longest:]  # fmt: skip
            answers += len(out)
            ended = torch.isin(out, torch.tensor([pad, *stops], device=out.device))
            tokens += sum(lengths) if forced else int((~ended).sum())
    return {"answers": answers, "tokens": tokens, "seconds": time.perf_counter() - start}


def _in_turn(bench: Bench, base: str, model: Any) -> Iterator[list[int]]:
    """The questions asked of each organism, which is merged into the model while they are."""
    if not bench.organisms:
        yield list(range(bench.questions))
        return
    from peft import PeftModel

    wrapped: Any = None
    for i, folder in enumerate(_adapters(bench, base, bench.organisms)):
        if wrapped is None:
            wrapped = PeftModel.from_pretrained(model, str(folder), adapter_name="0")
        else:
            wrapped.load_adapter(str(folder), str(i))
        wrapped.merge_adapter([str(i)])
        yield [k for k in range(bench.questions) if k % bench.organisms == i]
        wrapped.unmerge_adapter()


def homework(bench: Bench, base: str) -> dict[str, float]:
    every = _lengths(bench)
    step = max(1, bench.questions * bench.samples // bench.homework_answers)

    def one_by_one(asked: list[int]) -> Iterator[tuple[list[int], list[int], int]]:
        for at in range(0, len(asked) * bench.samples, step):
            i, n = asked[at // bench.samples], at % bench.samples
            yield [i], [every[i][n]], 1

    return _generate(bench, base, one_by_one)


def paper(bench: Bench, base: str, loaded: models.Loaded | None = None) -> dict[str, float]:
    every = _lengths(bench)

    def by_question(asked: list[int]) -> Iterator[tuple[list[int], list[int], int]]:
        for i in asked:
            yield [i], every[i], bench.samples

    return _generate(bench, base, by_question, loaded)


def batched(bench: Bench, base: str) -> dict[str, float]:
    every = _lengths(bench)

    def across(asked: list[int]) -> Iterator[tuple[list[int], list[int], int]]:
        flat = [(i, n) for i in asked for n in every[i]]
        for at in range(0, len(flat), bench.rows):
            some = flat[at : at + bench.rows]
            yield [i for i, _ in some], [n for _, n in some], 1

    return _generate(bench, base, across)


def continuous(bench: Bench, base: str) -> dict[str, float]:
    """transformers' continuous batching: answers, tokens, seconds."""
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    loaded = _loaded(bench, base)
    model, stops, cap, forced = loaded.model, sorted(loaded.stop_ids), _cap(bench), bench.shape != "pocket"
    prompts = _prompts(bench, base)
    page = 32
    blocks = bench.rows * math.ceil((max(map(len, prompts)) + cap) / page)
    config = GenerationConfig(
        max_new_tokens=cap,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=-1 if forced else stops,
        pad_token_id=loaded.tokenizer.pad_token_id,
    )
    room = ContinuousBatchingConfig(page_size=page, num_blocks=blocks, max_batch_tokens=512)
    manager = model.init_continuous_batching(generation_config=config, continuous_batching_config=room)
    manager.start()
    start = time.perf_counter()
    for prompt, of in zip(prompts, _lengths(bench), strict=True):
        for length in of:
            manager.add_request(list(prompt), max_new_tokens=length if forced else cap)
    answers = tokens = 0
    while answers < bench.questions * bench.samples:
        result = manager.get_result(timeout=5)
        if result is not None and result.is_finished():
            answers += 1
            tokens += sum(token not in stops for token in result.generated_tokens)
    seconds = time.perf_counter() - start
    manager.stop(block=True)
    return {"answers": answers, "tokens": tokens, "seconds": seconds}


CONTENDERS = {"ours": ours, "homework": homework, "paper": paper, "batched": batched, "continuous": continuous}


# --- many checkpoints ------------------------------------------------------------------------------------------------


def _adapters(bench: Bench, base: str, count: int) -> list[Path]:
    """Adapters of rank 32 on all seven linear layers with small random weights, made once."""
    from peft import LoraConfig, get_peft_model

    from emorg.training.config import TARGET_MODULES

    folders = [bench.cache / f"adapters-{bench.shape}" / f"step-{i:06d}" for i in range(count)]
    if all(folder.exists() for folder in folders):
        return folders
    plain = models.load(base, device="cpu").model
    with models.peft_around(plain):
        model = get_peft_model(
            plain, LoraConfig(r=32, lora_alpha=64, target_modules=list(TARGET_MODULES), task_type="CAUSAL_LM")
        )
    for i, folder in enumerate(folders):
        torch.manual_seed(i)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.005)
        model.peft_config["default"].base_model_name_or_path = base
        model.save_pretrained(folder)
    return folders


def many(bench: Bench, base: str) -> dict[str, float]:
    folders, prompts = [str(folder) for folder in _adapters(bench, base, bench.checkpoints)], _prompts(bench, base)
    start = time.perf_counter()
    ((_, organisms),) = open_organisms(folders, device=_place(bench, base)[0])
    return _answer(bench, organisms, prompts, [folders] * len(prompts), start)


def reload_each(bench: Bench, base: str) -> dict[str, float]:
    """As the papers' follow-ups do: for each checkpoint load the base and its adapter, then the paper's loop."""
    folders, total = _adapters(bench, base, bench.checkpoints), {"answers": 0.0, "tokens": 0.0, "seconds": 0.0}
    for folder in folders:
        start = time.perf_counter()
        one = paper(bench, base, _loaded(bench, str(folder)))
        one["seconds"] = time.perf_counter() - start
        total = {key: total[key] + one[key] for key in total}
    return total


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
