"""Outlets: every sink that was opened is closed once, and what comes after the end is nobody's."""

import asyncio
import logging
import threading

import pytest

import tidemill as tm
from tidemill.batch import Batch
from tidemill.engine.outlets import Delivery, LoopOutlet, ThreadOutlet
from tidemill.engine.process_outlet import ProcessOutlet
from tidemill.errors import StageError
from tidemill.schema import Schema
from tidemill.sinks.base import LoopSink, ProcessSink, SinkStatistics
from tidemill.sinks.lines import Lines
from tidemill.testing import ListSink


class Fragile(LoopSink):
    """Raises where it is told to."""

    def __init__(self, where):
        super().__init__(name="fragile")
        self.breaks = where
        self.calls = []

    def hit(self, what):
        self.calls.append(what)
        if what in self.breaks:
            raise ValueError(f"boom in {what}")

    async def open(self, schema):
        self.hit("open")

    async def write(self, batch):
        self.hit("write")

    async def close(self):
        self.hit("close")

    def statistics(self):
        return SinkStatistics(self.name, 0)


@pytest.mark.parametrize(
    ("breaks", "calls"),
    [
        (["open"], ["open", "close"]),
        (["write"], ["open", "write", "close"]),
        (["write", "close"], ["open", "write", "close"]),
        (["close"], ["open", "write", "close"]),
    ],
)
def test_a_loop_sink_is_closed_once_whatever_fails(tmp_path, breaks, calls):
    """The error names the sink and what it raised; the sink is closed once, and a close that fails hides nothing."""
    sink = Fragile(breaks)
    source = tm.sources.Records([{"sensor": "S", "time": 0, "value": 1.0}])
    with pytest.raises(StageError, match=f"the sink fragile failed: ValueError: boom in {breaks[0]}"):
        tm.run(tm.Pipeline(source, tm.Plan(), sink), lanes=0, dead_letters=tmp_path / "dead.ndjson")
    assert sink.calls == calls


async def test_what_was_not_opened_is_not_closed(caplog):
    """A run that failed before its sinks opened leaves them alone; a close that raises is told in the log."""
    sink = Fragile(["close"])
    outlet = LoopOutlet(sink)
    await outlet.abandon()
    assert sink.calls == []
    await outlet.open(Schema())
    with caplog.at_level(logging.WARNING, "tidemill"):
        await outlet.abandon()
        await outlet.abandon()
    assert sink.calls == ["open", "close"]
    assert "fragile could not be closed: ValueError: boom in close" in caplog.text


async def test_a_pending_turn_after_the_end_does_nothing(tmp_path):
    """A batch that waits for its turn when the outlet is let go is not copied: its memory is gone."""
    outlet = ProcessOutlet(Lines(tmp_path / "rows.ndjson"), None)
    batch = Batch.from_rows([{"value": 1.0}])
    free, outlet._free = outlet._free, []
    outlet.put(Delivery(batch, *[lambda: None] * 3))
    outlet._free = free
    asyncio.get_running_loop().call_soon(outlet._pump)
    failures = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    await outlet.abandon()
    await asyncio.sleep(0)
    outlet.put(Delivery(batch, *[lambda: None] * 3))
    assert failures == []


class SlowToFlush(Lines):
    """Its first flush lasts until it is told to end."""

    begun = threading.Event()
    ended = threading.Event()

    def flush(self):
        self.begun.set()
        assert self.ended.wait(120)
        super().flush()


async def test_rows_that_come_while_a_sink_in_a_thread_flushes_are_written(tmp_path):
    """The outlet looks at the clock and at what comes at once, and neither makes it lose the other."""
    outlet = ThreadOutlet(SlowToFlush(tmp_path / "rows.ndjson"))
    batch = Batch.from_rows([{"value": 1.0}])
    await outlet.open(batch.schema)
    running = asyncio.ensure_future(outlet.run())
    outlet.put(Delivery(batch, *[lambda: None] * 3))
    assert await asyncio.to_thread(SlowToFlush.begun.wait, 60)
    outlet.put(Delivery(batch, *[lambda: None] * 3))
    await asyncio.sleep(0)
    SlowToFlush.ended.set()
    async with asyncio.timeout(60):
        await outlet.finish()
    running.cancel()
    assert (tmp_path / "rows.ndjson").read_text() == '{"value":1.0}\n' * 2


class Counting(ProcessSink):
    """Deletes a row whenever it is told to do something."""

    deleted = 0

    def hit(self, *_):
        self.deleted += 1

    open = write = flush = commit = close = hit

    def statistics(self):
        return SinkStatistics(self.name, 0, deleted=self.deleted)


async def test_what_a_sink_in_a_thread_does_by_itself_is_counted():
    """Rows are deleted as they are flushed and committed, the last of them when it closes; a commit is told with its own."""
    outlet = ThreadOutlet(Counting())
    await outlet.open(Schema(open=True))
    before = []
    outlet.kept = lambda _: before.append(outlet.counts.deleted)
    running = asyncio.ensure_future(outlet.run())
    outlet.commit(5)
    async with asyncio.timeout(60):
        await outlet.finish()
    running.cancel()
    assert before == [2]
    assert outlet.counts.deleted == outlet.sink.deleted


@pytest.mark.parametrize("kind", [LoopOutlet, ThreadOutlet])
async def test_what_comes_once_an_outlet_is_being_finished_is_nobodys(tmp_path, kind):
    """A callback of a run that has given up may still bring some, and its sink is closed."""
    sink = ListSink() if kind is LoopOutlet else Lines(tmp_path / "rows.ndjson")
    outlet = kind(sink)
    batch = Batch.from_rows([{"value": 1.0}])
    await outlet.open(batch.schema)
    running = asyncio.ensure_future(outlet.run())
    outlet.put(Delivery(batch, *[lambda: None] * 3))
    async with asyncio.timeout(60):
        finishing = asyncio.ensure_future(outlet.finish())
        await asyncio.sleep(0)
        outlet.put(Delivery(batch, *[lambda: None] * 3))
        outlet.commit(1)
        await finishing
        outlet.put(Delivery(batch, *[lambda: None] * 3))
        await asyncio.sleep(0)
    assert not running.done() or running.exception() is None
    running.cancel()
    assert sink.statistics().rows == 1
