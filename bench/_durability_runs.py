"""Whole runs with state: what exactly-once costs, how long a checkpoint takes, how soon a run is back."""

from __future__ import annotations

import argparse
import asyncio
import functools
import logging
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import tidemill as tm
from bench import _w1
from bench._common import Table, median, spread, worst_lag
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.schema import Kind

RECORDS = 2_000_000
SENSORS = (1_000, 10_000, 100_000, 1_000_000)
TARGET_SENSORS = 100_000


# -- exactly-once against at-least-once --------------------------------------------------------------------


def exactly_once(options: argparse.Namespace, table: Table) -> None:
    """The same run of W1 with a checkpoint a second and with no state, in turn."""
    for name, sink, count in (("SQLite", _sqlite, RECORDS // 2), ("Parquet", _parquet, 6 * RECORDS)):
        w1 = _w1.W1.of(count)
        batches = list(w1.batches())
        ratios, rates, lags = [], [], []
        for number in range(options.runs):
            turn = {}
            for state in (True, False) if number % 2 else (False, True):
                report, seconds = _once(w1, batches, sink, state=state)
                turn[state] = len(w1) / seconds
                lags += [report.loop_lag] if state else []
            ratios.append(turn[True] / turn[False])
            rates.append(turn[True])
        note = f"{spread(ratios)}; {median(rates) / 1e6:.2f} M records/s; loop lag {worst_lag(lags)}"
        table.at_least(f"exactly once into {name} / without state, W1", median(ratios), 0.9, note=note)


def _sqlite(folder: Path) -> tm.sinks.SQLite:
    return tm.sinks.SQLite(folder / "out.db")


def _parquet(folder: Path) -> tm.sinks.Parquet:
    return tm.sinks.Parquet(folder / "out")


def _once(
    w1: _w1.W1, batches: list[Batch], sink: Callable[[Path], tm.sinks.Sink], *, state: bool
) -> tuple[tm.Report, float]:
    """The report of one run, and seconds from the first record until every row is in the sink for good."""
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as name:
        folder = Path(name)
        source = _w1.Gated(batches)
        pipeline = tm.Pipeline(source, w1.plan(), sink(folder))
        report = asyncio.run(_gated(pipeline, source, tm.State(folder / "state") if state else False))
        seconds = time.perf_counter() - source.began
    if report.rows_out != len(w1):
        raise SystemExit(f"{len(w1):,} records gave {report.rows_out:,} rows")
    return report, seconds


async def _gated(pipeline: tm.Pipeline, source: _w1.Gated, state: tm.State | bool) -> tm.Report:
    async with tm.serve(pipeline, state=state) as run:
        source.gate.set()
        return await run.wait()


# -- checkpoints and recovery against the number of sensors --------------------------------------------------


def all_sensors(sensors: int, rounds: int) -> Iterator[Batch]:
    texts = np.array([f"sensor-{number}" for number in range(sensors)], object)
    for start in range(0, sensors * rounds, 32_768):
        codes = (np.arange(start, min(start + 32_768, sensors * rounds)) % sensors).astype(np.int32)
        key = Column(Kind.TEXT, codes, texts=texts)
        value = Column(Kind.FLOAT, codes.astype(np.float64))
        time_ns = np.arange(start, start + len(codes)) * 1_000_000
        yield Batch({"sensor": key, "value": value}, key=key, time=time_ns)


def checkpoints(options: argparse.Namespace, table: Table) -> None:
    """A window of 50 for every sensor: how long a checkpoint takes, and the next start until it is ready again."""
    logging.getLogger("tidemill").setLevel(logging.ERROR)
    for sensors in SENSORS if options.all_sizes else SENSORS[:3]:
        took, back, lags = [], [], []
        for _ in range(min(options.runs, 3)):
            seconds, again, lag = _checkpointed(sensors)
            took.append(seconds * 1e3)
            back.append(again)
            lags.append(lag)
        what = f"a checkpoint of {sensors:,} sensors x window 50"
        again_what = f"from a new start until {sensors:,} sensors x window 50 are back"
        note = f"{spread(took)}; loop lag {worst_lag(lags)}"
        if sensors == TARGET_SENSORS:
            table.at_most(what, median(took), 300, unit="ms", note=note)
            table.at_most(again_what, median(back), 2, unit="s", note=spread(back))
        else:
            table.note(what, f"{median(took):.0f} ms{note}")
            table.note(again_what, f"{median(back):.2f} s{spread(back)}")


def _checkpointed(sensors: int) -> tuple[float, float, tm.Report]:
    plan = functools.partial(tm.Rolling, "value", window=50, stats=["mean"])
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as name:
        folder = Path(name)
        source = _w1.Gated(list(all_sensors(sensors, 2)))
        took, report = asyncio.run(_watched(tm.Pipeline(source, plan(), tm.sinks.Latest()), source, folder))
        source = _w1.Gated([])
        begun = time.perf_counter()
        asyncio.run(_ready(tm.Pipeline(source, plan(), tm.sinks.Latest()), folder))
        return took, time.perf_counter() - begun, report.loop_lag


async def _watched(pipeline: tm.Pipeline, source: _w1.Gated, folder: Path) -> tuple[float, tm.Report]:
    async with tm.serve(pipeline, state=tm.State(folder / "state", checkpoint_s=3600.0)) as run:
        source.gate.set()
        report = await run.wait()  # the checkpoint at the end is of all sensors
    return run._attempt._saving.epochs.statistics().seconds, report  # type: ignore[union-attr]


async def _ready(pipeline: tm.Pipeline, folder: Path) -> None:
    async with tm.serve(pipeline, state=tm.State(folder / "state")) as run:
        await run.started.wait()
        run.stop_soon()


# -- back after an engine was killed -------------------------------------------------------------------------

PLANT = """
import asyncio, sys
import tidemill as tm
from bench._durability_runs import endless

pipeline = tm.Pipeline(endless({sensors}), tm.Rolling("value", window=50, stats=["mean"]), tm.sinks.SQLite("out.db"))
tm.run(pipeline, state=tm.State("state", checkpoint_s=0.2))
"""


def endless(sensors: int) -> tm.sources.Records:
    """Records that never end, of all sensors in turn."""
    batches = list(all_sensors(sensors, 1))

    async def records():
        while True:
            for batch in batches:
                yield batch
                await asyncio.sleep(0.02)

    return tm.sources.Records(records())


def killed(options: argparse.Namespace, table: Table) -> None:
    """kill -9 of a run with 10,000 sensors, until the next start has committed a new row."""
    waits = []
    for _ in range(min(options.runs, 5)):
        with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as name:
            folder = Path(name)
            running = _started(folder)
            _wait_for_more(folder, -1)
            time.sleep(1.0)
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            before = _committed(folder)
            begun = time.perf_counter()
            running = _started(folder)
            _wait_for_more(folder, before)
            waits.append(time.perf_counter() - begun)
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
    table.at_most(
        "kill -9 of a run of 10,000 sensors to its next committed rows", median(waits), 3, unit="s", note=spread(waits)
    )


def _started(folder: Path) -> subprocess.Popen[bytes]:
    script = textwrap.dedent(PLANT).format(sensors=10_000)
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, "-c", script], cwd=folder, env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )


def _committed(folder: Path) -> int:
    import contextlib
    import sqlite3

    try:
        with contextlib.closing(sqlite3.connect(f"file:{folder / 'out.db'}?mode=ro", uri=True)) as database:
            return int(database.execute("SELECT max(rowid) FROM features").fetchone()[0] or 0)
    except sqlite3.Error:
        return -1


def _wait_for_more(folder: Path, than: int) -> None:
    until = time.perf_counter() + 60
    while _committed(folder) <= max(than, 0):
        if time.perf_counter() > until:
            raise SystemExit("no row within a minute")
        time.sleep(0.005)
