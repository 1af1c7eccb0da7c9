"""Live runs with state: how soon a sender hears that its lines are safe, and how soon a killed lane is back."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np

import tidemill as tm
from bench import _common, _durability_runs, _w1, recovery
from bench._common import Table, Wrong, median, spread, worst_lag
from tidemill.batch import Batch
from tidemill.engine.lanes_count import resolved_lanes

FLOOD_S = 4.0
PACED_S = 8.0
LANE_SENSORS = 100_000
KILLS = 20
_TICK_MS = 20
"""Between two batches of the sensors that come in turn."""

# -- acknowledgements ----------------------------------------------------------------------------------------


def ack(options: argparse.Namespace, table: Table) -> None:
    """`TCP` with acknowledgements into SQLite: first as fast as all of it goes, then at half of that rate; in turn with a
    bare server at that rate, which meets the same disk and the same other work."""
    ours, bares, rates, lags = [], [], [], []
    for _ in range(min(options.runs, 3)):
        _, flooded, seconds = _whole(0, FLOOD_S, options.folder)
        rate = flooded["lines"] / seconds
        report, told, _ = _whole(rate / 2, PACED_S, options.folder)
        bare = _bare(rate / 2, PACED_S, options.folder)
        ours.append(told["p99"])
        bares.append(bare["p99"])
        rates.append(rate / 2)
        lags.append(report.loop_lag)
        acknowledged = flooded["lines"] / flooded["seconds"]
        print(
            f"ack: it takes {rate:,.0f} lines/s ({acknowledged:,.0f}/s acknowledged); at half {_quantiles(told)}; bare server "
            f"{_quantiles(bare)}; {_common.lag_text(report.loop_lag)}; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    note = f"{spread(ours)}; {median(rates):,.0f} lines/s; bare server {median(bares):.1f} ms{spread(bares)}"
    what = "acknowledged over TCP after, p99 at half load, whole run into SQLite"
    table.at_most(what, median(ours), 10, unit="ms", note=f"{note}; loop lag {worst_lag(lags)}")


def _quantiles(told: dict[str, float]) -> str:
    return f"p50 {told['p50']:.1f}, p99 {told['p99']:.1f}, p99.9 {told['p999']:.1f}, max {told['most']:.1f} ms"


def _whole(rate: float, seconds: float, folder: Path | None) -> tuple[tm.Report, dict[str, float], float]:
    """The report, what the sender told, and seconds until every row was out of the lanes."""
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-", dir=folder) as name:
        return asyncio.run(_sent(rate, seconds, Path(name)))


async def _sent(rate: float, seconds: float, folder: Path) -> tuple[tm.Report, dict[str, float], float]:
    source = tm.sources.TCP(ack=True)
    plan = tm.Rolling("value", window=50, stats=["mean"])
    pipeline = tm.Pipeline(source, plan, tm.sinks.SQLite(folder / "out.db"))
    async with tm.serve(pipeline, state=tm.State(folder / "state")) as run:
        _, port = await source.wait_listening()
        sender = asyncio.ensure_future(_sender(port, rate, seconds))
        while not run.statistics().records_in:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
        began = time.perf_counter()
        told = await sender
        while run.statistics().rows_out < told["lines"]:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
        took = time.perf_counter() - began
        run.stop_soon()
        report = await run.wait()
    return report, told, took


async def _sender(port: int, rate: float, seconds: float) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench._durability_ack_sender", str(port), str(rate), str(seconds)),
        cwd=Path(__file__).parents[1],
        stdout=asyncio.subprocess.PIPE,
    )
    answer, _ = await process.communicate()
    told: dict[str, float] = json.loads(answer)
    return told


def _bare(rate: float, seconds: float, folder: Path | None) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-", dir=folder) as name:
        return asyncio.run(_bare_sent(rate, seconds, Path(name)))


async def _bare_sent(rate: float, seconds: float, folder: Path) -> dict[str, float]:
    """A server that writes what it reads to a file, syncs it and says how many lines that were: nothing else."""
    handle = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT)

    def safe(data: bytes) -> None:
        os.write(handle, data)
        os.fdatasync(handle)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = 0
        while data := await reader.read(1 << 18):
            await asyncio.to_thread(safe, data)
            lines += data.count(b"\n")
            writer.write(b"%d\n" % lines)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        return await _sender(server.sockets[0].getsockname()[1], rate, seconds)
    finally:
        server.close()
        os.close(handle)


# -- a lane that is killed -----------------------------------------------------------------------------------


def lane(options: argparse.Namespace, table: Table) -> None:
    """SIGKILL of a lane while all sensors flow, to its next committed slab: with state on disk, and W1 without, as in `recovery`."""
    logging.getLogger("tidemill").setLevel(logging.ERROR)  # each death is told, which is right, and known here
    with_state, without = [], []
    for _ in range(min(options.runs, 3)):
        with_state.append(_lane_with_state(LANE_SENSORS, options.folder))
        without.append(_lane_of_w1())
        for what, (times, report) in (("with state", with_state[-1]), ("W1", without[-1])):
            load = os.getloadavg()[0]
            print(
                f"lane, {what}: {report.records_in:,} records; {_times(times)}; {_common.lag_text(report.loop_lag)}; load {load:.1f}"
            )
    times = [each for made, _ in with_state for each in made]
    lag = worst_lag([report.loop_lag for _, report in with_state])
    what = f"SIGKILL of a lane to its next slab, p99, {LANE_SENSORS:,} sensors x window 50, state on disk"
    table.at_most(what, _p99(times), 200, unit="ms", note=f"; {_times(times)}; loop lag {lag}")
    times = [each for made, _ in without for each in made]
    table.note(f"the same in W1, {_w1.SENSORS:,} sensors, without state", _times(times))


def _p99(times: list[float]) -> float:
    return float(np.quantile(times, 0.99))


def _times(times: list[float]) -> str:
    return f"median {median(times):.0f} ms, p99 {_p99(times):.0f} ms, max {max(times):.0f} ms, of {len(times)} kills"


def _lane_with_state(sensors: int, folder: Path | None) -> tuple[list[float], tm.Report]:
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-", dir=folder) as name:
        return asyncio.run(_lane_killed(sensors, Path(name)))


async def _lane_killed(sensors: int, folder: Path) -> tuple[list[float], tm.Report]:
    """Live: through the ingest log, a checkpoint a second. The lanes hold all sensors' windows when the first kill comes."""
    plan = tm.Rolling("value", window=50, stats=["mean"])
    pipeline = tm.Pipeline(
        tm.sources.Records(_in_turn(sensors, _pieces(sensors))), plan, tm.sinks.Callback(lambda _: None)
    )
    lanes = max(resolved_lanes(None), 1)
    async with tm.serve(pipeline, lanes=lanes, state=tm.State(folder / "state")) as run:
        while run.statistics().rows_out < sensors:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.005)
        times = await recovery.killed_lanes(run, lanes, KILLS)
        run.stop_soon()
        report = await run.wait()
    if report.rows_out != report.records_in or report.in_flight:
        raise Wrong(f"{report.records_in:,} records gave {report.rows_out:,} rows")
    return times, report


def _pieces(sensors: int) -> list[Batch]:
    """A reading of each sensor."""
    some = sensors * _TICK_MS // 1_000
    whole = list(_durability_runs.all_sensors(sensors, 1))
    return [batch.slice(at, min(at + some, len(batch))) for batch in whole for at in range(0, len(batch), some)]


async def _in_turn(sensors: int, pieces: list[Batch]) -> AsyncIterator[Batch]:
    """All of them each second, every one when it is due, without an end."""
    due = asyncio.get_running_loop().time()
    while True:
        for piece in pieces:
            yield piece
            due += len(piece) / sensors
            await asyncio.sleep(max(due - asyncio.get_running_loop().time(), 0))


def _lane_of_w1() -> tuple[list[float], tm.Report]:
    w1 = _w1.W1.of(1_000_000)
    options = argparse.Namespace(lanes=max(resolved_lanes(None), 1), kills=KILLS)
    times, report, rows = asyncio.run(recovery.killed_w1(w1, list(w1.batches()), options))
    if report.rows_out != rows or report.in_flight:
        raise Wrong(f"{rows:,} records gave {report.rows_out:,} rows")
    return times, report
