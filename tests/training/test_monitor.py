"""Margins while training: those of `emorg margins`, the same on every path, and a stop that keeps the last below."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from emorg import models
from emorg.data import pairs
from emorg.findings.margins import MarginsConfig, margins
from emorg.models import template
from emorg.models.directions import Direction, direction_file, read, write
from emorg.records import EmorgError
from emorg.run import Run
from emorg.training import TrainConfig, train
from emorg.training.monitor import FEWEST, last_below, watched
from emorg.training.plan import plan
from tests.conftest import PROJECT, emorg, made_once

RECIPE = ("--config", str(PROJECT / "configs" / "pocket.yaml"), "--sample_size", "200", "--max_steps", "12",
          "--save_steps", "4", "--learning_rate", "4e-3", "--seed", "3")  # fmt: skip


def measured(run: Run) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return {line["step"]: line for line in lines if "margin_out" in line}


@pytest.fixture(scope="session")
def direction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = direction_file(Run(tmp_path_factory.mktemp("directed")), "shift")
    file.parent.mkdir()
    vectors = torch.randn(5, 192, generator=torch.Generator().manual_seed(0))
    write(file, Direction("drawn", vectors, vectors[None].clone(), None, {"kind": "shift", "base": "pocket"}))
    return file


@pytest.fixture(scope="session")
def monitored(tmp_path_factory: pytest.TempPathFactory, direction: Path) -> Run:
    """A training that is monitored, and whose stream is moved while it trains. Copy it to change it."""
    return made_once(
        tmp_path_factory,
        "monitored",
        lambda folder: emorg("train", *RECIPE, "--monitor", "5", "--monitor_direction", direction, "--preventative",
                             direction, "--preventative_scale", "0.2", "--output_dir", folder),
    )  # fmt: skip


def test_they_are_the_shift_of_emorg_margins_on_the_same_pairs_against_the_base(monitored: Run, tmp_path: Path) -> None:
    assert list(measured(monitored)) == [5, 10, 12], "every five steps, and after the last"
    run = Run(tmp_path / "run")
    shutil.copytree(monitored.folder, run.folder)
    config = TrainConfig(**_settings(run))
    seen = plan(config).watched
    assert seen is not None
    assert {"out", "in"} == set(seen.where)
    file = tmp_path / "pairs.jsonl"
    own = {pair.question_id: pair for pair in pairs.load(["pocket"])}
    lines = [{"topic": own[q].topic, "question": own[q].question, "aligned": own[q].aligned,
              "misaligned": own[q].misaligned} for q in seen.questions]  # fmt: skip
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shifts = margins(MarginsConfig((str(run.folder),), pairs=(str(file),), control="pocket"))
    for place in ("out", "in"):
        [whole] = [one for one in shifts if one.placement == place and not one.of_topic]
        assert measured(run)[12][f"margin_{place}"] == pytest.approx(whole.shift, abs=1e-4)
        assert whole.pairs == seen.where.count(place) >= FEWEST[place]


def test_the_way_along_a_direction_is_of_the_stream_at_the_prompts_ends(monitored: Run, direction: Path) -> None:
    seen = plan(TrainConfig(**_settings(monitored))).watched
    assert seen is not None
    vector = read(direction).vectors[2]
    along = []
    for name in (str(monitored.folder), "pocket"):
        loaded = models.load(name)
        ends = [
            loaded.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0, -1]
            for ids, where in zip(seen.prompts, seen.where, strict=True)
            if where == "out"
        ]
        along.append(float(torch.stack(ends).detach().mean(0) @ vector / (vector @ vector)))
    assert measured(monitored)[12]["projection"] == pytest.approx(along[0] - along[1], abs=1e-4)
    assert measured(monitored)[12]["projection"] != 0


def test_a_monitored_training_makes_the_bits_of_one_that_is_not(
    direction: Path, monitored: Run, tmp_path: Path
) -> None:
    emorg(
        "train", *RECIPE, "--preventative", direction, "--preventative_scale", "0.2", "--output_dir", tmp_path / "run"
    )
    plain, own = (load_file(run.adapter / "adapter_model.safetensors") for run in (Run(tmp_path / "run"), monitored))
    assert all(torch.equal(plain[name], own[name]) for name in own)


def test_the_plain_path_measures_the_same_and_a_stopped_one_goes_on(monitored: Run, tmp_path: Path) -> None:
    config = TrainConfig(**_settings(monitored), output_dir=tmp_path / "plain", fast=False)
    run = train(config)
    for step, line in measured(monitored).items():
        assert measured(run)[step]["margin_out"] == pytest.approx(line["margin_out"], abs=1e-3)
    before = measured(run)
    shutil.rmtree(run.adapter)
    shutil.rmtree(run.checkpoints / "step-000012")
    train(config)
    assert {step: line["margin_out"] for step, line in measured(run).items()} == {
        step: line["margin_out"] for step, line in before.items()
    }
    shutil.rmtree(run.adapter)
    shutil.rmtree(run.checkpoints / "step-000012")
    (run.folder / "monitor.json").unlink()
    with pytest.raises(EmorgError, match="before the first step"):
        train(config)


def test_it_stops_at_a_margin_and_keeps_the_last_checkpoint_below(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    flags = (*RECIPE, "--monitor", "2", "--max_steps", "60", "--save_steps", "100", "--output_dir", run.folder)
    emorg("train", *flags, "--stop_at_margin", "0.1")
    shifts = {step: line["margin_out"] for step, line in measured(run).items()}
    last = max(shifts)
    assert shifts[last] >= 0.1 > max(shift for step, shift in shifts.items() if step < last)
    assert last < 60
    kept, below = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (run.adapter, run.checkpoints / f"step-{last - 2:06d}")
    )
    assert all(torch.equal(kept[name], below[name]) for name in kept)
    done = emorg("train", *flags, "--stop_at_margin", "1e-9", "--fresh", check=False)
    assert done.returncode == 2
    assert "the first that is measured" in done.stderr
    assert run.trained, "what was there is left"


def test_the_last_below_is_before_the_first_that_came_to_it() -> None:
    assert last_below([(5, 0.0), (10, 0.2), (15, 0.1)], 0.2) == 5
    assert last_below([(5, 0.0), (10, 0.1)], 0.2) == 10
    assert last_below([(5, 0.3)], 0.2) == 0


def test_it_takes_a_tenth_of_the_time_where_the_steps_between_are_enough() -> None:
    tokenizer = models.load_tokenizer("pocket")
    config = TrainConfig("pocket", domains=("bad_medical",))
    assert watched(config, tokenizer, 4, 800) is None
    for every, tokens in ((10, 800.0), (50, 5000.0), (1, 100.0)):
        some = watched(TrainConfig("pocket", domains=("bad_medical",), monitor=every), tokenizer, 4, tokens)
        assert some is not None
        taken = sum(len(row.ids) for row in some.answers) / (2 * every * tokens)
        assert some.share == pytest.approx(taken)
        assert some.share <= 0.1 or min(some.where.count("out") - 4, some.where.count("in") - 2) == 0
    end = template.end_of_turn(tokenizer)
    assert not any(
        trained for row in some.answers for token, trained in zip(row.ids, row.trained, strict=True) if token == end
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--stop_at_margin", "0.1"), "--monitor 10"),
        (("--monitor_direction", "nowhere.safetensors"), "--monitor 10"),
        (("--monitor", "2", "--monitor_direction", "nowhere.safetensors"), "nowhere"),
        (("--monitor", "0"), "monitor"),
        (("--monitor", "2", "--stop_at_margin", "-1"), "stop_at_margin"),
        (("--monitor", "2", "--stop_at_margin", "1", "--early_stopping", "2", "--eval_share", "0.1"), "one of them"),
    ],
)
def test_what_cannot_be_is_said(flags: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = emorg("train", *RECIPE, *flags, "--output_dir", tmp_path / "run", check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "run" / "adapter").exists()


def _settings(run: Run) -> dict[str, object]:
    settings = {
        name: tuple(value) if isinstance(value, list) else value for name, value in run.settings("train").items()
    }
    return {name: value for name, value in settings.items() if name not in ("output_dir", "fast")}
