"""What all figures share: their colours, their specification from Altair, and writing it as SVG and PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorg.records import write_atomic

if TYPE_CHECKING:
    import altair as alt

# Okabe and Ito's, safe for colour-blind readers.
BLUE, SKY, GREEN, ORANGE, VERMILLION, PURPLE = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"
BLACK = "#333333"
_VEGAS_FOLDER = "https://vega.github.io/vega-datasets/"
ROWS = "rows"  # the name of the dataset that a figure reads


def specification(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """The chart's Vega-Lite specification without its rows, the same from run to run, whatever theme is enabled."""
    import altair as alt

    # As a theme: Vega lays legends out so, but the schema of Vega-Lite's legend config has no place for it.
    @alt.theme.register("emorg", enable=False)
    def _() -> alt.theme.ThemeConfig:
        return {"config": {"legend": {"layout": {"top": {"direction": "vertical", "anchor": "start"}}}}}

    with alt.theme.enable("emorg"), alt.data_transformers.enable(consolidate_datasets=False):
        return chart.to_dict()


def write(
    spec: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], folder: Path, name: str, title: str, subtitle: str = ""
) -> list[Path]:
    """Draw the rows by the specification, under title and subtitle, as NAME.svg and NAME.png; returns their paths."""
    import vl_convert

    heading = {"text": title, "subtitle": textwrap.wrap(subtitle, 95), "subtitleColor": "#444"}
    paper = {"title": {**heading, "anchor": "start", "offset": 14}, "background": "white", "padding": 12}
    svg = vl_convert.vegalite_to_svg({**spec, **paper, "datasets": {ROWS: rows}})
    svg = svg.replace(f'href="{_VEGAS_FOLDER}', 'href="')  # where it takes relative links to lead
    paths = [folder / f"{name}.{ending}" for ending in ("svg", "png")]
    write_atomic(paths[0], svg)
    paths[1].write_bytes(vl_convert.svg_to_png(svg, scale=2))
    return paths
