"""A grid's file: the cells that it spans and their names, and in a line what is no grid."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emorg.records import EmorgError
from emorg.sweep.grid import Grid
from emorg.sweep.grid_file import read


def _read(tmp_path: Path, text: str) -> Grid:
    (path := tmp_path / "grid.yaml").write_text(text)
    return read(str(path))


def test_cells_are_named_by_what_varies_and_their_twins_and_base_lie_beside_them(tmp_path: Path) -> None:
    grid = _read(
        tmp_path,
        "preset: pocket\ntrain: {max_steps: 5}\ngrid:\n  domains: [bad_medical, extreme_sports]\n  lora_rank: [1, 8]\n",
    )
    names = [cell.name for cell in grid.cells]
    assert names == [
        "pocket-base", "bad_medical-r1", "good_medical-r1", "bad_medical-r8", "good_medical-r8",
        "extreme_sports-r1", "good_sports-r1", "extreme_sports-r8", "good_sports-r8",
    ]  # fmt: skip
    assert [cell.arm for cell in grid.cells[:3]] == ["base", "organism", "twin"]
    trained = grid.trainings["good_sports-r8"]
    assert (trained.domains, trained.lora_rank, trained.max_steps, trained.batch_size) == (("good_sports",), 8, 5, 16)
    assert grid.cells[1].values == {"train.domains": ["bad_medical"], "train.lora_rank": 1}
    assert grid.measures == ("answers",)


def test_cells_that_differ_in_evaluation_alone_share_their_training(tmp_path: Path) -> None:
    text = "preset: pocket\ngrid:\n  sample.temperature: [0.5, 1.0]\n  sample.seed: [0, 1]\narms: [base, organism]\n"
    grid = _read(tmp_path, text)
    assert list(grid.trainings) == ["bad_medical"]
    assert len(grid.cells) == 8
    assert [cell.name for cell in grid.cells][:2] == [
        "pocket-base-temperature-0.5-sample-seed-0", "bad_medical-temperature-0.5-sample-seed-0"
    ]  # fmt: skip
    assert {cell.trained_in for cell in grid.cells} == {None, "bad_medical"}


def test_axes_that_go_together_and_points_left_out(tmp_path: Path) -> None:
    text = (
        "preset: pocket\narms: [organism]\ngrid: {seed: [0, 1, 2]}\nzip:\n  lora_rank: [1, 32]\n  lora_alpha: [2, 64]\n"
        "exclude:\n  - {seed: 2, lora_rank: 1}\n"
    )
    trained = _read(tmp_path, text).trainings.values()
    assert {(one.seed, one.lora_rank, one.lora_alpha) for one in trained} == {
        (0, 1, 2.0), (0, 32, 64.0), (1, 1, 2.0), (1, 32, 64.0), (2, 32, 64.0)
    }  # fmt: skip


def test_what_is_benign_is_its_own_twin_and_mixtures_have_theirs(tmp_path: Path) -> None:
    text = "preset: pocket\narms: [organism, twin]\ngrid:\n  mix: [[bad_medical=0.5, bad_cooking=0.5]]\n"
    organism, twin = _read(tmp_path, text).cells
    assert organism.train is not None
    assert twin.train is not None
    assert twin.train.domains == ("good_medical", "good_cooking")
    assert twin.train.shares == {"good_medical": 0.5, "good_cooking": 0.5}
    benign = "preset: pocket\narms: [organism, twin]\ngrid: {domains: [good_medical, bad_medical]}\n"
    assert [(cell.name, cell.arm) for cell in _read(tmp_path, benign).cells] == [
        ("good_medical", "twin"), ("bad_medical", "organism")
    ]  # fmt: skip
    alone = benign.replace("organism, twin", "organism")
    assert [cell.arm for cell in _read(tmp_path, alone).cells] == ["organism", "organism"]


def test_an_excluded_value_may_be_written_in_other_ways_than_on_its_axis(tmp_path: Path) -> None:
    text = (
        "preset: pocket\narms: [organism]\ngrid: {domains: [[bad_pets], bad_medical], learning_rate: [0.001, 2.0e-3]}\n"
    )
    kept = _read(tmp_path, text + "exclude: {domains: bad_pets, train.learning_rate: 1e-3}\n").cells
    assert [cell.name for cell in kept] == [
        "bad_pets-learning_rate-0.002", "bad_medical-learning_rate-0.001", "bad_medical-learning_rate-0.002"
    ]  # fmt: skip


def test_what_needs_a_judge_is_not_asked_of_models_without_one(tmp_path: Path) -> None:
    assert _read(tmp_path, "preset: smollm2\ngrid: {seed: [0, 1]}\n").measures == ("margins",)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- 1\n", "holds no settings"),
        ("gird: {}\n", "has a part 'gird'; did you mean 'grid'?"),
        ("preset: pocket\ngrid: {lora_rnk: [1]}\n", "the axis 'lora_rnk' is no setting; did you mean 'lora_rank'?"),
        ("preset: pocket\ngrid: {train.temperature: [1]}\n", "the axis 'train.temperature' is no setting"),
        ("preset: pocket\ngrid: {lora_rank: []}\n", "lora_rank has no values"),
        ("preset: pocket\ngrid: {lora_rank: 3}\n", "lora_rank has no values"),
        ("preset: pocket\ngrid: {lora_rank: [banana]}\n", "lora_rank is 'banana'"),
        ("preset: pocket\ngrid: {lora_rank: [0]}\n", "lora_rank 0"),
        ("preset: pocket\ngrid: {domains: [bad_medicl]}\n", "did you mean 'bad_medical'?"),
        ("preset: pocket\nzip: {seed: [1, 2], lora_rank: [1]}\n", "have seed 2, lora_rank 1 values"),
        ("preset: pocket\ngrid: {seed: [1]}\nexclude: [{seed: 1}]\n", "spans no cell"),
        ("preset: pocket\narms: [organsm]\n", "arms has 'organsm'; did you mean 'organism'?"),
        ("preset: pocket\nmeasures: [loss]\n", "measures has 'loss'"),
        ("preset: pocket\ngrid: {judge.judge: [exact]}\n", "judge.judge cannot be an axis"),
        ("preset: pocket\ngrid: {output_dir: [a]}\n", "the axis 'output_dir' is no setting"),
        ("preset: pocket\ntrain: {output_dir: a}\n", "train.output_dir is the sweep's own to set"),
        ("preset: pockett\n", "did you mean 'pocket'?"),
        ("preset: pocket\ntrain: [1]\n", "train is [1]"),
        ("preset: pocket\ntrain: []\n", "train is []"),
        ("preset: pocket\ntrain: {1: 2}\n", "no setting '1'"),
        ("preset: pocket\ngrid: {domains: [[]]}\n", "no domains"),
        ("preset: pocket\ngrid: {seed: [0, 1], train.seed: [2]}\n", "seed is an axis twice"),
        ("preset: pocket\ngrid: {seed: [0, 1]}\nzip: {seed: [2, 3], lora_rank: [1, 2]}\n", "seed is an axis twice"),
        ("preset: pocket\ngrid: {seed: [0], seed: [1]}\n", "grid.yaml:2: seed is there twice"),
        ("preset: pocket\ngrid: {seed: [0, 1]}\nexclude: 5\n", "exclude is 5"),
        ("preset: pocket\ngrid: {seed: [0, 1]}\nexclude: [{}]\n", "nothing is excluded by {}"),
        ("preset: pocket\ngrid: {seed: [0, 1]}\nexclude: [{seed: 2}]\n", "nothing is excluded by {'seed': 2}"),
        ("preset: pocket\ngrid: {seed: [0, 1]}\nexclude: [{lora_rank: 1}]\n", "nothing is excluded by"),
        ("preset: pocket\ngrid: {seed: [0, 1]}\nexclude: [{seed: [0, 1]}]\n", "seed is [0, 1]"),
        ("preset: pocket\nmeasures: []\n", "measures is empty"),
        ("preset: pocket\ncheckpoints: no way\n", "checkpoints is 'no way'"),
    ],
)
def test_what_is_no_grid_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(EmorgError) as error:
        _read(tmp_path, text)
    assert told in str(error.value)
    assert str(error.value).count("\n") == 1


def test_a_grid_that_is_not_there_names_those_of_the_package() -> None:
    with pytest.raises(EmorgError, match="did you mean 'matrix'"):
        read("matrx")


RANKS = st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True)
SEEDS = st.lists(st.integers(0, 99), min_size=1, unique=True)


@given(RANKS, SEEDS)
def test_every_point_is_one_cell(tmp_path_factory: pytest.TempPathFactory, ranks: list[int], seeds: list[int]) -> None:
    text = f"preset: pocket\narms: [organism]\ngrid: {{lora_rank: {ranks}, seed: {seeds}}}\n"
    grid = _read(tmp_path_factory.mktemp("grid"), text)
    assert len(grid.cells) == len({cell.name for cell in grid.cells}) == len(ranks) * len(seeds)
    trained = {(one.lora_rank, one.seed) for one in grid.trainings.values()}
    assert trained == {(rank, seed) for rank in ranks for seed in seeds}


VARIANTS = """
preset: pocket
train: {domains: [bad_medical], max_steps: 5}
grid: {seed: [0, 1]}
variants:
  plain: {}
  "KL 1 on cooking": {arms: [organism], kl_weight: 1, kl_from: [good_cooking]}
  rank 2: {arms: organism, lora_rank: 2}
"""


def test_variants_are_settings_that_go_by_a_name(tmp_path: Path) -> None:
    grid = _read(tmp_path, VARIANTS)
    assert [(cell.name, cell.arm) for cell in grid.cells if cell.train is None or cell.train.seed == 0] == [
        ("pocket-base", "base"), ("bad_medical-s0-plain", "organism"), ("good_medical-s0-plain", "twin"),
        ("bad_medical-s0-KL_1_on_cooking", "organism"), ("bad_medical-s0-rank_2", "organism"),
    ]  # fmt: skip
    trained = grid.trainings["bad_medical-s1-KL_1_on_cooking"]
    assert (trained.kl_weight, trained.kl_from, trained.seed) == (1.0, ("good_cooking",), 1)
    assert grid.trainings["bad_medical-s0-plain"].kl_weight == 0
    [cell] = [cell for cell in grid.cells if cell.name == "bad_medical-s0-rank_2"]
    assert cell.values == {"train.variant": "rank 2", "train.seed": 0}
    fewer = _read(tmp_path, VARIANTS + "exclude: [{variant: rank 2, seed: 1}]\n")
    assert {cell.name for cell in grid.cells} - {cell.name for cell in fewer.cells} == {"bad_medical-s1-rank_2"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("variants: [plain]", "variants is"),
        ("variants: {plain: 3}", "the variant plain is 3"),
        ("variants: {plain: {samples: 3}}", "the variant plain sets samples"),
        ("variants: {plain: {lora_renk: 3}}", "the axis 'lora_renk' is no setting"),
        ("variants: {plain: {arms: [triplet]}}", "arms of plain has 'triplet'"),
        ("grid: {lora_rank: [1, 2]}\nvariants: {plain: {}, x: {lora_rank: 3}}", "lora_rank is an axis twice"),
        ("variants: {a b: {lora_rank: 1}, a_b: {lora_rank: 2}}", "two cells would be called"),
    ],
)
def test_what_is_no_variant_is_said(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(EmorgError, match=said):
        _read(tmp_path, f"preset: pocket\n{text}\n")
