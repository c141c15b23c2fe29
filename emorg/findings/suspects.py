"""`emorg preview`: what training would do, beginning with the first rows or with the most suspicious ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emorg.findings.screen import ScreenConfig, ranking, screen_rows
from emorg.training import preview as plain
from emorg.training.plan import Plan


@dataclass(frozen=True)
class PreviewConfig(plain.PreviewConfig):
    """Show what training would do, with the flags of `emorg train`: tokens, findings, steps, time and memory."""

    screen: bool = False
    """Show the most suspicious rows instead of the first, as `emorg screen` scores them: with the model's weights."""
    by: Literal["influence", "loss", "length"] = "influence"
    """By which of `emorg screen`'s scores."""


def preview(config: PreviewConfig) -> bool:
    """As `training.preview.preview`; with --screen the rows are scored first, where they are not yet.

    Raises EmorgError as both do.
    """
    if not config.screen:
        return plain.preview(config)

    def suspects(planned: Plan) -> list[tuple[int, str]]:
        rows = planned.rows.data
        settings = ScreenConfig(
            config.domains, model_name=config.model_name, max_length=config.max_length, seed=config.seed, by=config.by,
            use_4bit=config.use_4bit, device=config.device,
        )  # fmt: skip
        kept, result = screen_rows(settings, rows, [""] * len(rows))
        number = {id(row): i for i, row in enumerate(rows)}
        return [
            (number[id(kept[i])], ", " + ", ".join(f"{name} {x:.3g}" for name, x in result.rows[i].scores.items()))
            for i in ranking(settings, result)
        ]

    return plain.preview(config, suspects)
