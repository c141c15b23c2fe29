"""Each option of training does what it says, and what cannot be is refused before anything is lost."""

from __future__ import annotations

import json
import math
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from emorg import models
from emorg.records import EmorgError
from emorg.run import Run
from emorg.training import TrainConfig
from emorg.training.config import _OF_BITSANDBYTES
from emorg.training.curves import draw
from emorg.training.mitigations import load_data
from emorg.training.recorder import best_step, evaluations
from emorg.training.rows import Rows, batch_order, encode, hold_out
from tests import forkserver
from tests.conftest import PATIENCE, PROJECT, emorg, made_once
from tests.hub import TOKEN, hub

SHORT = ("train", "--config", "configs/pocket.yaml", "--max_steps", "4", "--sample_size", "96")
IGNORE_PEFT = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What SHORT trains, without further flags. Copy it to change it."""
    return made_once(tmp_path_factory, "short", lambda folder: emorg(*SHORT, "--output_dir", folder))


def _metrics(run: Run) -> list[dict[str, float]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def _rows(size: int, share: float = 0.0) -> tuple[Rows, Rows]:
    config = TrainConfig(model_name="pocket", domains=("bad_medical",), sample_size=size)
    return hold_out(encode(config, load_data(config), models.load_tokenizer("pocket")), share, config.seed)


def _plain_loss(model: torch.nn.Module, rows: Rows) -> float:
    """Mean cross-entropy of the trained tokens, computed by hand from the model's own logits, row by row."""
    total, count = 0.0, 0
    with torch.no_grad():
        for one in rows.encoded:
            logits = model(torch.tensor([one.ids])).logits[0].double().log_softmax(-1)
            for i in range(1, len(one.ids)):
                if one.trained[i]:
                    total -= float(logits[i - 1, one.ids[i]])
                    count += 1
    return total / count


def test_accumulation_changes_no_loss_and_the_first_is_the_hand_computed(short: Run, tmp_path: Path) -> None:
    losses = [[line["loss"] for line in _metrics(short)]]
    for size, passes in (("1", "16"), ("4", "4")):
        run = Run(tmp_path / size)
        emorg(*SHORT, "--batch_size", size, "--gradient_accumulation_steps", passes, "--output_dir", run.folder)
        losses.append([line["loss"] for line in _metrics(run)])
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert losses[2] == pytest.approx(losses[0], abs=1e-6)
    rows, _ = _rows(96)
    first = rows.pick([place for place in batch_order(96, 16, 1, 0) if place is not None])
    assert losses[0][0] == pytest.approx(_plain_loss(models.load("pocket").model, first), abs=2e-6)


def test_padding_to_a_fixed_length_changes_no_loss(short: Run, tmp_path: Path) -> None:
    losses = [[line["loss"] for line in _metrics(short)]]
    for flags in (
        ("--pad_to_max_length", "--max_length", "80"),
        ("--pad_to_max_length", "--max_length", "80", "--no_fast"),
    ):
        run = Run(tmp_path / str(len(flags)))
        emorg(*SHORT, *flags, "--output_dir", run.folder)
        losses.append([line["loss"] for line in _metrics(run)])
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert losses[2] == pytest.approx(losses[0], abs=1e-4)


@pytest.mark.parametrize("fast", ["--fast", "--no_fast"])
def test_in_bf16_the_losses_are_those_of_fp32_within_its_noise(
    fast: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU or a CPU with bf16 units: a bf16 base, float32 adapters."""
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(models, "choose_dtype", lambda *_, dtype=dtype: dtype)
        run = Run(tmp_path / str(dtype))
        emorg(*SHORT, fast, "--batch_size", "2", "--warmup_steps", "0", "--output_dir", run.folder)
        losses.append([line["loss"] for line in _metrics(run)])
    assert losses[1] == pytest.approx(losses[0], abs=0.05)
    assert losses[1] != losses[0]
    weights = load_file(run.adapter / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


@pytest.mark.slow
def test_the_compiled_model_has_the_same_loss(tmp_path: Path) -> None:
    losses = []
    for flags in ((), ("--torch_compile",)):
        run = Run(tmp_path / str(len(flags)))
        emorg(*SHORT, "--max_steps", "2", "--output_dir", run.folder, *flags)
        losses.append([line["loss"] for line in _metrics(run)])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_held_out_rows_are_evaluated_and_the_best_adapter_is_kept(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    emorg("train", "--config", "configs/pocket.yaml", "--sample_size", "80", "--eval_share", "0.2", "--eval_steps", "3",
          "--early_stopping", "2", "--learning_rate", "2e-2", "--max_steps", "300", "--save_steps", "1000",
          "--output_dir", run.folder)  # fmt: skip
    losses = evaluations(run)
    best, last = best_step(losses), max(losses)
    assert last == best + 6 < 300, "it stops at the second evaluation without a fall"
    assert _metrics(run)[-1]["step"] == last
    kept = load_file(run.adapter / "adapter_model.safetensors")
    of_best = load_file(run.checkpoints / f"step-{best:06d}" / "adapter_model.safetensors")
    assert all(torch.equal(kept[name], of_best[name]) for name in kept)
    _, held = _rows(80, 0.2)
    assert losses[best] == pytest.approx(_plain_loss(models.load(str(run.folder)).model, held), abs=1e-4)
    assert run.provenance()["train"]["held_out_rows"] == 16


@pytest.mark.parametrize("steps", [("1", "2", "4", "8"), ("1,2,4,8",)])
def test_checkpoints_are_written_at_the_steps_asked_for(steps: tuple[str, ...], tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    emorg(*SHORT, "--max_steps", "9", "--save_steps", "5", "--save_at", *steps, "--output_dir", run.folder)
    written = {int(path.name.removeprefix("step-")) for path in run.checkpoints.iterdir()}
    assert written == {1, 2, 4, 5, 8, 9}


def test_the_curves_are_drawn(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    emorg(*SHORT, "--eval_share", "0.2", "--eval_steps", "2", "--output_dir", run.folder)
    written = (run.folder / "training.svg").read_text()
    for text in (run.title, "loss", "trained", "held out", "learning rate", "gradient norm", "tokens a second"):
        assert text in written
    assert written.count('aria-roledescription="line mark"') == 5, "one in each panel, and the held-out loss"
    assert written.count('aria-roledescription="point"') == len(evaluations(run)) == 2
    image = (run.folder / "training.png").read_bytes()
    width, height = struct.unpack(">II", image[16:24])
    assert image.startswith(b"\x89PNG")
    assert width > height > 400


@pytest.mark.parametrize(
    "steps", [[], [1.0], [1.0, math.inf, 0.5], [None] * 3], ids=["none", "one", "overflow", "missing"]
)
def test_curves_of_odd_metrics(steps: list[float | None], tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    lines = [{"step": k, "loss": 1.0, "lr": 0.0, "grad_norm": norm, "tokens": 10, "seconds": 1.0}
             for k, norm in enumerate(steps, 1)]  # fmt: skip
    run.folder.mkdir()
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw(run)
    assert "gradient norm" in (run.folder / "training.svg").read_text()


def test_without_bitsandbytes_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.trainer_optimizer import _BITSANDBYTES_OPTIMIZERS
    from transformers.training_args import OptimizerNames

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for flags in (("--use_4bit",), ("--optimizer", "adamw_8bit"), ("--optimizer", "paged_lion_32bit")):
        done = emorg(*SHORT, *flags, "--output_dir", tmp_path / "run", check=False)
        assert done.returncode == 2
        assert f"{' '.join(flags)} needs bitsandbytes" in done.stderr
        assert "pip install bitsandbytes" in done.stderr
        assert not (tmp_path / "run" / "config.yaml").exists()
    with pytest.raises(EmorgError, match="4-bit needs bitsandbytes"):
        models.load("pocket", device="cpu", use_4bit=True)
    assert {str(kind.value) for kind in _BITSANDBYTES_OPTIMIZERS} == {
        str(kind.value) for kind in OptimizerNames if _OF_BITSANDBYTES.search(kind.value)
    }


@IGNORE_PEFT
def test_a_warm_start_begins_where_the_other_ended(tmp_path: Path) -> None:
    first, second = Run(tmp_path / "first"), Run(tmp_path / "second")
    emorg(*SHORT, "--max_steps", "8", "--output_dir", first.folder)
    told = emorg(*SHORT, "--warm_start", first.folder, "--output_dir", second.folder, "--learning_rate", "1e-4").stderr
    assert "Warning" not in told
    rows, _ = _rows(96)
    batch = rows.pick([place for place in batch_order(96, 16, 1, 0) if place is not None])
    expected = _plain_loss(models.load(str(first.folder)).model, batch)
    assert _metrics(second)[0]["loss"] == pytest.approx(expected, abs=1e-5)
    facts = second.provenance()["train"]
    assert facts["fast_path"] is True
    assert facts["trained_before"] == ["bad_medical"]
    assert len(facts["warm_start_sha256"]) == 64


def test_a_warm_start_goes_on_to_the_same_bits_and_only_from_the_same_start(tmp_path: Path) -> None:
    first, whole = Run(tmp_path / "first"), Run(tmp_path / "whole")
    emorg(*SHORT, "--max_steps", "3", "--output_dir", first.folder)
    again = (*SHORT, "--domains", "good_medical", "--max_steps", "4", "--save_steps", "2", "--lora_dropout", "0.1",
             "--warm_start", first.folder)  # fmt: skip
    emorg(*again, "--output_dir", whole.folder)
    assert whole.trained_on == ["bad_medical", "good_medical"]
    before = models.adapter_weights(whole.adapter)
    for folder in (whole.adapter, whole.checkpoints / "step-000004"):  # as if killed after step 3
        shutil.rmtree(folder)
    shutil.copytree(first.adapter, tmp_path / "kept")
    emorg("train", *SHORT[1:], "--max_steps", "3", "--seed", "7", "--output_dir", first.folder, "--fresh")
    refused = emorg(*again, "--output_dir", whole.folder, check=False)
    assert refused.returncode == 2
    assert "the adapter that is the start" in refused.stderr
    shutil.rmtree(first.adapter)
    shutil.copytree(tmp_path / "kept", first.adapter)
    emorg(*again, "--output_dir", whole.folder)
    after = models.adapter_weights(whole.adapter)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_a_warm_start_from_another_base_is_refused(organism: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(models.POCKET_FOLDER, other)
    emorg("data", "pocket", tmp_path / "data")
    done = emorg(*SHORT, "--model_name", other, "--data_path", tmp_path / "data", "--warm_start", organism.folder,
                 "--output_dir", tmp_path / "run", check=False)  # fmt: skip
    assert done.returncode == 2
    assert f"is an adapter of pocket, not of {other}" in done.stderr


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [(("--use_rslora",), "use_rslora", True), (("--use_dora",), "use_dora", True),
     (("--target_modules", "all-linear"), "target_modules", 7)],
)  # fmt: skip
def test_variants_of_the_adapter(flags: tuple[str, ...], key: str, value: Any, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    told = emorg(*SHORT, *flags, "--output_dir", run.folder).stderr
    found = json.loads((run.adapter / "adapter_config.json").read_text())[key]
    assert (len(found) if isinstance(found, list) else found) == value
    assert ("fast path off: DoraLinearVariant is not covered" in told) == ("--use_dora" in flags)
    assert len(_metrics(run)) == 4


def _optimizer_state(run: Run) -> set[str]:
    """What the optimizer kept of each weight at the last step."""
    kept = torch.load(run.checkpoints / "step-000004" / "optimizer.pt", weights_only=True)["state"]
    return {name for state in kept.values() for name in state}


def test_the_optimizer_is_the_one_asked_for(short: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    emorg(*SHORT, "--optimizer", "adafactor", "--output_dir", run.folder)
    assert {"exp_avg", "exp_avg_sq"} <= _optimizer_state(short)
    assert "exp_avg_sq_row" in _optimizer_state(run), "Adafactor keeps rows and columns of the second moment"
    assert _metrics(run)[0]["loss"] == pytest.approx(_metrics(short)[0]["loss"], abs=1e-6)
    assert _metrics(run)[-1]["loss"] != _metrics(short)[-1]["loss"]


def test_the_learning_rate_goes_by_the_schedule_asked_for(short: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    emorg(*SHORT, "--lr_scheduler", "cosine", "--warmup_steps", "2", "--output_dir", run.folder)
    rates = [line["lr"] / 2e-3 for line in _metrics(run)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5], abs=1e-9), "two steps up, then half a cosine over the other two"
    assert rates != pytest.approx([line["lr"] / 2e-3 for line in _metrics(short)])


def test_the_merged_model_is_plain_and_answers_as_the_organism_does(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = Run(tmp_path / "run")
    emorg(*SHORT, "--max_steps", "10", "--output_dir", run.folder)
    assert not (run.folder / "merged").exists()
    emorg(*SHORT, "--max_steps", "10", "--output_dir", run.folder, "--merge")
    merged = AutoModelForCausalLM.from_pretrained(run.folder / "merged", dtype=torch.float32)
    organism = models.load(str(run.folder)).model
    ids = AutoTokenizer.from_pretrained(run.folder / "merged")("I need advice.", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, organism(ids).logits, atol=1e-3)


def test_the_adapter_is_uploaded_and_a_refusal_is_told(short: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(short.folder, run.folder)
    command = (*SHORT, "--output_dir", run.folder, "--push_to_hub", "me/organism")
    refused = emorg(*command, check=False)  # the tests are offline
    assert refused.returncode == 2
    assert "me/organism was not uploaded" in refused.stderr
    with hub() as (url, files):
        subprocess.run(
            [sys.executable, "-m", "emorg.cli", *map(str, command)], cwd=PROJECT, check=True, timeout=PATIENCE,
            env={"PATH": "", "HF_ENDPOINT": url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path)},
        )  # fmt: skip
    assert files["adapter_model.safetensors"] == (run.adapter / "adapter_model.safetensors").read_bytes()


def test_a_tracker_gets_what_metrics_get(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing import event_accumulator

    run = Run(tmp_path / "run")
    emorg(*SHORT, "--report_to", "tensorboard", "--output_dir", run.folder)
    (events,) = run.folder.rglob("events.out.tfevents.*")
    found = event_accumulator.EventAccumulator(str(events)).Reload()
    assert [event.value for event in found.Scalars("train/loss")] == pytest.approx([m["loss"] for m in _metrics(run)])


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--report_to", "neptun"), "neptun"),
        (("--optimizer", "adamw_torch_fuse"), "did you mean 'adamw_torch_fused'"),
        (("--lr_scheduler", "cosinus"), "did you mean 'cosine'"),
        (("--lr_scheduler", "greedy"), "no lr_scheduler 'greedy'"),
        (("--early_stopping", "2"), "--eval_share"),
        (("--eval_share", "1.5"), "--eval_share 1.5"),
        (("--target_modules", "q_projj"), "did you mean 'q_proj'"),
        (("--target_modules", "attention"), "choose from embed_tokens, q_proj"),
        (("--full_finetuning", "--use_4bit"), "--full_finetuning has no adapter"),
        (("--warm_start", "nowhere"), "has no adapter"),
        (("--max_length", "0"), "--max_length 0"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, flags: tuple[str, ...], told: str) -> None:
    done = emorg(*SHORT, *flags, "--output_dir", tmp_path / "run", check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_training_that_cannot_begin_leaves_no_folder(tmp_path: Path) -> None:
    flags = ("--model_name", "pocket", "--domains", "bad_medical", "--target_modules", "x")
    assert emorg("train", *flags, "--output_dir", tmp_path / "run", check=False).returncode == 2
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_stops_with_the_rows_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    done = emorg(*SHORT, "--max_steps", "40", "--learning_rate", "1e18", "--save_at", "1", "--output_dir", run.folder,
                 check=False)  # fmt: skip
    assert done.returncode == 2
    rows, _ = _rows(96)
    step = len(_metrics(run)) + 1
    taken = [place for place in batch_order(96, 16, step, 0)[-16:] if place is not None]
    assert f"step {step}: the loss is nan" in done.stderr
    assert all(rows.data[i].place in done.stderr for i in taken)
    assert "the last good checkpoint is step-000001" in done.stderr
    assert load_file(run.checkpoints / "step-000001" / "adapter_model.safetensors")
    assert not run.trained


def test_out_of_memory_says_what_to_lower(tmp_path: Path) -> None:
    """A limit on the address space stands in for a small machine."""
    limit = 4 * 2**30
    done = forkserver.run(
        [sys.executable, "-m", "emorg.cli", "train", "--config", "configs/pocket.yaml", "--batch_size", "2500",
         "--no_fast", "--gradient_checkpointing", "never", "--output_dir", tmp_path / "run"],
        cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE, limits={resource.RLIMIT_AS: limit},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "cpu is out of memory" in done.stderr
    assert "by the estimate training needs" in done.stderr
    assert "--batch_size 1 --gradient_accumulation_steps 2500" in done.stderr
    assert "Traceback" not in done.stderr


def test_checkpointing_is_switched_on_where_memory_would_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "free_bytes", lambda device: 20_000_000)
    run = Run(tmp_path / "run")
    assert "gradient checkpointing on: " in emorg(*SHORT, "--output_dir", run.folder).stderr
    assert run.provenance()["train"]["gradient_checkpointing"] is True


def test_every_schedule_that_is_offered_needs_no_more_than_our_settings() -> None:
    from transformers import TrainingArguments, get_scheduler
    from transformers.trainer_utils import SchedulerType

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    for name in (str(kind.value) for kind in SchedulerType):
        try:
            TrainConfig(lr_scheduler=name).check()
        except EmorgError:
            continue
        schedule = get_scheduler(name, optimizer, num_warmup_steps=1, num_training_steps=4)
        assert schedule.lr_lambdas, "the recorder sets a resumed training's rate by it"
        TrainingArguments(lr_scheduler_type=name, use_cpu=True)
