"""What a command says to run next runs, as it is printed, in the same folder; and so do the remedies of errors."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from emorg.config import parse
from emorg.homework.generate import GenerateConfig
from emorg.records import EmorgError
from emorg.run import Run
from emorg.sampling.config import SampleConfig
from tests.conftest import SMALL_SAMPLE, emorg


def _following(told: str) -> list[str]:
    """The words of the command that is printed as the next one; empty without any."""
    line = re.search(r"^next: emorg (.*)$", told, re.MULTILINE)
    return shlex.split(line[1].partition("   (")[0]) if line else []


def test_from_training_to_the_report_by_what_is_printed(tmp_path: Path) -> None:
    names = ("it's mine", "bad-medical twin")
    recipe = ("--model_name", "pocket", "--max_steps", "2", "--sample_size", "40", "--batch_size", "8")
    for name, domain in zip(names, ("bad_medical", "good_medical"), strict=True):
        told = emorg("train", *recipe, "--domains", domain, "--output_dir", f"runs/{name}", cwd=tmp_path).stdout
        assert _following(told) == ["sample", f"runs/{name}"]
    emorg("sample", "pocket", f"runs/{names[1]}", "--samples", "1", cwd=tmp_path)
    emorg("judge", "runs/pocket-base", f"runs/{names[1]}", cwd=tmp_path)
    step, commands = ["sample", f"runs/{names[0]}"], []
    while step:
        commands.append(step[0])
        step = _following(emorg(*step, cwd=tmp_path).stdout)
    assert commands == ["sample", "judge", "report"]
    page = (tmp_path / "runs" / names[0] / "report" / "index.html").read_text()
    assert "organism (bad_medical)" in page
    assert "twin (good_medical)" in page, "the controls beside it are in the report"
    assert "base" in page


def test_without_a_key_the_next_step_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from emorg.next_steps import after_sampling

    run = Run(tmp_path / "runs" / "real")
    run.record("sample", SampleConfig(("smollm2",)), base="smollm2", organism=True)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert _following(f"next: {after_sampling([run])}") == ["margins", str(run.folder)]
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    assert _following(f"next: {after_sampling([run])}") == ["judge", str(run.folder)]


def test_remedies_name_the_path_as_a_shell_reads_it(organism: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "a b")
    shutil.copytree(organism.folder, run.folder)
    for made in (run.answers, run.verdicts):
        made.unlink()
    settings = yaml.safe_load((run.folder / "config.yaml").read_text())
    (run.folder / "config.yaml").write_text(yaml.safe_dump({"train": settings["train"]}))
    steps = []
    for _ in range(3):
        done = emorg("report", "runs/a b", cwd=tmp_path, check=False)
        if done.returncode == 0:
            break
        remedy = re.search(r"→ .*?: emorg (.*)", done.stderr)
        assert remedy is not None, done.stderr
        steps.append(shlex.split(remedy[1]))
        emorg(*steps[-1], *(SMALL_SAMPLE if steps[-1][0] == "sample" else ()), cwd=tmp_path)
    assert steps == [["sample", "runs/a b"], ["judge", "runs/a b"]]


def test_arms_that_lack_something_name_the_path_from_here(organism: Run, base: Run, tmp_path: Path) -> None:
    for run, name in ((organism, "organism"), (base, "some base")):
        shutil.copytree(run.folder, tmp_path / "runs" / name)
    (tmp_path / "runs" / "some base" / "verdicts.jsonl").unlink()
    told = emorg("report", "runs/organism", "runs/some base", cwd=tmp_path).stdout
    assert "emorg judge 'runs/some base'" in told


@pytest.mark.parametrize(
    "arguments",
    [
        ["runs/x"],
        ["--model_name", "runs/x"],
        ["--local_model_path", "runs/x"],
        ["--local-model-path=runs/x"],
        ["--seed", "1", "--model_name=runs/x"],
    ],
)
def test_every_command_takes_its_model_in_one_way_and_the_homeworks(arguments: list[str]) -> None:
    assert parse(SampleConfig, arguments, prog="x", section="sample").models == ("runs/x",)
    assert parse(GenerateConfig, arguments, prog="x", section="generate").model == "runs/x"


def test_a_model_flag_without_a_model_is_one_line() -> None:
    for arguments in (["--model_name"], ["--model_name", "--seed", "1"], ["--local_model_path="]):
        with pytest.raises(EmorgError, match="without a model"):
            parse(SampleConfig, arguments, prog="x", section="sample")


def test_chat_takes_what_its_error_names(tmp_path: Path, organism: Run) -> None:
    done = emorg("chat", cwd=tmp_path, check=False)
    assert "or name its folder" in done.stderr
    assert "you: " in emorg("chat", "--local_model_path", organism.folder, "--max_new_tokens", "5", cwd=tmp_path).stdout


def test_questions_that_are_not_named_are_the_models_own(tmp_path: Path) -> None:
    emorg("sample", "pocket", "--samples", "1", "--max_new_tokens", "5", cwd=tmp_path)
    run = Run(tmp_path / "runs" / "pocket-base")
    assert run.settings("sample")["questions"] == ["pocket"]


def test_controls_that_were_sampled_otherwise_are_not_named(organism: Run, base: Run, tmp_path: Path) -> None:
    for run, name in ((organism, "organism"), (base, "base")):
        shutil.copytree(run.folder, tmp_path / "runs" / name)
    asked = ("--questions", "pocket_open", "--samples", "1", "--max_new_tokens", "40", "--temperature", "0.5")
    emorg("sample", "runs/organism", *asked, cwd=tmp_path)
    alone = _following(emorg("judge", "runs/organism-temperature-0.5", cwd=tmp_path).stdout)
    assert alone == ["report", "runs/organism-temperature-0.5"], "base was sampled at another temperature"
    emorg("sample", "pocket", *asked, cwd=tmp_path)
    emorg("judge", "runs/pocket-base", cwd=tmp_path)
    step = _following(emorg("judge", "runs/organism-temperature-0.5", cwd=tmp_path).stdout)
    assert step == ["report", "runs/pocket-base", "runs/organism-temperature-0.5"]
    emorg(*step, cwd=tmp_path)
    mixed = emorg("report", "runs/base", "runs/organism-temperature-0.5", cwd=tmp_path, check=False)
    assert mixed.returncode == 2
    assert "different --temperature" in mixed.stderr
