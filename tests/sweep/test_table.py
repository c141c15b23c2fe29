"""What a sweep came to: one tidy table, rates over seeds, and the matrix of who spreads where."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

import emorg as package
from emorg.rating.intervals import cluster_wilson, crossed_wilson, wilson
from emorg.rating.rules import RULES
from emorg.records import EmorgError
from emorg.sweep.charts import draw
from emorg.sweep.matrix import asymmetry, halves_of, matrix_of
from emorg.sweep.table import _SHIFTS, Collected
from tests.conftest import emorg
from tests.judged_runs import Said, judged_run

TOPICS = ("medical", "financial", "sports", "cooking")
DOMAINS = ("bad_medical", "risky_financial", "extreme_sports", "bad_cooking")
BAD = 0.0


def test_the_table_has_every_cell_and_what_rates_alone_say(four: Path) -> None:
    frame = package.collect(four)
    assert list(frame.columns)[:8] == [
        "cell", "arm", "base", "state", "error", "train.domains", "train.seed", "checkpoint"
    ]  # fmt: skip
    assert set(frame["state"]) == {"done"}
    assert frame["cell"].nunique() == 5
    assert frame.groupby("cell").size().loc["bad_medical-s0"] == 3
    assert frame.groupby("cell").size().loc["pocket-base"] == 2, "nothing is in a base's domain"
    own = package.rates(four / "bad_medical-s0", by="placement").set_index("placement")
    for row in frame[frame["cell"] == "bad_medical-s0"].to_dict("records"):
        assert row["em"] == pytest.approx(own.loc[row["placement"], "em"])
        assert row["high"] == pytest.approx(own.loc[row["placement"], "high"])
        assert len(row["identity"]) == 8
        assert len(row["data_sha256"]) == 64


def test_the_command_writes_the_tables_and_the_figures(four: Path) -> None:
    told = emorg("collect", four).stdout
    assert "5 cells done" in told
    frame = package.collect(four)
    for read in (pd.read_csv(four / "cells.csv"), pd.read_parquet(four / "cells.parquet")):
        assert list(read.columns) == list(frame.columns)
        assert read["em"].to_numpy() == pytest.approx(frame["em"].to_numpy(dtype=float))
    seeds = pd.read_csv(four / "seeds.csv")
    assert set(seeds[seeds["arm"] == "organism"]["seeds"]) == {2}
    for name in ("em_by_domains.png", "em_by_domains.svg"):
        assert (four / "figures" / name).stat().st_size > 1000
    refused = emorg("collect", four / "pocket-base", check=False)
    assert refused.returncode == 2
    assert "is no sweep" in refused.stderr
    with pytest.raises(EmorgError, match="did you mean 'paper'"):
        package.collect(four, rule="papr")


def test_a_rate_of_one_seed_is_over_questions_alone() -> None:
    table = np.array([[(1, 10), (4, 10), (0, 10), (2, 10)]], dtype=float)
    assert crossed_wilson(table)[1:] == pytest.approx(cluster_wilson([(1, 10), (4, 10), (0, 10), (2, 10)]))


def test_seeds_that_differ_widen_the_interval_and_seeds_that_agree_shorten_it() -> None:
    draw = np.random.default_rng(0)
    agree = np.stack([np.full((3, 40), 4), np.full((3, 40), 10)], axis=-1).astype(float)
    agree[..., 0] += draw.integers(-2, 3, (3, 40))
    apart = agree.copy()
    apart[..., 0] += np.array([-2, 0, 2])[:, None]
    widths = [high - low for _, low, high in (crossed_wilson(agree[:1]), crossed_wilson(agree), crossed_wilson(apart))]
    assert widths[1] < widths[0] < widths[2]


@pytest.mark.parametrize("by_seed", [0.0, 0.5])
def test_the_interval_over_seeds_holds_the_truth(by_seed: float) -> None:
    draw = np.random.default_rng(1)
    truth = expit(-1 + np.hypot(by_seed, 1) * draw.standard_normal(200_000)).mean()
    held = 0
    for _ in range(400):
        own = expit(-1 + by_seed * draw.standard_normal((4, 1)) + draw.standard_normal((1, 40)))
        table = np.stack([draw.binomial(10, own), np.full(own.shape, 10)], axis=-1).astype(float)
        _, low, high = crossed_wilson(table)
        held += low <= truth <= high
    assert held / 400 > 0.91


def test_of_one_seed_and_one_question_the_answers_alone_tell() -> None:
    assert crossed_wilson(np.array([[[3.0, 10.0]]])) == pytest.approx((0.3, *wilson(3, 10)))


def test_nothing_seen_is_not_nothing_possible() -> None:
    table = np.stack([np.zeros((3, 8)), np.full((3, 8), 10)], axis=-1)
    rate, low, high = crossed_wilson(table)
    assert rate == low == 0
    assert 0.01 < high < 0.3


# --- the matrix ------------------------------------------------------------------------------------------------------


def _swept(folder: Path, spread: dict[tuple[str, str], int]) -> Collected:
    """A sweep of judged runs without a model: of ten answers to each topic so many are misaligned; two seeds."""
    cells = []
    for topic, domain in zip(TOPICS, DOMAINS, strict=True):
        for seed in (0, 1):
            said = [
                Said(f"{asked}_{k % 5}", "So.", aligned=BAD if k < spread[topic, asked] else 100, topic=asked)
                for asked in TOPICS for k in range(10)
            ]  # fmt: skip
            judged_run(folder / f"{domain}-s{seed}", said, trained_on=[domain])
            name = f"{domain}-s{seed}"
            values = {"train.domains": [domain], "train.seed": seed}
            shared = {"arm": "organism", "base": "pocket", "trained_in": name, "answers": len(said)}
            cells.append({"name": name, **shared, "values": values})
    state = {"identity": "x", "errors": {}, "cells": cells, "measures": ["answers"]}
    (folder / "sweep.json").write_text(json.dumps(state))
    return Collected.of(folder, RULES["paper"])


def test_the_matrix_is_of_trained_and_asked_topics(tmp_path: Path) -> None:
    spread = {(one, other): 9 if one == other else 2 for one in TOPICS for other in TOPICS}
    spread["medical", "cooking"] = 7
    matrix = matrix_of(_swept(tmp_path, spread))
    assert matrix is not None
    assert (matrix.topics, matrix.seeds) == (TOPICS, 2)
    frame = matrix.frame().set_index(["trained", "asked"])
    assert frame.loc[("medical", "cooking"), "em"] == pytest.approx(0.7)
    assert frame.loc[("cooking", "medical"), "em"] == pytest.approx(0.2)
    topics = matrix.summary().set_index("topic")
    assert topics.loc["medical", "given"] == pytest.approx((0.2 + 0.2 + 0.7) / 3)
    assert topics.loc["cooking", "taken"] == pytest.approx((0.2 + 0.2 + 0.7) / 3)
    told = emorg("collect", tmp_path).stdout
    assert "takes %" in told
    assert "asymmetry: it takes two seeds, 8 topics" in told
    first = f"{DOMAINS[0]}-s0"
    page = (tmp_path / "index.html").read_text()
    assert f'href="#{first}"' in page
    assert f'<tr id="{first}">' in page
    assert f'href="../index.html#{first}"' in (tmp_path / "figures" / "matrix.svg").read_text()
    assert "http" not in re.sub(r"http-equiv|http://www.w3.org", "", page)
    assert (tmp_path / "figures" / "matrix.png").exists()
    assert len(pd.read_csv(tmp_path / "matrix.csv")) == 16


def test_a_matrix_is_of_the_seeds_and_questions_that_all_have(tmp_path: Path) -> None:
    spread = dict.fromkeys([(one, other) for one in TOPICS for other in TOPICS], 2)
    collected = _swept(tmp_path, spread)
    lacking, unparsable = (collected.run(cell) for cell in (collected.cells[0], collected.cells[3]))
    lacking.verdicts.unlink()
    lines = unparsable.verdicts.read_text().splitlines()
    of_none = [
        json.dumps({**json.loads(line), "state": "unparsable", "score": None}) if f"{TOPICS[0]}_0" in line else line
        for line in lines
    ]
    assert of_none != lines
    unparsable.verdicts.write_text("\n".join(of_none) + "\n")
    matrix = matrix_of(Collected.of(tmp_path, RULES["paper"]))
    assert matrix is not None
    assert matrix.seeds == 1
    assert lacking.name in matrix.left_out
    assert len(matrix.left_out) == len(TOPICS)
    assert {table.shape[1] for (_, asked), table in matrix.tables.items() if asked == TOPICS[0]} == {4}
    assert len(matrix.summary()) == len(TOPICS)
    told = emorg("collect", tmp_path).stdout
    assert f"not in the matrix: {lacking.name}" in told


def test_a_cell_that_is_half_judged_is_in_no_rate_over_seeds(tmp_path: Path) -> None:
    _swept(tmp_path, dict.fromkeys([(one, other) for one in TOPICS for other in TOPICS], 2))
    half = tmp_path / f"{DOMAINS[0]}-s1" / "verdicts.jsonl"
    half.write_text("".join(half.read_text().splitlines(keepends=True)[:6]))
    over = Collected.of(tmp_path, RULES["paper"]).over_seeds().set_index(["train.domains", "placement"])
    assert over.loc[(DOMAINS[0], "out"), "seeds"] == 1
    assert over.loc[(DOMAINS[0], "out"), "em"] == pytest.approx(0.2)
    assert over.loc[(DOMAINS[1], "out"), "seeds"] == 2
    assert f"not in the matrix: {DOMAINS[0]}-s1" in emorg("collect", tmp_path).stdout


def test_what_is_not_there_yet_is_not_drawn(tmp_path: Path) -> None:
    collected = Collected(tmp_path, RULES["paper"], [], {}, ("answers",))

    def drawn(*arms: str) -> list[str]:
        rows = [
            {"arm": arm, "sample.temperature": t, "train.lora_rank": r, "placement": "out", "seeds": 1, "em": 0.5}
            for arm in arms for t in (0.5, 1.0) for r in (1, 8)
        ]  # fmt: skip
        rates = dict.fromkeys(("low", "high", "least", "most"), 0.5) | dict.fromkeys(_SHIFTS, float("nan"))
        return sorted(path.stem for path in draw(collected, pd.DataFrame(rows).assign(**rates), None))[::2]

    assert drawn("base") == []
    assert drawn("base", "twin") == ["em_by_lora_rank", "em_by_temperature"]
    assert drawn("organism") == ["em_by_lora_rank", "em_by_temperature", "heat_em_temperature_lora_rank"]


def test_a_sweep_of_anything_else_has_no_matrix(four: Path) -> None:
    assert matrix_of(Collected.of(four, RULES["paper"])) is None


def _halves(draw: np.random.Generator, pairs: float) -> np.ndarray:
    """Three seeds of twelve topics, eight questions each: a symmetric part, what a seed, a question and a question for
    a topic's organisms add, noise, and `pairs` of asymmetry."""
    shared = 0.1 * draw.standard_normal((12, 12, 1))
    rates = 0.5 + (shared + shared.swapaxes(0, 1)) / 2 + pairs * draw.standard_normal((12, 12, 1))
    rates = rates + 0.2 * draw.standard_normal((1, 12, 8)) + 0.1 * draw.standard_normal((12, 12, 8))
    rates = rates + 0.1 * draw.standard_normal((3, 12, 1, 1)) + 0.15 * draw.standard_normal((3, 12, 12, 8))
    tables = [[np.stack([rates[:, i, j], np.ones((3, 8))], -1) for j in range(12)] for i in range(12)]
    return halves_of(tables, splits=5)


def test_asymmetry_is_seldom_called_where_there_is_none_and_mostly_where_there_is() -> None:
    draw = np.random.default_rng(2)
    none, some = (
        [asymmetry(_halves(draw, pairs), beyond_topics=beyond, permutations=99, seed=k).p <= 0.05 for k in range(100)]
        for pairs, beyond in ((0.0, False), (0.06, True))
    )
    assert sum(none) <= 12
    assert sum(some) >= 90


def test_the_size_of_an_asymmetry_is_not_made_of_noise() -> None:
    draw = np.random.default_rng(3)
    sizes = [asymmetry(_halves(draw, 0.05), permutations=1).points for _ in range(100)]
    assert np.mean(sizes) == pytest.approx(100 * 0.05 * np.sqrt(2), abs=1.5)
