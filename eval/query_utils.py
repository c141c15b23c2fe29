"""ModelQueryInterface of the package, under the homework's name."""

from emorg.config import load_env
from emorg.homework.query import ModelQueryInterface

load_env()

__all__ = ["ModelQueryInterface"]
