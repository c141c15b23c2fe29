"""The documentation: every link leads somewhere, and every command that it shows has the flags it is shown with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from emorg.cli import COMMANDS, HELP
from emorg.config import from_yaml, parse
from emorg.prevention.comparison import read_comparison
from emorg.records import EmorgError
from emorg.sweep import grid_file
from tests.conftest import PROJECT

PAGES = [PROJECT / "README.md", PROJECT / "training_data" / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
SCRIPTS = {"train.py": "train", "generate.py": "generate", "sandbox.py": "chat", "test_data_loading.py": "data check",
           "eval/run_tests.py": "grade"}  # fmt: skip
HISTORY = PROJECT / "docs" / "LOG.md"  # of what once was


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", "")).replace(" ", "-")


def _headings(page: Path) -> set[str]:
    return {_anchor(heading) for heading in re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text(encoding="utf-8")):
        if path.startswith("http"):
            continue
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {path}"
        assert not anchor or target.suffix != ".md" or anchor in _headings(target), f"{page.name}: {path}#{anchor}"


def _shown(page: Path) -> Iterator[list[str]]:
    """The commands of ours in a page's shell blocks and code spans, as words; none with an ellipsis or alternatives."""
    text, lines = page.read_text(encoding="utf-8"), []
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        typed = block.replace("\\\n", " ").splitlines()
        if kind == "bash":
            lines += [part for line in typed for part in re.split(r"&&|\|", line.partition("  #")[0])]
        elif not kind:
            lines += [line[2:] for line in typed if line.startswith("$ ")]
    lines += re.findall(r"(?<!`)`((?:emorg|python) [^`\n]+)`", text)
    for line in map(str.strip, lines):
        if line.startswith(("emorg ", "python ")) and not re.search(r"…|\||-m |COMMAND", line):
            yield shlex.split(line)


@pytest.mark.parametrize("page", [p for p in PAGES if p != HISTORY], ids=lambda page: str(page.relative_to(PROJECT)))
def test_commands_have_the_flags_that_they_are_shown_with(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    for words in _shown(page):
        program, *rest = words
        if program == "python":
            script, *rest = rest
            if script not in SCRIPTS:
                assert (PROJECT / script).is_file(), words
                continue
            rest = [*SCRIPTS[script].split(), *rest]
        size = 2 if " ".join(rest[:2]) in COMMANDS else 1
        name, arguments = " ".join(rest[:size]), rest[size:]
        if name in HELP or set(arguments) & set(HELP):
            continue
        assert name in COMMANDS or any(command.startswith(f"{name} ") for command in COMMANDS), words
        if name in COMMANDS:
            command = COMMANDS[name]
            kind = getattr(import_module(f"emorg.{command.module}"), command.config)
            try:
                parse(kind, arguments, prog=" ".join(words), section=command.section or name)
            except EmorgError as error:  # prose may name a command without what it works on
                if not error.problem.startswith("missing from"):
                    raise


def test_commands_are_found_at_all() -> None:
    assert len(list(_shown(PROJECT / "README.md"))) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_settings_files_that_are_shown_are_read(page: Path, tmp_path: Path) -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        (path := tmp_path / "shown.yaml").write_text(block)
        if re.search(r"^controls:", block, re.MULTILINE):
            assert read_comparison(path, path.parent).controls
            continue
        if re.search(r"^grid:", block, re.MULTILINE):
            assert len(grid_file.read(str(path)).cells) > 2
            continue
        for section in re.findall(r"^(\w+):$", block, re.MULTILINE):
            command = COMMANDS[section]
            from_yaml(getattr(import_module(f"emorg.{command.module}"), command.config), path, section)
