"""The document of experiments/prevent.sh: what `emorg prevent` found, into docs/prevention.md."""

from __future__ import annotations

import sys
from pathlib import Path

from emorg.prevention import measured
from emorg.prevention.table import Prevented
from emorg.rating.results import load
from emorg.records import write_atomic
from emorg.reporting.charts import export

DOCS = Path(__file__).parent.parent / "docs"


def write(folder: Path) -> None:
    """Read what the experiment made, and write the document and its figures."""
    rule = " ".join((measured.__doc__ or "").split("\n\n", 1)[1].split())
    parts = [
        "# Prevention: what was measured",
        "<!-- written by `bash experiments/prevent.sh`; change that, not this -->",
        "[What each mitigation is](guide.md#prevent). Figures of the pocket models are about the mechanism, and never "
        "to be taken for figures of real models. Three training seeds each.",
        rule,
    ]
    for place in sorted(folder.glob("*/prevented.json")):
        result, name = load(place, Prevented), place.parent.name
        parts.append(f"## {name}")
        parts += [one.markdown() for one in result.tables()]
        parts.append("\n".join(f"- {line}" for line in result.said()))
        for chart in result.charts():
            image = DOCS / f"prevention_{name}.png"
            export(chart, DOCS)
            (DOCS / f"{chart.name}.svg").unlink()
            (DOCS / f"{chart.name}.png").replace(image)
            parts.append(f"![{chart.title}]({image.name})")
    write_atomic(DOCS / "prevention.md", "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
