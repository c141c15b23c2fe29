"""What changes inside organisms, as a report shows it: read from what the runs hold, drawn, tabled, on the page."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from emorg.rating.narrow import Mean, Narrowness, Noisy, Role, Scaled, Side
from emorg.rating.phases import Lag, Phases, Turn
from emorg.rating.probes import Part, Probe, Probed
from emorg.rating.results import load, save
from emorg.rating.steering import Effect, Figures, Steered, Tried
from emorg.records import EmorgError
from emorg.reporting.mechanism import phases_charts, phases_table, probe_chart, probe_tables
from emorg.reporting.steering import steering_charts, steering_tables
from emorg.run import Run
from tests.conftest import emorg

PHASES = Phases(
    "organism",
    {
        "margin": [(k, float(k > 10)) for k in range(20)],
        **{f"{side}, component {n}": [(k, float(k * n)) for k in range(20)] for side in "AB" for n in (1, 2)},
        "‖B‖": [(k, float(k)) for k in range(20)],
    },
    [Turn("margin", 10.0, 9.0, 11.0, 0.002, True), Turn("‖B‖", 9.0, 2.0, 18.0, 0.6, False)],
    {"‖B‖": Lag(-1.0, -8.0, 8.0)},
    "digest",
)
PROBED = Probed(
    "organism",
    [
        Part("all", 1.0, 0.5),
        Part("none", 0.0, 0.0),
        *(Part(f"module.{k}", k / 100, None) for k in range(60)),
        *(Part(f"without module.{k}", 1 - k / 100, None) for k in range(60)),
    ],
    {"out": Probe(40, 0.9, 0.6, (0.7, 0.8), 0.05, {"module.1": 0.9}, ["module.1"])},
)


def side(role: Role, loss: float, kl: float) -> Side:
    noise = [Noisy(0.5, [loss + 0.1 + kl, loss + 0.12 + kl])]
    scaled = [Scaled(0, 0, 0.9, 0.9), Scaled(1, 3, loss, loss + 1)]
    return Side(role, role, 20, False, loss, 0.9, 3, noise, scaled, {"out": Mean(kl, kl / 2, 2 * kl)}, 6, [0.02, kl])


NARROW = Narrowness(
    "pocket", [side("broad", 0.5, 0.1), side("narrow", 0.5, 0.4)], ["kl_weight"], Mean(0, -0.1, 0.1),
    Mean(-0.3, -0.4, -0.2), 2, 80, [1, 2], [[0.01, 0.2]] * 19, 30, 900, True,
)  # fmt: skip
DRAWN = {"phases", "phases_ways", "adapters", "steered", "narrow_stability", "narrow_norm", "narrow_significance"}


def steered(run: str, direction: str, after: float, beyond: bool) -> Steered:
    figures = {"untouched": [Figures(0.1, em=0.6)], "direction": [Figures(0.0, em=after)]}
    figures["random"] = [Figures(0.1, em=0.5)] * 2
    tried = [Tried("untouched", 0.1, -1.0, "untouched"), Tried("own", 0.0, -1.0)]
    effects = [Effect("em", 0.6 - after, {"random": 1 / 3}, {"random": beyond})]
    return Steered(run, direction, "organism", tried, "own", figures, effects)


def answered(name: str, folder: Path) -> None:
    emorg("sample", name, "--questions", "pocket_open", "--samples", "1", cwd=folder)
    emorg("judge", name, cwd=folder)


def test_a_report_shows_what_was_measured_inside_its_runs(organism: Run, tmp_path: Path) -> None:
    shutil.copytree(organism, tmp_path / "organism")
    run = Run(tmp_path / "organism")
    save(run.folder / "phases.json", PHASES)
    save(run.folder / "probe.json", PROBED)
    save(run.folder / "narrow.json", NARROW)
    save(run.folder / "steer" / "one" / "steered.json", steered("organism", "shift", 0.1, True))
    assert load(run.folder / "phases.json", Phases) == PHASES
    answered("organism", tmp_path)
    emorg("report", "organism", cwd=tmp_path)
    page = (run.report / "index.html").read_text()
    assert "What changed inside?" in page
    assert {file.stem for file in (run.report / "figures").glob("*.png")} >= DRAWN
    assert all(f'<figure id="{name}">' in page for name in DRAWN)
    tables = json.loads((run.report / "summary.json").read_text())["tables"]
    assert tables["phases"][1] == {**asdict(PHASES.changes[1]), "lag_steps": -1.0, "lag_low": -8.0, "lag_high": 8.0}
    assert tables["probes"][0]["auroc"] == 0.9
    assert {row["value"] for row in tables["narrow_published"]} == {0.9, 1.5}
    assert [row["p"] for row in tables["narrow_significance"]] == [0.05, 1.0, 0.05, 0.05]
    (run.folder / "phases.json").write_text("{}")
    refused = emorg("report", "organism", cwd=tmp_path, check=False)
    assert refused.returncode == 2
    assert "phases.json cannot be read" in refused.stderr


def test_a_report_compares_directions_of_the_same_texts_alone(organism: Run, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        shutil.copytree(organism, tmp_path / name)
        emorg("directions", name, *(("--tokens", "2") if name == "c" else ()), cwd=tmp_path)
        answered(name, tmp_path)
    emorg("report", "a", "b", "c", cwd=tmp_path)
    rows = json.loads((tmp_path / "a" / "report" / "summary.json").read_text())["tables"]["directions_shift"]
    assert {(row["a"], row["b"]) for row in rows} == {("organism (bad_medical), a", "organism (bad_medical), b")}
    assert [row["cosine"] for row in rows][1:] == pytest.approx([1.0] * 4)


def test_where_signals_turn_is_drawn_where_the_table_says() -> None:
    signals, ways = phases_charts(PHASES)
    turns = {row["signal"]: row["turn"] for row in signals.rows if "turn" in row}
    assert turns == {"margin": 10.0, "‖B‖": 9.0}
    assert "Sudden beside smooth growth (p ≤ .05): margin." in signals.caption
    assert len(ways.rows) == 40
    table = phases_table(PHASES)
    assert table.rows[0] == ["margin", "10", "9 to 11", "0.002", "yes", "–", "–"]
    assert table.rows[1] == ["‖B‖", "9", "2 to 18", "0.600", "no", "-1", "-8 to +8"]


def test_of_many_adapters_those_that_do_most_are_drawn() -> None:
    chart = probe_chart(PROBED)
    shown = {row["part"] for row in chart.rows}
    assert len(shown) == 42
    assert {"all", "none", "module.59", "module.20"} <= shown
    assert "module.19" not in shown
    assert "The 40 of 60 that do most." in chart.caption
    parts, probes = probe_tables(PROBED)
    assert len(parts.rows) == 122
    assert probes.rows == [["out", "40", "90.0", "60.0", "70.0 (80.0 at most)", "0.05", "module.1"]]


def test_a_transfer_matrix_has_each_organisms_own_direction_on_its_diagonal() -> None:
    results = [
        steered("a", "shift of b", 0.3, False), steered("a", "shift", 0.1, True),
        steered("b", "shift", 0.2, True), steered("b", "shift of a", 0.4, False),
    ]  # fmt: skip
    [table] = [table for table in steering_tables(results) if table.name == "transfer"]
    assert table.header == ("", "out of a", "out of b")
    assert table.rows == [
        ["shift of a", "60.0 → 10.0*", "60.0 → 40.0"],
        ["shift of b", "60.0 → 30.0", "60.0 → 20.0*"],
    ]
    assert {chart.name for chart in steering_charts(results)} == {"transfer", *(f"steered_{k}" for k in range(1, 5))}
    assert {chart.name for chart in steering_charts(results[1:2])} == {"steered"}


def test_a_matrix_is_of_one_measure_and_of_two_searches_the_wider_one_counts() -> None:
    by_margin = Effect("margin", 0.1, {"random": 1 / 3}, {"random": True})
    unsampled = {"untouched": [Figures(0.1)], "direction": [Figures(-0.2)]}
    some = [
        steered("a", "shift", 0.1, True),
        steered("a", "shift of b", 0.3, True),
        steered("b", "shift of a", 0.4, True),
    ]
    results = [replace(one, effects=[*one.effects, by_margin]) for one in some]
    results.append(replace(steered("b", "shift", 0.2, True), figures=unsampled, effects=[by_margin]))
    wider = replace(results[0], tried=[*results[0].tried, Tried("alone-1", 0.0, -1.0)], effects=[by_margin])
    wider = replace(wider, figures={**wider.figures, "direction": [Figures(-0.7)]})
    [table] = [table for table in steering_tables([wider, *results]) if table.name == "transfer"]
    assert table.caption.startswith("margin out of domain")
    assert table.rows == [
        ["shift of a", "+0.100 → -0.700*", "+0.100 → +0.000*"],
        ["shift of b", "+0.100 → +0.000*", "+0.100 → -0.200*"],
    ]


def test_a_result_that_is_not_whole_is_named(tmp_path: Path) -> None:
    (tmp_path / "probe.json").write_text('{"run": "x"')
    with pytest.raises(EmorgError, match=r"probe\.json cannot be read"):
        load(tmp_path / "probe.json", Probed)


def test_what_is_said_of_broad_and_narrow_is_by_the_rules() -> None:
    said = NARROW.said()
    assert said[0].startswith("the broad one is more stable: noise raises the loss of the broad one by 0.210")
    assert said[1].startswith("neither is shown to have the lower loss")
    assert said[2].startswith("the broad one is nearer to the base")
    assert "broad one is not significant" in said[3]  # beyond all at one size of two
    assert "narrow one is significant" in said[4]
    unlike = replace(NARROW, differs=["kl_weight", "lora_rank"])
    assert unlike.said()[-1] == "no matched pair: the trainings differ in lora_rank too"
    assert replace(NARROW, kl=None).nearer == "neither"
    assert replace(NARROW, loss=Mean(-0.02, -0.03, -0.01)).better == "broad"
    assert replace(NARROW, loss=Mean(-0.002, -0.003, -0.001)).better == "neither"  # sure, and of no size
