"""The Python API of what changes inside organisms, what they hide, and which rows would do it.

Each returns a pandas DataFrame.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from emorg.api import Named, begin, by_position
from emorg.config import config_from

if TYPE_CHECKING:
    import pandas as pd


def directions(*models: Named, **settings: Any) -> pd.DataFrame:
    """Vectors along which organisms differ: one row a pair of organisms and layer, with the cosine and its nulls.

    They lie in `directions/` in each run. `settings` are DirectionsConfig's.
    """
    import pandas as pd

    from emorg.findings.directions import DirectionsConfig
    from emorg.findings.directions import directions as stage
    from emorg.rating.directions import cosine_rows

    begin()
    _, compared = stage(config_from(DirectionsConfig, "directions", by_position("runs", models, settings)))
    return pd.DataFrame(cosine_rows(compared))


def hidden(*models: Named, **settings: Any) -> pd.DataFrame:
    """Whether EM appears when questions are asked in another way: one row a way of asking.

    Columns as `rating.hidden.hidden_frame` has them. `settings` are HiddenConfig's.
    """
    from emorg.findings.hidden import HiddenConfig
    from emorg.findings.hidden import hidden as stage
    from emorg.rating.hidden import hidden_frame

    begin()
    return hidden_frame(stage(config_from(HiddenConfig, "hidden", by_position("runs", models, settings))))


def steer(*models: Named, **settings: Any) -> pd.DataFrame:
    """Add a direction or take it out, beside controls: one row a model, as `rating.steering.steered_frame` has it.

    Of several organisms each one's in each. `settings` are SteerConfig's.
    """
    from emorg.findings.steer import SteerConfig
    from emorg.findings.steer import steer as stage
    from emorg.rating.steering import steered_frame

    begin()
    return steered_frame(stage(config_from(SteerConfig, "steer", by_position("runs", models, settings))))


def phases(run: Named, **settings: Any) -> pd.DataFrame:
    """When an organism's signals turn: one row a signal, its step, interval, p, and its lag after the margin.

    The signals themselves are in `phases.json` in the run. `settings` are PhasesConfig's.
    """
    import pandas as pd

    from emorg.findings.phases import PhasesConfig
    from emorg.findings.phases import phases as stage
    from emorg.rating.phases import turn_rows

    begin()
    return pd.DataFrame(turn_rows(stage(config_from(PhasesConfig, "phases", {**settings, "run": os.fspath(run)}))))


def probe(run: Named, **settings: Any) -> pd.DataFrame:
    """What each of an organism's adapters does: one row a set of them, its margins in domain and out.

    What is read from them is in `probe.json` in the run. `settings` are ProbeConfig's.
    """
    import pandas as pd

    from emorg.findings.probe import ProbeConfig
    from emorg.findings.probe import probe as stage

    begin()
    parts = stage(config_from(ProbeConfig, "probe", {**settings, "run": os.fspath(run)})).parts
    return pd.DataFrame([vars(part) for part in parts])


def screen(*data: Named, **settings: Any) -> pd.DataFrame:
    """Score training rows before training: one row a training row, its place, what is known of it, and its scores.

    What the scores tell of rows known to be bad is in `screen.json` in the screening's folder. `settings` are
    ScreenConfig's; `data` are domains or JSONL files.
    """
    import pandas as pd

    from emorg.findings.screen import ScreenConfig
    from emorg.findings.screen import screen as stage
    from emorg.rating.screening import screened_rows

    begin()
    result = stage(config_from(ScreenConfig, "screen", by_position("data", data, settings)))
    return pd.DataFrame(screened_rows(result))


def narrow(broad: Named, narrow: Named, **settings: Any) -> pd.DataFrame:
    """A broad organism beside a narrow one: one row a model and figure, as `rating.narrow.narrow_rows` has it.

    The verdicts are those of `narrow.json` in the narrow one's run. `settings` are NarrowConfig's.
    """
    import pandas as pd

    from emorg.findings.narrow import NarrowConfig
    from emorg.findings.narrow import narrow as stage
    from emorg.rating.narrow import narrow_rows

    begin()
    named = {"broad": os.fspath(broad), "narrow": os.fspath(narrow)}
    return pd.DataFrame(narrow_rows(stage(config_from(NarrowConfig, "narrow", {**settings, **named}))))
