"""`EventTime`: each row says the time that it counts at."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import tidemill as tm
from tidemill.errors import PlanError

MOMENT = 1_709_294_400 * 10**9
"""2024-03-01 12:00 UTC."""


async def heard(*lines: bytes, lanes: int) -> list[dict[str, Any]]:
    """The rows of what one connection sent."""
    source, rows, there = tm.sources.TCP(), list[dict[str, Any]](), asyncio.Event()

    def take(batch: tm.Batch) -> None:
        rows.extend(batch.to_rows())
        if len(rows) == len(lines):
            there.set()

    pipeline = tm.Pipeline(source, tm.EventTime(), tm.sinks.Callback(take))
    async with tm.serve(pipeline, lanes=lanes, state=False) as run:
        _, writer = await asyncio.open_connection(*await source.wait_listening())
        writer.write(b"".join(lines))
        await writer.drain()
        writer.close()
        await there.wait()
        run.stop_soon()
        await run.wait()
    return rows


@pytest.mark.parametrize("lanes", [0, 1])
async def test_a_record_without_a_time_has_that_of_its_arrival(lanes: int) -> None:
    """And beside it those that brought one, however it was written: all alike in the rows."""
    before = time.time_ns()
    first, second = await heard(
        b'{"sensor":"S","value":1}\n', b'{"sensor":"S","time":"2024-03-01T13:00:00+01:00","value":2}\n', lanes=lanes
    )
    assert before <= first["time"] <= time.time_ns()
    assert second["time"] == MOMENT


def test_what_is_called_so_is_replaced_in_its_place() -> None:
    """Epoch numbers, in any unit, become times."""
    rows = [{"time": 1_709_294_400, "sensor": "S"}, {"time": 1_709_294_400_000, "sensor": "S"}]
    assert tm.Plan(tm.EventTime()).apply(rows) == [{"time": MOMENT, "sensor": "S"}] * 2


def test_a_window_has_the_time_that_it_was_given() -> None:
    """Of a row that a stage has made."""
    rows = [{"sensor": "S", "time": second, "value": 1.0} for second in (1, 2, 11)]
    made = tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"value": "mean"}), tm.EventTime("at")).apply(rows)
    assert [row["at"] for row in made] == [10 * 10**9 - 1, 20 * 10**9 - 1]


@pytest.mark.parametrize("into", ["", None, 3])
def test_a_column_must_have_a_name(into: Any) -> None:
    """Told at once."""
    with pytest.raises(PlanError, match="must be the name of a column"):
        tm.EventTime(into)
