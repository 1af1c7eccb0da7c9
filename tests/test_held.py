"""How long the application's own code holds the loop, told apart from ours."""

from __future__ import annotations

import asyncio
import time

import pytest

import tidemill as tm
from tidemill.held import Held

HELD_MS = 30
ROWS = [{"sensor": "S", "time": float(n), "value": float(n)} for n in range(3)]


def hold(*_):
    """Holds the loop, by its own clock: not a sleep."""
    until = time.perf_counter() + HELD_MS / 1e3
    while time.perf_counter() < until:
        pass


async def held_and_waits(batch):
    hold()
    await asyncio.sleep(0)


def slow_rows():
    for row in ROWS:
        hold()
        yield row


async def slow_async_rows():
    for row in ROWS:
        hold()
        yield row
        await asyncio.sleep(0)


@pytest.mark.parametrize("function", [hold, held_and_waits])
def test_a_callback_is_told_apart(tmp_path, function):
    """Its steps on the loop, also of an asynchronous function."""
    report = tm.run(tm.Pipeline(tm.sources.Records(ROWS), tm.Plan(), tm.sinks.Callback(function)), lanes=0)
    assert report.user_code.max_ms >= HELD_MS


@pytest.mark.parametrize("rows", [slow_rows, slow_async_rows])
def test_an_iterator_is_told_apart(tmp_path, rows):
    """What `Records` iterates over, synchronous or not."""
    pipeline = tm.Pipeline(tm.sources.Records(rows()), tm.Plan(), tm.sinks.Lines(tmp_path / "rows.ndjson"))
    report = tm.run(pipeline, lanes=0)
    assert report.rows_out == len(ROWS)
    assert report.user_code.max_ms >= HELD_MS


def test_a_run_without_such_code_has_none(tmp_path):
    """A list and a file: nothing of the application's runs on the loop."""
    pipeline = tm.Pipeline(tm.sources.Records(ROWS), tm.Plan(), tm.sinks.Lines(tmp_path / "rows.ndjson"))
    assert tm.run(pipeline, lanes=0).user_code.samples == 0


async def test_what_is_thrown_into_it_is_the_works():
    """A cancel reaches the work, which may answer it."""

    async def work():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "cancelled"

    async def main():
        return await Held(work(), lambda: 0, lambda _: None)

    task = asyncio.ensure_future(main())
    await asyncio.sleep(0)
    task.cancel()
    assert await task == "cancelled"
