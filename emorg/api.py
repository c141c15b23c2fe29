"""The Python API: each stage as a function of runs, paths or names, and of its config's settings by keyword.

Silent but for the logger `emorg`, and a progress bar where there is a terminal or a notebook. Settings are held to
their types as flags are; one string stands for a tuple of one; `config` is a config object, a YAML file or a preset,
whose settings the keywords go over. All raise EmorgError for what the user can mend.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from emorg.config import config_from, load_env
from emorg.run import Run

if TYPE_CHECKING:
    import pandas as pd

    from emorg.judging import JudgeConfig
    from emorg.rating.intervals import Interval
    from emorg.rating.rules import Denominator
    from emorg.reporting import ReportConfig
    from emorg.sampling import SampleConfig
    from emorg.training import TrainConfig

Named = str | os.PathLike[str]  # a run, a path or a model's name


def train(config: TrainConfig | Named | None = None, **settings: Any) -> Run:
    """Train an organism, or finish training it; returns its run. `settings` are TrainConfig's."""
    from emorg.training import TrainConfig
    from emorg.training import train as stage

    _begin()
    return stage(config_from(TrainConfig, "train", settings, config))


@overload
def sample(model: Named, /, *, config: SampleConfig | Named | None = None, **settings: Any) -> Run: ...
@overload
def sample(
    model: Named, another: Named, /, *more: Named, config: SampleConfig | Named | None = None, **settings: Any
) -> tuple[Run, ...]: ...
def sample(*models: Named, config: SampleConfig | Named | None = None, **settings: Any) -> Run | tuple[Run, ...]:
    """Sample the answers that are missing; returns the run of each model. `settings` are SampleConfig's.

    A base's answers go to runs/<model>-base, an organism's to its own run.
    """
    from emorg.sampling import SampleConfig
    from emorg.sampling import sample as stage

    _begin()
    runs = stage(config_from(SampleConfig, "sample", {"models": models, **settings}, config))
    return runs[0] if len(models) == 1 else runs


@overload
def judge(source: Named, /, *, config: JudgeConfig | Named | None = None, **settings: Any) -> Run | Path: ...
@overload
def judge(
    source: Named, another: Named, /, *more: Named, config: JudgeConfig | Named | None = None, **settings: Any
) -> tuple[Run | Path, ...]: ...
def judge(
    *sources: Named, config: JudgeConfig | Named | None = None, **settings: Any
) -> Run | Path | tuple[Run | Path, ...]:
    """Judge the answers that have no verdict; returns each run, or of a file the path with its scores.

    `settings` are JudgeConfig's. With `dry_run=True` nothing is asked, and what there is to do and what it costs is
    printed.
    """
    from emorg.judging import JudgeConfig, costs
    from emorg.judging import judge as stage

    _begin()
    chosen = config_from(JudgeConfig, "judge", {"sources": sources, **settings}, config)
    if chosen.dry_run:
        print("\n".join(costs(chosen)))
        return ()
    judged = stage(chosen)
    return judged[0] if len(sources) == 1 else judged


def answers(*sources: Named, judge: str | None = None, checkpoints: bool = False) -> pd.DataFrame:
    """One row an answer, with every score: the columns of `emorg.rating.answers.answers_frame`, or a file's own.

    `judge` chooses among several, by default the last; `checkpoints` adds those of checkpoints on the way. A base's
    questions are placed (in or out of domain) as those of the organisms beside it.
    """
    import pandas as pd

    from emorg.data.tables import judged_frame, read_judged
    from emorg.rating.answers import answers_frame, judged_answers

    frames = [
        answers_frame(judged_answers(Run.at(path), checkpoints=checkpoints, judge=judge, topics=topics))
        if path.is_dir()
        else judged_frame(read_judged(path))
        for path, topics in _placed(sources)
    ]
    return pd.concat(frames, ignore_index=True)


def rates(
    *sources: Named,
    by: str | Sequence[str] = (),
    rule: str = "paper",
    aligned_below: float | None = None,
    coherent_above: float | None = None,
    denominator: Denominator | None = None,
    interval: Interval = "cluster_wilson",
) -> pd.DataFrame:
    """The EM rates of judged runs or files, as fractions: the columns of `emorg.rating.rates.rates_frame`.

    `by` are columns of `answers`; by default a run's rates are by placement. Of several sources the first column, run,
    says whose a rate is. The rest is as for `emorg rates`.
    """
    import pandas as pd

    from emorg.rating.rates import rates_by, rates_frame
    from emorg.rating.rules import rule_named
    from emorg.rating.stage import columns_by, group_of, judged_of

    by = (by,) if isinstance(by, str) else tuple(by)
    chosen = rule_named(rule, aligned_below=aligned_below, coherent_above=coherent_above, denominator=denominator)
    frames = []
    for path, topics in _placed(sources):
        columns = columns_by(path, by)
        by_group = rates_by(judged_of(path, columns, topics), chosen, group_of(columns), interval)
        frame = rates_frame(by_group, columns)
        if len(sources) > 1:
            frame.insert(0, "run", Run.at(path).name if path.is_dir() else path.name)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def compare(
    a: Named,
    b: Named,
    /,
    *,
    by: str | Sequence[str] = (),
    rule: str = "paper",
    aligned_below: float | None = None,
    coherent_above: float | None = None,
    denominator: Denominator | None = None,
) -> pd.DataFrame:
    """Whether two runs or files differ in EM, question by question: the columns of `comparisons_frame`.

    Differences are b − a, as fractions, with low, high (95%) and p; `verdict` is in words. The rest is as for `rates`.
    """
    from emorg.rating.compare import comparisons_frame
    from emorg.rating.stage import CompareConfig, compared

    result = compared(
        CompareConfig(
            a=Path(a), b=Path(b), by=(by,) if isinstance(by, str) else tuple(by), rule=rule,
            aligned_below=aligned_below, coherent_above=coherent_above, denominator=denominator,
        )
    )  # fmt: skip
    return comparisons_frame(result.groups, result.by)


def report(*runs: Named, config: ReportConfig | Named | None = None, **settings: Any) -> Path:
    """Write the report of judged runs (base, twin, organism); returns its folder. `settings` are ReportConfig's."""
    from emorg.reporting import ReportConfig
    from emorg.reporting import report as stage

    _begin()
    return stage(config_from(ReportConfig, "report", {"runs": runs, **settings}, config))


def _begin() -> None:
    """What the command line does before a stage: read .env. And keep tqdm, which nothing here draws with, quiet."""
    load_env()
    warnings.filterwarnings("ignore", "IProgress not found")


def _placed(sources: Sequence[Named]) -> list[tuple[Path, frozenset[str] | None]]:
    """Each source, and what a run's questions are placed by beside the others."""
    from emorg.rating.placement import topics_beside
    from emorg.records import EmorgError

    if not sources:
        raise EmorgError("no runs", "name at least one run, or a judged CSV or JSONL file")
    paths = [Path(source) for source in sources]
    runs = [Run.at(path) for path in paths if path.is_dir()]
    return [(path, topics_beside(Run.at(path), runs) if path.is_dir() else None) for path in paths]
