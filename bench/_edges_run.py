"""A live run as the benchmarks of the edges have it: state on disk, one rolling mean, rows into a function."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tidemill as tm
from bench import _common
from bench._common import Table, Wrong, median, spread, worst_lag

LIMIT_S = 120.0


@dataclass(frozen=True)
class Took:
    """Seconds from the first record to the last row, CPU time of the loop's thread and of all of the engine's, and how the
    loop was."""

    seconds: float
    loop_s: float
    process_s: float
    report: tm.Report
    scrapes: int = 0


def in_turn(
    options: argparse.Namespace,
    table: Table,
    what: str,
    number: int,
    target: float,
    bare: Callable[[], float],
    ours: Callable[[], Took],
) -> None:
    """Both by turns, so that they meet the same machine."""
    ratios, rates, bares, lags = [], [], [], []
    for _ in range(options.runs):
        bares.append(number / bare())
        took = ours()
        rates.append(number / took.seconds)
        ratios.append(rates[-1] / bares[-1])
        lags.append(took.report.loop_lag)
        print(
            f"{what}: {rates[-1]:,.0f}/s, bare {bares[-1]:,.0f}/s; {_common.lag_text(lags[-1])}; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    note = f"{spread(ratios)}; {median(rates):,.0f}/s, bare {median(bares):,.0f}/s; loop lag {worst_lag(lags)}"
    table.at_least(what, median(ratios), target, note=note)


async def sender(*arguments: object) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench._edges_sender", *map(str, arguments)),
        cwd=Path(__file__).parents[1],
        stdin=PIPE,
        stdout=PIPE,
    )


def lines_of(number: int, form: str) -> Callable[[Any], Awaitable[object]]:
    """Fills a source with that many lines over one connection."""

    async def fill(source: Any) -> None:
        _, port = await source.wait_listening()
        await (await sender("lines", port, number, form)).wait()

    return fill


def taken(
    source: Any,
    records: int,
    fill: Callable[[Any], Awaitable[object]],
    folder: Path | None,
    *,
    value: str = "value",
    scraped: bool = False,
) -> Took:
    """``fill`` is called once the source is there; a run that loses a record, or has one too many, is wrong. With ``scraped``
    another process reads ``/metrics`` once a second."""
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-", dir=folder) as name:
        return asyncio.run(_taken(source, records, fill, Path(name), value, scraped=scraped))


async def _taken(
    source: Any,
    records: int,
    fill: Callable[[Any], Awaitable[object]],
    folder: Path,
    value: str,
    *,
    scraped: bool,
) -> Took:
    there, rows = asyncio.Event(), 0

    def take(batch: tm.Batch) -> None:
        nonlocal rows
        rows += len(batch)
        if rows >= records:
            there.set()

    pipeline = tm.Pipeline(source, tm.Rolling(value, window=50, stats=["mean"]), tm.sinks.Callback(take))
    metrics: Any = "127.0.0.1:0" if scraped else False
    async with tm.serve(pipeline, state=tm.State(folder / "state"), metrics=metrics) as run:
        scraper = await _scraper(run.metrics_url) if scraped else None
        filling = asyncio.ensure_future(fill(source))
        await until(lambda: run.statistics().records_in > 0)
        began, loop_s, process_s = time.perf_counter(), time.thread_time(), time.process_time()
        try:
            await asyncio.wait_for(there.wait(), LIMIT_S)
        except TimeoutError:
            raise Wrong(f"{rows:,} of {records:,} rows after {LIMIT_S:.0f} s") from None
        took, loop_s, process_s = (
            time.perf_counter() - began,
            time.thread_time() - loop_s,
            time.process_time() - process_s,
        )
        scrapes = int((await scraper.communicate(b""))[0]) if scraper is not None else 0
        await filling
        run.stop_soon()
        report = await run.wait()
    if (report.records_in, report.rows_out, report.dead_letters) != (records, records, 0):
        raise Wrong(
            f"{records:,} records gave {report.records_in:,}, {report.rows_out:,} rows, {report.dead_letters:,} letters"
        )
    return Took(took, loop_s, process_s, report, scrapes)


async def _scraper(url: str) -> Process:
    """One that has read once, and goes on until its standard input is closed; it says how often then."""
    process = await sender("scrapes", url.rpartition(":")[2], 0)
    assert process.stdout is not None
    if not await process.stdout.readline():
        raise Wrong("the run did not say how it is")
    return process


async def until(holds: Callable[[], bool]) -> None:
    """Nothing tells: it is looked at every few milliseconds."""
    limit = time.monotonic() + LIMIT_S
    while not holds():
        if time.monotonic() > limit:
            raise Wrong(f"not there after {LIMIT_S:.0f} s")
        await asyncio.sleep(0.01)
