"""The API judge of the package, under the homework's name."""

from emorg.config import load_env
from emorg.judging.prompts import load as load_prompts
from emorg.judging.scoring import read_number
from emorg.judging.stage import readings

load_env()

__all__ = ["load_prompts", "read_number", "readings"]
