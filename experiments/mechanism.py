"""The document of experiments/mechanism.sh: every number that its commands printed, into docs/mechanism_results.md."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from emorg.rating.directions import Shared
from emorg.rating.phases import Phases
from emorg.rating.probes import Probed
from emorg.rating.steering import Steered
from emorg.records import write_atomic
from emorg.reporting.charts import export
from emorg.reporting.mechanism import (
    directions_chart,
    directions_table,
    phases_charts,
    phases_table,
    probe_chart,
    probe_tables,
)
from emorg.reporting.plot import Chart
from emorg.reporting.steering import steering_charts, steering_tables
from emorg.reporting.tables import Table, markdown_table

DOCS = Path(__file__).parent.parent / "docs"
STEERED = {
    "ablated": "The shift of bad_medical, taken out of it",
    "transferred": "Other organisms' shifts, taken out",
    "answers_ablated": "The papers' direction (answers), taken out of bad_medical",
    "added": "The shift of bad_medical, added to the base",
    "persona_added": "What a careless prompt changes, added to the base",
}
PHASES = {"phases": "The rank-1 organism", "phases_empty_turn": "The same, trained on an empty turn too"}


def write(folder: Path) -> None:
    """Read what the experiment made, and write the document and its figures."""
    parts = [
        "# Mechanism: what was measured",
        "<!-- written by `bash experiments/mechanism.sh`; change that, not this -->",
        "[What each is, and when to believe it](mechanism.md). Figures of the pocket models are about the mechanism, "
        "and never to be taken for figures of real models. One training seed each.",
    ]
    for base in sorted(path for path in folder.iterdir() if path.is_dir()):
        parts += [
            f"## {base.name}",
            *_directions(base),
            *_steered(base),
            *_vectors(base),
            *_phases(base),
            *_probe(base),
        ]
    write_atomic(DOCS / "mechanism_results.md", "\n\n".join(parts) + "\n")


def _read(base: Path, name: str, kind: Any) -> Any:
    """What a command printed; nothing where it was not run on this base."""
    file = base / f"{name}.json"
    return TypeAdapter(kind).validate_json(file.read_bytes()) if file.exists() else None


def _drawn(base: Path, charts: Iterable[Chart], name: str) -> Iterator[str]:
    for number, chart in enumerate(charts):
        image = DOCS / f"mechanism_{base.name}_{name}{f'_{number + 1}' if number else ''}.png"
        export(chart, DOCS)
        (DOCS / f"{chart.name}.svg").unlink()
        (DOCS / f"{chart.name}.png").replace(image)
        yield f"![{chart.title}]({image.name})"


def _written(tables: Iterable[Table]) -> Iterator[str]:
    for table in tables:
        yield from (f"{table.caption}:", table.markdown())


def _directions(base: Path) -> Iterator[str]:
    yield "### Are directions shared?"
    for kind in ("shift", "answers", "persona"):
        if printed := _read(base, kind, dict[str, Any]):
            names = ("a", "b", "cosine", "nulls")
            compared = [Shared(**{name: one[name] for name in names}) for one in printed["cosines"]]
            yield from _written([directions_table(kind, compared)])
            yield from _drawn(base, [directions_chart(kind, compared)], f"directions_{kind}")


def _steered(base: Path) -> Iterator[str]:
    for name, title in STEERED.items():
        if not (results := _read(base, name, list[Steered])):
            continue
        yield f"### {title}"
        yield from _written(table for table in steering_tables(results) if not table.name.startswith("tried"))
        yield "\n".join(f"- {line}" for result in results for line in result.said())
        yield from _drawn(base, steering_charts(results)[:2], name)


def _vectors(base: Path) -> Iterator[str]:
    yield "### One trained vector"
    yield "Margins of an organism that is one vector (bad_medical), and of one trained as the papers' code does."
    rows = [
        [row["name"], row["placement"], f"{row['margin']:+.3f}", f"{row['shift']:+.3f}"]
        for row in _read(base, "vectors", list[dict[str, Any]])
        if not row["of_topic"]
    ]
    yield markdown_table(("", "placement", "margin", "shift against the base"), rows, left=2)


def _phases(base: Path) -> Iterator[str]:
    yield "### When it turns"
    for name, title in PHASES.items():
        result = _read(base, name, Phases)
        yield from _written([phases_table(result, title)])
        yield from _drawn(base, phases_charts(result, title), name)


def _probe(base: Path) -> Iterator[str]:
    yield "### Which adapters carry it"
    result = _read(base, "probe", Probed)
    yield from _written(probe_tables(result))
    yield from _drawn(base, [probe_chart(result)], "adapters")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
