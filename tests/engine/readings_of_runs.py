"""Statistics of runs that are in some condition, for tests of what is judged of them."""

from __future__ import annotations

from typing import Any

from tidemill.core.flows import LaneFlow, SinkFlow, SourceFlow
from tidemill.core.load import Load
from tidemill.engine.metrics import BatchRecords, Quantiles, StateStatistics, Statistics


def source(name: str = "mqtt", **changed: Any) -> SourceFlow:
    """One that is connected, and gave its last record 0.1 s ago."""
    usual: dict[str, Any] = {
        "live": True,
        "connected": True,
        "records": 12,
        "rejected": 1,
        "last_record_age_s": 0.1,
        "held_s": 0.0,
        "ended": False,
    }
    return SourceFlow(name, **{**usual, **changed})


def sink(name: str = "postgres", **changed: Any) -> SinkFlow:
    """One with nothing to do."""
    return SinkFlow(name, **{"rows": 10, "waiting": 0, "waiting_s": 0.0, "commit_age_s": 0.2, "commits": 3, **changed})


def lane(number: int = 0, **changed: Any) -> LaneFlow:
    """One with nothing to do."""
    return LaneFlow(number, **{"in_flight": 0, "waiting_s": 0.0, **changed})


def state(**changed: Any) -> StateStatistics:
    """One that is kept well."""
    usual: dict[str, Any] = {"checkpoint": 3, "position": 100, "behind": 0, "checkpoint_s": 0.01}
    return StateStatistics(**{**usual, **changed})


def statistics(**changed: Any) -> Statistics:
    """Of a run of one source, two lanes and one sink that goes well."""
    usual: dict[str, Any] = {
        "seconds": 1000.0,
        "records_in": 12,
        "rows_out": 10,
        "dead_letters": 1,
        "filtered": 1,
        "records_per_s": 3.0,
        "lanes": (),
        "queue_records": 0,
        "queue_limit": 100,
        "slabs_in_flight": 0,
        "batch_records": BatchRecords(),
        "latency": Quantiles(),
        "loop_lag": Quantiles(),
        "keys": 2,
        "name": "plant",
        "source_flows": (source(),),
        "lane_flows": (lane(0), lane(1)),
        "sink_flows": (sink(),),
        "load": Load(lanes=(0.25, 0.37)),
    }
    return Statistics(**{**usual, **changed})
