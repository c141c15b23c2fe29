"""The API judge of the package, under the homework's name."""

from emorg.api_judge import read_reply, score
from emorg.config import load_env
from emorg.judge import exact

load_env()

__all__ = ["exact", "read_reply", "score"]
