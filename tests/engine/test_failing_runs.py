"""A run that fails says so once: nothing false, nothing by the interpreter, and what was written stays whole."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading

import pytest

import tidemill as tm
from tidemill.engine.outlets import ThreadOutlet
from tidemill.errors import OutsideError
from tidemill.schema import Schema
from tidemill.sinks.base import ProcessSink, SinkStatistics

ROWS = [{"sensor": f"S{n % 7}", "time": float(n), "value": float(n)} for n in range(3_000)]


class Refusing(ProcessSink):
    """Takes some rows and then no more."""

    def __init__(self, rows=10**9):
        super().__init__(name="refusing")
        self.most = rows
        self.taken = 0

    def open(self, schema):
        pass

    def write(self, batch):
        self.taken += len(batch)
        if self.taken > self.most:
            raise OSError("no more")

    def flush(self):
        pass

    def close(self):
        pass

    def statistics(self):
        return SinkStatistics(self.name, self.taken)


@pytest.mark.parametrize("rows", [0, 2_999])
def test_a_sink_that_fails_is_told_once(tmp_path, lanes, caplog, rows):
    """At its first row or at its last, when the run already waits for it to finish: one error, no stray traceback."""
    pipeline = tm.Pipeline(tm.sources.Records(iter(ROWS)), tm.Plan(), Refusing(rows))
    with caplog.at_level(logging.WARNING), pytest.raises(OutsideError, match="refusing failed: OSError: no more"):
        tm.run(pipeline, lanes=lanes, dead_letters=tmp_path / "dead.ndjson")
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


class Shutting(Refusing):
    """Takes rows, and cannot show them."""

    def flush(self):
        if self.taken:
            raise OSError("no more")


@pytest.mark.parametrize(("sink", "state"), [(Refusing(2_999), None), (Shutting(), "state")])
async def test_a_run_that_fails_on_its_way_out_leaves_nothing_behind(tmp_path, sink, state):
    """In an application that goes on: what waited for the sink, or for the last checkpoint, has ended, too."""
    pipeline = tm.Pipeline(tm.sources.Records(iter(ROWS)), tm.Plan(), sink)
    kept = None if state is None else tmp_path / state
    with pytest.raises(OutsideError, match="no more"):
        await tm.run_async(pipeline, lanes=0, state=kept, dead_letters=tmp_path / "dead.ndjson")
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_a_lane_that_ends_a_run_is_not_replaced(tmp_path, lanes, caplog):
    """A function that fails under on_error="stop": no word of a lane that was lost, since none was."""

    def failing(batch):
        raise ValueError("no")

    plan = tm.Map(failing, on_error="stop")
    with caplog.at_level(logging.WARNING), pytest.raises(tm.StageError, match="no"):
        tm.run(tm.Pipeline(tm.sources.Records(ROWS), plan, Refusing()), lanes=lanes, dead_letters=tmp_path / "d.ndjson")
    assert [record.getMessage() for record in caplog.records] == []


class Slow(Refusing):
    """Closes when it is let."""

    def __init__(self):
        super().__init__()
        self.may_close = threading.Event()
        self.closed = False

    def close(self):
        self.closed = self.may_close.wait(120)


async def test_a_sink_in_a_thread_is_closed_before_the_run_ends():
    """Letting go of it means waiting for its close, so that complete rows stay complete."""
    sink = Slow()
    outlet = ThreadOutlet(sink)
    await outlet.open(Schema())
    letting_go = asyncio.ensure_future(outlet.abandon())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not letting_go.done()
    sink.may_close.set()
    await letting_go
    assert sink.closed
