"""What is shown fits where it is shown, and no figure is cut."""

from __future__ import annotations

import re

import pytest

from emorg.run import Run
from tests.conftest import emorg, terminal


@pytest.mark.parametrize("columns", [80, 60, 40])
def test_a_narrow_terminal_gets_whole_columns_and_the_names_of_the_others(organism: Run, columns: int) -> None:
    wide = emorg("rates", organism.folder).stdout
    shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal("rates", organism.folder, "--grid", typed="", columns=columns))
    assert "…" not in shown
    assert all(len(line) <= columns for line in shown.splitlines())
    [first] = [line for line in wide.split("└")[0].splitlines() if line.startswith("│ out")]
    placement, rate, interval, *_ = re.findall(r"[^│\s]+", first)
    assert re.search(rf"│ {placement} +│ +{rate} │ +{interval} ", shown), "the result is what stays"
    assert "no room for" in shown
    assert "no room" not in wide
