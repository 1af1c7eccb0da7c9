"""How slabs flow: nobody waits who need not, nothing grows without bound."""

from __future__ import annotations

import time

import numpy as np
import pytest

import tidemill as tm
from tidemill.core.batching import Limits
from tidemill.core.keys import lane_of
from tidemill.engine.mill import Mill
from tidemill.testing import ListSink


def keys_of_lane(lane: int, count: int) -> list[str]:
    names = (f"S{number}" for number in range(10_000))
    return [name for name in names if lane_of(name, 2) == lane][:count]


async def test_a_slow_lane_does_not_hold_the_other(monkeypatch):
    """One lane delayed by 2 ms a slab: within its lead, the other has its next slab waiting nine times of ten."""
    slow, fast = keys_of_lane(0, 5), keys_of_lane(1, 5)

    def work(batch):
        if slow[0] in batch.keys.tolist():
            time.sleep(0.002)
        return {"x": np.sort(np.tile(batch["value"], 20))[: len(batch)]}

    rows = [{"sensor": sensor, "time": 1.0, "value": 1.0} for _ in range(400) for sensor in (*slow, *fast)]
    starved, commits = 0, 0
    committed = Mill._committed

    def watched(mill, lane, number):
        nonlocal starved, commits
        committed(mill, lane, number)
        if lane.number == 1 and mill.slabs.free and mill._intake.waiting >= mill._batcher.statistics().cap:
            commits += 1
            starved += not mill.ledger.in_flight()[1]

    monkeypatch.setattr(Mill, "_committed", watched)
    sink = ListSink()
    source = tm.sources.Records([tm.Batch.from_rows(rows)])
    pipeline = tm.Pipeline(source, tm.Map(work, adds={"x": float}), sink)
    report = await tm.run_async(pipeline, lanes=2, limits=Limits(max_records=500))
    assert report.rows_out == len(rows)
    assert commits >= 5
    assert starved <= 0.1 * commits


async def test_a_slow_sink_slows_the_source():
    """With a sink that does not take anything, the source is asked for a bounded number of records, and no more."""
    import asyncio

    gate = asyncio.Event()
    given = 0

    async def endless():
        nonlocal given
        while True:
            given += 1
            yield {"sensor": f"S{given % 5}", "time": float(given), "value": 1.0}

    async def closed(batch):
        await gate.wait()

    pipeline = tm.Pipeline(tm.sources.Records(endless()), tm.Plan(), tm.sinks.Callback(closed))
    async with tm.serve(pipeline, lanes=2) as run:
        before = -1
        while given != before:  # until the source is no longer pulled: many turns of the loop without a record
            before = given
            for _ in range(5_000):
                await asyncio.sleep(0)
        statistics = run.statistics()
        assert statistics.queue_records <= 2 * statistics.queue_limit
        assert given < 2_000_000
        gate.set()
        run.stop_soon()
    assert run.report.in_flight == 0
    assert run.report.rows_out == run.report.records_in


async def test_a_lone_record_is_dispatched_in_the_turn_it_came():
    """No lingering: the lane has the record before the source's put returns."""
    import asyncio

    from tidemill.testing import EOF, PAUSE, ManualClock, ScriptedSource

    sink = ListSink()
    seen = asyncio.Event()
    write = sink.write

    async def told(batch):
        await write(batch)
        seen.set()

    sink.write = told
    script = [[{"sensor": "a", "value": 1.0}], PAUSE(3600.0), EOF]
    async with tm.serve(tm.Pipeline(ScriptedSource(script), tm.Plan(), sink), lanes=2, clock=ManualClock()) as run:
        await seen.wait()  # the clock stands still: nothing waited for time to pass
        assert run.statistics().batch_records.max == 1
        run.stop_soon()
    assert len(sink.rows) == 1


@pytest.mark.parametrize(
    ("time", "shown", "options"),
    [
        (5.25, "float64", {}),
        ("1970-01-01T00:00:05.25Z", "object", {}),
        (5_250_000_000, "datetime64[ns]", {"columns": {"time": "time"}}),
    ],
)
def test_a_function_sees_the_field_that_came_and_the_event_time(lanes, time, shown, options):
    """`batch["time"]` is the records' own field, `batch.time` what was read from it, in every kind of lane."""

    def look(batch):
        return {"kind": str(batch["time"].dtype), "ns": str(batch.time[0])}

    sink = ListSink()
    tm.run(tm.Pipeline(tm.sources.Records([{"sensor": "S", "time": time}], **options), tm.Map(look), sink), lanes=lanes)
    assert (sink.rows[0]["kind"], sink.rows[0]["ns"]) == (shown, "5250000000")


def test_a_field_that_is_not_there_is_told_from_the_role():
    """Records without a field of that name have a time all the same."""
    batch = tm.Batch.from_rows([{"sensor": "S"}])
    with pytest.raises(tm.PlanError, match=r"no column 'time'.*The records' times are batch.time"):
        batch["time"]
