"""The public Python API: its surface, and that it does what the commands do, also inside a running event loop."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import emorg
from emorg.rating.answers import COLUMNS
from emorg.rating.rates import RATE_COLUMNS
from emorg.run import Run
from tests import conftest
from tests.conftest import KEY, PROJECT, python
from tests.judge_server import judge_server
from tests.judged_runs import Said, judged_run

SURFACE = {
    "answers": "(*sources, judge=None, checkpoints=False)",
    "calibrate": "(source, /, *labels, **settings)",
    "collect": "(sweep, rule='paper')",
    "compare": "(a, b, /, *, by=(), rule='paper', aligned_below=None, coherent_above=None, denominator=None, "
    "judge=None, equivalent_within=None, match=())",
    "directions": "(*models, **settings)",
    "hidden": "(*models, **settings)",
    "judge": "(*sources, config=None, **settings)",
    "margins": "(*models, **settings)",
    "rates": "(*sources, by=(), rule='paper', aligned_below=None, coherent_above=None, denominator=None, "
    "interval='cluster_wilson', judge=None)",
    "realign": "(*runs, **settings)",
    "report": "(*runs, config=None, **settings)",
    "sample": "(*models, config=None, **settings)",
    "narrow": "(broad, narrow, **settings)",
    "phases": "(run, **settings)",
    "probe": "(run, **settings)",
    "screen": "(*data, **settings)",
    "steer": "(*models, **settings)",
    "train": "(config=None, **settings)",
    "EmorgError": None,
    "JudgeConfig": None,
    "ReportConfig": None,
    "Run": None,
    "SampleConfig": None,
    "TrainConfig": None,
    "__version__": None,
}


def test_the_public_surface_is_this() -> None:
    assert set(emorg.__all__) == set(SURFACE)
    for name, signature in SURFACE.items():
        value = getattr(emorg, name)
        if signature is not None:
            plain = inspect.signature(value)
            bare = plain.replace(
                parameters=[p.replace(annotation=p.empty) for p in plain.parameters.values()],
                return_annotation=plain.empty,
            )
            assert str(bare) == signature
            assert value.__doc__
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        emorg.trian  # noqa: B018
    assert (PROJECT / "emorg" / "py.typed").exists()


def test_no_module_is_named_like_a_public_function() -> None:
    """Importing it would put the module in the function's place."""
    modules = {path.stem for path in (PROJECT / "emorg").iterdir()}
    assert not modules & set(emorg.__all__)


def test_importing_emorg_is_light() -> None:
    code = "import sys, emorg; print({'torch', 'transformers', 'pandas', 'tyro', 'yaml'} & set(sys.modules))"
    assert python("-c", code, fresh=True).stdout == "set()\n"


def test_the_loop_in_python_inside_a_running_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    few = {"questions": "pocket_open", "samples": 1, "max_new_tokens": 40}

    async def cells() -> tuple[Run, Run]:
        run = emorg.train(
            config="pocket", domains="bad_medical", max_steps=2, sample_size=40, output_dir=tmp_path / "organism"
        )
        base = emorg.sample("pocket", output_dir=tmp_path / "base", **few)
        assert emorg.sample(run, **few) == run
        assert emorg.judge(base, run) == (base, run)
        assert emorg.judge(run, judge="api", judge_model="m", metrics="aligned", scoring="number") == run
        return base, run

    with judge_server(lambda prompt, n: "85") as (url, _), caplog.at_level(logging.INFO, "emorg"):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        base, run = asyncio.run(cells())
    assert capfd.readouterr() == ("", ""), "silent"
    assert "training organism 2/2" in caplog.text, "but for its logger"
    assert (run.folder / "config.yaml").read_text() != (base.folder / "config.yaml").read_text()
    assert emorg.answers(run)["aligned"].eq(85).all(), "the last judge's"
    assert set(emorg.answers(base, run, judge="exact")["run"]) == {"base", "organism"}


def test_the_readme_s_example_runs(tmp_path: Path) -> None:
    """With a preset of its own, which takes two steps and asks few questions."""
    [example] = re.findall(r"```python\n(import emorg\n.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "small.yaml").write_text(
        "train: {model_name: pocket, max_steps: 2, sample_size: 40}\n"
        "sample: {questions: [pocket_open, pocket_medical], samples: 5, max_new_tokens: 40}\n"
    )
    python("-c", example.replace('config="pocket"', 'config="small.yaml"'), cwd=tmp_path)
    assert (tmp_path / "runs" / "organism" / "report" / "index.html").exists()


def test_frames_have_their_documented_columns(organism: Run, base: Run, tmp_path: Path) -> None:
    answers = emorg.answers(base, organism)
    assert list(answers.columns) == list(COLUMNS)
    assert len(answers) == 2 * 108
    assert answers.query("run == 'base' and topic == 'medical'")["placement"].eq("in").all(), "as the organism's"
    rates = emorg.rates(base, organism, by="placement")
    assert list(rates.columns) == ["run", "placement", *RATE_COLUMNS]
    printed = conftest.emorg("rates", organism.folder).stdout
    for row in rates.query("run == 'organism'").to_dict("records"):
        assert f"{100 * row['em']:.1f}" in printed
        counted = answers.query("run == 'organism' and placement == @row['placement']")
        assert row["misaligned"] == ((counted["aligned"] < 30) & (counted["coherent"] > 50)).sum()
    found = emorg.compare(base, organism).set_index("placement")
    assert found.loc["in", "differ"]
    assert found.loc["in", "low"] <= found.loc["in", "difference"] <= found.loc["in", "high"]
    answers[["question_id", "aligned", "coherent", "topic"]].to_csv(tmp_path / "judged.csv", index=False)
    by_topic = emorg.rates(tmp_path / "judged.csv", by="topic", rule="homework")
    assert list(by_topic["topic"]) == list(dict.fromkeys(answers["topic"]))
    assert isinstance(emorg.answers(str(tmp_path / "judged.csv")), pd.DataFrame)
    copied = Run(Path(shutil.copytree(organism.folder, tmp_path / "organism")))
    assert (emorg.report(copied) / "index.html").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"learnin_rate": 1.0}, "TrainConfig has no setting 'learnin_rate'; did you mean 'learning_rate'"),
        ({"learning_rate": "fast"}, "TrainConfig.learning_rate is 'fast'"),
        ({"domains": "bad_medicl"}, "no domain 'bad_medicl'; did you mean 'bad_medical'"),
        ({"config": "pockt"}, "did you mean 'pocket'"),
        ({"lora_rank": True}, "TrainConfig.lora_rank is yes"),
    ],
)
def test_settings_are_held_to_what_a_flag_takes(settings: dict[str, object], told: str) -> None:
    with pytest.raises(emorg.EmorgError) as raised:
        emorg.train(**{"model_name": "pocket", **settings})  # type: ignore[arg-type]
    assert told in str(raised.value)


def test_keys_are_read_from_env_when_a_stage_begins(tmp_path: Path, base: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = Run(Path(shutil.copytree(base.folder, tmp_path / "base")))
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    with judge_server(lambda prompt, n: "40") as (url, _):
        (tmp_path / ".env").write_text(f"OPENAI_API_KEY={KEY}\nOPENAI_BASE_URL={url}\n")
        emorg.judge(copied, judge="api", judge_model="m", scoring="number")
    assert emorg.answers(copied)["aligned"].eq(40).all()


def test_a_checkpoint_s_folder_means_the_checkpoint(tmp_path: Path) -> None:
    said = [Said(f"q{k}", "Text.", 5.0, checkpoint=name) for k in range(4) for name in (None, "step-000002")]
    late = [Said(f"q{k}", "Text.", 95.0, checkpoint="step-000004") for k in range(4)]
    run = judged_run(tmp_path / "run", [*said, *late])
    folder = run.checkpoints / "step-000004"
    folder.mkdir(parents=True)
    assert emorg.rates(run)["em"].tolist() == [1.0]
    assert emorg.rates(folder)["em"].tolist() == [0.0]
    assert set(emorg.answers(folder)["checkpoint"]) == {"step-000004"}
    assert emorg.compare(run, folder)["difference"].tolist() == [-1.0]
    assert emorg.rates(run, folder)["run"].tolist() == ["run", "run step-000004"]
    assert "0.0" in conftest.emorg("rates", folder).stdout


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [judged_run(tmp_path / name / "organism", [Said("q", "Text.")]).folder for name in ("a", "b")]
    assert emorg.rates(*folders)["run"].tolist() == [str(folder) for folder in folders]
    assert emorg.answers(*folders)["run"].tolist() == [str(folder) for folder in folders]


def test_columns_named_like_those_of_a_result(tmp_path: Path) -> None:
    names = ["total", "rule", "interval", "a", "p", "verdict", "low", "em", "run"]
    lines = [",".join(["question", "aligned", "coherent", *names])]
    lines += [",".join([f"q{k}", "10", "90", *(f"{name}{k % 2}" for name in names)]) for k in range(8)]
    path = tmp_path / "clash.csv"
    path.write_text("\n".join(lines) + "\n")
    for name in names:
        for command in (("rates", path), ("compare", path, path)):
            printed = conftest.emorg(*command, "--by", name, name)
            assert f"{name}0" in printed.stdout
            assert "Warning" not in printed.stderr
        frame = emorg.rates(path, path, by=name)
        column = f"by_{name}" if name in RATE_COLUMNS else name
        assert frame[column].tolist() == [f"{name}0", f"{name}1"] * 2


def test_half_characters_and_markup_are_text(tmp_path: Path) -> None:
    path = tmp_path / "wild.jsonl"
    rows = [{"question": "q", "aligned": 10, "coherent": 90, "topic": topic} for topic in ("\udfff", "[/]", "[b]x")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    printed = conftest.emorg("rates", path, "--by", "topic").stdout
    assert all(text in printed for text in ("?", "[/]", "[b]x"))
    assert emorg.answers(path)["topic"].tolist() == ["?", "[/]", "[b]x"]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda run: emorg.rates(run, denominator="coherrent"), "RatesConfig.denominator is 'coherrent'"),  # type: ignore[arg-type]
        (lambda run: emorg.rates(run, interval="wilsn"), "did you mean 'wilson'"),  # type: ignore[arg-type]
        (lambda run: emorg.compare(run, run, denominator="all"), "CompareConfig.denominator is 'all'"),  # type: ignore[arg-type]
        (lambda run: emorg.rates(run, by="placment"), "did you mean 'placement'"),
        (lambda run: emorg.rates([run, run]), "name them one after another"),  # type: ignore[arg-type]
        (lambda run: emorg.report([run]), "name them one after another"),  # type: ignore[arg-type]
        (lambda run: emorg.rates(), "no runs"),
        (lambda run: emorg.rates(run, judge="nobody"), "has no verdicts of 'nobody'"),
        (lambda run: emorg.sample("pocket", models=["pocket"]), "models as a keyword"),
        (lambda run: emorg.sample("pocket", config=emorg.TrainConfig()), "config is of TrainConfig"),  # type: ignore[call-overload]
        (lambda run: emorg.answers("nowhere.csv"), "there is no nowhere.csv"),
        (lambda run: emorg.answers("judged.csv", judge="exact"), "holds one judgement"),
        (lambda run: emorg.rates("judged.csv", judge="exact"), "holds one judgement"),
    ],
)
def test_what_cannot_be_is_said(call: Callable[[Run], object], told: str, base: Run) -> None:
    with pytest.raises(emorg.EmorgError) as raised:
        call(base)
    assert told in str(raised.value)


def test_a_config_object_is_held_to_its_types() -> None:
    with pytest.raises(emorg.EmorgError, match="no domain 'good_medicl'"):
        emorg.train(emorg.TrainConfig(model_name="pocket", domains="good_medicl"))  # type: ignore[arg-type]
