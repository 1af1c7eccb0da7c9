"""Stages that keep a few numbers of each sensor: the same rows and counts whatever happens to their lanes."""

from __future__ import annotations

import os
import random
import signal

import numpy as np
import pandas as pd
import pytest

import tidemill as tm
from tidemill.core.batching import Limits

RECORDS, SENSORS = 15_000, 50


def plan() -> tm.Plan:
    return tm.Plan(
        tm.Dedup(counter="n", modulo=64, reorder=8, within="1s"),
        tm.Dedup(within="20s", max_records=16),
        tm.Ewm("value", halflife="30s", stats=["mean", "std"]),
        tm.Ewm("value", span=5, adjust=False),
        tm.Lag("value", 3),
        tm.Diff("value"),
        tm.Rate("n", counter=True),
        tm.Stuck(["n", "value"], 3, tolerance=1.0),
    )


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Counters that step, repeat and start again, at times that step back and repeat."""
    dice = np.random.default_rng(5)
    sensors = dice.integers(0, SENSORS, RECORDS)
    turns = np.arange(RECORDS) // SENSORS
    return pd.DataFrame(
        {
            "sensor": [f"S{number}" for number in sensors],
            "time": 1_700_000_000 + turns + dice.integers(-3, 4, RECORDS),
            "n": (turns + dice.integers(-2, 3, RECORDS)) % 64 * (dice.random(RECORDS) > 0.01),
            "value": np.round(dice.normal(5, 1, RECORDS), 1),
        }
    )


def ran(frame: pd.DataFrame, **options) -> tuple[list, tm.Report]:
    sink = tm.testing.ListSink()
    report = tm.run(tm.Pipeline(tm.sources.Frame(frame), plan(), sink), **options)
    assert report.in_flight == 0
    assert report.records_in == report.rows_out + report.deduplicated
    return sink.rows, report


def test_the_plan_applied_in_memory_gives_the_same_rows(frame, lanes):
    """plan.apply over a DataFrame gives what a run over it gives."""
    rows, report = ran(frame, lanes=lanes)
    assert report.deduplicated > RECORDS / 20
    assert report.counters["lost"] > 0
    assert report.counters["resets"] > SENSORS
    pd.testing.assert_frame_equal(
        plan().apply(frame, key="sensor", time="time"), pd.DataFrame(rows), check_exact=True, check_dtype=False
    )


@pytest.mark.slow
async def test_killed_lanes_change_nothing(frame, told):
    """Lanes SIGKILLed with work in flight: the same rows, the same number of copies, losses and resets."""
    expected, whole = ran(frame, lanes=0)
    dice = random.Random(3)
    killed: set[int] = set()

    def kill(batch: tm.Batch) -> None:
        busy = [lane for lane in run.statistics().lanes if lane.in_flight and lane.pid not in {None, *killed}]
        if busy and len(killed) < 8:
            victim = dice.choice(busy).pid
            os.kill(victim, signal.SIGKILL)
            killed.add(victim)

    sink = tm.testing.ListSink()
    pipeline = tm.Pipeline(tm.sources.Frame(frame), plan(), [sink, tm.sinks.Callback(kill)])
    async with tm.serve(pipeline, lanes=2, limits=Limits(max_records=256)) as run:
        await run.wait()
    assert len(killed) == sum(lane.restarts for lane in run.report.lanes) == 8
    assert told(sink.rows) == told(expected)
    assert run.report.counters == whole.counters
    assert run.report.deduplicated == whole.deduplicated
