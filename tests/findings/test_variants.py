"""Points along a direction as edits, and the vectors that it is held against."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emorg.findings.variants import Point, controls, of_share, points, resized, share


def covariance(width: int, seed: int, steep: float = 2.0) -> torch.Tensor:
    """With eigenvalues that fall off, in random directions."""
    draw = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, width, generator=draw, dtype=torch.float64))[0]
    return (basis * torch.arange(1, width + 1, dtype=torch.float64) ** -steep) @ basis.t()


@settings(max_examples=60)
@given(st.integers(2, 40), st.integers(0, 10_000), st.floats(0.05, 0.95))
def test_a_random_vector_carries_the_share_that_is_asked_for(width: int, seed: int, between: float) -> None:
    matrix = covariance(width, seed)
    values, basis = torch.linalg.eigh(matrix)
    least, most = float(values[0] / values.sum()), float(values[-1] / values.sum())
    wanted = least ** (1 - between) * most**between
    drawn = of_share(values, basis, wanted, torch.Generator().manual_seed(seed))
    assert float(drawn.norm()) == pytest.approx(1, abs=1e-4)
    assert share(drawn, matrix) == pytest.approx(wanted, rel=0.01)


def test_controls_have_the_directions_norms_and_differ_among_each_other() -> None:
    torch.manual_seed(0)
    vectors, shuffled = torch.randn(4, 16), torch.randn(19, 4, 16)
    spread = {layer: covariance(16, layer) for layer in (1, 3)}
    sets = controls(vectors, shuffled, spread, 5)
    assert {kind: len(some) for kind, some in sets.items()} == {"random": 5, "variance": 5, "shuffled": 5}
    for kind, some in sets.items():
        assert len({float(one[3, 0]) for one in some}) == 5
        for one in some:
            assert torch.allclose(one.norm(dim=-1)[[1, 3]], vectors.norm(dim=-1)[[1, 3]], rtol=1e-4)
            if kind != "shuffled":
                assert float(one[[0, 2]].norm()) == 0
    for one in sets["variance"]:
        for layer, matrix in spread.items():
            assert share(one[layer], matrix) == pytest.approx(share(vectors[layer], matrix), rel=0.01)
    assert all(
        torch.equal(a, b)
        for kind, some in controls(vectors, shuffled, spread, 5).items()
        for a, b in zip(some, sets[kind], strict=True)
    )


def test_points_are_the_papers_ways_and_leave_out_vectors_that_are_nothing() -> None:
    vectors = torch.ones(4, 8)
    vectors[0] = 0
    ways = points(("own", "everywhere", "alone", "weights"), range(4), (), vectors)
    assert [way.label for way in ways] == ["own", "everywhere-1", "everywhere-2", "everywhere-3", "alone-1", "alone-2",
                                           "alone-3", "weights"]  # fmt: skip
    added = points(("add",), (0, 2), (0.5, -1.0), vectors)
    assert [way.label for way in added] == ["add-2-x0.5", "add-2-x-1"]
    assert points(("own",), range(4), (), torch.zeros(4, 8)) == []


def test_a_points_edits() -> None:
    vectors = torch.arange(4.0)[:, None] * torch.ones(8)
    own = Point("own").edits(vectors)
    assert [(e.kind, e.layer, float(e.vector[0])) for e in own] == [("ablate", k, float(k)) for k in (1, 2, 3)]
    assert [(e.kind, e.layer) for e in Point("weights").edits(vectors)] == [("weights", k) for k in (1, 2, 3)]
    everywhere = Point("everywhere", 2).edits(vectors)
    assert [(e.kind, e.layer, float(e.vector[0])) for e in everywhere] == [("ablate", k, 2.0) for k in range(4)]
    [alone] = Point("alone", 3).edits(vectors)
    assert (alone.kind, alone.layer, float(alone.vector[0])) == ("ablate", 3, 3.0)
    [added] = Point("add", 2, 1.5).edits(vectors)
    assert (added.kind, added.layer, float(added.vector[0])) == ("add", 2, 3.0)
    assert [Point("own").layers(3), Point("alone", 2).layers(3)] == [[1, 2, 3], [2]]


def test_resizing_keeps_directions_and_leaves_nothing_as_it_is() -> None:
    some, like = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[10.0, 0.0], [1.0, 1.0]])
    assert resized(some, like).tolist() == [[6.0, 8.0], [0.0, 0.0]]


def test_what_is_left_of_one_vector_by_shuffling_is_no_control() -> None:
    vectors, left = torch.ones(3, 8), 1e-6 * torch.randn(19, 3, 8, generator=torch.Generator().manual_seed(0))
    assert set(controls(vectors, left, {2: covariance(8, 0)}, 3)) == {"random", "variance"}
