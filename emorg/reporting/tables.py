"""The report's tables: each as CSV for programs, as LaTeX for a paper, and as text for the page and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emorg.data.tables import write_csv
from emorg.display import make_table, percent, show
from emorg.rating.answers import further_metrics
from emorg.rating.confounds import confound_text
from emorg.rating.rates import Rate
from emorg.rating.rules import Rule
from emorg.rating.stage import column
from emorg.rating.tables import interval_text
from emorg.records import write_atomic
from emorg.reporting.arms import PLACEMENT_TITLES, Arm, group_title, other_judges
from emorg.reporting.over_training import checkpoint_rows
from emorg.reporting.plot import Chart


@dataclass(frozen=True)
class Table:
    """A table as people read it, and the same as records for programs, in which rates are fractions."""

    name: str
    caption: str
    header: Sequence[str]
    rows: list[list[str]]
    records: list[dict[str, Any]]
    left: int = 2
    """How many columns, from the left, are text."""

    def write(self, folder: Path) -> None:
        """Write NAME.csv and NAME.tex (booktabs) into the folder."""
        names = list(dict.fromkeys(name for record in self.records for name in record))
        values = [["" if (value := record.get(name)) is None else value for name in names] for record in self.records]
        write_csv(folder / f"{self.name}.csv", names, values)
        write_atomic(folder / f"{self.name}.tex", self._latex())

    def _latex(self) -> str:
        import pandas as pd

        cells = pd.DataFrame([[*map(_tex, row)] for row in self.rows], columns=[*map(_tex, self.header)], dtype=object)
        columns = "l" * self.left + "r" * (len(self.header) - self.left)
        return "% needs \\usepackage{booktabs}\n" + cells.style.hide().to_latex(
            caption=_tex(self.caption), column_format=columns, hrules=True, position_float="centering"
        )

    def show(self) -> None:
        """Print it to the terminal."""
        table = make_table(self.caption, self.header, left=self.left)
        for row in self.rows:
            table.add_row(*row)
        show(table)

    def markdown(self) -> str:
        return markdown_table(self.header, self.rows, self.left)


@dataclass(frozen=True)
class Section:
    """The figures and tables of one part of a report."""

    charts: list[Chart]
    tables: list[Table]

    @property
    def names(self) -> list[str]:
        """Of both, in the order in which they are read."""
        return list(dict.fromkeys([*(one.name for one in self.charts), *(one.name for one in self.tables)]))


def markdown_table(header: Sequence[str], rows: Iterable[Iterable[str]], left: int) -> str:
    """A table in Markdown, whose first `left` columns are text."""
    lines = [list(header), ["---"] * left + ["---:"] * (len(header) - left), *map(list, rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


_TEX = str.maketrans({
    **{letter: rf"\{letter}" for letter in "&%$#_{}"}, "\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "≤": r"$\le$", "≥": r"$\ge$",
    "–": "--", "×": r"$\times$", "−": r"$-$", "\n": " ",
})  # fmt: skip


def _tex(text: str) -> str:
    return text.translate(_TEX)


RATES = ("run", "questions", "EM %", "95% interval", "scored/all", "coherent %")


def rate_cells(rate: Rate) -> list[str]:
    """A rate's cells under RATES, after the first two."""
    return [percent(rate.rate), interval_text(rate), f"{rate.scored:,}/{rate.total:,}", percent(rate.coherent)]


def tables(arms: Sequence[Arm], rule: Rule) -> list[Table]:
    """The headline, what is beside the rate, and the rates by topic, question and checkpoint."""
    of_rule = f"by rule {rule}; 95% intervals over questions"
    placed = [(arm, group_title(group), rate) for arm in arms for group, rate in arm.rates.items()]
    result = [
        _rates("rates", f"EM {of_rule}", placed),
        _confounds(arms),
        _rates("by_topic", f"EM by topic, {of_rule}",
               [(a, topic, r) for a in arms for (topic,), r in a.rates_by("topic").items()]),
        _rates("by_question", f"EM by question, by rule {rule}; Wilson's intervals within a question",
               [(a, name, r) for a in arms for (name,), r in a.rates_by("question_id").items()]),
    ]  # fmt: skip
    if judges := other_judges(arms):
        seen = {" and ".join(sorted(arms[0].judges)): list(arms)}
        seen |= {judge: [arm.seen_by(judge) for arm in arms if arm.judged] for judge in judges}
        result.append(
            _rates("by_judge", f"EM as each judge sees it, {of_rule}",
                   [(arm, f"{judge}: {group_title(group)}", rate) for judge, those in seen.items() for arm in those
                    for group, rate in arm.rates.items()])
        )  # fmt: skip
    if rows := checkpoint_rows(arms, rule):
        cells = [
            [row["arm"], str(row["step"]), row["name"], *(percent(_share(row[name])) for name in ("em", "low", "high")),
             f"{row['scored']:,}/{row['total']:,}", percent(_share(row["coherent"]))]
            for row in rows
        ]  # fmt: skip
        header = ("run", "step", "questions", "EM %", "low", "high", "scored/all", "coherent %")
        shares = [{**row, **{name: _share(row[name]) for name in ("em", "low", "high", "coherent")}} for row in rows]
        result.append(Table("over_checkpoints", f"EM over training, {of_rule}", header, cells, shares, left=3))
    return result


def _share(percentage: float | None) -> float | None:
    return None if percentage is None else percentage / 100


def _rates(name: str, caption: str, rates: Sequence[tuple[Arm, str, Rate]]) -> Table:
    header = RATES if name == "rates" else (RATES[0], name.removeprefix("by_"), *RATES[2:])
    return Table(
        name, caption, header,
        [[arm.label, title, *rate_cells(rate)] for arm, title, rate in rates],
        [{"run": arm.label, header[1]: title, "rule": rate.rule, "em": rate.rate, "low": rate.low, "high": rate.high,
          "interval": rate.interval, "misaligned": rate.misaligned, "scored": rate.scored, "total": rate.total,
          "coherent": rate.coherent, "least": rate.least, "most": rate.most, "questions": len(rate.per_question)}
         for arm, title, rate in rates],
    )  # fmt: skip


def _confounds(arms: Sequence[Arm]) -> Table:
    names = list(dict.fromkeys(name for arm in arms for name in arm.confounds))
    return Table(
        "beside_the_rate", "What could pass for misalignment or hide it",
        ["run", *(name.replace("_", " ") for name in names)],
        [[arm.label, *(confound_text(name, arm.confounds.get(name)) for name in names)] for arm in arms],
        [{"run": arm.label, **arm.confounds} for arm in arms], left=1,
    )  # fmt: skip


ANSWER_COLUMNS = (
    "run", "role", "checkpoint", "question_id", "topic", "placement", "format", "sample", "question", "answer",
    "aligned", "coherent", "misaligned", "state", "finish_reason", "answer_tokens",
)  # fmt: skip


def write_answers(arms: Sequence[Arm], rule: Rule, path: Path) -> None:
    """Every answer with its scores, and whether the rule calls it misaligned (1, 0, or empty if it is not scored)."""
    every = [(arm, judged) for arm in arms for judged in (*arm.on_the_way, *arm.judged)]
    further = [*(["topic"] if any("topic" in judged.verdicts for _, judged in every) else []),
               *further_metrics(judged for _, judged in every)]  # fmt: skip
    rows = [
        [
            arm.label, arm.role, answer.checkpoint or "", answer.question_id, answer.topic or "open",
            PLACEMENT_TITLES[judged.placement], answer.format, answer.sample, answer.question, answer.text,
            *("" if score is None else score for score in (judged.aligned, judged.coherent)),
            int(rule.misaligned(judged)) if rule.scored(judged) else "", judged.state or "", answer.finish_reason,
            answer.answer_tokens,
            *(judged.named_topic if metric == "topic" else column(judged, metric) for metric in further),
        ]
        for arm, judged in every for answer in (judged.answer,)
    ]  # fmt: skip
    write_csv(path, [*ANSWER_COLUMNS, *further], rows)
