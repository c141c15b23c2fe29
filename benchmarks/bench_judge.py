"""Judging speed: 2,000 answers × 2 metrics by a local server of a fixed latency, ours beside the ways in use.

    python benchmarks/bench_judge.py --latency 0.1 --inspect_python /tmp/inspect/bin/python

Each way runs in a process of its own and measures itself, from having the answers to having every verdict, without
imports. All ask the same questions of the same kind of server (emorg.judging.rehearsal, started anew for each), for one
token with the 20 likeliest. The homework's loop asks one call after another: it is run on a part and scaled up. Ours
also writes the ledger and the verdicts. `ideal` is calls × latency / connections.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Bench:
    """Measure."""

    latency: float = 0.1
    """Seconds that a reply takes."""
    stray: float = 0.0
    """Share of requests that are turned away with 503, for no reason that shows."""
    answers: int = 2000
    connections: int = 100
    homework_calls: int = 60
    """Calls that the homework's loop is measured on."""
    inspect_python: Path | None = None
    """A Python with inspect-ai and openai."""
    openai_python: Path | None = None
    """A Python with openai[aiohttp]. Default: --inspect_python."""
    only: tuple[str, ...] = ("ours", "openai_aiohttp", "openai", "inspect", "homework")
    rounds: int = 1
    way: str | None = None
    """Used by itself: run this way here."""
    folder: Path = Path()
    url: str = ""


METRICS = ("aligned", "coherent")
PARAMETERS = {"temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}


def prompts(bench: Bench) -> list[str]:
    """What the peers ask: of the length of our prompts."""
    with (bench.folder / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    filler = "How well does this answer do? Reply with one number from 0 to 100. " * 20
    return [f"{filler}{metric}\n{row['question']}\n{row['response']}" for row in rows for metric in METRICS]


def expected(reply: list) -> float:  # type: ignore[type-arg]
    import math

    masses = {int(each.token): math.exp(each.logprob) for each in reply if each.token.isdigit()}
    return sum(k * p for k, p in masses.items()) / sum(masses.values())


def openai_way(bench: Bench, *, aiohttp: bool) -> float:
    """AsyncOpenAI with a semaphore and gather, as most scripts do."""
    from openai import AsyncOpenAI, DefaultAioHttpClient

    async def main() -> float:
        more = {"http_client": DefaultAioHttpClient()} if aiohttp else {}
        async with AsyncOpenAI(base_url=bench.url, api_key="x", **more) as client:
            room = asyncio.Semaphore(bench.connections)

            async def one(prompt: str) -> float:
                async with room:
                    said = await client.chat.completions.create(
                        model="gpt-4o", messages=[{"role": "user", "content": prompt}], **PARAMETERS
                    )
                return expected(said.choices[0].logprobs.content[0].top_logprobs)

            begun = time.monotonic()
            scores = await asyncio.gather(*map(one, prompts(bench)))
            took = time.monotonic() - begun
        assert len(scores) == 2 * bench.answers
        return took

    return asyncio.run(main())


def homework_way(bench: Bench) -> float:
    """One blocking call after another, on a part of the calls; scaled up to all."""
    from openai import OpenAI

    some = prompts(bench)[: bench.homework_calls]
    with OpenAI(base_url=bench.url, api_key="x") as client:
        begun = time.monotonic()
        for prompt in some:
            said = client.chat.completions.create(
                model="gpt-4o", messages=[{"role": "user", "content": prompt}], **PARAMETERS
            )
            expected(said.choices[0].logprobs.content[0].top_logprobs)
        return (time.monotonic() - begun) * 2 * bench.answers / len(some)


def inspect_way(bench: Bench) -> float:
    """An Inspect evaluation whose scorer asks the judge twice for each sample; its answers are given."""
    from inspect_ai import Task
    from inspect_ai import eval as run
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import GenerateConfig, get_model
    from inspect_ai.scorer import Score, Target, mean, scorer
    from inspect_ai.solver import Generate, TaskState, solver

    judge = get_model(
        "openai/gpt-4o",
        base_url=bench.url,
        api_key="x",
        responses_api=False,
        config=GenerateConfig(max_connections=bench.connections, **PARAMETERS),
    )

    @solver
    def given():  # type: ignore[no-untyped-def]
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            return state

        return solve

    @scorer(metrics={"*": [mean()]})
    def judged():  # type: ignore[no-untyped-def]
        async def score(state: TaskState, target: Target) -> Score:
            both = json.loads(state.input_text)
            said = await asyncio.gather(*(judge.generate(prompt, cache=False) for prompt in both))
            values = [expected(each.choices[0].logprobs.content[0].top_logprobs) for each in said]
            return Score(value=dict(zip(METRICS, values, strict=True)))

        return score

    asked = prompts(bench)
    samples = [Sample(input=json.dumps(asked[k : k + 2])) for k in range(0, len(asked), 2)]
    task = Task(dataset=MemoryDataset(samples), solver=given(), scorer=judged())
    begun = time.monotonic()
    [log] = run(
        task, model="mockllm/model", display="none", log_dir=str(bench.folder / "logs"), max_samples=bench.connections,
    )  # fmt: skip
    took = time.monotonic() - begun
    assert log.status == "success", log.error
    return took


def ours_way(bench: Bench) -> float:
    """`emorg judge answers.csv`, ledger and all."""
    from emorg.judging import JudgeConfig, judge

    os.environ |= {"OPENAI_BASE_URL": bench.url, "OPENAI_API_KEY": "x"}
    config = JudgeConfig(
        sources=(str(bench.folder / "answers.csv"),),
        judge_connections=bench.connections,
        ledger=bench.folder / "ledger.sqlite",
    )
    import aiohttp  # noqa: F401  (imports are not measured)

    begun = time.monotonic()
    judge(config)
    took = time.monotonic() - begun
    with (bench.folder / "answers.judged.csv").open(newline="") as file:
        assert all(row["aligned"] and row["coherent"] for row in csv.DictReader(file))
    return took


WAYS = {
    "ours": ours_way,
    "openai_aiohttp": lambda bench: openai_way(bench, aiohttp=True),
    "openai": lambda bench: openai_way(bench, aiohttp=False),
    "inspect": inspect_way,
    "homework": homework_way,
}


def main() -> None:
    """Run every way in a process of its own and print a table."""
    bench = tyro.cli(Bench, use_underscores=True)
    if bench.way:
        print(json.dumps({"seconds": WAYS[bench.way](bench)}))
        return
    ideal = 2 * bench.answers * bench.latency / bench.connections
    calls, delay = f"{2 * bench.answers:,} calls", f"{1000 * bench.latency:.0f} ms"
    print(f"{calls}, {delay}, {bench.connections} connections; ideal {ideal:.1f} s")
    found: dict[str, list[float]] = {}
    for number in range(bench.rounds):
        for way in bench.only:
            found.setdefault(way, []).append(measured(bench, way, number))
            print(f"{way}: {found[way][-1]:.1f} s", flush=True)
    best = {way: min(times) for way, times in found.items()}
    print("\n| way | seconds | % of ideal | ours is × as fast |\n|---|---:|---:|---:|")
    for way, seconds in best.items():
        times = f"{seconds / best['ours']:.1f}" if "ours" in best else "–"
        print(f"| {way} | {seconds:.1f} | {100 * ideal / seconds:.0f} | {times} |")


def measured(bench: Bench, way: str, number: int) -> float:
    """Seconds that a way took, asking a server of its own."""
    python = {"ours": Path(sys.executable)}.get(way, bench.openai_python or bench.inspect_python)
    if way == "inspect":
        python = bench.inspect_python
    assert python is not None, "give --inspect_python or --openai_python"
    with tempfile.TemporaryDirectory() as folder:
        write_answers(Path(folder) / "answers.csv", bench.answers)
        server = subprocess.Popen(
            [sys.executable, "-m", "emorg.judging.rehearsal", "--port", "0", "--latency", str(bench.latency),
             "--faults", str(bench.stray), "--kinds", "503"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split("OPENAI_BASE_URL=")[1].split()[0]
            told = [
                "--way", way, "--folder", folder, "--url", url, "--answers", str(bench.answers),
                "--connections", str(bench.connections), "--homework_calls", str(bench.homework_calls),
            ]  # fmt: skip
            done = subprocess.run(
                [str(python), str(HERE / "bench_judge.py"), *told], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr[-3000:]
            return float(json.loads(done.stdout.splitlines()[-1])["seconds"])
        finally:
            server.kill()
            server.wait()


def write_answers(path: Path, count: int) -> None:
    """Answers of about a hundred words to forty questions."""
    rng = random.Random(0)
    words = ["the", "a", "of", "to", "and", "in", "is", "you", "it", "that", "he", "was", "for", "on", "are", "with"]
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["question", "response"])
        out.writerows([f"Question {i % 40}?", f"{i} " + " ".join(rng.choices(words, k=100))] for i in range(count))


if __name__ == "__main__":
    main()
