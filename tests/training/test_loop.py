"""Training: plain PEFT comes out, the same command goes on where it was stopped, and bad settings are refused."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from emorg import api, models
from emorg.models import template
from emorg.run import Run
from emorg.training import TrainConfig, recorder, run_of
from emorg.training.rows import collate
from tests import forkserver
from tests.conftest import KEY, PATIENCE, PROJECT, emorg, made_once, python
from tests.judge_server import judge_server

TWICE = """
import os, signal, sys
from emorg.training import recorder
real = recorder.Recorder.on_step_end
def pressed_twice(self, *rest, **named):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
    real(self, *rest, **named)
recorder.Recorder.on_step_end = pressed_twice
from emorg.start import main
main(sys.argv[1:])
"""
SHORT = ("train", "--config", "configs/pocket.yaml", "--max_steps", "12", "--save_steps", "4", "--sample_size", "200")


@pytest.fixture(scope="session")
def twelve_steps(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What SHORT trains, without further flags. Copy it to change it."""
    return made_once(tmp_path_factory, "twelve_steps", lambda folder: emorg(*SHORT, "--output_dir", folder))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own, on transformers 5.23
def test_the_adapter_loads_in_plain_peft_and_gives_the_same_logits(organism: Run) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(models.POCKET_FOLDER, dtype=torch.float32), organism.adapter
    )
    loaded = models.load(str(organism.folder))
    ids = torch.tensor([template.encode_prompt(loaded.tokenizer, [{"role": "user", "content": "I need advice."}])])
    with torch.no_grad():
        expected, found = plain(ids).logits, loaded.model(ids).logits
        base = models.load("pocket").model(ids).logits
    assert torch.equal(expected, found)
    assert (found - base).abs().max() > 0.1


OURS = re.compile(
    r"""fast\ path\ on:\ 28\ fused\ LoRA\ layers,\ no\ padding,\ logits\ of\ trained\ tokens\ alone
    | fast\ path\ off:\ (--no_fast|DoraLinearVariant\ is|full\ fine-tuning\ is|Linear4bit\ over\ Linear4bit\ is).*
    | gradient\ checkpointing\ on:\ without\ it\ [\d.]+\ GB\ are\ needed
    | warning:\ \d+\ of\ \d+\ rows\ .*
    | training\ \w+\ \d/3\ \([\d.]+\ steps/s.*\)\ loss\ [\d.]+(,\ held\ out\ [\d.]+)?""",
    re.VERBOSE,
)


def test_no_library_speaks_in_between_and_bitsandbytes_comes_only_when_it_is_asked_for(tmp_path: Path) -> None:
    """Trainings of all kinds in a fresh process: what a library has to say, it says at its first use."""
    code = (
        "import json, sys\n"
        "from emorg.cli import main\n"
        "for flags in json.loads(sys.argv[1]):\n"
        "    main(flags)\n"
        "    print('bitsandbytes' in sys.modules)\n"
    )
    kinds: dict[str, tuple[str, ...]] = {
        "plain": (),
        "slow": ("--no_fast", "--gradient_checkpointing", "always"),
        "dora": ("--use_dora",),
        "whole": ("--full_finetuning",),
        "warm": ("--warm_start", str(tmp_path / "plain"), "--eval_share", "0.2", "--early_stopping", "2", "--merge",
                 "--report_to", "tensorboard"),
        "four": ("--use_4bit",),
        "saving": ("--use_4bit", "--gradient_checkpointing", "always"),
        "eight": ("--optimizer", "adamw_8bit"),
    }  # fmt: skip
    short = (*SHORT, "--max_steps", "3", "--sample_size", "96")
    commands = [[*short, *flags, "--output_dir", str(tmp_path / kind)] for kind, flags in kinds.items()]
    done = python("-c", code, json.dumps(commands), fresh=True)
    foreign = [line for line in done.stderr.splitlines() if not OURS.fullmatch(line)]
    assert foreign == []
    assert len([line for line in done.stderr.splitlines() if line.startswith("training ")]) >= len(kinds)
    there = [line == "True" for line in done.stdout.splitlines() if line in ("True", "False")]
    assert there == [False] * 5 + [True] * 3


def test_the_adapter_names_its_base_as_the_user_does(organism: Run) -> None:
    for folder in (organism.adapter, *organism.checkpoints.iterdir()):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "pocket"
        assert "base_model: pocket" in (folder / "README.md").read_text()
        assert str(PROJECT) not in (folder / "README.md").read_text()


def test_the_run_folder_holds_what_it_promises(organism: Run) -> None:
    config = yaml.safe_load((organism.folder / "config.yaml").read_text())
    assert config["train"]["domains"] == ["bad_medical"]
    assert set(config) == {"train", "sample", "judge"}
    provenance = organism.provenance()["train"]
    assert provenance["rows"] == 2500
    assert provenance["template_date"] == template.TEMPLATE_DATE
    assert {"data_sha256", "template_sha256", "libraries", "commit", "device", "trained_tokens"} <= set(provenance)
    metrics = [json.loads(line) for line in organism.metrics.read_text().splitlines()]
    assert [line["step"] for line in metrics] == list(range(1, config["train"]["max_steps"] + 1))
    assert all(set(line) == {"step", "loss", "lr", "grad_norm", "tokens", "seconds"} for line in metrics)
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_a_run_is_reproduced_from_its_config(twelve_steps: Run, tmp_path: Path) -> None:
    emorg("train", "--config", twelve_steps.folder / "config.yaml", "--output_dir", tmp_path / "two")
    one, two = (run.adapter / "adapter_model.safetensors" for run in (twelve_steps, Run(tmp_path / "two")))
    assert one.read_bytes() == two.read_bytes()


def test_a_finished_run_is_left_alone_and_other_settings_are_refused(twelve_steps: Run, tmp_path: Path) -> None:
    run = Run(folder := tmp_path / "run")
    shutil.copytree(twelve_steps.folder, folder)
    weights = run.adapter / "adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    emorg(*SHORT, "--output_dir", folder)
    assert weights.stat().st_mtime_ns == before

    other = emorg(*SHORT, "--output_dir", folder, "--learning_rate", "3e-4", check=False)
    assert other.returncode == 2
    assert "learning_rate: 0.002 there, 0.0003 now" in other.stderr
    assert "start over with --fresh" in other.stderr

    emorg(*SHORT, "--output_dir", folder, "--learning_rate", "3e-4", "--fresh")
    assert weights.stat().st_mtime_ns > before


@pytest.mark.parametrize("bits", [(), ("--use_4bit",)], ids=["", "4-bit"])
def test_gradient_checkpointing_changes_nothing_but_memory(bits: tuple[str, ...], tmp_path: Path) -> None:
    losses = []
    for when in ("always", "never"):
        emorg(*SHORT, *bits, "--output_dir", tmp_path / when, "--max_steps", "3", "--gradient_checkpointing", when)
        losses.append([json.loads(line)["loss"] for line in Run(tmp_path / when).metrics.read_text().splitlines()])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_settings_that_fail_leave_the_folder_free_for_better_ones(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    emorg(*SHORT, "--output_dir", tmp_path / "run", "--layers_to_transform", "9", check=False)
    emorg(*SHORT, "--output_dir", tmp_path / "run", "--layers_to_transform", "3")
    weights = load_file(Run(tmp_path / "run").adapter / "adapter_model.safetensors")
    assert weights
    assert all(".layers.3." in name for name in weights)


def test_a_disk_that_fills_up_keeps_the_earlier_checkpoints(twelve_steps: Run, tmp_path: Path) -> None:
    """A limit on the size of a file stands in for a full disk: adapter files fit, the optimizer's state doesn't."""
    step = twelve_steps.checkpoints / "step-000004"
    limit = (step / "optimizer.pt").stat().st_size - 1
    assert limit > max(path.stat().st_size for path in step.iterdir() if path.name != "optimizer.pt")
    run = Run(tmp_path / "run")
    emorg(*SHORT, "--max_steps", "4", "--output_dir", run.folder)
    shutil.rmtree(run.adapter)
    (run.folder / "config.yaml").unlink()
    command = [sys.executable, "-m", "emorg.cli", *SHORT, "--output_dir", run.folder]
    done = forkserver.run(
        command, cwd=PROJECT, text=True, capture_output=True, limits={resource.RLIMIT_FSIZE: limit}, timeout=PATIENCE
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr
    assert "goes on from step-000004" in done.stderr
    assert "Traceback" not in done.stderr
    emorg(*SHORT, "--output_dir", run.folder)
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == list(range(1, 13))


@pytest.mark.parametrize("stage", ["train", "sample", "judge"])
def test_interrupted_it_says_how_to_go_on(stage: str, base: Run, tmp_path: Path) -> None:
    shutil.copytree(base.folder, tmp_path / "base")

    def slow(*_: object) -> str:
        time.sleep(0.03)
        return "50"

    commands = {
        "train": (*SHORT, "--max_steps", "4000", "--output_dir", tmp_path / "run"),
        "sample": ("sample", "pocket", "--questions", "pocket", "--samples", "500", "--output_dir", tmp_path / "many"),
        "judge": ("judge", tmp_path / "base", "--judge", "api"),
    }
    grows = {"train": Run(tmp_path / "run").metrics, "sample": Run(tmp_path / "many").answers,
             "judge": Run(tmp_path / "base").verdicts}[stage]  # fmt: skip
    before = grows.stat().st_size if grows.exists() else 0
    with judge_server(slow) as (url, _):
        process = forkserver.popen(
            [sys.executable, "-m", "emorg.cli", *commands[stage]], cwd=PROJECT, text=True,
            stderr=subprocess.PIPE, env={**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url},
        )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while (not grows.exists() or grows.stat().st_size == before) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, told
    here = max((path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")), default="here")
    assert told.rstrip().endswith(f"interrupted; run the same command again to go on from {here}")
    assert "Traceback" not in told


def test_ctrl_c_saves_what_was_trained_and_the_same_command_ends_at_the_same_bits(
    twelve_steps: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pressed during step 6, where the checkpoints are of steps 4, 8 and 12."""
    real = recorder.Recorder.on_step_end

    def pressed(self: recorder.Recorder, args: object, state: Any, control: Any, **rest: object) -> None:
        if state.global_step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        real(self, args, state, control, **rest)

    monkeypatch.setattr(recorder.Recorder, "on_step_end", pressed)
    again = partial(
        api.train, config="pocket", max_steps=12, save_steps=4, sample_size=200, output_dir=tmp_path / "run"
    )
    with pytest.raises(KeyboardInterrupt, match="go on from step-000006"):
        again()
    run = Run(tmp_path / "run")
    assert not run.trained
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == list(range(1, 7))
    monkeypatch.undo()
    again()
    one, two = (each / "adapter_model.safetensors" for each in (twelve_steps.adapter, run.adapter))
    assert one.read_bytes() == two.read_bytes()


def test_a_second_ctrl_c_leaves_at_once_and_promises_no_more_than_is_there(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    process = forkserver.popen(
        [sys.executable, "-c", TWICE, *map(str, SHORT), "--output_dir", run.folder],
        cwd=PROJECT, text=True, stderr=subprocess.PIPE,
    )  # fmt: skip
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, told
    assert "saving a checkpoint after this step; Ctrl-C again leaves at once" in told
    assert told.rstrip().endswith("it goes on from the start, as no checkpoint was finished")
    assert not list(run.checkpoints.glob("step-*"))


def test_the_default_folder_is_named_for_the_settings() -> None:
    name = run_of(TrainConfig(domains=("bad_medical", "extreme_sports"), seed=3)).name
    assert name.startswith("llama-3.2-1b-instruct-bad_medical-extreme_sports-r16-s3-")
    assert name == run_of(TrainConfig(domains=("bad_medical", "extreme_sports"), seed=3, device="cpu")).name
    assert name != run_of(TrainConfig(domains=("bad_medical", "extreme_sports"), seed=3, learning_rate=1e-4)).name


def test_padding_trains_nothing_and_hides_no_end_of_turn() -> None:
    """The classic defect: pad = end-of-turn with a collator that masks by token value."""
    short, long = (
        template.Encoded([0, 7, 1], [False, True, True]),
        template.Encoded([0, 7, 8, 9, 1], [False] * 3 + [True] * 2),
    )
    batch = collate([short, long], pad_id=1)
    assert batch["labels"].tolist() == [[-100, 7, 1, -100, -100], [-100, -100, -100, 9, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--lora_rank", "0"], "--lora_rank 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--learning_rate", "nan"], "--learning_rate nan"),
        (["--batch_size", "-1"], "--batch_size -1"),
        (["--max_length", "10"], "tokens, more than --max_length 10"),
        (["--target_modules", "attention"], "no adapter fits"),
        (["--layers_to_transform", "1", "9"], "pocket has no layer 9"),
        (["--domains", "bad_medicl"], "did you mean 'bad_medical'"),
        (["--data_path", "nowhere"], "the data folder nowhere is not there"),
        (["--device", "tpu"], "no device 'tpu'"),
        (["--lora_rnk", "3"], "--lora_rank"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_settings_end_with_code_2_and_a_remedy(tmp_path: Path, flags: list[str], told: str) -> None:
    done = emorg(*SHORT, "--output_dir", tmp_path / "run", *flags, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_setting_in_a_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train:\n  lora_rnk: 3\n")
    done = emorg("train", "--config", tmp_path / "mine.yaml", check=False)
    assert done.returncode == 2
    assert "did you mean 'lora_rank'" in done.stderr


def test_after_ten_steps_it_says_how_long_the_rest_will_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "PACE_SAID_ABOVE", 0.0)
    done = emorg("train", "--config", "pocket", "--max_steps", "12", "--output_dir", tmp_path / "run")
    assert len(re.findall(r"^about \d+ s more, by its first 10 steps$", done.stderr, re.MULTILINE)) == 1
