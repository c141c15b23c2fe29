"""The API judge of the package, under the homework's name."""

from emorg.config import load_env
from emorg.judge.prompts import load as load_prompts
from emorg.judge.scoring import read_number
from emorg.judge.stage import readings

load_env()

__all__ = ["load_prompts", "read_number", "readings"]
