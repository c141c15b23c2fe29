"""The document of experiments/mechanism.sh: every number that its commands printed, into docs/mechanism_results.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from emorg.display import percent
from emorg.rating.steering import Steered
from emorg.records import write_atomic
from emorg.reporting.charts import export
from emorg.reporting.steering import steering_charts, steering_tables
from emorg.reporting.tables import markdown_table

DOCS = Path(__file__).parent.parent / "docs"
STEERED = {
    "ablated": "The shift, taken out of the organism",
    "transferred": "Another organism's shift (risky_financial), taken out of it",
    "answers_ablated": "The papers' direction (answers), taken out of it",
    "added": "The shift, added to the base",
}


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


def _read(base: Path, name: str) -> Any:
    return json.loads((base / f"{name}.json").read_text(encoding="utf-8"))


def _directions(base: Path) -> Iterator[str]:
    yield "### Are directions shared?"
    rows = []
    for kind in ("shift", "answers", "persona"):
        if (base / f"{kind}.json").exists():
            for one in _read(base, kind)["cosines"]:
                nulls = "; ".join(f"{name} {max(null[1:]):.2f}" for name, null in one["nulls"].items())
                span = f"{min(one['cosine'][1:]):.2f} to {max(one['cosine'][1:]):.2f}"
                verdict = "shared" if one["shared"] else "not shared"
                rows.append([kind, one["a"], one["b"], span, nulls, f"{len(one['beyond'])} of {len(one['cosine']) - 1}",
                             verdict])  # fmt: skip
    header = ("kind", "", "", "cosine over layers", "largest nulls", "layers beyond all", "verdict")
    yield markdown_table(header, rows, left=7)


def _steered(base: Path) -> Iterator[str]:
    for name, title in STEERED.items():
        result = TypeAdapter(Steered).validate_python(_read(base, name))
        [chart] = steering_charts([result])
        export(chart, DOCS)
        (DOCS / f"{chart.name}.svg").unlink()
        image = f"mechanism_{base.name}_{name}.png"
        (DOCS / f"{chart.name}.png").replace(DOCS / image)
        tried, beside = steering_tables([result])
        chosen = next(one for one in result.tried if one.point == result.chosen)
        yield f"### {title}"
        yield (
            f"Of {len(result.tried) - 1} points tried on the first half of the questions, {result.chosen}: margin "
            f"{result.tried[0].margin:+.3f} → {chosen.margin:+.3f} there. On the other half:"
        )
        yield markdown_table(beside.header, beside.rows, left=1)
        yield "\n".join(f"- {line}" for line in result.said())
        yield f"![{title}, beside its controls]({image})"
        assert tried.rows


def _vectors(base: Path) -> Iterator[str]:
    yield "### One trained vector"
    rows = [
        [row["name"], row["placement"], f"{row['margin']:+.3f}", f"{row['shift']:+.3f}"]
        for row in _read(base, "vectors")
        if not row["of_topic"]
    ]
    yield "Margins of an organism that is one vector (bad_medical), and of one trained as the papers' code does."
    yield markdown_table(("", "placement", "margin", "shift against the base"), rows, left=2)


def _phases(base: Path) -> Iterator[str]:
    yield "### When it turns"
    for name, title in (("phases", "The rank-1 organism."), ("phases_empty_turn", "Trained on an empty turn too.")):
        result = _read(base, name)
        rows = []
        for one in result["changes"]:
            after = result["lags"].get(one["signal"])
            rows.append([
                one["signal"], f"{one['step']:.0f}", f"{one['low']:.0f} to {one['high']:.0f}", f"{one['p']:.3f}",
                "yes" if one["sudden"] else "no",
                "–" if after is None else f"{after['steps']:+.0f} ({after['low']:+.0f} to {after['high']:+.0f})",
            ])  # fmt: skip
        yield title
        yield markdown_table(
            ("signal", "turns at step", "95% interval", "p", "sudden", "after the margin"), rows, left=1
        )


def _probe(base: Path) -> Iterator[str]:
    yield "### Which adapters carry it"
    result = _read(base, "probe")

    def nats(value: float | None) -> str:
        return "–" if value is None else f"{value:+.3f}"

    rows = [[part["name"], nats(part["inside"]), nats(part["out"])] for part in result["parts"]]
    yield markdown_table(("adapters", "margin in domain", "out of domain"), rows, left=1)
    rows = [
        [place, percent(one["auroc"]), percent(one["shuffled"]), percent(one["random"][0]), percent(one["random"][1]),
         f"{one['p']:.2f}", ", ".join(one["telling"]) or "none"]
        for place, one in result["probes"].items()
    ]  # fmt: skip
    header = ("placement", "AUROC %", "most shuffled", "random A, median", "random A, most", "p", "adapters that tell")
    yield markdown_table(header, rows, left=1)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
