"""Sampling: `sample` makes the answers that are missing; `make` and the engine below it serve the other commands."""

from emorg.sampling.config import SampleConfig
from emorg.sampling.stage import sample

__all__ = ["SampleConfig", "sample"]
