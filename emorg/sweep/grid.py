"""A sweep's grid: the cells that it spans, and what is measured of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from emorg.judging.config import JUDGE_CHANGEABLE, JudgeConfig
from emorg.run import plain, settings_hash
from emorg.sampling.config import SampleConfig
from emorg.training.config import TrainConfig

Arm = Literal["base", "organism", "twin"]
ARMS: tuple[Arm, ...] = ("base", "organism", "twin")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: a model, trained in it or in the run named `trained_in`, and the answers that it gives."""

    name: str
    """Its run's folder in the sweep's."""
    arm: Arm
    values: dict[str, Any]
    """What varies over the grid, by `stage.setting`, as it is here."""
    train: TrainConfig | None
    """None for a base."""
    trained_in: str | None
    sample: SampleConfig

    @property
    def base(self) -> str:
        """The name of the base that it is, or is trained from."""
        return self.train.model_name if self.train else self.sample.models[0]


@dataclass(frozen=True)
class Grid:
    """All that a sweep is to make: its cells in order, and what is measured of all of them."""

    cells: tuple[Cell, ...]
    judge: JudgeConfig
    measures: tuple[str, ...]
    checkpoints: bool
    """Whether the checkpoints of organisms and twins are sampled too."""

    @property
    def trainings(self) -> dict[str, TrainConfig]:
        """Each training once, by its run's name: cells that differ only in evaluation share theirs."""
        return {cell.trained_in: cell.train for cell in self.cells if cell.train and cell.trained_in}

    @property
    def identity(self) -> dict[str, str]:
        """What tells this grid from another, whatever its file is called: of each cell, of the judge, what is measured.

        A grid with more in it than another, and all else the same, goes on from that one.
        """
        parts = {f"cell {cell.name}": [cell.train and plain(cell.train), plain(cell.sample)] for cell in self.cells}
        parts |= {measure: [] for measure in self.measures}
        hashed = {name: settings_hash({name: part}, frozenset()) for name, part in parts.items()}
        return {**hashed, "judge": settings_hash(plain(self.judge), JUDGE_CHANGEABLE)}
