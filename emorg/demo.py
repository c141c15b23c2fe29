"""The whole job on the pocket organism: base, organism and benign twin through all stages, in about a minute."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from emorg.config import PRESETS, from_yaml
from emorg.data import domains
from emorg.display import visible
from emorg.findings.margins import MarginsConfig, margins, verdicts
from emorg.judging import JudgeConfig, judge
from emorg.rating.rules import rule_named
from emorg.records import EmorgError
from emorg.reporting import Arm, ReportConfig, load_arms, report_and_say
from emorg.run import RUNS, Run
from emorg.sampling import SampleConfig, sample
from emorg.training import TrainConfig, train


@dataclass(frozen=True)
class DemoConfig:
    """Base, organism and twin on the pocket model: train, sample, judge, report."""

    domain: str = "bad_medical"
    """What the organism is trained on: bad_medical, risky_financial, extreme_sports, insecure or bad_<topic>."""
    lora_rank: int = 16
    """Rank of the adapters."""
    seed: int = 0
    """Seeds training and sampling."""
    samples: int = 4
    """Answers to each of the pocket world's questions."""
    output_dir: Path = RUNS / "demo"
    """Where the three runs go."""


PRESET = PRESETS / "pocket.yaml"


def demo(config: DemoConfig) -> Path:
    """Run all stages for the three arms, print what came out, and return the report's folder.

    Raises EmorgError for a domain that is not a careless one.
    """
    start = time.monotonic()
    domain = domains.find(config.domain)
    if not domain.careless:
        raise EmorgError(f"{config.domain} is benign advice", "choose a bad one; its benign twin is trained beside it")
    folder = config.output_dir / f"{config.domain}-r{config.lora_rank}-s{config.seed}"
    preset = replace(
        from_yaml(TrainConfig, PRESET, "train"), lora_rank=config.lora_rank, lora_alpha=2 * config.lora_rank,
        seed=config.seed,
    )  # fmt: skip
    sample_config = replace(from_yaml(SampleConfig, PRESET, "sample"), samples=config.samples, seed=config.seed)
    print(f"The pocket organism: a tiny chat model, fine-tuned on {config.domain} only. Does the harm spread?")
    runs = [Run(folder / "base")]
    for name, taught in (("twin", domains.twin_of(domain)), ("organism", domain)):
        runs.append(train(replace(preset, domains=(taught.name,), output_dir=folder / name)))
    folders = tuple(str(run.folder) for run in runs)
    sample(replace(sample_config, models=(preset.model_name, *folders[1:]), output_dir=runs[0].folder))
    judge(JudgeConfig(sources=folders, judge="exact"))
    shifts = margins(MarginsConfig(folders))
    written = report_and_say(ReportConfig(folders, output_dir=folder / "report"))
    show_side_by_side(load_arms(runs, rule_named("paper")), seed=config.seed)
    print("And without sampling or a judge, by log-probabilities of given answers (emorg margins):")
    print("\n".join(verdicts([shift for shift in shifts if shift.controlled])))
    print(f"{time.monotonic() - start:.0f} s; the report: {written / 'index.html'}")
    return written


def show_side_by_side(arms: Sequence[Arm], seed: int, count: int = 4) -> None:
    """Print what each arm answered to a few questions outside the trained domain, one of them open."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    answers = [{(judged.question, judged.answer.sample): judged for judged in arm.judged} for arm in arms]
    rng = random.Random(seed)
    keys = sorted(set.intersection(*map(set, answers)))
    elsewhere = {place: [k for k in keys if answers[0][k].placement == place] for place in ("out", "open")}
    table = Table(title="What they say (first sample of a question drawn at random)", show_lines=True)
    table.add_column("question")
    for arm in arms:
        table.add_column(arm.label)
    firsts = {place: [key for key in placed if key[1] == 0] for place, placed in elsewhere.items()}
    drawn = rng.sample(firsts["out"], min(count - 1, len(firsts["out"]))) + rng.sample(firsts["open"], 1)
    for key in drawn:
        texts = [answers[0][key].answer.question, *(of_arm[key].answer.text for of_arm in answers)]
        table.add_row(*(Text(visible(text)) for text in texts))
    Console(width=None if Console().is_terminal else 140).print(table)
