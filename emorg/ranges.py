"""The values that numbers of a config may have, declared at the field."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from emorg.records import EmorgError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Range:
    """Marks a numeric field, or one of several such numbers, with the values that make sense: no flag, YAML file or
    line of Python gets others past `check_ranges`."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    """Whether `low` itself is left out; `below` the same of `high`."""
    below: bool = False

    def holds(self, value: float) -> bool:
        """False for NaN and infinities too."""
        low = value > self.low if self.above else value >= self.low
        return math.isfinite(value) and low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low = "" if self.low == -math.inf else f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        high = "" if self.high == math.inf else f"below {self.high:,.0f}" if self.below else f"at most {self.high:,.0f}"
        return " and ".join(filter(None, (low, high)))


AtLeast1 = Range(1)
Positive = Range(0, above=True)
NotNegative = Range(0)
Fraction = Range(0, 1)
Seed = Annotated[int, Range(0, 2**32 - 1)]

field_types: Callable[..., Mapping[str, Any]] = cache(typing.get_type_hints)
"""The types of a config's fields, kept: a sweep reads thousands of configs."""


def check_ranges(config: DataclassInstance, place: Callable[[str], str] = "--{}".format) -> None:
    """Raise EmorgError for the first number outside its field's Range; `place` says where a field was set."""
    for name, hint in field_types(type(config), include_extras=True).items():
        bounds = next((mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Range)), None)
        value = getattr(config, name) if bounds else None
        for number in value if isinstance(value, tuple) else (value,):
            if bounds and isinstance(number, int | float) and not bounds.holds(number):
                kind = "a whole number" if isinstance(number, int) else "a number"
                rest = ", or leave it out" if getattr(type(config), name, 0) is None else ""
                raise EmorgError(f"{place(name)} {number}", f"give {kind}, {bounds}{rest}")
