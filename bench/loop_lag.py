"""How late the event loop runs a timer that is due every 5 ms while every lane is saturated, for each built-in sink.

Two loads: W1 as fast as it goes (the slowest of lanes, loop and sink decides), and W1 with a further function that
burns time in the lanes, so that they are what is saturated whatever the sink.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import tidemill as tm
from bench import _common, _w1
from bench._common import Table, lag_text
from tidemill.batch import Batch

_SINKS = {
    "Lines": lambda folder: tm.sinks.Lines(folder / "rows.ndjson"),
    "SQLite": lambda folder: tm.sinks.SQLite(folder / "rows.db"),
    "Parquet": lambda folder: tm.sinks.Parquet(folder / "rows"),
}


def burn(batch: tm.Batch) -> dict[str, np.ndarray]:
    """Some 20 us of one core for each record."""
    until = time.thread_time_ns() + 20_000 * len(batch)
    count = 0
    while time.thread_time_ns() < until:
        count += 1
    return {"burnt": np.full(len(batch), float(count > 0))}


def measure(options: argparse.Namespace, table: Table) -> None:
    w1 = _w1.W1.of(500_000)
    for load, plan in (("lanes saturated", w1.plan(tm.Map(burn))), ("full speed", w1.plan())):
        for name, sink in _SINKS.items():
            lags = []
            for _ in range(options.runs):
                report = _run(w1, plan, sink, options)
                lags.append(report.loop_lag)
                print(
                    f"{load}, {name}: {report.records_per_s / 1e6:.2f} M records/s, lanes busy "
                    f"{', '.join(f'{lane.busy:.2f}' for lane in report.lanes)}; {lag_text(report.loop_lag)}",
                    flush=True,
                )
            samples = f" of {min(lag.samples for lag in lags):,}"
            what = f"loop lag, {load}, {name}"
            table.at_most(f"{what}, p99", max(lag.p99_ms for lag in lags), 2, unit="ms", note=samples)
            table.at_most(f"{what}, max", max(lag.max_ms for lag in lags), 20, unit="ms", note=samples)


def _run(w1: _w1.W1, plan: tm.Plan, sink: Any, options: argparse.Namespace) -> tm.Report:
    batches = list(w1.batches(8_192))

    def endless() -> Iterator[Batch]:
        while True:
            yield from batches

    folder = Path(tempfile.mkdtemp(prefix="tidemill-bench-", dir=options.folder))
    try:
        return asyncio.run(_flow(endless(), plan, sink(folder), options))
    finally:
        shutil.rmtree(folder)


async def _flow(records: Iterator[Batch], plan: tm.Plan, sink: Any, options: argparse.Namespace) -> tm.Report:
    _, report = await _w1.flow(_w1.Gated(records), plan, sink, lanes=options.lanes, seconds=options.seconds)
    return report


if __name__ == "__main__":
    from tidemill.engine.lanes_count import resolved_lanes

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=16.0, help="per run; 10,000 timers take 12 and more")
    parser.add_argument("--folder", help="where the sinks write (some GB, removed again); default the system's")
    parser.add_argument("--lanes", type=int, default=resolved_lanes(None))
    _common.main(measure, parser, runs=1)
