"""A lab for emergent misalignment: fine-tune, sample, judge, report."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Threads of torch's OpenMP (libgomp) that wait for each other spin, for milliseconds: beside another process that takes
# their cores from those they wait for. Waiting this long costs about 4% alone and makes training five times as fast
# beside another one (benchmarks/RESULTS.md). It is read when torch is loaded; whoever has set either knows better.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:
    from emorg.api import answers, calibrate, compare, judge, margins, rates, report, sample, train
    from emorg.inside import directions, hidden, narrow, phases, probe, screen, steer
    from emorg.judging import JudgeConfig
    from emorg.records import EmorgError
    from emorg.reporting import ReportConfig
    from emorg.run import Run
    from emorg.sampling import SampleConfig
    from emorg.sweep import collect
    from emorg.training import TrainConfig

    __version__: str

__all__ = [
    "EmorgError",
    "JudgeConfig",
    "ReportConfig",
    "Run",
    "SampleConfig",
    "TrainConfig",
    "__version__",
    "answers",
    "calibrate",
    "collect",
    "compare",
    "directions",
    "hidden",
    "judge",
    "margins",
    "narrow",
    "phases",
    "probe",
    "rates",
    "realign",
    "report",
    "sample",
    "screen",
    "steer",
    "train",
]

_MODULES = {
    "EmorgError": "records",
    "JudgeConfig": "judging",
    "ReportConfig": "reporting",
    "Run": "run",
    "SampleConfig": "sampling",
    "TrainConfig": "training",
    "collect": "sweep",
    "realign": "prevention.frames",
    **dict.fromkeys(("directions", "hidden", "narrow", "phases", "probe", "screen", "steer"), "inside"),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is first asked for (PEP 562), so that importing emorg stays light."""
    if name == "__version__":
        from importlib.metadata import version

        return version("emorg")
    if name not in __all__:
        raise AttributeError(f"module 'emorg' has no attribute {name!r}")
    return getattr(import_module(f"emorg.{_MODULES.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return __all__
