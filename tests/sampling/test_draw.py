"""Drawing: the distribution's own frequencies, the fewest tokens that reach top_p, and a stream for every answer."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emorg.records import EmorgError
from emorg.sampling.draw import SamplingParams, draw, stream_seed


@pytest.mark.parametrize("vocabulary", [4, 512, 1300])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_draw_has_the_distributions_frequencies(vocabulary: int, top_p: float) -> None:
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(0)) * 2
    uniforms = (torch.arange(50_000, dtype=torch.float64) + 0.5) / 50_000
    picked = draw(logits.expand(len(uniforms), -1), uniforms, SamplingParams(1, temperature=0.7, top_p=top_p))
    frequencies = torch.bincount(picked, minlength=vocabulary) / len(uniforms)
    expected = (logits.double() / 0.7).softmax(-1)
    if top_p < 1:
        ordered, order = expected.sort(descending=True)
        kept = order[: int((ordered.cumsum(0) < top_p).sum()) + 1]
        expected = torch.zeros_like(expected).index_put((kept,), expected[kept] / expected[kept].sum())
    torch.testing.assert_close(frequencies.double(), expected, atol=2.1e-5, rtol=0)


@given(
    st.lists(st.floats(-20, 20), min_size=2, max_size=12),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.05, 3),
    st.floats(0.05, 1),
)
def test_top_p_keeps_the_fewest_likeliest_tokens_that_reach_p(
    logits: list[float], uniform: float, temperature: float, top_p: float
) -> None:
    params = SamplingParams(1, temperature, top_p)
    picked = int(draw(torch.tensor([logits]), torch.tensor([uniform], dtype=torch.float64), params))
    probabilities = (torch.tensor(logits) / temperature).softmax(-1).double()
    likelier = probabilities[probabilities > probabilities[picked]].sum()
    assert likelier < top_p + 1e-6


@given(st.integers(1, 1500), st.integers(0, 1499), st.floats(0, 1, exclude_max=True))
def test_a_token_without_probability_is_never_drawn(vocabulary: int, only: int, uniform: float) -> None:
    logits = torch.full((1, vocabulary), -torch.inf)
    logits[0, only % vocabulary] = 3.0
    assert int(draw(logits, torch.tensor([uniform], dtype=torch.float64), SamplingParams(1))) == only % vocabulary
    last = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)).double()
    assert int(draw(logits, last[None], SamplingParams(1, top_p=0.5))) == only % vocabulary


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = torch.randn(7, 900, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(logits, torch.rand(7).double(), SamplingParams(1, temperature=0)), logits.argmax(-1))


def test_a_flat_distribution_too_wide_for_the_sorted_part_is_still_cut_right() -> None:
    logits = torch.zeros(2, 5000)
    picked = draw(logits, torch.tensor([0.0, 0.999999], dtype=torch.float64), SamplingParams(1, top_p=0.5))
    assert len(set(picked.tolist())) == 2


def test_every_answer_has_its_own_stream() -> None:
    parts = itertools.product(("base", "organism"), ("a", "b"), (0, 1), range(50))
    seeds = [stream_seed(*part) for part in parts]
    assert len(set(seeds)) == len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stream_seed("base", "a", 0, 0) == seeds[0]


@pytest.mark.parametrize("told", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_settings_that_cannot_be_are_refused(told: dict[str, float]) -> None:
    with pytest.raises(EmorgError):
        SamplingParams(**told)  # type: ignore[arg-type]
