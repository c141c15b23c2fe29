"""Sweeps: grids of organisms, made by one command that can be stopped and goes on, and collected in one table."""

from emorg.sweep.run import SweepConfig, sweep
from emorg.sweep.summary import CollectConfig, collect, show_collected

__all__ = ["CollectConfig", "SweepConfig", "collect", "show_collected", "sweep"]
