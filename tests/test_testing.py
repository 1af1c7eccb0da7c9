"""The public test doubles keep their word."""

from __future__ import annotations

import asyncio
import os
import pickle
from typing import Any

import numpy as np
import pytest

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import OutsideError, PlanError
from tidemill.letters import NO_KEY, DeadLetter
from tidemill.schema import Kind, Schema
from tidemill.sources.base import SourceContext
from tidemill.testing import CRASH, EOF, PAUSE, InlineLanes, ListSink, ManualClock, ScriptedSource


async def sleeper(clock: ManualClock, seconds: float, log: list[Any]) -> None:
    await clock.sleep(seconds)
    log.append((seconds, clock.monotonic_ns()))


async def test_sleepers_wake_in_the_order_of_their_times() -> None:
    """Not in the order they fell asleep; those not due stay asleep; a cancelled one bothers nobody."""
    clock, log = ManualClock(), []
    async with asyncio.TaskGroup() as group:
        for seconds in (3, 1, 2, 9):
            group.create_task(sleeper(clock, seconds, log))
        lost = group.create_task(sleeper(clock, 2, log))
        await asyncio.sleep(0)
        assert clock.sleeping == 5
        lost.cancel()
        await asyncio.sleep(0)
        clock.advance(3)
        await asyncio.sleep(0)
        assert [seconds for seconds, _ in log] == [1, 2, 3]
        assert clock.sleeping == 1
        clock.advance(6)
    assert len(log) == 4


async def test_run_for_goes_step_by_step() -> None:
    """A periodic task ticks at each of its times and sees that time."""
    clock, ticks = ManualClock(), []

    async def tick() -> None:
        while True:
            await clock.sleep(1)
            ticks.append(clock.monotonic_ns() / 1e9)

    task = asyncio.create_task(tick())
    await clock.run_for(3.5)
    assert ticks == [1, 2, 3]
    assert clock.monotonic_ns() == 3_500_000_000
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_wall_clock_may_step_back_and_monotonic_time_may_not() -> None:
    """Both move on together otherwise; a sleep of nothing returns."""
    clock = ManualClock(monotonic_ns=5, wall_ns=100)
    clock.advance(1)
    assert (clock.monotonic_ns(), clock.wall_ns()) == (1_000_000_005, 1_000_000_100)
    clock.step_wall(-1)
    assert (clock.monotonic_ns(), clock.wall_ns()) == (1_000_000_005, 100)
    with pytest.raises(ValueError, match="never goes back"):
        clock.advance(-1)
    with pytest.raises(ValueError, match="never goes back"):
        await clock.run_for(-1)
    await clock.sleep(0)


class Run:
    """The engine's side of a source."""

    def __init__(self) -> None:
        self.clock = ManualClock(monotonic_ns=7)
        self.letters: list[DeadLetter] = []
        self.context = SourceContext(self.clock, self.letters.append)

    async def read(self, source: ScriptedSource) -> list[Batch]:
        return [batch async for batch in source.stream(self.context)]


async def test_rows_become_batches_with_their_roles() -> None:
    """Key, time and arrival as from any source; records that cannot be one go to the dead letters."""
    run = Run()
    source = ScriptedSource([[{"sensor": "S1", "time": 1.5, "n": 3}, {"n": 4}], [{"sensor": "S2", "n": 5}]])
    first, second = await run.read(source)
    assert first.to_rows() == [{"sensor": "S1", "time": 1.5, "n": 3}]
    assert (first.keys.tolist(), first.time.tolist(), first.arrived_ns) == (["S1"], [1_500_000_000], 7)
    assert second.time.tolist() == [run.clock.wall_ns()]
    assert [letter.reason_code for letter in run.letters] == [NO_KEY]
    statistics = source.statistics()
    assert (statistics.records, statistics.rejected, statistics.connected) == (2, 1, False)


async def test_batches_are_given_as_they_are() -> None:
    """With roles of their own, or with those that ``key=`` and ``time=`` name."""
    sensors = Column.of_texts(["S1", "S2"])
    bare = Batch({"id": sensors, "at": Column(Kind.INT, np.array([1_700_000_000, 1_700_000_001]))})
    ready = Batch(bare.columns, key=sensors, time=np.array([1, 2]))
    first, second = await Run().read(ScriptedSource([bare, ready], key="id", time="at"))
    assert first.keys.tolist() == second.keys.tolist() == ["S1", "S2"]
    assert first.time.tolist() == [1_700_000_000 * 10**9, 1_700_000_001 * 10**9]
    assert second.time.tolist() == [1, 2]
    assert ready.arrived_ns == 0
    assert second.arrived_ns == 7


async def test_a_pause_takes_the_time_of_the_clock() -> None:
    """And ends early when the run wants to stop."""
    run, rows = Run(), [{"sensor": "S1"}]
    stream = ScriptedSource([rows, PAUSE(2.0), rows, PAUSE(2.0), rows]).stream(run.context)
    await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await run.clock.run_for(1.9)
    assert not waiting.done()
    await run.clock.run_for(0.1)
    assert len(await waiting) == 1
    waiting = asyncio.ensure_future(anext(stream, None))
    await asyncio.sleep(0)
    run.context.stopping.set()
    assert await waiting is None
    assert run.clock.sleeping == 0


async def test_a_crash_and_what_comes_behind_it() -> None:
    """The next stream goes on behind the mark; after the end, the script begins again."""
    run = Run()
    source = ScriptedSource([[{"sensor": "S1"}], CRASH, [{"sensor": "S2"}], EOF, [{"sensor": "S3"}]])
    stream = source.stream(run.context)
    assert (await anext(stream)).keys.tolist() == ["S1"]
    with pytest.raises(OutsideError, match="told to crash"):
        await anext(stream)
    assert source.pulled == 2
    assert [row["sensor"] for batch in await run.read(source) for row in batch.to_rows()] == ["S2"]
    assert [row["sensor"] for batch in await run.read(source) for row in batch.to_rows()] == ["S3"]
    with pytest.raises(OutsideError, match="told to crash"):
        await run.read(source)
    assert source.statistics().records == 4
    assert pickle.loads(pickle.dumps([CRASH, EOF])) == [CRASH, EOF]


@pytest.mark.parametrize("step", [{"sensor": "S1"}, "EOF", 5])
def test_a_script_is_checked(step: Any) -> None:
    """What is no step is shown."""
    with pytest.raises(PlanError, match="a script holds"):
        ScriptedSource([step])


async def test_the_list_sink_keeps_copies() -> None:
    """Of arrays that change after the call, with batch boundaries and schema."""
    values = np.array([1.0, 2.0])
    sink = ListSink(where=lambda batch: batch["value"] > 1, columns=["value"])
    await sink.open(Schema(open=True))
    batch = Batch({"value": Column(Kind.FLOAT, values), "x": Column.of_texts(["a", "b"])})
    await sink.write(sink.chosen(batch))
    await sink.write(batch)
    values[:] = -1
    await sink.close()
    assert sink.rows == [{"value": 2.0}, {"value": 1.0, "x": "a"}, {"value": 2.0, "x": "b"}]
    assert list(map(len, sink.batches)) == [1, 2]
    assert sink.statistics().rows == 3
    assert sink.closed
    assert sink.schema == Schema(open=True)


async def test_inline_lanes_answer_as_lanes_do() -> None:
    """A program that takes lanes cannot tell, except that everything happens in its own process."""
    async with InlineLanes() as lanes:
        assert await lanes.run(os.getpid) == os.getpid()
        assert [answer async for answer in lanes.stream(abs, [-1, 2, -3])] == [1, 2, 3]
        with pytest.raises(ZeroDivisionError):
            await lanes.run(divmod, 1, 0)


KEPT: dict[str, Any] = {}


def careless(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns what it kept of the call before, and keeps what it was given."""
    before = dict(KEPT)
    KEPT.update(arrays)
    return before


def halves(records: list[np.ndarray]) -> list[np.ndarray]:
    return [record[:1] for record in records]


async def test_arrays_are_lent_for_the_call() -> None:
    """A function that keeps a view finds it overwritten; what it returns, views too, is as it was."""
    given = {"x": np.ones(2), "n": np.ones(2, np.int64), "b": np.ones(2, np.bool_), "t": np.ones(2, "M8[ns]")}
    KEPT.clear()
    async with InlineLanes() as lanes:
        assert await lanes.run(careless, given) == {}
        kept = await lanes.run(careless, given)
        assert np.isnan(kept["x"]).all()
        assert kept["n"].tolist() == [np.iinfo(np.int64).min] * 2
        assert not kept["b"].any()
        assert np.isnat(kept["t"]).all()
        assert (await lanes.batched(halves)(np.arange(3.0))).tolist() == [0.0]
        assert [half.tolist() async for half in lanes.stream(np.negative, [np.ones(1)])] == [[-1.0]]
    assert given["x"].tolist() == [1.0, 1.0]


async def test_batches_are_lent_for_the_call() -> None:
    """Every column of one, its keys and its times."""
    batch = Batch(
        {"x": Column(Kind.FLOAT, np.ones(2)), "unit": Column.of_texts(["C", "F"])},
        key=Column.of_texts(["S1", "S2"]),
        time=np.array([1, 2]),
    )

    def keep(given: Batch) -> list[float]:
        before = getattr(keep, "kept", None)
        keep.kept = given["x"], given.time  # type: ignore[attr-defined]
        return given["x"].tolist() if before is None else [before[0].tolist(), before[1].tolist()]

    async with InlineLanes() as lanes:
        assert await lanes.run(keep, batch) == [1.0, 1.0]
        values, times = await lanes.run(keep, batch)
    assert np.isnan(values).all()
    assert times == [np.iinfo(np.int64).min] * 2
