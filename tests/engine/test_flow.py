"""How slabs flow: nobody waits who need not, nothing grows without bound."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace

import numpy as np
import pytest

import tidemill as tm
from tidemill.core.batching import Limits
from tidemill.core.keys import in_turn
from tidemill.engine.burials import Burials
from tidemill.engine.mill import Mill
from tidemill.formats.edge import Edge
from tidemill.lanes.wire import Committed
from tidemill.letters import AT_A_TIME, RAISED
from tidemill.sources.base import SourceStatistics
from tidemill.testing import ListSink


def digested(batch):
    """Work that takes a while, and a value that depends on its own record alone."""
    np.sort(np.tile(batch["value"], 20))
    return {"x": np.sqrt(batch["value"])}


async def test_a_lane_that_is_held_changes_no_byte_and_holds_no_other(monkeypatch, tmp_path):
    """While it is in one slab, the other has the next whenever it has answered, until it has worked on every slab that there is;
    and the output is that of a run without processes, byte for byte."""
    sensors = [f"S{number}" for number in range(10)]
    slow = {sensor for number, sensor in enumerate(sensors) if in_turn(number, 2) == 0}
    go = tmp_path / "go"

    def work(batch):
        while len(batch) > 1 and slow & set(batch.keys.tolist()) and not go.exists():  # the first goes alone
            os.sched_yield()
        return digested(batch)

    rows = [{"sensor": sensor, "time": 1.0, "value": float(n)} for n in range(1_000) for sensor in sensors]
    received = Mill._received
    free: list[int] = []

    def watched(mill, lane, message, payload):
        received(mill, lane, message, payload)
        held, other = mill.ledger.in_flight()
        if held and not other and isinstance(message, Committed) and not go.exists():  # it has nothing more to do
            free.append(mill.slabs.free)
            go.touch()

    async def written(name, function, lanes):
        path = tmp_path / f"{name}.ndjson"
        source = tm.sources.Records([tm.Batch.from_rows(rows)])
        pipeline = tm.Pipeline(source, tm.Map(function, adds={"x": float}), tm.sinks.Lines(path))
        await tm.run_async(pipeline, lanes=lanes, limits=Limits(max_records=500))
        return path.read_bytes()

    golden = await written("inline", digested, 0)
    monkeypatch.setattr(Mill, "_received", watched)
    assert await written("held", work, 2) == golden
    assert golden.count(b"\n") == len(rows)
    assert free == [0]


async def test_a_slow_sink_slows_the_source():
    """With a sink that does not take anything, the source is asked for a bounded number of records, and no more."""
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


class Alone(tm.sources.Source):
    """Gives one record, and looks at the lanes before the loop has turned."""

    finite = False

    def __init__(self):
        super().__init__()
        self.run = None
        self.begin = asyncio.Event()
        self.turns = 0
        self.in_lanes = -1

    def turned(self):
        self.turns += 1

    async def stream(self, context):
        await self.begin.wait()
        batch = tm.Batch.from_rows([{"sensor": "a", "value": 1.0}])
        batch.key_column, batch.time_ns = batch.column("sensor"), np.zeros(1, np.int64)
        asyncio.get_running_loop().call_soon(self.turned)
        yield batch
        assert self.turns == 0, "the loop turned, and nothing can be said of the turn before"
        self.in_lanes = sum(lane.in_flight for lane in self.run.statistics().lanes)
        await context.stopping.wait()

    def statistics(self):
        return SourceStatistics(self.name, True, 1, 0)


async def test_a_lone_record_is_dispatched_in_the_turn_it_came():
    """No lingering without state: when the source goes on, in the same turn of the loop, a lane has the record."""
    source, came = Alone(), asyncio.Event()
    sink = tm.sinks.Callback(lambda _: came.set())
    async with tm.serve(tm.Pipeline(source, tm.Plan(), sink), lanes=2, state=False) as source.run:
        source.begin.set()
        await came.wait()
        source.run.stop_soon()
    assert source.in_lanes == 1
    assert source.run.report.batch_records.max == 1


@pytest.mark.parametrize(
    ("time", "shown", "options"),
    [
        (5.25, "float64", {}),
        ("1970-01-01T00:00:05.25Z", "object", {}),
        (5.25, "datetime64[ns]", {"columns": {"time": "time"}}),
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


class Counting(ListSink):
    """It notes how many dead letters there are when a row comes."""

    def __init__(self):
        super().__init__()
        self.letters = {}
        self.largest = 0

    async def write(self, batch):
        await super().write(batch)
        self.largest = max(self.largest, len(batch))
        self.letters |= dict.fromkeys(batch["value"].tolist(), self.run.statistics().dead_letters)


async def test_a_slab_of_dead_letters_does_not_hold_the_loop(tmp_path, monkeypatch):
    """Others have their turn after some of them, and none of its rows comes before those that were ahead of it."""
    monkeypatch.setattr("tidemill.engine.finishing._TURN_NS", 0)  # a turn is one step with a slab
    count = 20_000
    rows = [{"sensor": "S" if n % 8 else "known", "time": 1.0, "value": n} for n in range(count)]
    source = tm.sources.Records([tm.Batch.from_rows(rows)])
    calibrate = tm.Calibrate({"sensor": ["known"], "baseline": [0.0], "scale": [1.0]}, on_error="dead_letter")
    sink = Counting()
    async with tm.serve(tm.Pipeline(source, calibrate, sink), lanes=0, dead_letters=tmp_path / "dead.ndjson") as run:
        sink.run = run
        told = most = 0
        while told < count * 7 // 8:
            await asyncio.sleep(0)
            now = run.statistics().dead_letters
            most, told = max(most, now - told), now
    assert 7 * sink.largest > 5 * AT_A_TIME
    assert 0 < most <= 4 * AT_A_TIME, "one slab's step, and those of small ones in the same turn"
    assert len(sink.letters) == count // 8
    assert all(letters >= n * 7 // 8 for n, letters in sink.letters.items())


async def test_rows_that_stages_had_made_are_buried_step_by_step():
    """As records are, and behind them: each tells the input behind which it comes."""
    handed, counters = [], {}
    plan = tm.Plan(tm.Lag("value"))
    burials = Burials(plan, counters, handed.append, handed.append, lambda rows, stage: None)
    batch, _ = Edge().rows([{"sensor": "S", "time": 1.0, "value": n} for n in range(300)])
    taken = SimpleNamespace(batch=batch, index=lambda row: row)
    dead = [(row, 0, RAISED, "no") for row in (*range(200, 300), *range(200))]
    made = [(row, 0, "S", 0, RAISED, "no", b'{"n":1}') for row in range(300)]
    share = SimpleNamespace(result=SimpleNamespace(made_came={0: 300}, dead_rows=made, dead=dead))
    steps = burials.of(SimpleNamespace(taken=taken), [share])
    for number, _ in enumerate(steps, start=1):
        assert len(handed) == number
    assert max(map(len, handed)) <= AT_A_TIME
    letters = [letter for some in handed for letter in some]
    assert [letter.position for letter in letters[:300]] == list(range(300))
    assert [letter.raw for letter in letters[300:]] == [{"n": 1}] * 300
    assert [(letter.position, letter.behind) for letter in letters[300:]] == [(None, row) for row in range(300)]
    assert counters == {"dead_rows": 300}
