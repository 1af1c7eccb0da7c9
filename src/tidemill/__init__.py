"""tidemill: readings from thousands of sensors on asyncio, CPU work in lanes, an event loop that never freezes.

    import tidemill as tm

    plan = tm.Plan(tm.Calibrate("calibration.csv"), tm.Rolling("normalized", window=50))
    tm.run(tm.Pipeline(tm.sources.Replay("march.csv"), plan, tm.sinks.SQLite("features.db")))

The house has six floors. Imports point down only, and never sideways between the edges; ``tests/test_floors.py`` walks
them and keeps it true.

    FLOOR 5   app/                        people: the command line, the demo, the live view
    FLOOR 4   engine/                     the only place where the parts meet; one TaskGroup for each run
    FLOOR 3   sources/  lanes/  sinks/    the edges: the outside world, and the border between processes
    FLOOR 2   core/                       decisions: events in, commands out, ``now`` passed in
    FLOOR 1   stages/  formats/           maths over batches and keyed arrays; bytes to batches and back
    FLOOR 0   errors schema column kinds batch rows orders interchange as_came letters named durations
              clock held files tls secret configured printable

``testing`` is public too: the clock, source and sink that tests drive by hand.

Every name is loaded at its first use, so that ``import tidemill`` costs milliseconds and brings no NumPy with it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tidemill import sinks, sources, testing
    from tidemill.batch import Batch
    from tidemill.core.batching import Limits
    from tidemill.engine.entrance import run, run_async, serve
    from tidemill.engine.lanes import Lanes
    from tidemill.engine.lanes_executor import LanesExecutor
    from tidemill.engine.metrics import Report, Statistics
    from tidemill.engine.pipeline import Pipeline
    from tidemill.engine.plan import Plan
    from tidemill.engine.state import State
    from tidemill.errors import (
        BadResult,
        CallError,
        EngineError,
        InputError,
        LaneDied,
        LanesFull,
        MissingExtra,
        OutsideError,
        PlanError,
        RemoteError,
        RunEnded,
        StageError,
        Stalled,
        TidemillError,
        TooManyDead,
    )
    from tidemill.lanes.cursor import cancelled
    from tidemill.schema import Kind, Schema
    from tidemill.stages.aggregate import Aggregate
    from tidemill.stages.align import Align
    from tidemill.stages.calibrate import Calibrate
    from tidemill.stages.dedup import Dedup
    from tidemill.stages.event_time import EventTime
    from tidemill.stages.ewm import Ewm
    from tidemill.stages.filter import Filter, Select
    from tidemill.stages.keyed import Keyed
    from tidemill.stages.lag import Diff, Lag
    from tidemill.stages.lookup import Lookup
    from tidemill.stages.map import Map, MapFrame
    from tidemill.stages.map_rows import MapRows
    from tidemill.stages.map_windows import MapWindows
    from tidemill.stages.model import Model
    from tidemill.stages.rate import Rate
    from tidemill.stages.resample import Resample
    from tidemill.stages.rolling import Rolling
    from tidemill.stages.scan import scan
    from tidemill.stages.silence import Silence
    from tidemill.stages.statistics.wanted import quantile
    from tidemill.stages.stuck import Stuck
    from tidemill.stages.time_windows import session, sliding, tumbling

    __version__: str

__all__ = [
    "Aggregate",
    "Align",
    "BadResult",
    "Batch",
    "Calibrate",
    "CallError",
    "Dedup",
    "Diff",
    "EngineError",
    "EventTime",
    "Ewm",
    "Filter",
    "InputError",
    "Keyed",
    "Kind",
    "Lag",
    "LaneDied",
    "Lanes",
    "LanesExecutor",
    "LanesFull",
    "Limits",
    "Lookup",
    "Map",
    "MapFrame",
    "MapRows",
    "MapWindows",
    "MissingExtra",
    "Model",
    "OutsideError",
    "Pipeline",
    "Plan",
    "PlanError",
    "Rate",
    "RemoteError",
    "Report",
    "Resample",
    "Rolling",
    "RunEnded",
    "Schema",
    "Select",
    "Silence",
    "StageError",
    "Stalled",
    "State",
    "Statistics",
    "Stuck",
    "TidemillError",
    "TooManyDead",
    "__version__",
    "cancelled",
    "quantile",
    "run",
    "run_async",
    "scan",
    "serve",
    "session",
    "sinks",
    "sliding",
    "sources",
    "testing",
    "tumbling",
]

# Where each name lives. It says the same as the imports above, which type checkers read; a test compares the two.
_HOMES: Final = {
    "Aggregate": "stages.aggregate",
    "Align": "stages.align",
    "BadResult": "errors",
    "Batch": "batch",
    "Calibrate": "stages.calibrate",
    "CallError": "errors",
    "Dedup": "stages.dedup",
    "Diff": "stages.lag",
    "EngineError": "errors",
    "EventTime": "stages.event_time",
    "Ewm": "stages.ewm",
    "Filter": "stages.filter",
    "InputError": "errors",
    "Keyed": "stages.keyed",
    "Kind": "schema",
    "Lag": "stages.lag",
    "LaneDied": "errors",
    "Lanes": "engine.lanes",
    "LanesExecutor": "engine.lanes_executor",
    "LanesFull": "errors",
    "Limits": "core.batching",
    "Lookup": "stages.lookup",
    "Map": "stages.map",
    "MapFrame": "stages.map",
    "MapRows": "stages.map_rows",
    "MapWindows": "stages.map_windows",
    "MissingExtra": "errors",
    "Model": "stages.model",
    "OutsideError": "errors",
    "Pipeline": "engine.pipeline",
    "Plan": "engine.plan",
    "PlanError": "errors",
    "Rate": "stages.rate",
    "RemoteError": "errors",
    "Report": "engine.metrics",
    "Resample": "stages.resample",
    "Rolling": "stages.rolling",
    "Schema": "schema",
    "Select": "stages.filter",
    "Silence": "stages.silence",
    "StageError": "errors",
    "RunEnded": "errors",
    "Stalled": "errors",
    "Statistics": "engine.metrics",
    "State": "engine.state",
    "Stuck": "stages.stuck",
    "TidemillError": "errors",
    "TooManyDead": "errors",
    "cancelled": "lanes.cursor",
    "quantile": "stages.statistics.wanted",
    "run": "engine.entrance",
    "run_async": "engine.entrance",
    "scan": "stages.scan",
    "serve": "engine.entrance",
    "session": "stages.time_windows",
    "sliding": "stages.time_windows",
    "tumbling": "stages.time_windows",
}
_MODULES: Final = frozenset({"sinks", "sources", "testing"})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"tidemill.{name}")
    if name == "__version__":
        from tidemill.version import installed_version

        value: Any = installed_version()
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"tidemill.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'tidemill' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
