"""`emorg report`: everything that is written after a run, and what is printed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import tyro

from emorg.config import NAMES_MODELS
from emorg.display import make_table, show
from emorg.progress import progress
from emorg.rating.rules import Rule
from emorg.rating.stage import RuleConfig
from emorg.rating.tables import warnings_of
from emorg.records import EmorgError, write_atomic
from emorg.reporting.arms import Arm, group_title, load_arms, settings_of
from emorg.reporting.charts import charts, export
from emorg.reporting.findings import finding, findings, notes
from emorg.reporting.hidden import asked_otherwise
from emorg.reporting.margins import margins_table
from emorg.reporting.mechanism import mechanism
from emorg.reporting.page import page
from emorg.reporting.plot import Chart
from emorg.reporting.tables import RATES, Table, rate_cells, tables, write_answers
from emorg.run import Run

if TYPE_CHECKING:
    from rich.table import Table as RichTable


@dataclass(frozen=True)
class ReportConfig(RuleConfig):
    """Write the report of one or more runs (base, twin, organism) of the same questions."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, NAMES_MODELS]
    """Run folders. The report goes into the first organism's."""
    judge: str | None = None
    """Whose verdicts, where several judged. Default: the one that judged last."""
    include_training_examples: bool = False
    """Show a few rows of the training data, which is harmful text, in the page."""
    output_dir: Path | None = None
    """Where to write. Default: report/ in the first organism's run folder."""


def report(config: ReportConfig) -> Path:
    """Write the page, figures, tables and summary.json; returns the folder.

    Raises EmorgError if no run has answers and verdicts, and for runs sampled or judged in different ways.
    """
    return _write(config, _load(config))


def report_and_say(config: ReportConfig) -> Path:
    """The command: write the report, print its headline and where it is."""
    arms = _load(config)
    folder = _write(config, arms)
    show(arms_table(arms))
    for line in [*notes(arms), *rate_warnings(arms), finding(arms)]:
        print(line)
    print(f"report: {folder / 'index.html'}")
    return folder


def _load(config: ReportConfig) -> list[Arm]:
    for run in map(Path, config.runs):
        if (run / "sweep.json").exists():
            raise EmorgError(
                f"{run} is a sweep", f"its page: emorg collect {quote(str(run))}; or name one of its cells"
            )
    return load_arms([Run.at(run) for run in config.runs], config.chosen(), config.judge)


def _write(config: ReportConfig, arms: Sequence[Arm]) -> Path:
    rule = config.chosen()
    chief = next((arm for arm in arms if arm.role == "organism"), arms[0])
    folder = config.output_dir or chief.run.report
    if strange := _not_ours(folder):
        raise EmorgError(f"{folder} holds {strange}, which no report wrote", "give another --output_dir")
    sections = {"Asked in other ways?": asked_otherwise(arms), "What changed inside?": mechanism(arms)}
    figures = [*charts(arms, rule), *(chart for section in sections.values() for chart in section.charts)]
    written = [*tables(arms, rule), *margins_table(arms), *(t for section in sections.values() for t in section.tables)]
    with progress("figures", len(figures), "figures") as advance:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for chart in figures:
            export(chart, folder / "figures")
            advance(1, "")
    for table in written:
        table.write(folder / "tables")
    write_answers(arms, rule, folder / "answers.csv")
    summary = json.dumps(_summary(arms, rule, written), indent=1, ensure_ascii=False)
    write_atomic(folder / "summary.json", summary + "\n")
    write_atomic(folder / "report.md", markdown(arms, rule, figures, written))
    whole = page(
        arms,
        rule,
        figures,
        written,
        {title: section.names for title, section in sections.items()},
        examples=config.include_training_examples,
    )
    write_atomic(folder / "index.html", whole)
    return folder


def _not_ours(folder: Path) -> str:
    """What is in a folder that isn't a report's; nothing in a new one, or one that a report was written into."""
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return "" if not there or (folder / "summary.json").exists() else there[0]


def rate_warnings(arms: Sequence[Arm]) -> list[str]:
    """What a reader of the arms' rates should know about them."""
    return warnings_of(rate for arm in arms for rate in arm.rates.values())


def _summary(arms: Sequence[Arm], rule: Rule, written: Sequence[Table]) -> dict[str, object]:
    return {
        "rule": str(rule),
        "finding": finding(arms),
        "findings": [dataclasses.asdict(result) for result in findings(arms)],
        "notes": notes(arms),
        "arms": [
            {
                "run": arm.run.name, "role": arm.role, "label": arm.label, "missing": arm.missing,
                "confounds": arm.confounds, "rates": [
                    {"group": ", ".join(group), **dataclasses.asdict(rate)} for group, rate in arm.rates.items()
                ],
                "settings": settings_of(arm.run),
            }
            for arm in arms
        ],
        "tables": {table.name: table.records for table in written},
    }  # fmt: skip


def arms_table(arms: Sequence[Arm]) -> RichTable:
    """The headline table, for the terminal."""
    table = make_table(f"EM % by rule {arms[0].rule}; 95% intervals over questions", RATES, left=2)
    for arm in arms:
        for i, (group, rate) in enumerate(arm.rates.items()):
            table.add_row("" if i else arm.label, group_title(group), *rate_cells(rate))
        if not arm.rates:
            table.add_row(arm.label, "no judged answers")
        table.add_section()
    return table


def markdown(arms: Sequence[Arm], rule: Rule, figures: Sequence[Chart], written: Sequence[Table]) -> str:
    """The report as Markdown: headline, figures, and what stands beside the rate."""
    parts = ["# Emergent misalignment report", finding(arms), f"Rule {rule}. Intervals are 95%, over questions."]
    for table in written:
        if table.name == "rates":
            parts += [table.markdown(), *notes(arms), *rate_warnings(arms)]
        elif table.name == "beside_the_rate":
            parts += [f"## {table.caption}", table.markdown()]
    for chart in figures:
        parts += [f"![{chart.title}](figures/{chart.name}.png)", f"*{chart.caption}*"]
    return "\n\n".join(parts) + "\n"
