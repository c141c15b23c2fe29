"""One parser, two front doors: what a flag refuses, a YAML file's setting does too; commas part integers alone."""

from __future__ import annotations

import os
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from emorg.config import from_yaml, parse
from emorg.records import EmorgError
from emorg.run import plain
from emorg.sampling import SampleConfig
from emorg.show import ShowConfig
from emorg.training import TrainConfig
from tests.conftest import PROJECT, emorg


def _yaml(folder: Path, section: str, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(f"other:\n  too_long: 3\n{section}:\n  # mine\n{text}")
    return path


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("too_long: dropp", "train.too_long is 'dropp'; did you mean 'drop'"),
        ("gradient_checkpointing: alwayss", "did you mean 'always'"),
        ("gradient_checkpointing: yes", "train.gradient_checkpointing is yes, which it cannot be"),
        ("lora_rank: many", "train.lora_rank is 'many'"),
        ("lora_rank: yes", "train.lora_rank is yes"),
        ("lora_rank: 2.5", "give a whole number"),
        ("learning_rate: fast", "give a number"),
        ("domains: {a: 1}", "give a list of text"),
        ("domains: [1]", "give a list of text"),
        ("save_at: [1, x]", "give a list of a whole number"),
        ("save_at: [1, 0]", "give a whole number, at least 1"),
        ("lora_rank: 0", "give a whole number, at least 1 and at most 4,096"),
        ("num_epochs: .nan", "give a number, above 0"),
        ("use_4bit: perhaps", "give yes or no"),
        ("output_dir: 3", "give a path or null"),
        ("seed:", "train.seed is None"),
        ("layers_to_transform: yes", "train.layers_to_transform is yes"),
        ("save_at: [no, 2]", "train.save_at is no"),
    ],
)
def test_a_value_that_is_not_of_its_type_is_refused_with_its_line(tmp_path: Path, setting: str, told: str) -> None:
    path = _yaml(tmp_path, "train", f"  model_name: pocket\n  {setting}\n")
    done = emorg("train", "--config", path, "--output_dir", tmp_path / "run", check=False)
    assert done.returncode == 2
    assert f"{path}:6: train." in done.stderr
    assert told in done.stderr
    assert not (tmp_path / "run").exists()


def test_values_as_people_write_them(tmp_path: Path) -> None:
    path = _yaml(tmp_path, "train", "  learning_rate: 2e-4\n  save_at: 1,2,4\n  domains: bad_medical\n  data_path: x\n"
                 "  layers_to_transform: 3\n  max_steps: null\n  num_epochs: 2\n")  # fmt: skip
    found = from_yaml(TrainConfig, path, "train")
    assert (found.learning_rate, found.save_at, found.domains, found.layers_to_transform, found.data_path) == (
        2e-4, (1, 2, 4), ("bad_medical",), (3,), Path("x"),
    )  # fmt: skip
    asked = from_yaml(SampleConfig, _yaml(tmp_path, "sample", "  questions: open\n  formats: json\n"), "sample")
    assert (asked.questions, asked.formats) == (("open",), ("json",))


@given(st.data())
def test_what_a_config_writes_it_reads(data: st.DataObject) -> None:
    """config.yaml reproduces a run: whatever fields hold, through YAML they come back the same."""
    import tempfile

    kinds: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(1, 4096), float: st.floats(0, 1, exclude_min=True, exclude_max=True), bool: st.booleans(),
        str: st.text("abc 1,{}:#-'", max_size=8),
        Path: st.from_regex(r"[a-z][a-z0-9./]{0,8}", fullmatch=True).map(Path), type(None): st.none(),
    }  # fmt: skip

    def of(hint: Any) -> st.SearchStrategy[Any]:
        arguments = typing.get_args(hint)
        if typing.get_origin(hint) is typing.Literal:
            return st.sampled_from(arguments)
        if typing.get_origin(hint) is tuple:
            return st.lists(of(arguments[0]), max_size=3).map(tuple)
        return st.one_of(*map(of, arguments)) if arguments else kinds[hint]

    hints = {name: hint for name, hint in typing.get_type_hints(TrainConfig).items() if name != "mix"}
    config = TrainConfig(**data.draw(st.fixed_dictionaries({name: of(hint) for name, hint in hints.items()})))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump({"train": plain(config)}), encoding="utf-8")
        assert from_yaml(TrainConfig, path, "train") == config


@pytest.mark.parametrize(
    ("given", "told"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None")],
)
def test_waiting_threads_leave_their_cores_to_neighbours_unless_the_user_says(given: dict[str, str], told: str) -> None:
    """Before torch is loaded, which reads it once."""
    kept = {name: value for name, value in os.environ.items() if "GOMP" not in name and "OMP_WAIT" not in name}
    code = "import sys, emorg.cli, os; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env={**kept, **given}, capture_output=True, text=True)
    assert done.stdout == f"{told} False\n"


@pytest.mark.parametrize("preset", sorted((PROJECT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_valid(preset: Path) -> None:
    sections = yaml.safe_load(preset.read_text())
    for section, kind in (("train", TrainConfig), ("sample", SampleConfig)):
        if section in sections:
            found = from_yaml(kind, preset, section)
            for name, value in sections[section].items():
                known = plain(found)[name]
                assert known == (float(value) if isinstance(known, float) else value)


@pytest.mark.parametrize(
    "flags",
    [["--save_at", "1,2,4"], ["--save_at=1,2,4"], ["--save-at", "1,2,4"], ["--save_at", "1", "2,4"],
     ["--save_at", "1", "2", "4"]],
)  # fmt: skip
def test_integers_may_stand_with_commas(flags: list[str]) -> None:
    config = parse(TrainConfig, ["--seed", "3", *flags, "--lora_rank", "4"], prog="train", section="train")
    assert (config.save_at, config.seed, config.lora_rank) == ((1, 2, 4), 3, 4)


def test_elsewhere_a_comma_is_a_comma(tmp_path: Path) -> None:
    config = parse(ShowConfig, ["runs/x", "--search", "1,000"], prog="show", section="show")
    assert config.search == "1,000"
    emorg("data", "pocket", tmp_path / "plain")
    locked = tmp_path / "plain.zip.enc"
    emorg("data", "lock", tmp_path / "plain", "-p", "12,34")
    assert locked.exists()
    emorg("data", "unlock", locked, "-p", "12,34")
    assert "password" in emorg("data", "unlock", locked, "-p", "1234", check=False).stderr


def test_what_a_file_can_be(tmp_path: Path) -> None:
    assert from_yaml(TrainConfig, _yaml(tmp_path, "train", ""), "train") == TrainConfig()  # a part that sets nothing
    with pytest.raises(EmorgError, match=r"mine.yaml: .*digits"):
        from_yaml(TrainConfig, _yaml(tmp_path, "train", f"  seed: 1{'0' * 5000}\n"), "train")
    with pytest.raises(EmorgError, match="--config without a file"):
        parse(TrainConfig, ["--config=", "--seed", "1"], prog="train", section="train")
    (tmp_path / "pocket").mkdir()
    told = emorg("preview", "--config", "pocket", "--examples", "1", cwd=tmp_path).stdout
    assert "80 steps of 16" in told, "a folder of that name hides no preset"
