"""On an NVIDIA GPU: training, answers and log-probabilities are the CPU's, and the real commands run there."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import pytest
import torch

from emorg import models
from emorg.run import Run
from emorg.sampling.draw import SamplingParams
from emorg.sampling.engine import Ask, Engine
from emorg.sampling.likelihood import Likelihood
from emorg.sampling.organisms import Organisms, open_organisms
from emorg.training.fast_lora import speed_up
from tests.conftest import SMALL_SAMPLE, emorg
from tests.sampling.test_likelihood import brute_force, items
from tests.ties import parting
from tests.tiny import loaded
from tests.training.test_fast_lora import KINDS, batch, loss_and_gradients, patchable, worst

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here")


@pytest.mark.parametrize("kind", KINDS)
def test_fast_training_has_the_gradients_of_plain_training_on_the_cpu(kind: str) -> None:
    plain = patchable(kind, torch.float32)
    fast = copy.deepcopy(plain).to("cuda")
    assert speed_up(fast)[0]
    expected, gradients = loss_and_gradients(plain, **batch())
    loss, fast_gradients = loss_and_gradients(fast, **{name: x.cuda() for name, x in batch().items()})
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert worst({name: x.cpu() for name, x in fast_gradients.items()}, gradients) < 1e-4


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma3_text"])
def test_greedy_answers_are_those_of_generate(kind: str) -> None:
    of = loaded(kind)
    plain = copy.deepcopy(of.model)
    of.model.to("cuda")
    rng = random.Random(0)
    prompts = [tuple(rng.randrange(10, 800) for _ in range(length)) for length in (3, 17, 30, 9, 5)]
    engine = Engine(Organisms(of, {"it": None}), batch_tokens=2 * 70)
    asks = [Ask("it", prompt, i) for i, prompt in enumerate(prompts)]
    for reply in engine.replies(asks, SamplingParams(40, temperature=0)):
        prompt = prompts[reply.place]
        answer = plain.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=40, do_sample=False
        )[0, len(prompt) :].tolist()
        assert parting(plain, prompt, [*reply.ids, *([1] if reply.finish == "stop" else [])], answer) == ""


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma3_text"])
def test_log_probabilities_are_those_of_the_cpu(kind: str) -> None:
    model, asked = loaded(kind), items(20)
    expected = [brute_force(model.model, item) for item in asked]
    model.model.to("cuda")
    scorer = Likelihood(Organisms(model, {}))
    assert dict(scorer.log_probs("", asked)) == {
        place: pytest.approx(sums, rel=1e-3, abs=1e-2) for place, sums in enumerate(expected)
    }


def test_the_commands_run_there_and_say_so(tmp_path: Path) -> None:
    """A short training in bf16 on the GPU has the losses of the CPU's, and its organisms answer and are scored."""
    runs = {device: tmp_path / device for device in ("cuda", "cpu")}
    for device, folder in runs.items():
        emorg("train", "--config", "pocket", "--max_steps", "6", "--device", device, "--output_dir", folder)
        assert Run(folder).provenance()["train"]["device"].startswith(device)
    losses = [
        [json.loads(line)["loss"] for line in Run(folder).metrics.read_text().splitlines()][:6]
        for folder in runs.values()
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    emorg("sample", runs["cuda"], *SMALL_SAMPLE, "--device", "cuda")
    emorg("judge", runs["cuda"])
    assert "no control" in emorg("report", runs["cuda"]).stdout
    ((_, organisms),) = open_organisms([str(runs["cuda"])], device="cuda")
    assert organisms.loaded.model.dtype == models.choose_dtype("cuda", "pocket")
