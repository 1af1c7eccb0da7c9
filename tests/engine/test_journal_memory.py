"""What waits behind a sink that is away is small in memory: about as large as in the log."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import tidemill as tm
from tidemill.clock import SystemClock
from tidemill.engine.ingest_log import IngestLog
from tidemill.engine.journal import Journal
from tidemill.formats.edge import Edge

BATCHES, RECORDS = 12, 500


def batch(edge: Edge, number: int) -> tm.Batch:
    """As it comes from a connection: parsed, and nobody else's."""
    lines = [json.dumps({"sensor": f"s{n % 50}", "time": number * RECORDS + n, "value": n / 7}) for n in range(RECORDS)]
    made, letters = edge.rows([json.loads(line) for line in lines], parsed=True)
    assert not letters
    return made


async def test_entries_that_wait_take_no_more_memory_than_twice_what_they_are_counted_as(tmp_path: Path) -> None:
    """The bound of what is remembered is one of memory then, and not of something that is ten times as large."""
    source, edge = tm.sources.TCP(), Edge()
    journal = Journal(IngestLog(tmp_path), SystemClock(), [source])
    journal.begins(source.name)
    await journal.put(batch(edge, 0), source.name)  # what is only made once is made
    journal.log.sync()
    before = journal.statistics().remembered_bytes
    tracemalloc.start()
    for number in range(1, BATCHES + 1):
        await journal.put(batch(edge, number), source.name)
    journal.log.sync()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    journal.log.close()
    remembered = journal.statistics().remembered_bytes - before
    assert remembered > BATCHES * RECORDS * 20
    assert taken < 2 * remembered, f"{taken:,} bytes for {remembered:,}"
