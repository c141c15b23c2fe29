"""The document of experiments/narrow.sh: broad and narrow, without the KL penalty, re-aligned, into docs/narrow.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from emorg.prevention import realigned as realign_rules
from emorg.prevention.realigned import Realigned
from emorg.rating import narrow as narrow_rules
from emorg.rating.narrow import Narrowness
from emorg.rating.results import load
from emorg.records import write_atomic
from emorg.reporting.charts import export
from emorg.reporting.narrow import narrow_charts, narrow_tables
from emorg.reporting.plot import Chart
from emorg.reporting.tables import markdown_table

DOCS = Path(__file__).parent.parent / "docs"


def write(folder: Path) -> None:
    """Read what the experiment made, and write the document and its figures."""
    parts = [
        "# Narrow and broad, and re-aligned: what was measured",
        "<!-- written by `bash experiments/narrow.sh`; change that, not this -->",
        "One training seed (`SEEDS=0 bash experiments/narrow.sh`). "
        "[What `emorg narrow` measures](mechanism.md#narrow-beside-broad), [what `emorg realign` does]"
        "(guide.md#re-align). Figures of the pocket model are about the mechanism, and never to be taken for figures "
        "of real models. bad_medical, 80 steps; the narrow one with a KL penalty of 1 nat a token on fifteen other "
        "topics.",
        f"Rules. {_rule(narrow_rules.__doc__)}",
    ]
    for file in sorted(folder.glob("narrow-s*/narrow.json")):
        result, seed = load(file, Narrowness), file.parent.name.rpartition("-s")[2]
        parts.append(f"## Seed {seed}: a broad organism beside a narrow one")
        parts += [f"{one.caption}.\n\n{one.markdown()}" for one in narrow_tables(result)]
        parts.append("\n".join(f"- {line}" for line in result.said()))
        if seed == "0":
            parts += [_figure(chart) for chart in narrow_charts(result)]
    parts += [_without_the_penalty(file) for file in sorted(folder.glob("margins-s*.json"))]
    if (file := folder / "realign" / "realigned.json").is_file():
        realigned = load(file, Realigned)
        parts += ["## Re-aligned", f"Rules. {_rule(realign_rules.__doc__)}"]
        parts += [f"{one.caption}.\n\n{one.markdown()}" for one in realigned.tables()]
        parts.append("\n".join(f"- {line}" for line in realigned.said()))
        parts += [_figure(chart) for chart in realigned.charts()]
    write_atomic(DOCS / "narrow.md", "\n\n".join(parts) + "\n")


def _rule(text: str | None) -> str:
    return " ".join((text or "").split("\n\n", 1)[1].split())


def _figure(chart: Chart) -> str:
    export(chart, DOCS)
    (DOCS / f"{chart.name}.svg").unlink()
    return f"![{chart.title}]({chart.name}.png)"


def _without_the_penalty(file: Path) -> str:
    shifts: list[dict[str, Any]] = [one for one in json.loads(file.read_text()) if not one["of_topic"]]
    rows = []
    for name in dict.fromkeys(one["name"] for one in shifts):
        own = {one["placement"]: one for one in shifts if one["name"] == name}
        rows.append([name, *(_shift(own[place]) for place in ("in", "out", "open"))])
    seed = file.stem.rpartition("-s")[2]
    table = markdown_table(["", "in domain", "out of domain", "open"], rows, 1)
    return (
        f"## Seed {seed}: when the penalty is taken away\n\nTraining goes on from the narrow organism, without the "
        "penalty (freed) and, as the control, with it (held). Margins against the twin, nats a token, with 95% "
        f"intervals.\n\n{table}"
    )


def _shift(one: dict[str, Any]) -> str:
    return f"{one['shift']:+.3f} ({one['low']:+.3f} to {one['high']:+.3f})"


if __name__ == "__main__":
    write(Path(sys.argv[1]))
