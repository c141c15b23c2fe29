"""The Python API of re-alignment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emorg.api import Named, begin, by_position
from emorg.config import config_from

if TYPE_CHECKING:
    import pandas as pd


def realign(*runs: Named, **settings: Any) -> pd.DataFrame:
    """What benign rows leave of organisms' misalignment, and what comes back: one row a dose or relapse.

    Rates are fractions, margins in nats a token, `left` the share of what the organism shows out of domain over its
    base. `settings` are RealignConfig's.
    """
    import pandas as pd

    from emorg.prevention.realign import RealignConfig
    from emorg.prevention.realign import realign as stage

    begin()
    result = stage(config_from(RealignConfig, "realign", by_position("runs", runs, settings)))
    return pd.DataFrame([record for table in result.tables() for record in table.records])
