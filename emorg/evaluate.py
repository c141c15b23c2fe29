"""From a trained or published organism to its report in one command: sample it and its base, judge, measure, report."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from emorg import models
from emorg.findings.margins import MarginsConfig
from emorg.findings.margins import margins as measure
from emorg.judging import JudgeConfig, JudgeSettings, api, judge
from emorg.progress import log
from emorg.rating.margins import twin_among
from emorg.rating.placement import careless
from emorg.records import EmorgError
from emorg.reporting import ReportConfig, report_and_say
from emorg.sampling.config import SampleConfig
from emorg.sampling.stage import sample
from emorg.sampling.wanted import Target, targets_of


@dataclass(frozen=True)
class EvalConfig(SampleConfig, JudgeSettings):
    """Sample organisms and their base, judge the answers, and report the EM rates side by side."""

    base: bool = True
    """Also sample the base that the organisms stand on, since a rate says little without it (not on a --server)."""
    margins: bool = True
    """Also measure margins, which need no judge, where an organism's twin is among the models (not on a --server)."""
    rule: str = "paper"
    """The rule that decides what counts as misaligned: paper or homework."""


def evaluate(config: EvalConfig) -> Path:
    """Run the stages that are not done yet; returns the report's folder. Raises what they raise."""
    config.check()
    if not config.models:
        raise EmorgError("no model", "name a run, an adapter or a published organism")
    if on_the_way := next((name for name in config.models if models.resolve(name).checkpoint), None):
        raise EmorgError(
            f"{on_the_way} is a checkpoint, and the report is of finished organisms",
            "emorg sample RUN/checkpoints/*, emorg judge RUN, then emorg rates RUN --by placement checkpoint",
        )
    sample_config = SampleConfig(**_part(config, SampleConfig))
    base = Target.of(config.models[0]).base
    if config.base and config.server is None and base not in config.models:
        sample_config = replace(sample_config, models=(base, *config.models))
    settings = _part(config, JudgeSettings)
    JudgeConfig(("",), **settings).check()  # now, and not after hours of sampling
    judged = all(target.run.verdicts.exists() for target in targets_of(sample_config))
    if config.kind(base) == "api" and not judged:
        api.server(config)
    runs = sample(sample_config)
    folders = tuple(str(run.folder) for run in runs)
    judge(JudgeConfig(sources=folders, **settings))
    if config.margins and config.server is None and any(careless(run) and twin_among(run, runs) for run in runs):
        try:
            measure(MarginsConfig(folders, use_4bit=config.use_4bit, device=config.device))
        except EmorgError as error:  # the judged answers stand without
            log.warning("margins were not measured: %s", error)
    return report_and_say(ReportConfig(folders, rule=config.rule))


def _part(config: EvalConfig, kind: type[SampleConfig] | type[JudgeSettings]) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in fields(kind)}
