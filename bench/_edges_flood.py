"""How the loop is while somebody sends nothing but what cannot be read: lines over one connection, each a dead letter."""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path

import tidemill as tm
from bench import _common
from bench._common import Table, Wrong, median
from bench._edges_run import LIMIT_S, lines_of, until
from bench._edges_sender import BAD

LINES = 100_000


def measure(options: argparse.Namespace, table: Table) -> None:
    for what in BAD:
        lags, rates = [], []
        for _ in range(options.runs):
            rate, report = asyncio.run(_flooded(what, options.folder))
            lags.append(report.loop_lag)
            rates.append(rate)
            print(
                f"flood, {what}: {rate:,.0f}/s; {_common.lag_text(lags[-1])}; load {os.getloadavg()[0]:.1f}", flush=True
            )
        note = f"; p99 {median([lag.p99_ms for lag in lags]):.1f} ms; {median(rates):,.0f} dead letters/s"
        table.at_most(f"loop lag, {what}: max", median([lag.max_ms for lag in lags]), 20, unit="ms", note=note)


async def _flooded(what: str, folder: Path | None) -> tuple[float, tm.Report]:
    """Letters per second, and how the run was."""
    source = tm.sources.TCP(columns={"value": float})
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-", dir=folder) as name:
        pipeline = tm.Pipeline(source, tm.Rolling("value", window=50, stats=["mean"]), tm.sinks.Callback(len))
        async with tm.serve(pipeline, state=tm.State(Path(name) / "state")) as run:
            filling = asyncio.ensure_future(lines_of(LINES, what)(source))
            await until(lambda: run.statistics().dead_letters > 0)
            began = time.perf_counter()
            await asyncio.wait_for(filling, LIMIT_S)
            await until(lambda: run.statistics().dead_letters >= LINES)
            seconds = time.perf_counter() - began
            run.stop_soon()
            report = await run.wait()
    if (report.dead_letters, report.rows_out) != (LINES, 0):
        raise Wrong(f"{LINES:,} lines gave {report.dead_letters:,} letters and {report.rows_out:,} rows")
    return LINES / seconds, report
