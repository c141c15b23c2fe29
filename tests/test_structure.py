"""The house rules: imports point one way, heavy libraries stay out of start-up, secrets stay out of git."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.conftest import PROJECT

MOST_LINES = {"file": 300, "function": 60}
PRIVATE_WORDS = frozenset({"told", "found", "made", "each", "worth", "freedom", "likeness", "places"})


def test_imports_point_one_way() -> None:
    """The floors and rooms that pyproject.toml lays out for import-linter."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_and_functions_are_short() -> None:
    for path in _files():
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= MOST_LINES["file"], path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < MOST_LINES["function"], f"{path}:{node.lineno}"


def test_names_are_the_fields_own_terms() -> None:
    """A name says what the thing is; words that could stand for anything are none."""
    private = [
        f"{path.relative_to(PROJECT)}:{line}: {name}"
        for path in _files()
        for line, name in _bound_names(ast.parse(path.read_text(encoding="utf-8")))
        if name.strip("_").lower() in PRIVATE_WORDS
    ]
    assert not private, "\n".join(private)


def _bound_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of every variable, parameter, function, class, attribute and alias that the code binds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.lineno, node.name


def _files() -> list[Path]:
    return [path for folder in ("emorg", "experiments") for path in (PROJECT / folder).rglob("*.py")]


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["train", "--help"], ["sample", "--help"],
                                     ["rates", "--help"], ["report", "--help"]])  # fmt: skip
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys; from emorg.cli import main\n"
        f"try: main({command!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'pandas', 'altair', 'vl_convert'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [".env", "runs/x/adapter/adapter_model.safetensors", ".venv/bin/python",
                                  "training_data/training_datasets.zip.enc.extracted/insecure.jsonl"])  # fmt: skip
def test_git_ignores_what_must_not_be_committed(path: str) -> None:
    if not (PROJECT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", "check-ignore", "--quiet", path], cwd=PROJECT)
    assert done.returncode == 0, f"git would take {path}"


@pytest.mark.parametrize("path", [".env.example", "emorg/pocket/model/model.safetensors", "configs/pocket.yaml"])
def test_git_takes_what_must_be_committed(path: str) -> None:
    if not (PROJECT / ".git").exists():
        pytest.skip("not a git checkout")
    assert subprocess.run(["git", "check-ignore", "--quiet", path], cwd=PROJECT).returncode == 1


PROJECT_FILE = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UNSEEN = {"accelerate"}  # needed without being imported: by the Trainer
AT_HAND = {"IPython"}  # imported only where it is running already


def _names(requirements: Iterable[str]) -> set[str]:
    return {re.split(r"[<>=;\[ ]", each)[0].lower() for each in requirements}


def test_every_dependency_is_pinned() -> None:
    extras = PROJECT_FILE["optional-dependencies"].values()
    pins = (PROJECT / "constraints.txt").read_text(encoding="utf-8").lower().splitlines()
    pinned = {line.split("==")[0] for line in pins if "==" in line}
    wanted = _names([*PROJECT_FILE["dependencies"], *itertools.chain(*extras)])
    assert wanted <= pinned, f"constraints.txt has no pin for {wanted - pinned}"


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    imported = set()
    for path in _files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            imported |= {name.partition(".")[0] for name in names}
    foreign = imported - set(sys.stdlib_module_names) - {"emorg", "experiments", "_typeshed"} - AT_HAND
    known = metadata.packages_distributions()
    found = {name: {each.lower().replace("_", "-") for each in known[name]} for name in foreign}
    declared = _names([*PROJECT_FILE["dependencies"], *PROJECT_FILE["optional-dependencies"]["gguf"]])
    assert not (lacking := {name for name, of in found.items() if not of & declared}), f"not declared: {lacking}"
    assert declared - UNSEEN == set.union(*found.values()) & declared, "declared, but not imported"
