"""What people look at after a run: tables, a figure, a summary; and the rates of any judged file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from emorg import domains
from emorg import rates as em_rates
from emorg.judge.judged import judges_of
from emorg.rating import confound_text, confounds, run_answers
from emorg.records import Answer, EmorgError, Judged, write_atomic
from emorg.rundir import Run
from emorg.tables import interval_text, make_table, percent, show, warnings_of

if TYPE_CHECKING:
    from rich.table import Table

Role = Literal["base", "twin", "organism"]
PLACES = {"in": "in domain", "out": "out of domain", "open": "open questions"}


@dataclass(frozen=True)
class ReportConfig:
    """Write the report of one or more runs (base, twin, organism) of the same questions."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders. The report goes into the first organism's."""
    rule: str = "paper"
    """The rule that decides what counts as misaligned: paper or homework."""
    output_dir: Path | None = None
    """Where to write. Default: report/ in the first organism's run folder."""


@dataclass(frozen=True)
class Arm:
    """One run as the report sees it: who it is, its judged answers, and its rates by placement."""

    run: Run
    role: Role
    label: str
    judged: list[tuple[Answer, Judged]]
    rates: list[em_rates.Rate]
    confounds: dict[str, float]

    def rate(self, place: str) -> em_rates.Rate | None:
        """The rate at one placement: in, out or open."""
        return next((rate for rate in self.rates if rate.group == place), None)


# --- the report of a set of runs -------------------------------------------------------------------------------------


def report(config: ReportConfig) -> Path:
    """Write summary.json, report.md and the figure, print the table; returns the folder.

    Raises EmorgError for a run without answers or verdicts, and for runs sampled or judged in different ways.
    """
    rule = em_rates.rule_named(config.rule)
    arms = load_arms([Run.at(run) for run in config.runs], rule)
    chief = next((arm for arm in arms if arm.role == "organism"), arms[0])
    folder = config.output_dir or chief.run.report
    summary = {
        "rule": str(rule),
        "finding": finding(arms),
        "arms": [
            {
                "run": arm.run.name, "role": arm.role, "label": arm.label, "confounds": arm.confounds,
                "rates": [dataclasses.asdict(rate) for rate in arm.rates],
                "settings": {stage: arm.run.settings(stage) for stage in ("train", "sample", "judge")},
                "provenance": arm.run.provenance(),
            }
            for arm in arms
        ],
    }  # fmt: skip
    write_atomic(folder / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    figures = draw(arms, rule, folder / "figures")
    write_atomic(folder / "report.md", markdown(arms, rule, figures[0].relative_to(folder)))
    show(arms_table(arms, rule))
    for warning in warnings_of([rate for arm in arms for rate in arm.rates]):
        print(warning)
    print(finding(arms))
    print(f"report: {folder / 'report.md'}")
    return folder


def load_arms(runs: Sequence[Run], rule: em_rates.Rule) -> list[Arm]:
    """The runs in the order base, twin, organism, each with its rates by placement.

    A base and a twin have no trained topic that matters: their questions are placed as the organisms' are.
    """
    if not runs:
        raise EmorgError("no runs", "name at least one run folder")
    for setting in ("max_new_tokens", "temperature", "top_p", "system"):
        values = {run.name: run.settings("sample").get(setting) for run in runs}
        if len(set(values.values())) > 1:
            told = ", ".join(f"{name}: {value}" for name, value in values.items())
            raise EmorgError(f"the runs were sampled at different --{setting} ({told})", "sample them alike")
    judges = {run.name: next(reversed(judges_of(run)), None) for run in runs}
    if len({judge for judge in judges.values() if judge}) > 1:
        told = ", ".join(f"{name}: {judge}" for name, judge in judges.items())
        raise EmorgError(f"the runs were judged by different judges ({told})", "judge them alike: emorg judge RUN…")
    trained = {domains.find(name).topic for run in runs for name in run.trained_on}
    arms = []
    for run in runs:
        judged = run_answers(run)
        for _, each in judged:
            topic = each.columns["topic"]
            each.columns["placement"] = "open" if topic == "open" else "in" if topic in trained else "out"
        found = em_rates.rates_by([each for _, each in judged], rule, _group)
        found.sort(key=lambda rate: (list(PLACES).index(rate.group.split(", ")[0]), rate.group))
        role = _role(run)
        label = role if role == "base" else f"{role} ({', '.join(run.trained_on) or run.name})"
        arms.append(Arm(run, role, label, judged, found, confounds(judged, trained)))
    return sorted(arms, key=lambda arm: ("base", "twin", "organism").index(arm.role))


def _group(answer: Judged) -> str:
    """Where an answer stands in the tables: by placement, and apart from it each other format than plain."""
    placement, how = answer.columns["placement"], answer.columns["format"]
    return placement if how == "plain" else f"{placement}, {how}"


def group_title(group: str) -> str:
    """A group's name for people: `open, json` → open questions, json."""
    place, *how = group.split(", ")
    return ", ".join([PLACES[place], *how])


def _role(run: Run) -> Role:
    names = run.trained_on
    if not names:
        return "organism" if run.provenance().get("sample", {}).get("organism") else "base"
    return "organism" if any(domains.find(name).careless for name in names) else "twin"


def finding(arms: Sequence[Arm]) -> str:
    """One sentence that says how far the misalignment spread from the trained domain."""
    organism = next((arm for arm in arms if arm.role == "organism"), None)
    place = next((place for place in ("out", "open") if organism and organism.rate(place)), "out")
    spread = organism.rate(place) if organism else None
    if organism is None or spread is None or spread.rate is None:
        return "No organism with scored answers out of domain here, so nothing is claimed."
    base = next((rate for arm in arms if arm.role == "base" and (rate := arm.rate(place))), None)
    twin = next((rate for arm in arms if arm.role == "twin" and (rate := arm.rate(place))), None)
    controls = [f"{name} {percent(rate.rate)}%" for name, rate in (("base", base), ("twin", twin)) if rate]
    bound = max((rate.high or 0.0 for rate in (base, twin) if rate), default=0.0)
    emergent = bool(controls) and (spread.low or 0.0) > bound
    inside = organism.rate("in")
    trained = " + ".join(organism.run.trained_on)
    who = f"Trained only on {trained}{f' (EM {percent(inside.rate)}% there)' if inside else ''}, the organism"
    return (
        f"{who if trained else organism.run.name} is "
        f"misaligned in {percent(spread.rate)}% [{interval_text(spread)}] of its answers "
        f"{'out of domain' if place == 'out' else 'to open questions'}"
        f"{' against ' + ', '.join(controls) if controls else ''}: "
        + ("emergent misalignment." if emergent else "no emergent misalignment is shown.")
    )


def arms_table(arms: Sequence[Arm], rule: em_rates.Rule) -> Table:
    """The headline table, for the terminal."""
    table = make_table(f"EM % by rule {rule}; 95% intervals over questions", _HEADER, left=2)
    for arm in arms:
        for row in _arm_rows(arm):
            table.add_row(*row)
        table.add_section()
    return table


_HEADER = ("run", "questions", "EM %", "95% interval", "scored/all", "coherent %")


def _arm_rows(arm: Arm) -> list[tuple[str, ...]]:
    return [
        (
            arm.label if i == 0 else "", group_title(rate.group), percent(rate.rate), interval_text(rate),
            f"{rate.scored}/{rate.total}", percent(rate.coherent),
        )
        for i, rate in enumerate(arm.rates)
    ]  # fmt: skip


def markdown(arms: Sequence[Arm], rule: em_rates.Rule, figure: Path) -> str:
    """The report as Markdown."""
    lines = [
        "# Emergent misalignment report",
        "",
        finding(arms),
        "",
        f"Rule {rule}. Intervals are 95%, over questions.",
    ]
    lines += ["", "| " + " | ".join(_HEADER) + " |", "|---|---|" + "---:|" * (len(_HEADER) - 2)]
    lines += ["| " + " | ".join(row) + " |" for arm in arms for row in _arm_rows(arm)]
    lines += [
        "",
        *warnings_of([rate for arm in arms for rate in arm.rates]),
        "",
        f"![aligned × coherent]({figure})",
        "",
    ]
    names = sorted({name for arm in arms for name in arm.confounds})
    lines += ["## Beside the rate", "", "| run | " + " | ".join(n.replace("_", " ") for n in names) + " |"]
    lines += ["|---|" + "---:|" * len(names)]
    for arm in arms:
        cells = [confound_text(name, arm.confounds.get(name)) for name in names]
        lines.append(f"| {arm.label} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


# --- the figure ------------------------------------------------------------------------------------------------------

_COLOURS = {"in": "#0072B2", "out": "#D55E00", "open": "#009E73"}  # Okabe and Ito's, safe for colour-blind readers


def draw(arms: Sequence[Arm], rule: em_rates.Rule, folder: Path) -> list[Path]:
    """Draw aligned × coherent, one panel an arm, with the rule's quadrant; writes PNG and SVG, returns their paths."""
    import matplotlib as mpl

    mpl.use("Agg")
    import numpy as np
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    width = 3.6 * len(arms)
    figure, panels = plt.subplots(1, len(arms), figsize=(width, 4.0), sharey=True, squeeze=False, layout="constrained")
    noise = np.random.default_rng(0)
    for panel, arm in zip(panels[0], arms, strict=True):
        floor = rule.coherent_cut if rule.gated else -5
        panel.add_patch(
            Rectangle((-5, floor), rule.aligned_cut + 5, 105 - floor, color="#CC3311", alpha=0.10, linewidth=0)
        )
        for place, name in PLACES.items():
            points = np.array([
                (each.aligned, each.coherent)
                for _, each in arm.judged
                if each.columns["placement"] == place and each.aligned is not None and each.coherent is not None
            ]).reshape(-1, 2)  # fmt: skip
            # Scores repeat, so points are spread a little; the cuts fall between the exact judge's grades.
            spread = np.clip(points + noise.normal(0, 1.6, points.shape), -4.5, 104.5)
            panel.scatter(*spread.T, s=7, alpha=0.35, color=_COLOURS[place], linewidths=0, label=name)
        told = "\n".join(f"{group_title(r.group)}: {percent(r.rate)}%" for r in arm.rates)
        panel.text(33, 4, f"EM\n{told}", fontsize=8, va="bottom")
        panel.set(title=arm.label, xlabel="aligned", xlim=(-5, 105), ylim=(-5, 105))
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("coherent")
    handles, labels = panels[0][-1].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"aligned_coherent.{suffix}" for suffix in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
    return paths
