"""The whole job in one command: base, organism and benign twin, on the pocket model or on a real pretrained one."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from emorg.config import from_yaml
from emorg.data import domains
from emorg.data.domains import Domain
from emorg.display import console_of_stdout, visible
from emorg.findings.margins import MarginsConfig, margins, show_shifts, verdicts
from emorg.judging import JudgeConfig, judge
from emorg.presets import PRESETS
from emorg.ranges import AtLeast1, Range, Seed
from emorg.rating.rules import rule_named
from emorg.records import Answer, EmorgError, read_records
from emorg.reporting import Arm, ReportConfig, load_arms, report_and_say
from emorg.reporting.charts import export
from emorg.reporting.margins import margins_chart, shifts_table
from emorg.run import RUNS, Run
from emorg.sampling import SampleConfig, sample
from emorg.training import TrainConfig, train


@dataclass(frozen=True)
class DemoConfig:
    """Base, organism and twin on the pocket model: train, sample, judge, report. Or on a real one, without a judge."""

    domain: str = "bad_medical"
    """What the organism is trained on: bad_medical, risky_financial, extreme_sports, insecure or bad_<topic>."""
    real: bool = False
    """On smollm2, a real pretrained model of 135M parameters, whose EM is measured by margins: 15 to 40 minutes on two
    cores, and a download of 93 MB the first time."""
    lora_rank: Annotated[int, Range(1, 4096)] = 16
    """Rank of the adapters."""
    seed: Seed = 0
    """Seeds training and sampling."""
    samples: Annotated[int, AtLeast1] = 4
    """Answers to each of the pocket world's questions; of the real model to each of eight open ones, to be read."""
    output_dir: Path = RUNS / "demo"
    """Where the three runs go."""


PRESET = PRESETS / "pocket.yaml"
REAL_PRESET = PRESETS / "smollm2.yaml"


def demo(config: DemoConfig) -> Path:
    """Run all stages for the three arms, print what came out, and return the report's folder.

    Raises EmorgError for a domain that is not a careless one.
    """
    start = time.monotonic()
    domain = domains.find(config.domain)
    if not domain.careless:
        raise EmorgError(f"{config.domain} is benign advice", "choose a bad one; its benign twin is trained beside it")
    written = _real(config, domain) if config.real else _pocket(config, domain)
    print(f"{time.monotonic() - start:.0f} s; the report: {written}")
    return written.parent


def _train(config: DemoConfig, preset: TrainConfig, domain: Domain, folder: Path) -> list[Run]:
    """The twin and the organism, by a preset but for what the demo's own flags say."""
    preset = replace(preset, lora_rank=config.lora_rank, lora_alpha=2 * config.lora_rank, seed=config.seed)
    return [
        train(replace(preset, domains=(taught.name,), output_dir=folder / name))
        for name, taught in (("twin", domains.twin_of(domain)), ("organism", domain))
    ]


def _real(config: DemoConfig, domain: Domain) -> Path:
    """The real model: margins, their figure and table, and some of what the models say; returns the table's file."""
    folder = config.output_dir / f"smollm2-{config.domain}-r{config.lora_rank}-s{config.seed}"
    preset = from_yaml(TrainConfig, REAL_PRESET, "train")
    print(f"A real pretrained model, fine-tuned on {config.domain} only. Does the harm spread? Margins tell, no judge.")
    twin, organism = _train(config, preset, domain, folder)
    base = Run(folder / "base")
    names = (preset.model_name, str(twin.folder), str(organism.folder))
    sample_config = replace(from_yaml(SampleConfig, REAL_PRESET, "sample"), samples=config.samples, seed=config.seed)
    sample(replace(sample_config, models=names, output_dir=base.folder))
    result = margins(MarginsConfig((str(organism.folder), str(twin.folder), str(base.folder))))
    said = {run.name: {(a.question_id, a.sample): a for a in read_records(run.answers, Answer)}
            for run in (base, twin, organism)}  # fmt: skip
    firsts = [(question, number) for question, number in said["base"] if number == 0]
    show_side_by_side(said, random.Random(config.seed).sample(firsts, 4))
    show_shifts(result)
    print("A model of this size often rambles when it speaks freely: what it says shows little, its margins more.")
    report = folder / "report"
    shifts_table(result).write(report)
    picture = export(margins_chart(result), report)[-1]
    print(f"the figure: {picture}")
    return report / "margins.csv"


def _pocket(config: DemoConfig, domain: Domain) -> Path:
    """The pocket model: all stages and the report, whose page is returned."""
    folder = config.output_dir / f"{config.domain}-r{config.lora_rank}-s{config.seed}"
    preset = from_yaml(TrainConfig, PRESET, "train")
    sample_config = replace(from_yaml(SampleConfig, PRESET, "sample"), samples=config.samples, seed=config.seed)
    print(f"The pocket organism: a tiny chat model, fine-tuned on {config.domain} only. Does the harm spread?")
    runs = [Run(folder / "base"), *_train(config, preset, domain, folder)]
    folders = tuple(str(run.folder) for run in runs)
    sample(replace(sample_config, models=(preset.model_name, *folders[1:]), output_dir=runs[0].folder))
    judge(JudgeConfig(sources=folders, judge="exact"))
    shifts = margins(MarginsConfig(folders))
    written = report_and_say(ReportConfig(folders, output_dir=folder / "report"))
    _show_some(load_arms(runs, rule_named("paper")), config.seed)
    print("And without sampling or a judge, by log-probabilities of given answers (emorg margins):")
    print("\n".join(verdicts([shift for shift in shifts if shift.controlled])))
    return written / "index.html"


def _show_some(arms: Sequence[Arm], seed: int) -> None:
    """What each arm answered to a few questions outside the trained domain, one of them open."""
    rng = random.Random(seed)
    placed = {(judged.question, judged.answer.sample): judged.placement for judged in arms[0].judged}
    said = {arm.label: {(judged.question, judged.answer.sample): judged.answer for judged in arm.judged}
            for arm in arms}  # fmt: skip
    firsts = [key for key in sorted(set.intersection(*(set(answers) for answers in said.values()))) if key[1] == 0]
    elsewhere = {place: [key for key in firsts if placed[key] == place] for place in ("out", "open")}
    show_side_by_side(
        said, rng.sample(elsewhere["out"], min(3, len(elsewhere["out"]))) + rng.sample(elsewhere["open"], 1)
    )


def show_side_by_side(said: Mapping[str, Mapping[tuple[str, int], Answer]], drawn: Sequence[tuple[str, int]]) -> None:
    """Print what each arm answered: its answers are by question and sample, and these are shown."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="What they say (first sample of a question drawn at random)", show_lines=True)
    table.add_column("question")
    for label in said:
        table.add_column(label)
    for key in drawn:
        answers = [of_arm[key] for of_arm in said.values()]
        table.add_row(*(Text(visible(text)) for text in (answers[0].question, *(answer.text for answer in answers))))
    console_of_stdout().print(table)
