"""Where the commands start: the first thing is to listen for Ctrl-C, before anything is imported."""

from __future__ import annotations

from collections.abc import Sequence

from emorg.interrupt import listen


def main(arguments: Sequence[str] | None = None, script: str | None = None) -> None:
    """`emorg.cli.main`, which can be interrupted from its first import on."""
    listen(script or "emorg")
    from emorg import cli

    cli.main(arguments, script)
