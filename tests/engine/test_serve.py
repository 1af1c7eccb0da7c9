"""A run inside an application: `serve`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import tidemill as tm


async def endless() -> AsyncIterator[dict[str, Any]]:
    i = 0
    while True:
        yield {"sensor": "a", "time": i, "value": float(i)}
        i += 1
        await asyncio.sleep(0)


def refuse(batch: tm.Batch) -> None:
    raise tm.OutsideError("the disk is full")


async def test_leaving_the_block_stops_the_run_and_waits() -> None:
    """After it everything read is written, and the report says so."""
    newest = tm.sinks.Latest()
    async with tm.serve(tm.Pipeline(tm.sources.Records(endless()), tm.Plan(), newest), lanes=0) as run:
        while "a" not in newest:  # noqa: ASYNC110 - rows come without a word
            await asyncio.sleep(0)
        assert run.statistics().records_in > 0
    assert run.report is not None
    assert run.report.in_flight == 0
    assert newest["a"]["value"] == run.report.rows_out - 1


async def test_stop_ends_it_inside_the_block() -> None:
    """The report is there as soon as it returns."""
    async with tm.serve(tm.Pipeline(tm.sources.Records(endless()), tm.Plan(), tm.sinks.Latest()), lanes=0) as run:
        await run.stop()
        assert run.report is not None


async def test_what_cannot_start_raises_plainly() -> None:
    """The error itself, not a group of one."""
    with pytest.raises(tm.InputError, match=r"nowhere\.csv"):
        async with tm.serve(tm.Pipeline(tm.sources.Replay("nowhere.csv"), tm.Plan(), tm.sinks.Latest()), lanes=0):
            raise AssertionError("never entered")


async def test_a_run_that_fails_ends_the_block_with_its_error() -> None:
    """Even a block that would wait for ever."""
    pipeline = tm.Pipeline(tm.sources.Records(endless()), tm.Plan(), tm.sinks.Callback(refuse))
    with pytest.raises(tm.OutsideError, match="the disk is full"):
        async with tm.serve(pipeline, lanes=0):
            await asyncio.Event().wait()


async def test_an_error_of_the_application_passes_through() -> None:
    """As it was raised; the run is stopped on the way."""
    pipeline = tm.Pipeline(tm.sources.Records(endless()), tm.Plan(), tm.sinks.Latest())
    with pytest.raises(KeyError, match="mine"):
        async with tm.serve(pipeline, lanes=0) as run:
            raise KeyError("mine")
    assert run.report is not None


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (tm.sources.TCP, "source tcp: listens on 127.0.0.1:{port}"),
        (tm.sources.UDP, "source udp: listens on 127.0.0.1:{port}"),
        (tm.sources.HTTP, "source http: listens on http://127.0.0.1:{port}/ingest"),
    ],
    ids=["TCP", "UDP", "HTTP"],
)
async def test_a_run_says_once_where_it_listens(source: Any, wanted: str, caplog: pytest.LogCaptureFixture) -> None:
    """The port too, when it took a free one."""
    caplog.set_level("INFO", "tidemill")
    listens = source()
    async with tm.serve(tm.Pipeline(listens, tm.Plan(), tm.sinks.Latest()), lanes=0, state=False):
        _, port = await listens.wait_listening()
    said = [record.getMessage() for record in caplog.records if "listens" in record.getMessage()]
    assert said == [wanted.format(port=port)]


@pytest.mark.parametrize("source", [tm.sources.TCP, tm.sources.HTTP, tm.sources.UDP], ids=lambda each: each.__name__)
@pytest.mark.parametrize("when", ["before the block", "in the block"])
async def test_nobody_waits_for_senders_of_a_run_that_has_ended(source: Any, when: str) -> None:
    """The wait ends the block, as the run has: it was stopped before it was ready, say. The next run of the source is waited for."""
    listens = source()
    pipeline = tm.Pipeline(listens, tm.Plan(), tm.sinks.Latest())
    async with tm.serve(pipeline, lanes=0, state=False) as run:
        if when == "before the block":
            await run.stop()
        else:
            await listens.wait_listening()
            stopping = asyncio.ensure_future(run.stop())
            while listens._started.is_set():  # noqa: ASYNC110 - it ends without a word
                await asyncio.sleep(0)
        await listens.wait_listening()
        raise AssertionError("it does not listen")
    assert run.report is not None
    if when == "in the block":
        await stopping
    with pytest.raises(tm.RunEnded, match=f"source {listens.name} does not listen"):
        await listens.wait_listening()
    async with tm.serve(pipeline, lanes=0, state=False):
        assert (await listens.wait_listening())[1] > 0
