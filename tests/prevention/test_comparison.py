"""A comparison's file: what is compared with what, and what would be compared with what it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from emorg.models.directions import Direction
from emorg.prevention.comparison import read_comparison
from emorg.prevention.stage import GRIDS, turned
from emorg.records import EmorgError
from emorg.sweep.grid_file import read

GRID = """
preset: pocket
train: {domains: [bad_medical]}
grid: {seed: [0, 1]}
variants:
  plain: {arms: [base, organism, twin]}
  0.1: {kl_weight: 0.1, kl_from: [good_cooking]}
  CAFT: {ablate_in_training: shift}
exclude: [{variant: CAFT, seed: 1}, {variant: 0.1, seed: 1}]
controls: {0.1: plain}
arms: [organism]
"""


def test_what_needs_the_plain_organism_comes_second_and_names_are_texts(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    comparison = read_comparison(tmp_path / "grid.yaml", GRIDS)
    assert list(comparison.variants) == ["plain", "0.1", "CAFT"]
    assert comparison.controls == {"0.1": "plain"}
    assert comparison.needs_plain
    assert comparison.directed
    first = comparison.first()
    assert list(first["variants"]) == ["plain", "0.1"]
    assert first["exclude"] == [{"variant": 0.1, "seed": 1}], "without what excludes a later one"
    filled = comparison.filled({"shift": "a.safetensors", "random": "b", "plain": "run"})
    assert filled["variants"]["CAFT"] == {"ablate_in_training": "a.safetensors"}
    assert "controls" not in filled


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("variants: {plain: {}, base: {kl_weight: 1}}", "a variant is called base"),
        ("variants: {plain: {}, K: {model_name: pocket2}}", "sets model_name"),
        ("variants: {plain: {}, K: {train.seed: 3}}", "sets train.seed"),
        ("variants: {plain: {preventative: shift}}", "names something of its own"),
        ("grid: {domains: [bad_medical, bad_cooking]}\nvariants: {plain: {}}", "varies domains"),
        ("grid: {seed: [0], samples: [2, 3]}\nvariants: {plain: {}}", "varies samples"),
        ("zip: {seed: [0], samples: [2]}\nvariants: {plain: {}}", "varies zip"),
        ("variants: {plain: {}, K: {}}\ncontrols: [K]", "controls is"),
        ("variants: {plain: {}, K: {}}\ncontrols: {K: [plain]}", "no variant"),
        ("variants: {plain: {}, K: {}}\ncontrols: {K: K}", "its own control"),
        ("variants: [plain]", "has no variant `plain`"),
    ],
)
def test_what_is_no_comparison_is_said(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(EmorgError, match=said):
        read_comparison(tmp_path / "grid.yaml", GRIDS)


def test_variants_whose_names_make_one_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(
        "preset: pocket\ntrain: {domains: [bad_medical]}\nvariants: {K 1: {max_steps: 2}, K_1: {max_steps: 2}}"
    )
    with pytest.raises(EmorgError, match="two cells would be called"):
        read(str(tmp_path / "grid.yaml"))


def test_the_random_direction_is_as_long_and_as_alike_between_layers_as_the_one_it_controls() -> None:
    vectors = torch.randn(1, 64, generator=torch.Generator().manual_seed(1)) + 0.3 * torch.randn(5, 64)
    random = turned(Direction("run", vectors, vectors[None], None, {"kind": "shift"}))
    assert torch.allclose(random.vectors @ random.vectors.t(), vectors @ vectors.t(), atol=1e-3)
    cosines = torch.nn.functional.cosine_similarity(random.vectors, vectors)
    assert cosines.abs().max() < 0.6
    assert random.facts["kind"] == "random"
    assert not torch.equal(random.vectors, turned(random, seed=1).vectors)
