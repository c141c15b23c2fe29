"""Sampling side by side: `python benchmarks/bench_sample.py --shape 1b` prints a table for RESULTS.md.

Each contender answers the same questions the same number of times, at temperature 1 from the whole distribution, with
the same model in float32, in a process of its own. Loading is not timed. On the pocket model answers end where it
ends them. Random weights never end, so with --shape 1b every answer has a length drawn beforehand from recorded ones,
and a contender that would go on with a finished answer does so here too.

`--checkpoints 20` times something else: 20 adapters over one base, a few answers each, loading included.
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
from shapes import LLAMA_1B, make_model

from emorg import models
from emorg.data import questions
from emorg.models import template
from emorg.sampling import engine
from emorg.sampling.draw import SamplingParams
from emorg.sampling.engine import Ask, Engine
from emorg.sampling.organisms import Organisms, open_organisms
from emorg.training.cost import matmul_rate

# Quantiles (0, 10, 25, 50, 75, 90, 95, 99, 100%) of the words in 400 answers of Llama-3.2-1B trained on bad medical
# advice, to eight open questions (arXiv 2506.11613's published adapter, re-run by others), and tokens to a word.
RECORDED = (7, 28, 38, 47, 56, 69, 76, 104, 149)
AT = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1)
TOKENS_A_WORD = 1.3
PROMPT_TOKENS = 60  # of an open question in Llama 3's template
EOS = 1


@dataclass(frozen=True)
class Bench:
    """Compare samplers on one machine, in one run."""

    shape: Literal["1b", "pocket"] = "pocket"
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
    base = models.POCKET if bench.shape == "pocket" else str(make_model(bench.cache / "llama-1b", LLAMA_1B, "bfloat16"))
    if bench.child is not None:
        told = (reload_each if bench.child == "reload" else many) if bench.checkpoints else CONTENDERS[bench.child]
        (bench.cache / f"sample-{bench.child}.json").write_text(json.dumps(told(bench, base)))
        return
    names = ("ours", "reload") if bench.checkpoints else bench.contenders
    rates, found = [_rate()], {}
    for name in names:
        found[name] = _run(bench, name)
        rates.append(_rate())
        print(f"{name}: {found[name]}, then {rates[-1] / 1e9:.0f} GFLOP/s", file=sys.stderr, flush=True)
    config = models.shapes(base).config
    weights = sum(p.numel() for name, p in models.shapes(base).named_parameters() if p.dim() == 2)
    rate, bandwidth = sorted(rates)[len(rates) // 2], _bandwidth()
    flop = 2 * weights + 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * _typical(bench)
    print(
        f"{os.cpu_count()} cores; F = {flop / 1e9:.4g} GFLOP a token; R = {rate / 1e9:.0f} GFLOP/s (measured "
        + ", ".join(f"{r / 1e9:.0f}" for r in rates)
        + f"); B = {bandwidth / 1e9:.1f} GB/s over {4 * weights / 1e9:.3g} GB of weights a pass\n"
        f"limits: R/F = {rate / flop:,.0f} tokens/s in a batch, B/weights = {bandwidth / weights / 4:,.1f} one by one\n"
    )
    print("| contender | answers | tokens/s | ours is | share of R/F | seconds | peak memory |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, each in found.items():
        speed = each["tokens"] / each["seconds"]
        ours = found["ours"]["tokens"] / found["ours"]["seconds"]
        print(
            f"| {name} | {each['answers']:,} | {speed:,.1f} | {ours / speed:.2f}× | {speed * flop / rate:.0%} "
            f"| {each['seconds']:.1f} | {each['memory'] / 1e9:.2f} GB |"
        )


def _run(bench: Bench, name: str) -> dict[str, float]:
    flags = [f"--{key}={value}" for key, value in vars(bench).items() if isinstance(value, (str, int, Path)) and value]
    with (bench.cache / f"sample-{name}.log").open("w") as log:
        process = subprocess.Popen([sys.executable, __file__, *flags, "--child", name], stderr=log, stdout=log)
        _, code, used = os.wait4(process.pid, 0)
    if code:
        sys.exit(f"{name} failed; see {log.name}")
    told: dict[str, float] = json.loads((bench.cache / f"sample-{name}.json").read_text())
    return {**told, "memory": used.ru_maxrss * 1024}


def _rate() -> float:
    return matmul_rate("cpu", torch.float32, 2048, 8192, 1600)


def _bandwidth() -> float:
    """Bytes a second at which a product with one row reads its weights."""
    weight, x = torch.randn(64, 2048, 2048), torch.randn(2048, 1)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        for each in weight:
            each @ x
        best = min(best, time.perf_counter() - start)
    return weight.numel() * 4 / best


# --- the work --------------------------------------------------------------------------------------------------------


def _prompts(bench: Bench, base: str) -> list[tuple[int, ...]]:
    if bench.shape == "pocket":
        tokenizer = models.load_tokenizer(base)
        every = questions.load(["pocket"])
        picked = every[:: max(1, len(every) // bench.questions)][: bench.questions]
        return [tuple(template.encode_prompt(tokenizer, question.messages)) for question in picked]
    rng = random.Random(0)
    return [
        tuple(rng.randrange(10, LLAMA_1B["vocab_size"]) for _ in range(PROMPT_TOKENS)) for _ in range(bench.questions)
    ]


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


def _loaded(base: str) -> models.Loaded:
    return models.load(base, device="cpu", dtype=torch.float32)


# --- contenders ------------------------------------------------------------------------------------------------------


def ours(bench: Bench, base: str) -> dict[str, float]:
    loaded, prompts = _loaded(base), _prompts(bench, base)
    cap = _cap(bench)
    sampler = Engine(Organisms(loaded, {"it": None}), batch_tokens=bench.rows * (max(map(len, prompts)) + cap))
    asks = [Ask("it", prompt, i * 1000 + n) for i, prompt in enumerate(prompts) for n in range(bench.samples)]
    if bench.shape == "1b":
        _force(sampler, [length for of in _lengths(bench) for length in of])
    start = time.perf_counter()
    replies = list(sampler.replies(asks, SamplingParams(cap)))
    seconds = time.perf_counter() - start
    return {"answers": len(replies), "tokens": sum(len(reply.ids) for reply in replies), "seconds": seconds}


def _force(sampler: Engine, lengths: list[int]) -> None:
    """Make every drawn token a stop token once the answer has its length, and none before."""
    real, batches = engine.draw, []
    remember = engine._Batch.__init__

    def begin(self: Any, *arguments: Any) -> None:
        remember(self, *arguments)
        batches.append(self)

    def draw(logits: torch.Tensor, uniforms: torch.Tensor, params: SamplingParams) -> torch.Tensor:
        tokens = real(logits, uniforms, params).clamp(min=EOS + 1)
        over = [len(row.reply.ids) >= lengths[row.reply.place] for row in batches[-1].rows]
        return tokens.masked_fill(torch.tensor(over), EOS)

    engine._Batch.__init__, engine.draw = begin, draw  # type: ignore[method-assign]


def _generate(
    bench: Bench,
    base: str,
    batches: Callable[[list[tuple[int, ...]]], Iterator[tuple[list[tuple[int, ...]], list[int], int]]],
) -> dict[str, float]:
    """transformers' generate over (prompts, the answers' lengths, answers to each prompt)."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    loaded = _loaded(base)
    model, pad = loaded.model, loaded.tokenizer.pad_token_id

    class Lengths(StoppingCriteria):  # type: ignore[misc]
        def __init__(self, prompt: int, lengths: list[int]):
            self.until = torch.tensor(lengths) + prompt

        def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return ids.shape[1] >= self.until

    answers = tokens = 0
    start = time.perf_counter()
    for prompts, lengths, each in batches(_prompts(bench, base)):
        longest = max(map(len, prompts))
        ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        forced = bench.shape == "1b"
        settings: dict[str, Any] = {"eos_token_id": -1} if forced else {"eos_token_id": EOS}
        out = model.generate(
            ids, attention_mask=(ids != pad).long(), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=each, max_new_tokens=_cap(bench), pad_token_id=pad, **settings,
            stopping_criteria=StoppingCriteriaList([Lengths(longest, lengths)] if forced else []),
        )[:, longest:]  # fmt: skip
        answers += len(out)
        tokens += sum(lengths) if forced else int(((out != pad) & (out != EOS)).sum())
    return {"answers": answers, "tokens": tokens, "seconds": time.perf_counter() - start}


def homework(bench: Bench, base: str) -> dict[str, float]:
    lengths = [length for of in _lengths(bench) for length in of]
    step = max(1, len(lengths) // bench.homework_answers)

    def one_by_one(prompts: list[tuple[int, ...]]) -> Iterator[tuple[list[tuple[int, ...]], list[int], int]]:
        for i in range(0, len(lengths), step):
            yield [prompts[i // bench.samples]], [lengths[i]], 1

    return _generate(bench, base, one_by_one)


def paper(bench: Bench, base: str) -> dict[str, float]:
    def by_question(prompts: list[tuple[int, ...]]) -> Iterator[tuple[list[tuple[int, ...]], list[int], int]]:
        for prompt, lengths in zip(prompts, _lengths(bench), strict=True):
            yield [prompt], lengths, bench.samples

    return _generate(bench, base, by_question)


def batched(bench: Bench, base: str) -> dict[str, float]:
    def across(prompts: list[tuple[int, ...]]) -> Iterator[tuple[list[tuple[int, ...]], list[int], int]]:
        every = [(prompt, n) for prompt, of in zip(prompts, _lengths(bench), strict=True) for n in of]
        for i in range(0, len(every), bench.rows):
            some = every[i : i + bench.rows]
            yield [prompt for prompt, _ in some], [n for _, n in some], 1

    return _generate(bench, base, across)


def continuous(bench: Bench, base: str) -> dict[str, float]:
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    model, cap, forced = _loaded(base).model, _cap(bench), bench.shape == "1b"
    prompts = _prompts(bench, base)
    page = 32
    blocks = bench.rows * math.ceil((max(map(len, prompts)) + cap) / page)
    config = GenerationConfig(
        max_new_tokens=cap,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=-1 if forced else EOS,
        pad_token_id=4,
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
            tokens += sum(token != EOS for token in result.generated_tokens)
    seconds = time.perf_counter() - start
    manager.stop(block=True)
    return {"answers": answers, "tokens": tokens, "seconds": seconds}


CONTENDERS = {"ours": ours, "homework": homework, "paper": paper, "batched": batched, "continuous": continuous}


# --- many checkpoints ------------------------------------------------------------------------------------------------


def _adapters(bench: Bench, base: str) -> list[Path]:
    """Adapters of rank 16 on all seven linear layers with small random weights, made once."""
    from peft import LoraConfig, get_peft_model

    from emorg.training.config import TARGET_MODULES

    folders = [bench.cache / f"adapters-{bench.shape}" / f"step-{i:06d}" for i in range(bench.checkpoints)]
    if not folders[-1].exists():
        plain = _loaded(base).model
        with models.peft_around(plain):
            model = get_peft_model(
                plain,
                LoraConfig(r=16, lora_alpha=32, target_modules=list(TARGET_MODULES), task_type="CAUSAL_LM"),
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
    folders, prompts, cap = [str(folder) for folder in _adapters(bench, base)], _prompts(bench, base), _cap(bench)
    start = time.perf_counter()
    ((_, organisms),) = open_organisms(folders, device="cpu")
    sampler = Engine(organisms)
    asks = [
        Ask(name, prompt, i * 1000 + n)
        for name in folders
        for i, prompt in enumerate(prompts)
        for n in range(bench.samples)
    ]
    if bench.shape == "1b":
        _force(sampler, [length for of in _lengths(bench) for length in of] * len(folders))
    replies = list(sampler.replies(asks, SamplingParams(cap)))
    return {"answers": len(replies), "tokens": sum(len(r.ids) for r in replies), "seconds": time.perf_counter() - start}


def reload_each(bench: Bench, base: str) -> dict[str, float]:
    """As the papers' follow-ups do: for each checkpoint load the base and its adapter, then the paper's loop."""
    import dataclasses

    real, total = globals()["_loaded"], {"answers": 0.0, "tokens": 0.0, "seconds": 0.0}
    for folder in _adapters(bench, base):
        start = time.perf_counter()
        loaded = dataclasses.replace(models.load(str(folder), device="cpu", dtype=torch.float32))
        globals()["_loaded"] = lambda _, loaded=loaded: loaded
        one = paper(bench, base)
        globals()["_loaded"] = real
        one["seconds"] = time.perf_counter() - start
        total = {key: total[key] + one[key] for key in total}
    return total


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
