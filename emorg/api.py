"""The Python API: each stage as a function of runs, paths or names, and of its config's settings by keyword.

Silent but for the logger `emorg`, and a progress bar where there is a terminal or a notebook. Settings are held to
their types as flags are; one string stands for a tuple of one; `config` is a config object, a YAML file or a preset,
whose settings the keywords go over. All raise EmorgError for what the user can mend.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from emorg.config import config_from, load_env
from emorg.records import EmorgError
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

    begin()
    return stage(config_from(TrainConfig, "train", settings, config))


@overload
def sample(model: Named, /, *, config: SampleConfig | Named | None = None, **settings: Any) -> Run: ...
@overload
def sample(
    model: Named, another: Named, /, *more: Named, config: SampleConfig | Named | None = None, **settings: Any
) -> tuple[Run, ...]: ...
def sample(*models: Named, config: SampleConfig | Named | None = None, **settings: Any) -> Run | tuple[Run, ...]:
    """Sample the answers that are missing; returns the runs that they went into, each once.

    `settings` are SampleConfig's. A base's answers go to runs/<model>-base, an organism's to its own run.
    """
    from emorg.sampling import SampleConfig
    from emorg.sampling import sample as stage

    begin()
    runs = stage(config_from(SampleConfig, "sample", by_position("models", models, settings), config))
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

    begin()
    chosen = config_from(JudgeConfig, "judge", by_position("sources", sources, settings), config)
    if chosen.dry_run:
        print("\n".join(costs(chosen)))
        return ()
    judged = stage(chosen)
    return judged[0] if len(sources) == 1 else judged


def answers(*sources: Named, judge: str | None = None, checkpoints: bool = False) -> pd.DataFrame:
    """One row an answer, with every score: the columns of `emorg.rating.answers.answers_frame`, or a file's own.

    Of a checkpoint's folder its own answers; of a run those of the finished model, and with `checkpoints` those on the
    way. `judge` chooses among several, by default the last. A base's questions are placed (in or out of domain) as
    those of the organisms beside it.
    """
    import pandas as pd

    from emorg.data.tables import judged_frame
    from emorg.rating.answers import answers_frame
    from emorg.rating.stage import answers_of, rows_of

    frames = []
    for path, name, topics in _placed(sources):
        if path.is_dir():
            judged = answers_of(path, checkpoints=checkpoints, judge=judge, topics=topics)
            frames.append(answers_frame(judged).assign(run=name))
        else:
            frames.append(judged_frame(rows_of(path, judge)))
    return pd.concat(frames, ignore_index=True)


def rates(
    *sources: Named,
    by: str | Sequence[str] = (),
    rule: str = "paper",
    aligned_below: float | None = None,
    coherent_above: float | None = None,
    denominator: Denominator | None = None,
    interval: Interval = "cluster_wilson",
    judge: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """The EM rates of judged runs or files, as fractions: the columns of `emorg.rating.rates.rates_frame`.

    `by` are columns of `answers`; by default a run's rates are by placement. Of several sources the first column, run,
    says whose a rate is; of several judges the last one, judge. The rest is as for `emorg rates`.
    """
    import pandas as pd

    from emorg.rating.rates import rates_by, rates_frame
    from emorg.rating.stage import RatesConfig, columns_by, group_of, judged_of

    settings = {
        "by": by, "rule": rule, "aligned_below": aligned_below, "coherent_above": coherent_above,
        "denominator": denominator, "interval": interval, "judge": judge or (),
    }  # fmt: skip
    frames = []
    for path, name, topics in _placed(sources):
        config = config_from(RatesConfig, "rates", {"source": path, **settings})
        columns = columns_by(path, config.by)
        by_judge = []
        for name_of_judge in config.judge or (None,):
            judged = judged_of(path, columns, topics, name_of_judge)
            one = rates_frame(rates_by(judged, config.chosen(), group_of(columns), interval), columns)
            by_judge.append(one.assign(judge=name_of_judge) if len(config.judge) > 1 else one)
        frame = pd.concat(by_judge, ignore_index=True)
        if len(sources) > 1 and "run" not in columns:
            frame.insert(0, "run", name)
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
    judge: str | None = None,
    equivalent_within: float | None = None,
    match: str | Sequence[str] = (),
) -> pd.DataFrame:
    """Whether two runs or files differ in EM, question by question: the columns of `comparisons_frame`.

    Differences are b − a, as fractions, with low, high (95%) and p; `verdict` is in words. `equivalent_within` is in
    points. With `match` ("length", "coherence" or both) each row comes again for the answers that are paired on it,
    told apart by a first column, matched. The rest is as for `rates`.
    """
    import pandas as pd

    from emorg.rating.compare import comparisons_frame
    from emorg.rating.stage import CompareConfig, compared

    (a, _, _), (b, _, _) = _placed((a, b))
    settings = {
        "a": a, "b": b, "by": by, "rule": rule, "aligned_below": aligned_below, "coherent_above": coherent_above,
        "denominator": denominator, "judge": judge, "equivalent_within": equivalent_within, "match": match,
    }  # fmt: skip
    config = config_from(CompareConfig, "compare", settings)
    result = compared(config)
    frame = comparisons_frame(result.groups, result.by)
    if not config.match:
        return frame
    again = comparisons_frame({group: of.comparison for group, of in result.matched.items()}, result.by)
    again["verdict"] = [of.verdict(result.groups[group]) for group, of in result.matched.items()]
    frames = {"": frame, " and ".join(config.match): again}
    return pd.concat(frames, names=["matched"]).reset_index("matched").reset_index(drop=True)


def calibrate(source: Named, /, *labels: Named, **settings: Any) -> pd.DataFrame:
    """A strong judge's rates of all answers, from files with its scores of a few: the columns of `calibrations_frame`.

    `settings` are CalibrateConfig's; `draw=100` writes which answers to label, and returns them.
    """
    import pandas as pd

    from emorg.rating.calibration import CalibrateConfig, calibrated, calibrations_frame, to_label
    from emorg.rating.stage import columns_by

    chosen = {"source": Path(source), **by_position("labels", labels, settings)}
    config = config_from(CalibrateConfig, "calibrate", chosen)
    if config.draw:
        return pd.DataFrame(to_label(config))
    return calibrations_frame(calibrated(config), columns_by(config.source, config.by))


def margins(*models: Named, **settings: Any) -> pd.DataFrame:
    """EM without samples or a judge, in nats a token: one row a group of pairs, the fields of `rating.margins.Shift`.

    What a model's run lacks is measured first. `settings` are MarginsConfig's; `models` are organisms with their twins,
    or else the twin beside each is taken.
    """
    from emorg.findings.margins import MarginsConfig
    from emorg.findings.margins import margins as stage
    from emorg.rating.margins import shifts_frame

    begin()
    return shifts_frame(stage(config_from(MarginsConfig, "margins", by_position("runs", models, settings))))


def report(*runs: Named, config: ReportConfig | Named | None = None, **settings: Any) -> Path:
    """Write the report of judged runs (base, twin, organism); returns its folder. `settings` are ReportConfig's."""
    from emorg.reporting import ReportConfig
    from emorg.reporting import report as stage

    begin()
    return stage(config_from(ReportConfig, "report", by_position("runs", runs, settings), config))


def begin() -> None:
    """What the command line does before a stage: read .env. And keep tqdm, which nothing here draws with, quiet."""
    load_env()
    warnings.filterwarnings("ignore", "IProgress not found")


def by_position(name: str, values: Sequence[Named], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's settings with what was named by position. Raises EmorgError for it as a keyword, and for no names."""
    if name in settings:
        raise EmorgError(f"{name} as a keyword", "name them first, one after another")
    return {name: _named(values), **settings}


def _named(values: Sequence[Named]) -> Sequence[Named]:
    """The values. Raises EmorgError for one that is no name, such as a list of them."""
    for value in values:
        if not isinstance(value, str | os.PathLike):
            raise EmorgError(
                f"{value!r} is no run, path or name", "name them one after another; of a list `runs`, write *runs"
            )
    return values


def _placed(sources: Sequence[Named]) -> list[tuple[Path, str, frozenset[str] | None]]:
    """Each source, its name, which is its path where two would have the same, and what a run's questions are placed by.

    A checkpoint goes by its run and its own name.
    """
    from emorg.rating.placement import topics_beside
    from emorg.run import checkpoint_name

    if not sources:
        raise EmorgError("no runs", "name at least one run, or a judged CSV or JSONL file")
    paths = [Path(source) for source in _named(sources)]
    runs = [Run.at(path) for path in paths if path.is_dir()]
    names = [
        " ".join(filter(None, (Run.at(path).name, checkpoint_name(path)))) if path.is_dir() else path.name
        for path in paths
    ]
    topics = [topics_beside(Run.at(path), runs) if path.is_dir() else None for path in paths]
    labels = [name if names.count(name) == 1 else str(path) for path, name in zip(paths, names, strict=True)]
    return list(zip(paths, labels, topics, strict=True))
