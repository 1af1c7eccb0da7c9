"""Many connections: how late a line is when they are 10,000, and what one that says nothing takes."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

import tidemill as tm
from bench import _common
from bench._common import Table, Wrong, median, spread, worst_lag
from bench._edges_run import sender, until
from bench._edges_sender import RATE

MANY, ACTIVE, FEW = 10_000, 1_000, 100
_WARM = RATE


def measure(options: argparse.Namespace, table: Table) -> None:
    """By turns: few, all of them talking, and many, of which some talk; the same number of lines a second."""
    least = MANY + 1_000
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < least:
        table.note(f"{MANY:,} connections", f"this shell may open {most:,} files; ulimit -n {least}")
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    fews, manys, ratios, idle, lags = [], [], [], [], []
    for _ in range(options.runs):
        few, _, _ = _latencies(FEW, FEW, options.folder)
        many, kib, report = _latencies(MANY, ACTIVE, options.folder)
        fews.append(few)
        manys.append(many)
        ratios.append(many / few)
        idle.append(kib)
        lags.append(report.loop_lag)
        print(
            f"connections: p99 {few:.1f} ms of {FEW}, {many:.1f} ms of {MANY:,}; {kib:.1f} KiB each; "
            f"{_common.lag_text(report.loop_lag)}; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    what = f"{MANY:,} TCP connections, {ACTIVE:,} of them talking / {FEW}, p99 of line to row at {RATE:,} lines/s"
    note = f"{spread(ratios)}; {median(manys):.1f} ms / {median(fews):.1f} ms; loop lag {worst_lag(lags)}"
    table.below(what, median(ratios), 2, shown="{:.2f}", note=note)
    table.at_most(
        "an idle TCP connection, resident memory of the engine", median(idle), 30, unit="KiB", note=spread(idle)
    )


def _latencies(connections: int, active: int, folder: Path | None) -> tuple[float, float, tm.Report]:
    """p99 in milliseconds, KiB of one connection, and the report."""
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-", dir=folder) as name:
        return asyncio.run(_served(connections, active, Path(name)))


async def _served(connections: int, active: int, folder: Path) -> tuple[float, float, tm.Report]:
    late: list[np.ndarray] = []
    source = tm.sources.TCP()

    def row(batch: tm.Batch) -> None:
        late.append(time.monotonic() - np.asarray(batch["sent"]))

    pipeline = tm.Pipeline(source, tm.Rolling("value", window=50, stats=["mean"]), tm.sinks.Callback(row))
    async with tm.serve(pipeline, state=tm.State(folder / "state")) as run:
        _, port = await source.wait_listening()
        gc.collect()
        before = _resident()
        process = await sender("connections", port, connections, active)
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdout.readline()
        await until(lambda: source.statistics().connections == connections)
        kib = (_resident() - before) / connections
        process.stdin.write(b"\n")
        sent = json.loads(await process.stdout.readline())["sent"]
        await until(lambda: run.statistics().rows_out >= sent)
        process.stdin.write(b"\n")
        await process.wait()
        run.stop_soon()
        report = await run.wait()
    waits = np.concatenate(late)
    if len(waits) != sent:
        raise Wrong(f"{sent:,} lines gave {len(waits):,} rows")
    return float(np.quantile(waits[_WARM:], 0.99)) * 1e3, kib, report


def _resident() -> float:
    """KiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1024
