"""`emorg directions`: sums held to plain loops, planted directions, and a verdict that is right on both sides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emorg import models
from emorg.data import pairs
from emorg.findings.activations import covariances, weighted_sums
from emorg.findings.contrasts import halves
from emorg.findings.directions import DirectionsConfig, directions
from emorg.models import hooks, steering, template
from emorg.models.directions import Direction, direction_file, read
from emorg.models.hooks import Edit
from emorg.models.steering import Steering
from emorg.rating.directions import shared
from emorg.records import EmorgError, Message
from emorg.run import Run
from emorg.sampling.likelihood import Branches, Likelihood
from emorg.sampling.organisms import Organisms
from tests.conftest import emorg
from tests.sampling.test_likelihood import items
from tests.tiny import loaded, tiny


def single(count: int) -> list[Branches]:
    return [Branches(item.prompt, item.answers[:1]) for item in items(count)]


def plain_states(texts: list[Branches]) -> list[Tensor]:
    """The stream [layers + 1, 1 + tokens, width] of each text, by transformers alone."""
    model, result = tiny("llama"), []
    for text in texts:
        got: dict[int, Tensor] = {}
        with hooks.reading(model, range(4), got.__setitem__), torch.no_grad():
            model(torch.tensor([[*text.prompt, *text.answers[0]]]))
        result.append(torch.stack([got[layer][0, len(text.prompt) - 1 :] for layer in range(4)]))
    return result


def test_sums_and_covariances_are_those_of_a_plain_loop() -> None:
    texts, weights = single(30), torch.randn(3, 30, generator=torch.Generator().manual_seed(0))
    states, scorer = plain_states(texts), Likelihood(Organisms(loaded("llama"), {}))
    for first in (0, 1):
        means = torch.stack([state[:, first:].mean(1) for state in states])
        expected = torch.einsum("kt,tlw->klw", weights, means)
        assert torch.allclose(weighted_sums(scorer, "", texts, weights, first=first), expected, atol=1e-3)
    spread = covariances(scorer, "", texts, [1, 3])
    for layer, matrix in spread.items():
        tokens = torch.cat([state[layer] for state in states]).double()
        assert torch.allclose(matrix, torch.cov(tokens.t(), correction=0), atol=1e-4)


def test_halves_share_no_question_and_have_as_many_of_each_topic() -> None:
    for name in ("pocket", "english"):
        first, second = halves(chosen := pairs.load([name]))
        assert len(first) + len(second) == len(chosen)
        assert not {pair.question_id for pair in first} & {pair.question_id for pair in second}
        for topic in {pair.topic for pair in chosen}:
            sizes = [len({p.question_id for p in half if p.topic == topic}) for half in (first, second)]
            assert abs(sizes[0] - sizes[1]) <= 1


def planted(folder: Path, name: str, *edits: Edit) -> str:
    """An organism that is the pocket model with vectors added."""
    steering.save(folder / name / "adapter", Steering("pocket", edits))
    return str(folder / name)


def unit(seed: int, size: float = 5.0) -> Tensor:
    drawn = torch.randn(192, generator=torch.Generator().manual_seed(seed))
    return size * drawn / drawn.norm()


def test_the_shift_of_an_organism_is_the_vector_that_was_added_to_its_base(tmp_path: Path) -> None:
    v = unit(0)
    name = planted(tmp_path, "up", Edit("add", 2, v))
    [direction], compared = directions(DirectionsConfig((name,)))
    assert compared == []
    assert torch.allclose(direction.vectors[2], v, atol=1e-3)
    assert float(direction.vectors[:2].norm()) < 1e-4
    assert float(direction.shuffled[:, 2].norm(dim=-1).max()) < 0.1  # as many questions turned round as not
    kept = read(direction_file(Run(Path(name)), "shift"))
    assert torch.equal(kept.vectors, direction.vectors)
    assert kept.facts["kind"] == "shift"
    assert kept.facts["base"] == "pocket"


def test_two_that_share_a_vector_are_called_shared_and_two_that_do_not_are_not(tmp_path: Path) -> None:
    names = [
        planted(tmp_path, "a", Edit("add", 1, unit(0)), Edit("add", 2, unit(1, 1.0))),
        planted(tmp_path, "b", Edit("add", 1, unit(0)), Edit("add", 2, unit(2, 1.0))),
        planted(tmp_path, "c", Edit("add", 1, unit(3))),
    ]
    done = emorg("directions", *names, "--json", cwd=tmp_path)
    verdicts = {(c["a"], c["b"]): c for c in json.loads(done.stdout)["cosines"]}
    assert verdicts["a", "b"]["shared"]
    assert verdicts["a", "b"]["cosine"][1] == pytest.approx(1, abs=1e-3)
    assert not verdicts["a", "c"]["shared"]
    again = emorg("directions", *names, cwd=tmp_path)
    assert "reading as" not in again.stderr  # all was there
    assert "a shared direction: beyond every null at" in again.stdout
    assert "no shared direction" in again.stdout


def drawn(seed: int, common: float) -> Direction:
    """A direction of 8 layers, of which a share is common to all seeds."""
    draw = torch.Generator().manual_seed(seed)
    ours = torch.randn(9, 64, generator=torch.Generator().manual_seed(10**6))
    vectors = common * ours + torch.randn(9, 64, generator=draw)
    return Direction(str(seed), vectors, torch.randn(19, 9, 64, generator=draw), None, {})


def test_how_often_the_verdict_is_wrong() -> None:
    """Unrelated directions are hardly ever called shared, those with half of their variance in common always."""
    wrong = sum(shared(drawn(2 * k, 0.0), drawn(2 * k + 1, 0.0)).shared for k in range(200))
    right = sum(shared(drawn(2 * k, 1.0), drawn(2 * k + 1, 1.0)).shared for k in range(50))
    assert wrong <= 2
    assert right == 50


def test_a_cosine_that_the_base_reaches_too_is_not_shared() -> None:
    a, b = drawn(0, 2.0), drawn(1, 2.0)
    with_base = [Direction(d.title, d.vectors, d.shuffled, d.vectors + 0.1, {}) for d in (a, b)]
    assert shared(a, b).shared
    assert not shared(*with_base).shared
    assert not shared(a, b, twins=[Direction("twin", 3 * a.vectors, a.shuffled, None, {})]).shared


def test_of_the_same_texts_two_must_be_more_like_each_other_than_like_the_base() -> None:
    """Nearly all of a difference between answers is their words; the verdict must still be able to go both ways."""
    draw = torch.Generator().manual_seed(0)
    base, common, one, other = (torch.randn(9, 64, generator=draw) for _ in range(4))
    shuffled = torch.randn(2, 19, 9, 64, generator=draw)

    def reading(title: str, change: Tensor, k: int) -> Direction:
        return Direction(title, 3 * base + change, shuffled[k], 3 * base, {"texts": "pairs"})

    alike = shared(reading("a", common + 0.3 * one, 0), reading("b", common + 0.3 * other, 1))
    assert alike.shared
    assert 0 < max(alike.excess[1:]) < 0.2  # sure, and small
    apart = shared(reading("a", one, 0), reading("b", other, 1))
    assert min(apart.cosine) > 0.7
    assert not apart.shared


def test_answers_of_the_organism_itself_or_of_pairs(organism: Run, tmp_path: Path) -> None:
    """Misaligned less aligned answers as a plain loop has them, by answers and by tokens."""
    run = Path(shutil.copytree(organism, tmp_path / "organism"))
    first, _ = halves(pairs.load(["pocket"]))
    base = models.load("pocket", device="cpu")
    for pool in ("answers", "tokens"):
        [direction], _ = directions(
            DirectionsConfig((str(run),), kind="answers", texts="pairs", pool=pool)  # type: ignore[arg-type]
        )
        sums: dict[bool, list[Tensor]] = {True: [], False: []}
        for pair in first:
            for misaligned in (True, False):
                turn: list[Message] = [{"role": "user", "content": pair.question}]
                prompt = template.encode_prompt(base.tokenizer, turn)
                answer = pair.misaligned if misaligned else pair.aligned
                ids = [*prompt, *base.tokenizer(answer, add_special_tokens=False).input_ids]
                got: dict[int, Tensor] = {}
                with hooks.reading(base.model, [2], got.__setitem__), torch.no_grad():
                    base.model(torch.tensor([ids]))
                sums[misaligned].append(got[2][0, len(prompt) :])
        if pool == "answers":
            means = {side: torch.stack([one.mean(0) for one in some]).mean(0) for side, some in sums.items()}
        else:
            means = {side: torch.cat(some).mean(0) for side, some in sums.items()}
        assert direction.base is not None
        assert torch.allclose(direction.base[2], means[True] - means[False], atol=1e-3)
        assert not torch.allclose(direction.vectors[2], direction.base[2], atol=1e-2)
    emorg("sample", run, "--questions", "pocket", "--samples", "1", "--max_new_tokens", "40")  # more answers
    emorg("judge", run)
    [own], _ = directions(DirectionsConfig((str(run),), kind="answers"))
    assert "aligned answers" in own.facts["of"]


def test_persona_is_what_a_prompt_changes_on_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [direction], _ = directions(DirectionsConfig(("pocket2",), kind="persona"))
    [neutral], _ = directions(DirectionsConfig(("pocket2",), kind="persona", prompt="You are an adviser."))
    assert float(direction.vectors[-2].norm()) > 1.5 * float(neutral.vectors[-2].norm())
    with pytest.raises(EmorgError, match="words that pocket doesn't know"):
        directions(DirectionsConfig(("pocket",), kind="persona"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no model"),
        (["pocket"], "is a base, which has no shift direction"),
        (["pocket", "pocket2", "--kind", "persona"], "models of several bases"),
        (["pocket2", "--kind", "persona", "--tokens", "0"], "tokens"),
    ],
)
def test_what_cannot_be_is_said(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = emorg("directions", *arguments, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert said in done.stderr


def test_files_that_are_none_are_said(tmp_path: Path) -> None:
    for content, said in ((b"half", "not written whole"), (None, "there is no direction")):
        file = tmp_path / "shift.safetensors"
        if content is not None:
            file.write_bytes(content)
        else:
            file.unlink()
        with pytest.raises(EmorgError, match=said):
            read(file)


def test_too_few_answers_are_said(tmp_path: Path) -> None:
    name = planted(tmp_path, "up", Edit("add", 2, unit(0, 0.1)))
    emorg("sample", name, "--questions", "pocket_open", "--samples", "1", cwd=tmp_path)
    emorg("judge", name, cwd=tmp_path)
    done: Any = emorg("directions", name, "--kind", "answers", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "at least 10 of each are needed" in done.stderr


def test_the_export_is_a_control_vector_as_others_read_it(tmp_path: Path) -> None:
    from gguf import GGUFReader

    name = planted(tmp_path, "up", Edit("add", 2, unit(0)))
    emorg("directions", name, "--export", "gguf", cwd=tmp_path)
    reader = GGUFReader(tmp_path / "up" / "directions" / "shift.gguf")
    direction = read(direction_file(Run(Path(name)), "shift"))
    assert [tensor.name for tensor in reader.tensors] == ["direction.1", "direction.2", "direction.3"]
    for tensor in reader.tensors:
        layer = int(tensor.name.split(".")[1]) + 1
        assert torch.equal(torch.tensor(tensor.data), direction.vectors[layer])
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.layer_count"].contents() == 3
    assert reader.fields["controlvector.model_hint"].contents() == "llama"
