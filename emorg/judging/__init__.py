"""Judging: `judge` scores what has no verdict yet; `readings_of` serves the commands that keep their own files."""

from emorg.judging.config import JudgeConfig, JudgeSettings
from emorg.judging.stage import judge

__all__ = ["JudgeConfig", "JudgeSettings", "judge"]
