"""Batches and latency at 1, 50 and 120 % of what the lanes can do, with no option changed.

The function costs about 10 us a record; an asynchronous source gives the records that have fallen due, every half
millisecond at most. Latency is from the return of the read that brought a record to the return of the sink's write;
above 100 % records wait for the lanes, so that their latency is that of a queue that grows.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import tidemill as tm
from bench import _common, _w1
from bench._common import Table, lag_text

_SENSORS = 64
_TICK_S = 0.0005
"""Records due within this of one another come together, as from a network: a source that never sleeps takes a core."""


def moderate(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Some 10 us of plain Python a record."""
    out = []
    for record in records:
        x = record["value"]
        for _ in range(300):
            x = x * 0.999 + 0.05
        out.append({**record, "smooth": x})
    return out


def measure(options: argparse.Namespace, table: Table) -> None:
    ceiling = max(asyncio.run(_ceiling(options)) for _ in range(2))
    table.note("load: ceiling of the function on all lanes", f"{ceiling:,.0f} records/s")
    batches = {}
    lags = []
    for percent in (1, 50, 120):
        report = asyncio.run(_at(ceiling * percent / 100, options))
        batches[percent] = report.batch_records.p50
        lags.append(report.loop_lag)
        told = (
            f"batch p50 {report.batch_records.p50:,}, max {report.batch_records.max:,}; latency p50 "
            f"{report.latency.p50_ms:.2f}, p99 {report.latency.p99_ms:.2f} ms"
        )
        print(
            f"{percent} %: {report.records_in:,} records in {report.seconds:.1f} s; {told}; lanes busy "
            f"{', '.join(f'{lane.busy:.2f}' for lane in report.lanes)}; {lag_text(report.loop_lag)}",
            flush=True,
        )
        table.note(f"load {percent} %", told)
    ratio = batches[120] / max(batches[1], 1)
    table.at_least("load: batch p50 at 120 % / at 1 %", ratio, 10, shown="{:.0f}x")
    table.note("load: batch p50 at 50 % / at 1 %", f"{batches[50] / max(batches[1], 1):.0f}x")
    table.note("load: loop lag, worst", _common.worst_lag(lags))


def _record(number: int) -> dict[str, Any]:
    return {"sensor": f"S{number % _SENSORS}", "time": 1.7e9 + number * 0.001, "value": number % 100 + 0.5}


async def _ceiling(options: argparse.Namespace) -> float:
    """Records per second over the second half of a run at full speed: without its start."""
    count = int(150_000 * options.lanes)
    rows, half, ended = 0, (0, 0.0), 0.0

    def take(batch: tm.Batch) -> None:
        nonlocal rows, half, ended
        rows += len(batch)
        ended = time.perf_counter()
        if not half[0] and rows >= count // 2:
            half = (rows, time.perf_counter())

    source = _w1.Gated([_record(number) for number in range(count)])
    await _w1.flow(source, tm.Plan(tm.MapRows(moderate)), tm.sinks.Callback(take), lanes=options.lanes)
    return (count - half[0]) / (ended - half[1])


async def _at(rate: float, options: argparse.Namespace) -> tm.Report:
    async def paced() -> AsyncIterator[dict[str, Any]]:
        number, began = 0, time.perf_counter()
        while True:
            passed = time.perf_counter() - began
            if passed >= options.seconds:
                return
            due = int(passed * rate) + 1
            while number < due:
                yield _record(number)
                number += 1
            await asyncio.sleep(max(_TICK_S, began + number / rate - time.perf_counter()))

    source = _w1.Gated(paced())
    sink = tm.sinks.Callback(len)
    _, report = await _w1.flow(source, tm.Plan(tm.MapRows(moderate)), sink, lanes=options.lanes)
    return report


if __name__ == "__main__":
    from tidemill.engine.lanes_count import resolved_lanes

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="per load")
    parser.add_argument("--lanes", type=int, default=resolved_lanes(None))
    _common.main(measure, parser, runs=1)
