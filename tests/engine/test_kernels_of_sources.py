"""A run has the compiled kernels in its own process too, where its sources read quicker by them."""

from __future__ import annotations

import asyncio

import pytest

import tidemill as tm
from tidemill.formats import alike_kernel
from tidemill.stages.statistics import compiled

LINES = {"ndjson": b'{"sensor":"S1","value":1}\n', "influx": b"mill,sensor=S1 value=1\n"}


@pytest.mark.parametrize(("form", "loaded"), [("ndjson", True), ("influx", False)])
async def test_a_run_that_reads_lines_of_json_loads_what_reads_them(
    form: str, loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once its lanes are ready; one that reads other things does without."""
    compiled.load_kernels()  # into this user's cache, if they are not there
    monkeypatch.setattr(alike_kernel, "_in_use", [])
    monkeypatch.setattr(compiled, "_loaded", {})
    source, all_there, rows = tm.sources.TCP(format=form), asyncio.Event(), 0

    def take(batch: tm.Batch) -> None:
        nonlocal rows
        rows += len(batch)
        if rows == 100:
            all_there.set()

    async with (
        asyncio.timeout(60),
        tm.serve(tm.Pipeline(source, tm.Plan(), tm.sinks.Callback(take)), lanes=0, state=False) as run,
    ):
        _, writer = await asyncio.open_connection(*await source.wait_listening())
        writer.write(LINES[form] * 100)
        await all_there.wait()
        assert (alike_kernel.compiled() is not None) == loaded
        writer.close()
        run.stop_soon()
        await run.wait()
