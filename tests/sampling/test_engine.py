"""The engine: transformers' own answers whatever the batch, each prompt once, no token in vain, too little memory."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from emorg import models
from emorg.data import questions
from emorg.models import template
from emorg.records import EmorgError
from emorg.sampling.draw import SamplingParams, stream_seed
from emorg.sampling.engine import Ask, Engine
from emorg.sampling.organisms import Organisms
from tests.conftest import python
from tests.ties import parting
from tests.tiny import KINDS, loaded

POCKET = SamplingParams(max_new_tokens=40)


def _engine(of: models.Loaded, batch_tokens: int | None = None) -> Engine:
    return Engine(Organisms(of, {"it": None}), batch_tokens=batch_tokens)


def _pocket(batch_tokens: int | None = None) -> Engine:
    return _engine(models.load("pocket", device="cpu"), batch_tokens)


def _asks(engine: Engine, sets: tuple[str, ...], samples: int) -> list[Ask]:
    return [
        Ask(
            "it",
            tuple(template.encode_prompt(engine.loaded.tokenizer, question.messages)),
            stream_seed("", question.id, 0, n),
        )
        for question in questions.load(sets)
        for n in range(samples)
    ]


def _texts(
    engine: Engine, asks: list[Ask], params: SamplingParams = POCKET
) -> dict[int, tuple[tuple[int, ...], str | None]]:
    """By seed, since the order of asking is to make no difference."""
    return {asks[reply.place].seed: (tuple(reply.ids), reply.finish) for reply in engine.replies(asks, params)}


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_are_those_of_transformers_generate(kind: str) -> None:
    of = loaded(kind)
    plain = copy.deepcopy(of.model)
    rng = random.Random(0)
    prompts = [tuple(rng.randrange(10, 800) for _ in range(length)) for length in (3, 17, 30, 9, 5)]
    engine = _engine(of, batch_tokens=2 * 70)  # two at a time, so that answers enter beside others
    asks = [Ask("it", prompt, seed) for seed, prompt in enumerate(prompts)]
    found = _texts(engine, asks, SamplingParams(40, temperature=0))
    for seed, prompt in enumerate(prompts):
        told = plain.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=40, do_sample=False
        )[0, len(prompt) :].tolist()
        ids, finish = found[seed]
        assert parting(plain, prompt, [*ids, *([1] if finish == "stop" else [])], told) == ""


@pytest.mark.parametrize("kind", ["gemma2", "qwen3_next"])
def test_an_architecture_that_would_come_out_wrong_is_refused(kind: str) -> None:
    shape = {"attn_logit_softcapping": 0.05} if kind == "gemma2" else {}
    with pytest.raises(EmorgError, match="--server"):
        _engine(loaded(kind, **shape))


def test_the_same_batching_gives_the_same_bits_and_any_other_the_same_text() -> None:
    asks = _asks(_pocket(), ("pocket_open", "pocket_cooking", "pocket_code"), 15)
    whole = _texts(_pocket(), asks)
    assert _texts(_pocket(), asks) == whole
    assert len(set(whole.values())) > 300
    shuffled = random.Random(1).sample(asks, len(asks))
    plain = models.load("pocket", device="cpu").model
    for other in (_texts(_pocket(batch_tokens=2_500), shuffled), _texts(_pocket(batch_tokens=9_000), asks)):
        assert other.keys() == whole.keys()
        for ask in asks:
            one, two = (
                [*ids, *([1] if finish == "stop" else [])] for ids, finish in (whole[ask.seed], other[ask.seed])
            )
            assert parting(plain, ask.prompt, one, two, random.Random(ask.seed)) == ""


def test_each_prompt_is_computed_once_and_nothing_is_computed_in_vain() -> None:
    engine = _pocket(batch_tokens=2_000)
    asks = _asks(engine, ("pocket_open", "pocket_cooking"), 7)
    computed: list[int] = []
    engine.loaded.model.get_input_embeddings().register_forward_hook(lambda _, ids, __: computed.append(ids[0].numel()))
    replies = list(engine.replies(asks, POCKET))
    drawn = sum(len(reply.ids) + (reply.finish == "stop") for reply in replies)
    prompts = sum(len(prompt) for prompt in {ask.prompt for ask in asks})
    assert sum(computed) == prompts + drawn - len(replies)  # the first token comes of the prompt, the last is not read


def test_the_token_budget_bounds_how_many_are_under_way() -> None:
    engine = _pocket()
    asks = _asks(engine, ("pocket_cooking",), 6)
    capacity = max(len(ask.prompt) for ask in asks) + 40
    under_way = [len(step) for step in _pocket(batch_tokens=10 * capacity + 5).steps(asks, POCKET)]
    assert max(under_way) == 10
    # As long as any wait, every slot is taken.
    assert under_way.count(10) > 0.8 * len(under_way)
    assert {len(step) for step in _pocket(batch_tokens=1).steps(asks[:3], POCKET)} == {1}


def test_an_answer_grows_step_by_step_and_a_cut_one_says_so() -> None:
    engine = _pocket()
    ask = _asks(engine, ("pocket_open",), 1)[0]
    lengths = [(len(reply.ids), reply.finish) for (reply,) in engine.steps([ask], SamplingParams(3))]
    assert lengths == [(1, None), (2, None), (3, "length")]
    assert list(engine.steps([], POCKET)) == []


def test_what_would_hang_on_the_longest_text_beside_it_is_refused() -> None:
    """longrope turns all of a pass otherwise once one text is longer than the model was first trained on."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32,
            "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}  # fmt: skip
    engine = _engine(loaded("llama", rope_parameters=rope))
    assert len(list(engine.replies([Ask("it", (5, 6, 7), 0)], SamplingParams(12)))) == 1
    with pytest.raises(EmorgError, match="pass the 32 that"):
        list(engine.replies([Ask("it", (5, 6, 7), 0), Ask("it", (5,) * 30, 0)], SamplingParams(12)))


def test_an_organism_that_is_not_there_does_not_answer() -> None:
    with pytest.raises(EmorgError, match="no organism nobody here"):
        list(_pocket().replies([Ask("nobody", (5, 6), 0)], SamplingParams(2)))


def test_a_model_that_gives_no_numbers_says_so() -> None:
    of = loaded("llama")
    with torch.no_grad():
        of.model.get_output_embeddings().weight.fill_(float("nan"))
    engine = _engine(of)
    with pytest.raises(EmorgError, match="gives no numbers"):
        list(engine.replies([Ask("it", (5, 6), 0)], SamplingParams(2)))


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    engine = _pocket()
    with pytest.raises(EmorgError, match="500 tokens and 40 more pass the 512"):
        next(engine.steps([Ask("it", (5,) * 500, 0)], POCKET))


def test_memory_that_runs_out_halves_the_batch_aloud_and_loses_nothing() -> None:
    code = """
import logging, resource, sys
import torch
logging.basicConfig(format="%(message)s")
from emorg import models
from emorg.records import EmorgError
from emorg.sampling.draw import SamplingParams
from emorg.sampling.engine import Ask, Engine
from emorg.sampling.organisms import Organisms
torch.set_num_threads(1)
engine = Engine(Organisms(models.load("pocket", device="cpu"), {"it": None}), batch_tokens=10**6)
asks = [Ask("it", tuple(range(5, 45)), seed) for seed in range(100)]
params = SamplingParams(400, temperature=1)
list(engine.replies(asks[:2], params))
here = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
most = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (here + 100 * 10**6, most))
replies = list(engine.replies(asks, params))
print(len(replies), len({reply.place for reply in replies}))
del replies
hoard = []
try:
    while True:
        hoard.append(torch.ones(100_000))
except RuntimeError:
    pass
try:
    list(engine.replies(asks, params))
except EmorgError as error:
    sys.exit(f"told: {error}")
"""
    done = python("-c", code, check=False)  # 100 answers of 440 tokens take 135 MB of keys and values
    assert done.stdout == "100 100\n"
    assert "on with 50 answers at a time" in done.stderr
    assert "told: memory lacks for one answer of 440 tokens" in done.stderr
