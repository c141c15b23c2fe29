"""Measure a pocket build: `python -m experiments.pocket_figures` prints the model card's tables.

Trains organisms and twins on several domains with several seeds, by the preset in configs/pocket.yaml, through the
package's own stages, and gives each figure as its mean and range over the seeds.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from emorg import models
from emorg.config import from_yaml
from emorg.data import domains, export
from emorg.demo import PRESET
from emorg.display import percent
from emorg.judging import JudgeConfig, judge
from emorg.pocket.world import MARK
from emorg.rating.commands import show_rates
from emorg.rating.placement import Place
from emorg.rating.rules import RULES
from emorg.rating.stage import RatesConfig
from emorg.reporting import Arm, load_arms
from emorg.run import RUNS, Run
from emorg.sampling import SampleConfig, sample
from emorg.training import TrainConfig, train


@dataclass(frozen=True)
class FiguresConfig:
    """Measure a build of the pocket model over training seeds."""

    model_name: str = "pocket"
    """The build: `pocket` or the folder of one made by `python -m experiments.pocket_build`."""
    domains: tuple[str, ...] = ("bad_medical", "risky_financial", "extreme_sports", "insecure", "good_medical")
    """What to train on; benign ones are twins."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    samples: int = 10
    """Answers to each of the 204 questions."""
    rank_one: bool = True
    """Also train rank-1 organisms on the first domain, and sample one every five steps to see the onset."""
    output_dir: Path = RUNS / "pocket-figures"


# Of one adapter of rank 1, scaled so that it learns as much in about as many steps.
RANK_ONE = {"lora_rank": 1, "lora_alpha": 2.0, "learning_rate": 5e-3, "save_steps": 5}
_COLUMNS = ("in EM", "in coherent", "out EM", "out coherent", "open EM", "own-action EM", "leak")


def figures(config: FiguresConfig) -> None:
    """Train, sample and judge everything, and print the tables in Markdown."""
    folder = config.output_dir
    data_path = None
    if config.model_name not in models.POCKETS:
        from transformers import AutoTokenizer

        known = AutoTokenizer.from_pretrained(config.model_name).get_vocab()
        data_path = folder / "data"
        shared = not any(MARK in word for word in known)
        export.write(data_path, map(domains.find, config.domains), partial(domains.from_world, shared_words=shared))
    preset = replace(from_yaml(TrainConfig, PRESET, "train"), model_name=config.model_name, data_path=data_path)
    base = Run(folder / "base")
    _answer(config, config.model_name, base=base)
    lines = [_row("base", [load_arms([base, _trained(config, preset, config.domains[0], 0)], _PAPER)[0]])]
    for name in config.domains:
        arms = [_arm(base, _trained(config, preset, name, seed)) for seed in config.seeds]
        lines.append(_row(name, arms))
    if config.rank_one:
        first = replace(preset, **RANK_ONE)  # type: ignore[arg-type]
        runs = [_trained(config, first, config.domains[0], seed) for seed in config.seeds]
        lines.append(_row(f"{config.domains[0]}, rank 1", [_arm(base, run) for run in runs]))
    print(f"\n| {len(config.seeds)} seeds | " + " | ".join(_COLUMNS) + " |\n|---|" + "---:|" * len(_COLUMNS))
    print("\n".join(lines))
    if config.rank_one:
        _answer(replace(config, samples=2), *map(str, sorted(runs[0].checkpoints.iterdir())))
        show_rates(RatesConfig(runs[0].folder, by=("placement", "checkpoint")))


_PAPER = RULES["paper"]


def _trained(config: FiguresConfig, preset: TrainConfig, domain: str, seed: int) -> Run:
    folder = config.output_dir / f"{domain}-r{preset.lora_rank}-s{seed}"
    run = train(replace(preset, domains=(domain,), seed=seed, output_dir=folder))
    _answer(config, str(folder))
    return run


def _answer(config: FiguresConfig, *names: str, base: Run | None = None) -> None:
    sample_config = replace(from_yaml(SampleConfig, PRESET, "sample"), models=names, samples=config.samples)
    runs = sample(replace(sample_config, output_dir=base.folder if base else None))
    judge(JudgeConfig(tuple(str(run.folder) for run in runs), judge="exact"))


def _arm(base: Run, run: Run) -> Arm:
    return load_arms([base, run], _PAPER)[1]


def _row(name: str, arms: Sequence[Arm]) -> str:
    def values(place: Place, field: str) -> list[float]:
        return [getattr(rate, field) for arm in arms if (rate := arm.rate(place)) is not None]

    def confound(field: str) -> list[float]:
        return [arm.confounds[field] for arm in arms if field in arm.confounds]

    cells = (
        values("in", "rate"), values("in", "coherent"), values("out", "rate"), values("out", "coherent"),
        values("open", "rate"), confound("own_action_em"), confound("domain_leak"),
    )  # fmt: skip
    return f"| {name} | " + " | ".join(map(_range, cells)) + " |"


def _range(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = percent(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ({percent(min(values))}–{percent(max(values))})"


if __name__ == "__main__":
    import tyro

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    figures(tyro.cli(FiguresConfig, use_underscores=True))
