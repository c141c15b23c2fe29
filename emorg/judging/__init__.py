"""Judging: `judge` scores what has no verdict yet; `verdicts` serves the commands that keep their own files."""

from emorg.judging.config import JudgeConfig, JudgeSettings
from emorg.judging.stage import costs, judge

__all__ = ["JudgeConfig", "JudgeSettings", "costs", "judge"]
