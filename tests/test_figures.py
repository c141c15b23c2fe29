"""Figures: one specification from Altair, written as SVG and PNG."""

from __future__ import annotations

from pathlib import Path

import altair as alt

from emorg.figures import ROWS, specification, write


def _chart() -> alt.LayerChart:
    line = alt.Chart().mark_line().encode(x="x:Q", y="y:Q")
    mark = alt.Chart(alt.InlineData(values=[{}])).mark_rule().encode(y=alt.YDatum(1, type="quantitative"))
    return alt.LayerChart(layer=[line, mark], data=alt.NamedData(ROWS))


def test_a_specification_holds_no_rows_and_nothing_of_the_readers_theme() -> None:
    spec = specification(_chart())
    assert set(spec) == {"$schema", "config", "data", "layer"}
    assert spec["data"] == {"name": "rows"}
    assert list(spec["config"]) == ["legend"]
    with alt.theme.enable("dark"):
        assert specification(_chart()) == spec
        assert alt.theme.active == "dark"
    assert alt.data_transformers.consolidate_datasets is True


def test_a_figure_is_written_with_its_title_and_rows(tmp_path: Path) -> None:
    rows = [{"x": 0, "y": 1}, {"x": 1, "y": float("inf")}, {"x": 2, "y": 3}]
    svg, png = write(specification(_chart()), rows, tmp_path, "drawn", "<b>Title</b>", "word " * 40)
    assert [svg.name, png.name] == ["drawn.svg", "drawn.png"]
    written = svg.read_text()
    assert "&lt;b&gt;Title&lt;/b&gt;" in written
    assert written.count("word") >= 40, "a long subtitle is broken, not cut"
    assert png.read_bytes().startswith(b"\x89PNG")
