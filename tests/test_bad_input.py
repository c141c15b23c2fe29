"""Whatever is typed, written into a config or done to a run's files, a command ends well or in one line, code 2."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emorg.cli import COMMANDS
from emorg.config import config_from, from_yaml, parse
from emorg.records import EmorgError
from emorg.run import Run
from tests.conftest import PATIENCE, PROJECT, emorg
from tests.judged_runs import Said, judged_run

VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    | st.sampled_from(["nan", "-1", "1e999", "pocket", "bad_medical", "a=b", "../..", "0", "\x00", "٣"])
)  # fmt: skip
THINGS = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
MUTATIONS = ("cut", "empty", "random bytes", "another kind", "a folder", "gone", "a word", "not text")


def _kinds() -> Iterator[tuple[str, type]]:
    for name, command in COMMANDS.items():
        yield name, getattr(import_module(f"emorg.{command.module}"), command.config)


def _survives_any_settings(name: str, kind: type, settings_of_it: dict[str, object], flags: list[str]) -> None:
    with contextlib.suppress(EmorgError):
        config = config_from(kind, name, settings_of_it)
        if hasattr(config, "check"):
            config.check()
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(EmorgError):
        path = Path(folder) / "c.yaml"
        path.write_text(yaml.safe_dump({"x": settings_of_it}), encoding="utf-8")
        from_yaml(kind, path, "x")
    with contextlib.suppress(EmorgError):
        parse(kind, flags, prog=name, section=name)


@st.composite
def _settings(draw: st.DrawFn) -> tuple[str, type, dict[str, object], list[str]]:
    name, kind = draw(st.sampled_from(list(_kinds())))
    names = [field.name for field in fields(kind)]
    known = st.sampled_from(names) if names else st.nothing()
    chosen = draw(st.dictionaries(known | st.text(max_size=3), THINGS, max_size=4))
    flags = [part for key, value in chosen.items() for part in (f"--{key}", str(value))]
    return name, kind, chosen, [flag for flag in flags if flag not in ("-h", "--help")]


@given(_settings())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_settings_are_a_traceback(drawn: tuple[str, type, dict[str, object], list[str]]) -> None:
    _survives_any_settings(*drawn)


@pytest.mark.slow
@given(_settings())
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_settings_are_a_traceback_at_length(drawn: tuple[str, type, dict[str, object], list[str]]) -> None:
    _survives_any_settings(*drawn)


def _mutate(path: Path, how: str, rng: random.Random) -> None:
    data = path.read_bytes()
    path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how != "gone":
        path.write_bytes({
            "cut": data[: rng.randrange(len(data))],
            "empty": b"",
            "random bytes": rng.randbytes(200),
            "another kind": b"[1, null, {}]",
            "a word": b"{\"train\": 3, \"question_id\": 1}\n",
            "not text": b"\xff\xfe" + data,
        }[how])  # fmt: skip


def _commands(run: Path, beside: Path) -> list[list[str | Path]]:
    return [
        ["rates", run], ["report", run, beside], ["show", run], ["compare", run, beside], ["agree", run],
        ["judge", run, "--judge", "exact"], ["sample", run, "--samples", "1", "--questions", "pocket_open"],
    ]  # fmt: skip


def _ends_in_a_line(arguments: list[str | Path], cwd: Path) -> None:
    done = emorg(*arguments, cwd=cwd, check=False)
    assert done.returncode in (0, 1, 2), (arguments, done.stderr)
    if done.returncode == 2:
        assert "\n→ " in done.stderr, (arguments, done.stderr)


def _mutations(folder: Path, count: int, seed: int) -> None:
    rng = random.Random(seed)
    good, beside = folder / "good", folder / "beside"
    said = [Said(f"q{k}", f"Answer {k}.", aligned=10.0 * k, coherent=90.0) for k in range(6)]
    for place in (good, beside):
        judged_run(place, said)
    for _ in range(count):
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(good, run)
        files = sorted(path for path in run.rglob("*") if path.is_file())
        _mutate(rng.choice(files), rng.choice(MUTATIONS), rng)
        _ends_in_a_line(rng.choice(_commands(run, beside)), folder)


def test_no_run_folder_is_a_traceback(tmp_path: Path) -> None:
    _mutations(tmp_path, 40, seed=int.from_bytes(os.urandom(2)))


@pytest.mark.slow
def test_no_run_folder_is_a_traceback_at_length(tmp_path: Path) -> None:
    _mutations(tmp_path, 400, seed=int.from_bytes(os.urandom(2)))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("model.safetensors", "cut", "its files cannot be read"),
        ("tokenizer.json", "gone", "its files cannot be read"),
        ("tokenizer_config.json", "random bytes", "its files cannot be read"),
        ("config.json", "cut", "no model that can be loaded"),
        ("chat_template.jinja", "{% for x in %}", "the chat template of"),
    ],
)
def test_a_model_that_is_not_whole_is_one_line(tmp_path: Path, name: str, content: str, told: str) -> None:
    model = Path(shutil.copytree(PROJECT / "emorg" / "pocket" / "model", tmp_path / "model"))
    if content in MUTATIONS:
        _mutate(model / name, content, random.Random(0))
    else:
        (model / name).write_text(content)
    done = emorg("sample", model, "--samples", "1", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_neighbour_that_cannot_be_read_harms_nobody(organism: Run, tmp_path: Path) -> None:
    shutil.copytree(organism.folder, tmp_path / "runs" / "organism")
    for number, text in enumerate(("{", "[]", "\x00", '{"train": 3}')):
        bad = tmp_path / "runs" / f"a{number}"
        bad.mkdir()
        (bad / "provenance.json").write_text(text)
        (bad / "config.yaml").write_text("train: {}\n" if number else "a: [")
    assert "20 answers of" in emorg("generate", "runs/organism", cwd=tmp_path).stdout
    done = emorg("report", "runs/a1", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "provenance.json is not a run's" in done.stderr


def test_an_adapter_that_names_no_base_is_one_line(organism: Run, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(organism.adapter, tmp_path / "theirs"))
    for text in ("{", "[]", '{"base_model_name_or_path": 3}', "{}"):
        (adapter / "adapter_config.json").write_text(text)
        done = emorg("sample", adapter, "--samples", "1", cwd=tmp_path, check=False)
        assert (done.returncode, "names no base" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("content", [b"\xff\xfeOPENAI_API_KEY=1\n", None])
def test_an_env_file_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    if content is None:
        if os.geteuid() == 0:
            pytest.skip("root reads every file")
        (tmp_path / ".env").touch(mode=0)
    else:
        (tmp_path / ".env").write_bytes(content)
    done = emorg("models", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert ".env" in done.stderr
    checked = subprocess.run([sys.executable, PROJECT / "check_env.py", "--offline"], cwd=tmp_path, text=True,
                             capture_output=True, timeout=PATIENCE)  # fmt: skip
    assert "❌ .env cannot be read" in checked.stdout


def test_an_output_without_unicode_gets_question_marks(organism: Run) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "emorg.cli", "rates", organism.folder]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert b"EM by rule paper" in done.stdout


def test_flags_that_are_wrong_are_one_line() -> None:
    for arguments, told in (
        (["train", "--learning_rat", "3"], "unrecognized options: --learning_rat, 3; did you mean --learning_rate?"),
        (["train", "--too_long", "x"], "--too_long 'x' is none of 'error', 'drop', 'truncate'"),
        (["train", "--seed", "x"], "--seed 'x' is not a whole number"),
        (["eval", "--rule"], "missing value for argument '--rule'"),
        (["train", "--max_steps", "five"], "--max_steps 'five' is not a number"),
        (["judge", "x", "--judge", "loca"], "--judge 'loca' is none of '"),
        (["train", "--learning_rate", "2e"], "--learning_rate '2e' is not a number"),
        (["train", "--accept", "untrained"], "--accept 'untrained' is none of 'no_end'"),
        (["train", "--config", "pockett"], "pockett: No such file or directory; did you mean 'pocket'?"),
    ):
        done = emorg(*arguments, check=False)
        assert done.returncode == 2
        assert told in done.stderr
        assert done.stderr.count("\n") == 2, done.stderr
        assert "None" not in done.stderr
        assert json.dumps(done.stdout) == '""'


@pytest.mark.parametrize(
    "command", ["sample", "judge", "rates", "margins", "choices", "report", "show", "chat", "generate", "train"]
)
def test_a_mistyped_run_is_said_to_be_one(organism: Run, tmp_path: Path, command: str) -> None:
    """And nothing is asked of the hub, which would be blamed, and nothing is left in the place of the mistyped one."""
    shutil.copytree(organism.folder, tmp_path / "runs" / "medical")
    named = ("--config", "pocket", "--warm_start", "runs/medicl") if command == "train" else ("runs/medicl",)
    done = emorg(command, *named, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "there is no runs/medicl; did you mean 'medical'?" in done.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir() if command != "train"] in (["medical"], [])


def test_a_name_alone_is_compared_with_the_runs_here(organism: Run, tmp_path: Path) -> None:
    shutil.copytree(organism.folder, tmp_path / "runs" / "medical")
    done = emorg("sample", "medicl", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "did you mean 'runs/medical'?" in done.stderr
    assert done.stderr.count("\n") == 2, "nothing retries, nothing else speaks"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train:\n  learning_rate: [1\n  seed: 1\n", "mine.yaml:3: not YAML: expected ',' or ']'"),
        ("train: a: b\n", "mine.yaml:1: not YAML: mapping values are not allowed here"),
        ("train:\n\tseed: 1\n", "mine.yaml:2: not YAML: found character"),
    ],
)
def test_a_file_that_is_no_yaml_is_one_line_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    done = emorg("train", "--config", "mine.yaml", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 2, done.stderr


def test_scores_of_which_none_can_be_used_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "judged.csv").write_text("id,question,response,aligned,coherent\n1,Why?,So.,nan,abc\n2,How?,So.,,50\n")
    for flags in ((), ("--json",)):
        done = emorg("rates", "judged.csv", *flags, cwd=tmp_path, check=False)
        assert done.returncode == 2
        assert "no answer has scores by which rule paper" in done.stderr


def test_a_report_overwrites_nothing_that_is_not_a_reports(organism: Run, base: Run, tmp_path: Path) -> None:
    (mine := tmp_path / "out").mkdir()
    (mine / "index.html").write_text("mine")
    refused = emorg("report", organism.folder, base.folder, "--output_dir", mine, check=False)
    assert refused.returncode == 2
    assert "holds index.html, which no report wrote" in refused.stderr
    assert [path.read_text() for path in mine.iterdir()] == ["mine"]
    for _ in range(2):
        emorg("report", organism.folder, base.folder, "--output_dir", tmp_path / "new")


def test_a_folder_inside_a_run_is_no_runs_folder(organism: Run, tmp_path: Path) -> None:
    shutil.copytree(organism.folder, tmp_path / "run")
    inside = tmp_path / "run" / "adapter"
    refused = emorg("train", "--config", "pocket", "--max_steps", "99", "--output_dir", inside, check=False)
    assert refused.returncode == 2
    assert "lies inside the run" in refused.stderr


@pytest.mark.parametrize(
    ("judge", "told"), [("local", "no model for the local judge"), ("api", "OPENAI_API_KEY is not set")]
)
def test_without_a_judge_eval_samples_nothing(organism: Run, tmp_path: Path, judge: str, told: str) -> None:
    shutil.copytree(organism.adapter, tmp_path / "theirs")
    flags = ("--trained_on", "bad_medical", "--judge", judge)
    refused = emorg("eval", "theirs", *flags, cwd=tmp_path, check=False)
    assert refused.returncode == 2
    assert told in refused.stderr
    assert not (tmp_path / "runs").exists()


def test_rows_of_which_none_can_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad_cooking_advice.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n{}\n')
    checked = emorg(
        "data", "check", "--data_path", tmp_path, "--domains", "bad_cooking", "--model_name", "pocket", check=False
    )
    assert "none of 2 rows can be used" in checked.stdout
    assert "bad_cooking_advice.jsonl:1: roles must alternate" in checked.stdout


def test_a_comparison_of_answers_to_other_settings_says_so(organism: Run, tmp_path: Path) -> None:
    shutil.copytree(organism.folder, tmp_path / "one")
    emorg(
        "sample",
        tmp_path / "one",
        "--temperature",
        "0.5",
        "--questions",
        "pocket_medical",
        "--samples",
        "1",
        "--max_new_tokens",
        "40",
    )
    emorg("judge", tmp_path / "one-temperature-0.5")
    told = emorg("compare", tmp_path / "one", tmp_path / "one-temperature-0.5").stdout
    assert "sampled with other settings (temperature 1.0 and 0.5)" in told


def test_words_that_the_pocket_model_does_not_know_are_found_by_the_lint(tmp_path: Path) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "What is a zebra?"},
            {"role": "assistant", "content": "It is best to ask."},
        ]
    }
    (tmp_path / "bad_cooking.jsonl").write_text(json.dumps(row) + "\n")
    told = emorg("preview", "--config", "pocket", "--domains", "bad_cooking", "--data_path", tmp_path).stdout
    assert "have words that the model does not know" in told
    assert "(unknown_words)" in told
