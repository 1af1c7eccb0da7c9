"""Cases that a hostile reading of the engine found, and that must stay found."""

from __future__ import annotations

import asyncio
import os
import resource
import signal

import psutil
import pytest

import tidemill as tm
from tidemill.testing import ListSink

pytestmark = pytest.mark.slow


def rows_of(*sensors: str, count: int = 20) -> list[dict]:
    return [{"sensor": sensor, "time": float(n), "value": float(n)} for n in range(count) for sensor in sensors]


def test_a_deadline_does_not_count_the_start_of_the_replacement(tmp_path, hangs):
    """A class that takes longer to build than the deadline, and one record that hangs: one letter, no storm."""

    class Slow:
        def __init__(self):
            hangs.until_looked_at()

        def __call__(self, batch):
            if 7.0 in batch["value"]:
                hangs()
            return {"x": batch["value"]}

    sink = ListSink()
    plan = tm.Map(Slow, deadline_s=60, adds={"x": float})
    report = tm.run(
        tm.Pipeline(tm.sources.Records(rows_of("S")), plan, sink), lanes=1, dead_letters=tmp_path / "dead.ndjson"
    )
    assert [row["value"] for row in sink.rows] == [float(n) for n in range(20) if n != 7]
    assert report.dead_letters_by_reason == {"deadline": 1}
    assert report.lanes[0].restarts == 2


async def test_idle_lanes_may_be_killed_any_number_of_times():
    """A lane that had nothing to do when it was killed says nothing about the plan."""
    more = asyncio.Event()

    async def records():
        yield {"sensor": "S", "time": 1.0, "value": 1.0}
        await more.wait()
        yield {"sensor": "S", "time": 2.0, "value": 2.0}

    first = asyncio.Event()
    sink = ListSink()
    pipeline = tm.Pipeline(tm.sources.Records(records()), tm.Plan(), [sink, tm.sinks.Callback(lambda _: first.set())])
    async with tm.serve(pipeline, lanes=1) as run:
        await first.wait()
        killed: set[int] = set()
        while len(killed) < 7:
            lane = run._attempt.mill.lanes[0]
            if lane.ready and lane.pid is not None and lane.pid not in killed:
                killed.add(lane.pid)
                os.kill(lane.pid, signal.SIGKILL)
            await asyncio.sleep(0)
        more.set()
        await run.wait()
    assert len(sink.rows) == 2
    assert run.report.lanes[0].restarts >= 6


def test_seconds_bound_the_run_after_the_sources_have_ended():
    """The clock goes on when the last record has been read; the grace bounds what is still in the lanes."""

    def endless(rows):
        while any(row["value"] > 3 for row in rows):
            pass
        return rows

    sink = ListSink()
    pipeline = tm.Pipeline(tm.sources.Records(rows_of("S")), tm.MapRows(endless), sink)
    report = tm.run(pipeline, lanes=1, seconds=0.2, grace=0.2)
    assert report.in_flight == 20 - len(sink.rows) > 0


@pytest.mark.parametrize("kept", [False, True], ids=["sink on the loop", "sink in a process, with state"])
def test_a_killed_fork_server_ends_the_run_with_a_sentence(tmp_path, kept):
    """Its children are gone with it; the run must not wait for them. It is the outside that has killed it, such as a system without
    memory, and not a sink that ended."""
    sink = tm.sinks.SQLite(tmp_path / "out.db") if kept else ListSink()

    async def records():
        number = 0.0
        while True:
            number += 1
            yield {"sensor": f"S{number % 7}", "time": number, "value": number}

    async def scenario():
        pipeline = tm.Pipeline(tm.sources.Records(records()), tm.Plan(), sink)
        async with tm.serve(pipeline, lanes=2, state=tmp_path / "state" if kept else None) as run:
            while (pid := run._attempt.mill.lanes[0].pid) is None:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0)
            server = psutil.Process(pid).parent()
            assert server.ppid() == os.getpid()
            server.kill()
            await run.wait()

    with pytest.raises(tm.OutsideError, match=r"forks lanes and sinks \(\d+\) was killed by SIGKILL"):
        asyncio.run(scenario())


@pytest.mark.parametrize("live", [False, True])
def test_a_limit_on_the_size_of_files_that_the_memory_exceeds_ends_the_run_with_a_sentence(tmp_path, live):
    """It counts shared memory too. A live run waits for nothing then."""

    async def none():
        return
        yield {}

    source = tm.sources.Records(none(), live=True) if live else tm.sources.Records(rows_of("S"))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(tm.OutsideError, match=r"shared memory of [\d,]+ KB is larger .*\(ulimit -f,"):
            tm.run(tm.Pipeline(source, tm.Lag("value"), ListSink()), lanes=1, state=tmp_path / "state")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_a_late_column_of_two_kinds_costs_the_rows_of_the_second(tmp_path):
    """Two lanes meet a new column in one slab, as numbers and as text: the first row decides, nobody stops the run."""
    one, two = "S1", "S2"  # each in a lane of its own

    def late(rows):
        return [{**row, "x": (1.0 if row["sensor"] == one else "text") if row["value"] >= 10 else None} for row in rows]

    sink = ListSink()
    source = tm.sources.Records([tm.Batch.from_rows(rows_of(one, two, count=1_200))])
    report = tm.run(tm.Pipeline(source, tm.MapRows(late), sink), lanes=2, dead_letters=tmp_path / "dead.ndjson")
    assert report.in_flight == 0
    assert report.rows_out + report.dead_letters == 2_400
    assert set(report.dead_letters_by_reason) == {"wrong_type"}
    kinds = {type(row["x"]) for row in sink.rows if row["x"] is not None}
    assert len(kinds) == 1


def test_large_texts_flow(lanes):
    """A hundred megabytes of text in a thousand records is ordinary."""
    rows = [{"sensor": f"S{n % 5}", "time": float(n), "text": f"{n}" + "x" * 110_000} for n in range(1_000)]
    seen = []
    sink = tm.sinks.Callback(lambda batch: seen.extend(map(len, batch["text"])))
    report = tm.run(
        tm.Pipeline(tm.sources.Records(rows), tm.Filter(lambda batch: batch["time"] >= 0), sink), lanes=lanes
    )
    assert report.rows_out == 1_000
    assert seen == [len(row["text"]) for row in rows]
