"""A sweep's page: its headline, its figures, and every cell with the way to its own report. No script, no network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from emorg.reporting import ReportConfig, report
from emorg.reporting.tables import Table
from emorg.runs import em_text
from emorg.sweep.table import Collected

_HERE = Path(__file__).parent


def write_reports(collected: Collected) -> None:
    """Write each judged organism's own report, beside the base and its twin where they were sampled alike."""
    for cell in collected.cells:
        if cell["arm"] == "organism" and collected.judged[cell["name"]]:
            controls = [*collected.beside(cell), collected.run(cell)]
            report(ReportConfig(tuple(str(run.folder) for run in controls), rule=collected.rule.name))


def page(
    collected: Collected, headlines: Sequence[Table], lines: Sequence[str], states: str, figures: Sequence[Path]
) -> str:
    """The page, with the figures in it; `lines` are said under the title."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    cells = []
    for cell in collected.cells:
        run = collected.run(cell)
        there = (run.report / "index.html").exists()
        cells.append({
            "name": cell["name"], "arm": cell["arm"], "error": collected.errors.get(cell["name"], ""),
            "state": collected.states[cell["name"]],
            "em": em_text(run), "report": f"{cell['name']}/report/index.html" if there else "",
        })  # fmt: skip
    return environment.get_template("page.html").render(
        name=collected.folder.resolve().name,
        states=states,
        rule=str(collected.rule),
        style=(resources.files("emorg.reporting") / "page.css").read_text(encoding="utf-8"),
        lines=lines,
        tables=headlines,
        pictures=[_inline(path) for path in figures],
        cells=cells,
        linked=any(cell["report"] for cell in cells),
    )


def _inline(figure: Path) -> str:
    """An SVG of ours as part of the page: its ids its own among the figures, its links from where the page lies."""
    svg = figure.read_text(encoding="utf-8")
    svg = re.sub(r'(\bid="|url\(#)', rf"\g<1>{figure.stem}-", svg)
    return svg.replace('href="../index.html#', 'href="#').replace('href="../', 'href="')
