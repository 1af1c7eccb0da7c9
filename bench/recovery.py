"""From the SIGKILL of a lane in the middle of W1 to the next slab it commits; every record must have its row."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import time

import tidemill as tm
from bench import _common, _w1
from bench._common import Table, lag_text, median
from tidemill.engine.mill import Mill

_MOST_S = 30.0


def measure(options: argparse.Namespace, table: Table) -> None:
    logging.getLogger("tidemill").setLevel(logging.ERROR)  # each death is told, which is right, and known here
    w1 = _w1.W1.of(1_000_000)
    batches = list(w1.batches())
    times, report, rows = asyncio.run(killed_w1(w1, batches, options))
    if report.rows_out != rows or report.in_flight:
        raise SystemExit(f"{rows:,} records gave {report.rows_out:,} rows")
    print(f"{len(times)} kills, {report.records_in:,} records; {lag_text(report.loop_lag)}")
    shown = f"median {median(times):.0f} ms, max {max(times):.0f} ms, of {len(times)} kills; every record has its row"
    table.note("SIGKILL of a lane to its next slab", shown)
    table.note("recovery: loop lag", _common.worst_lag([report.loop_lag]))


async def killed_w1(w1: _w1.W1, batches: list, options: argparse.Namespace) -> tuple[list[float], tm.Report, int]:
    rows = 0
    done = False

    def endless():
        nonlocal rows
        while not done:
            for batch in batches:
                rows += len(batch)
                yield batch
                if done:
                    return

    source = _w1.Gated(endless())
    fold = _w1.Fold()
    async with tm.serve(tm.Pipeline(source, w1.plan(), tm.sinks.Callback(fold.add)), lanes=options.lanes) as run:
        source.gate.set()
        times = await killed_lanes(run, options.lanes, options.kills)
        done = True
        report = await run.wait()
    return times, report, rows


async def killed_lanes(run: tm.Run, lanes: int, kills: int) -> list[float]:
    """Milliseconds from each SIGKILL of a busy lane, of all in turn, to the next slab that it commits.

    The lanes themselves are looked at: the run's statistics take half a millisecond, which the loop would be busy with.
    """
    attempt = run._attempt
    assert attempt is not None
    mill = attempt.mill
    times = []
    for number in range(kills):
        lane = mill.lanes[number % lanes]
        await _working(mill, number % lanes)
        restarts = lane.restarts
        began = time.perf_counter()
        os.kill(lane.pid, signal.SIGKILL)
        while lane.restarts == restarts:  # noqa: ASYNC110 - what is measured
            await asyncio.sleep(0.0002)
        committed = lane.batches
        while lane.batches == committed:
            await asyncio.sleep(0.0002)
            if time.perf_counter() - began > _MOST_S:
                raise SystemExit(f"lane {lane.number} did not come back in {_MOST_S:g} s")
        times.append((time.perf_counter() - began) * 1e3)
    return times


async def _working(mill: Mill, lane: int) -> None:
    """Wait until the lane has a process and slabs under way, a little longer each time."""
    await asyncio.sleep(0.1)
    while mill.lanes[lane].pid is None or not mill.ledger.in_flight()[lane]:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


if __name__ == "__main__":
    from tidemill.engine.lanes_count import resolved_lanes

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--lanes", type=int, default=max(resolved_lanes(None), 1))
    _common.main(measure, parser, runs=1)
