"""What ``tidemill check`` prints."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import tidemill as tm
from tidemill.app.check import checked, described


def shown(*stages: object, lanes: int | None = 2) -> list[str]:
    records = [{"sensor": "a", "time": 1, "value": 2.0, "unit": "C"}]
    pipeline = tm.Pipeline(tm.sources.Records(records), tm.Plan(*stages), tm.sinks.Latest(), name="plant")
    return described(pipeline, checked(pipeline), lanes=lanes).splitlines()


def test_every_stage_says_what_it_adds_and_takes_away() -> None:
    """As a difference to the columns before it."""
    lines = shown(
        tm.Calibrate({"a": (1.0, 2.0)}),
        tm.Rolling("normalized", window=50, stats=["mean"]),
        tm.Map(lambda batch: {}, adds={"feature": float}),
        tm.Select("sensor", "feature"),
    )
    assert [line.split() for line in lines if "+" in line or "- " in line] == [
        ["+", "normalized:", "float"],
        ["+", "normalized_mean_50:", "float"],
        ["+", "feature:", "float"],
        ["-", "time,", "value,", "unit,", "normalized,", "normalized_mean_50"],
    ]


def test_what_only_the_first_batch_shows_is_said() -> None:
    """A function without declared columns is honest ignorance, not a guess."""
    assert any("+ what its first batch shows" in line for line in shown(tm.MapRows(lambda rows: rows)))


def test_edges_lanes_and_memory_are_named() -> None:
    """Where records come from and go, what they are told apart by, what a sensor costs."""
    text = "\n".join(shown(tm.Rolling("value", window=50)))
    for words in (
        "plant",
        "sensor from 'sensor'; time from 'time'",
        "times without a zone are UTC",
        "newest row",
        "408 B",
    ):
        assert words in text
    assert "lanes     2" in text
    assert "one process" in "\n".join(shown(lanes=0))


def test_what_cannot_be_sent_to_a_lane_is_named() -> None:
    """As a run would name it: where in the plan it is, and what it is."""
    lock = threading.Lock()

    def locked(batch: tm.Batch) -> object:
        with lock:
            return {}

    with pytest.raises(
        tm.PlanError, match=r"^lock in Map\(locked\)\.fn, a lock, cannot be sent to a lane \(TypeError: "
    ):
        shown(tm.Map(locked))
    records = tm.sources.Records([{"sensor": "a", "time": 1}])
    pipeline = tm.Pipeline(records, tm.Plan(tm.Map(lambda batch, kept=lock: {})), tm.sinks.Latest())
    with pytest.raises(tm.PlanError, match=r"^kept in Map\(<lambda>\)\.fn, a lock, cannot be sent"):
        tm.run(pipeline, lanes=0)


def test_what_cannot_be_sent_to_a_sink_is_named(tmp_path: Path) -> None:
    """With lanes; without, a sink has no process."""
    lock = threading.Lock()
    records = tm.sources.Records([{"sensor": "a", "time": 1}])
    sink = tm.sinks.Lines(tmp_path / "o.ndjson", where=lambda batch: lock and batch["time"] > 0)
    pipeline = tm.Pipeline(records, tm.Plan(), sink)
    with pytest.raises(
        tm.PlanError, match=r"^lock in sink lines\.where, a lock, cannot be sent to the process of the sink"
    ):
        checked(pipeline, 2)
    checked(pipeline, 0)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (tm.sources.TCP(), "sensor from 'sensor', else its connection; time from 'time', else its arrival"),
        (tm.sources.UDP(), "sensor from 'sensor', else its sender's address; time"),
        (tm.sources.MQTT("mqtt://localhost", "plant/#"), "sensor from 'sensor', else its topic; time"),
        (tm.sources.TCP(format="influx"), "sensor from 'sensor', else its series (measurement and tags); time"),
        (tm.sources.Lines("-", format="telegraf-json"), "else its series (measurement and tags); time"),
        (tm.sources.Lines("-", format="influx", key="{host}"), "sensor from '{host}'; time"),
        (tm.sources.HTTP(), "sensor from 'sensor'; time"),
    ],
)
def test_what_names_a_sensor_is_told(source: tm.sources.Source, told: str) -> None:
    """Also of records that do not name theirs."""
    pipeline = tm.Pipeline(source, tm.Plan(), tm.sinks.Latest())
    assert told in described(pipeline, pipeline.check(edges=False))


def test_memory_that_batches_travel_in_is_named(tmp_path: Path) -> None:
    """Slabs always; a region for each sink that has a process of its own."""
    sinks = [tm.sinks.Lines(tmp_path / "a.csv"), tm.sinks.SQLite(tmp_path / "a.db"), tm.sinks.Latest()]
    pipeline = tm.Pipeline(tm.sources.Records([]), tm.Plan(), sinks)
    told = described(pipeline, checked(pipeline), lanes=2)
    assert "slabs at most 1.2 GB, to sinks at most 1.0 GB, as far as they are filled" in told
    assert "to sinks" not in described(pipeline, checked(pipeline), lanes=0)
