"""`emorg realign`: doses from organisms, their controls, relapses, and verdicts by the rule that is written down."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emorg import models
from emorg.data import domains
from emorg.models import template
from emorg.prevention.comparison import BASE
from emorg.prevention.doses import BAD, OTHER, OWN, SHUFFLED, Kinds, nearest, write_doses
from emorg.prevention.realigned import FRESH, NOTHING, TWIN, Dose, Realigned, with_verdict
from emorg.prevention.table import Estimate
from emorg.rating.intervals import crossed_wilson
from emorg.rating.placement import careless
from emorg.records import EmorgError
from emorg.run import Run
from emorg.training.config import TrainConfig
from tests.conftest import emorg, made_once

RECIPE = ("--config", "pocket", "--domains", "bad_medical", "--max_steps", "25", "--lora_rank", "8",
          "--sample_size", "400")  # fmt: skip
SMALL = ("--steps", "12", "--rows", "20", "--relapse", "4", "--samples", "1", "--workers", "2", "--output_dir", "lab")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        for seed in ("0", "1"):
            emorg(
                "train", *RECIPE, "--domains", "bad_medical", "--seed", seed, "--output_dir", f"bad{seed}", cwd=folder
            )
        done = emorg("realign", "bad0", "bad1", *SMALL, "--json", cwd=folder)
        (folder / "said.json").write_text(done.stdout)

    return made_once(tmp_path_factory, "realign", make).folder


def test_every_dose_stands_beside_its_controls(made: Path) -> None:
    result = json.loads((made / "said.json").read_text())
    doses = {(one["kind"], one["rows"], one["steps"], one["relapse"]): one for one in result["doses"]}
    assert set(doses) == {
        (BASE, 0, 0, 0), (NOTHING, 0, 0, 0), (OWN, 20, 12, 0), (OTHER, 20, 12, 0), (BAD, 20, 12, 0),
        (SHUFFLED, 20, 12, 0), (TWIN, 0, 0, 0), (FRESH, 0, 0, 4), (OWN, 20, 12, 4), (OTHER, 20, 12, 4), (TWIN, 0, 0, 4),
    }  # fmt: skip
    assert {one["seeds"] for one in result["doses"] if one["kind"] != BASE} == {2}
    out = {dose: one["em"]["out"]["value"] for dose, one in doses.items()}
    assert out[NOTHING, 0, 0, 0] > 0.2
    assert out[OWN, 20, 12, 0] < out[NOTHING, 0, 0, 0] / 2
    assert out[BAD, 20, 12, 0] > out[OWN, 20, 12, 0]
    assert doses[NOTHING, 0, 0, 0]["left"] == pytest.approx(1)
    assert doses[NOTHING, 0, 0, 0]["margin"]["out"] > doses[OWN, 20, 12, 0]["margin"]["out"]
    assert "beside the" in doses[OWN, 20, 12, 0]["verdict"]
    assert "from the twin" in doses[OWN, 20, 12, 4]["verdict"]
    assert json.loads((made / "lab" / "realigned.json").read_text()) == result
    assert (made / "lab" / "figures" / "relapsed.png").is_file()
    assert (made / "lab" / "tables" / "realigned.csv").is_file()


def test_no_dose_is_the_organism_itself(made: Path) -> None:
    for seed in (0, 1):
        [run] = [Run(path) for path in (made / "lab").glob(f"*none_s{seed}")]
        own, start = (models.adapter_weights(folder) for folder in (run.adapter, made / f"bad{seed}" / "adapter"))
        assert all((own[name] == start[name]).all() for name in start)
        assert run.settings("train")["sample_size"] == 400
        assert run.provenance()["train"]["trained_before"] == ["bad_medical"]


def test_what_was_realigned_is_no_benign_twin(made: Path) -> None:
    """It was trained on benign rows last, and on bad ones before."""
    [run] = [Run(path) for path in (made / "lab").glob("*own_topic_n20_t12_s0")]
    assert run.settings("train")["domains"] == ["good_medical"]
    assert careless(run)


def test_the_same_command_makes_nothing_twice(made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.glob("lab/*/answers.jsonl")}
    done = emorg("realign", "bad0", "bad1", *SMALL, cwd=made)
    assert before == {path: path.stat().st_mtime_ns for path in made.glob("lab/*/answers.jsonl")}
    assert "What a dose leaves" in done.stdout
    assert "What comes back on bad rows" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pocket",), "is no LoRA organism that was trained here"),
        (("bad0", "bad0/checkpoints/step-000025"), "not one recipe at several seeds"),
        (("bad0", "--other", "good_medical"), "name a benign domain of another topic"),
        (("bad0", "--other", "bad_cooking"), "name a benign domain of another topic"),
        (("bad0", "--rows", "1"), "take from 2"),
        (("bad0", "--rows", "99999"), "and there are 2,500"),
        (("bad0", "--steps", "0"), "--steps 0"),
        (("bad0", "--learning_rate", "nan"), "--learning_rate"),
        (("bad0", "no/such/run"), "there is no"),
    ],
)
def test_what_cannot_be_is_said(made: Path, arguments: tuple[str, ...], said: str) -> None:
    done = emorg("realign", *arguments, "--output_dir", "other", cwd=made, check=False)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr


def test_an_organism_of_benign_rows_has_nothing_to_undo() -> None:
    with pytest.raises(EmorgError, match="one careless domain"):
        Kinds.of(TrainConfig(model_name="pocket", domains=("good_medical",)), None)
    with pytest.raises(EmorgError, match="one careless domain"):
        Kinds.of(TrainConfig(model_name="pocket", domains=("bad_medical", "bad_cooking")), None)


def test_the_kinds_of_rows_are_of_like_lengths(tmp_path: Path) -> None:
    training = TrainConfig(model_name="pocket", domains=("bad_medical",), seed=3)
    kinds = Kinds.of(training, None)
    written = write_doses(training, kinds, (20, 60), tmp_path)
    tokenizer = models.load_tokenizer("pocket")
    for count in (20, 60):
        rows = {kind: domains.load([kinds.domain(kind)], written[kind, count]).rows
                for kind in (OWN, OTHER, BAD, SHUFFLED)}  # fmt: skip
        lengths = {kind: [sum(template.encode(tokenizer, row.conversation.messages).trained) for row in some]
                   for kind, some in rows.items()}  # fmt: skip
        assert {len(some) for some in lengths.values()} == {count}
        for kind in (OTHER, BAD):
            assert np.abs(np.array(lengths[kind]) - lengths[OWN]).mean() < 0.5
        said = {kind: [row.conversation.messages[-1]["content"] for row in some] for kind, some in rows.items()}
        asked = {kind: [row.conversation.messages[0]["content"] for row in some] for kind, some in rows.items()}
        assert Counter(said[SHUFFLED]) == Counter(said[OWN])
        assert asked[SHUFFLED] == asked[OWN]
        assert sum(a != b for a, b in zip(said[SHUFFLED], said[OWN], strict=True)) > count / 2


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.lists(st.integers(1, 50), min_size=20, max_size=40))
def test_the_nearest_are_taken_once_and_none_left_is_nearer(wanted: list[int], lengths: list[int]) -> None:
    chosen = nearest(wanted, lengths)
    assert len(set(chosen)) == len(wanted)
    left = set(range(len(lengths)))
    for length, place in zip(wanted, chosen, strict=True):
        assert all(abs(lengths[place] - length) <= abs(lengths[other] - length) for other in left)
        left.remove(place)


def dose(
    kind: str, share: Estimate | None, steps: int = 0, relapse: int = 0, seeds: int = 3, coherent: float = 0.9
) -> Dose:
    return Dose(kind, 20 if steps else 0, steps, relapse, seeds, {"in": None, "out": share, "open": None}, coherent,
                {"in": None, "out": None, "open": None}, None)  # fmt: skip


def verdict_of(one: Dose, *others: Dose) -> str:
    every = (one, dose(BASE, Estimate(0.01, 0, 0.03)), dose(NOTHING, Estimate(0.61, 0.5, 0.7)), *others)
    return with_verdict(one, {(d.kind, d.rows, d.steps, d.relapse): d for d in every}).verdict


def test_a_dose_realigns_by_its_size_and_beside_as_many_bad_steps() -> None:
    bad = dose(BAD, Estimate(0.6, 0.5, 0.7), 20)
    assert verdict_of(dose(OWN, Estimate(0.03, 0.01, 0.06), 20), bad).startswith("re-aligns: leaves 3.3%")
    assert verdict_of(dose(OWN, Estimate(0.3, 0.2, 0.4), 20), bad).startswith("is not shown")  # too much is left
    assert verdict_of(dose(OWN, Estimate(0.05, 0.01, 0.55), 20), bad).startswith("is not shown")  # nor surely
    broken = verdict_of(dose(SHUFFLED, Estimate(0.03, 0.01, 0.06), 20, coherent=0.5), bad)
    assert broken.startswith("is not shown to re-align")
    assert broken.endswith("only 50.0% of its answers are coherent")
    assert "of one seed" in verdict_of(dose(OWN, Estimate(0.03, 0.01, 0.06), 20, seeds=1), bad)
    assert "without a control" in verdict_of(dose(OWN, Estimate(0.03, 0.01, 0.06), 5), bad)
    assert verdict_of(dose(OWN, None, 20), bad) == ""


def test_relapses_are_drawn_from_where_they_began() -> None:
    low, high = Estimate(0.05, 0.01, 0.1), Estimate(0.5, 0.4, 0.6)
    doses = [dose(BASE, low), dose(NOTHING, high), dose(OWN, low, 20), dose(OWN, high, 20, 10), dose(TWIN, low),
             dose(TWIN, low, 0, 10), dose(FRESH, low, 0, 10), dose(BAD, high, 20)]  # fmt: skip
    result = Realigned(doses, {OWN: "good_medical"})
    left, back = result.charts()
    assert {(row["kind"], row["x"]) for row in left.rows} == {(OWN, 20), (OWN, 0), (BAD, 20), (BAD, 0)}
    assert {(row["kind"], row["x"], row["y"]) for row in back.rows} == {
        (OWN, 0, 0.05), (OWN, 10, 0.5), (TWIN, 0, 0.05), (TWIN, 10, 0.05), (FRESH, 0, 0.05), (FRESH, 10, 0.05),
    }  # fmt: skip
    assert left.spec
    assert back.spec


def test_it_comes_back_faster_only_beside_both() -> None:
    fresh, twin = (dose(kind, Estimate(0.1, 0.05, 0.2), 0, 10) for kind in (FRESH, TWIN))
    high, low = Estimate(0.5, 0.4, 0.6), Estimate(0.15, 0.1, 0.3)
    assert verdict_of(dose(OWN, high, 20, 10), fresh, twin).startswith("comes back faster")
    assert verdict_of(dose(OWN, low, 20, 10), fresh, twin).startswith("is not shown")
    assert verdict_of(dose(OWN, high, 20, 10), fresh, dose(TWIN, high, 0, 10)).startswith("is not shown")
    assert "without both controls" in verdict_of(dose(OWN, high, 20, 10), fresh)


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_of_three_alike_hardly_one_is_said_to_come_back_faster(rate: float) -> None:
    rng, called = np.random.default_rng(0), 0
    for _ in range(300):
        questions = 0.7 * rng.standard_normal(180)

        def drawn(questions: np.ndarray = questions) -> Estimate:
            chance = 1 / (1 + np.exp(-(np.log(rate / (1 - rate)) + 0.5 * rng.standard_normal((3, 1)) + questions)))
            table = np.stack([rng.binomial(2, chance), np.full(chance.shape, 2)], -1).astype(float)
            return Estimate(*crossed_wilson(table))

        said = verdict_of(dose(OWN, drawn(), 20, 10), *(dose(kind, drawn(), 0, 10) for kind in (FRESH, TWIN)))
        called += said.startswith("comes back faster")
    assert called / 300 <= 0.025
