"""Large arrays against memcpy, the loop's lag under them, a killed lane, and the pipeline through the same transport."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

import tidemill as tm
from bench import _bridge_work as work
from bench import _common, _w1
from bench._bridge_calls import Sides
from bench._bridge_passes import Pass, checked, looping
from bench._common import Table, Wrong, attempt, lag_text, median, spread
from tidemill.clock import SystemClock
from tidemill.engine.loop_lag import LagMonitor
from tidemill.engine.metrics import Quantiles

_BYTES = work.LARGE * 8
_ARRAYS = 8

# -- arrays ------------------------------------------------------------------------------------------------


def memcpy_rate() -> float:
    """Bytes per second of one core that copies 10 MB from one array to another, all touched before and more of them
    than caches hold: arrays that arrive are not in the cache either."""
    sources, targets = [np.ones(work.LARGE) for _ in range(_ARRAYS)], [np.zeros(work.LARGE) for _ in range(_ARRAYS)]
    times = []
    for _ in range(4):
        for source, target in zip(sources, targets, strict=True):
            began = time.perf_counter()
            np.copyto(target, source)
            times.append(time.perf_counter() - began)
    return _BYTES / median(times)


async def arrays(sides: Sides, table: Table) -> None:
    made = [work.large(seed) for seed in range(_ARRAYS)]
    ways: tuple[tuple[str, Callable[[Any], Any], list[Any], float], ...] = (
        ("out", work.ends, made, 0.7),
        ("back", work.large, list(range(len(made))), 0.35),
    )
    for name, function, items, least in ways:
        expected = [function(item) for item in items]
        row = f"10 MB arrays {name} / memcpy"

        async def through(
            call: Any, row: str = row, items: Any = items, expected: Any = expected
        ) -> tuple[float, list[Pass], float]:
            memcpy = memcpy_rate()
            passes = []
            for in_flight in (1, 2, 4):
                one = await looping(call, items, expected, in_flight=in_flight, seconds=3 * sides.seconds, what=row)
                passes.append(one)
            return max(one.rate for one in passes) * _BYTES / memcpy, passes, memcpy

        async def measured(
            row: str = row,
            function: Any = function,
            items: Any = items,
            expected: Any = expected,
            through: Any = through,
        ) -> list[tuple[float, float, float, str]]:
            await checked(sides.by_lanes(function), items, expected, row)
            ratios = []
            for _ in range(sides.runs):
                own, passes, memcpy = await through(sides.by_lanes(function))
                pool, _, _ = await through(sides.by_pool(function))
                ratios.append((own, pool, memcpy, passes[1].cpu()))
            return ratios

        ratios = await attempt(table, row, measured)
        if ratios is not None:
            each = [own for own, _, _, _ in ratios]
            pool, memcpy = median([one[1] for one in ratios]), median([one[2] for one in ratios])
            print(f"{row}: {median(each):.2f}; CPU us an array, parent + workers: {ratios[-1][3]}", flush=True)
            table.at_least(
                row, median(each), least, note=f"{spread(each)}; pool {pool:.2f}; memcpy {memcpy / 1e9:.1f} GB/s"
            )


# -- lag ---------------------------------------------------------------------------------------------------


async def lag(sides: Sides, table: Table, options: argparse.Namespace) -> None:
    row = "loop lag, 10 MB results from all lanes and small calls at 70 % of the ceiling"

    async def measured() -> tuple[Quantiles, float, float, float]:
        with _flowing(sides.lanes, options.lanes) as flowed:
            ceiling = (await _small(sides.lanes, None, options.lag_seconds / 4))[0]
            monitor = LagMonitor(SystemClock(), period_s=0.001)
            before = len(flowed)
            with monitor.measuring():
                rate, seconds = await _small(sides.lanes, 0.7 * ceiling, options.lag_seconds)
            return monitor.histogram.quantiles(), ceiling, rate, (len(flowed) - before) * _BYTES / seconds

    made = await attempt(table, row, measured)
    if made is None:
        return
    quantiles, ceiling, rate, bytes_per_s = made
    note = f"; {rate:,.0f} of {ceiling:,.0f} small calls/s, {bytes_per_s / 1e9:.2f} GB/s back"
    print(f"{row}: {lag_text(quantiles)}{note}", flush=True)
    note = f" of {quantiles.samples:,} timers{note}"
    table.at_most(f"{row}, p99", quantiles.p99_ms, 2, unit="ms", note=note)
    table.at_most(f"{row}, max", quantiles.max_ms, 20, unit="ms")


@contextlib.contextmanager
def _flowing(lanes: tm.Lanes, count: int) -> Any:
    """Large results, one under way for each lane; the list grows by one for each that came."""
    came: list[None] = []

    async def flow(seed: int) -> None:
        while True:
            array = await lanes.run(work.large, seed)
            if array.shape != (work.LARGE,) or array[0] != seed or array[-1] != work.LARGE - 1 + seed:
                raise Wrong("a large result is not the one that was asked for")
            came.append(None)

    tasks = [asyncio.ensure_future(flow(seed)) for seed in range(count)]
    try:
        yield came
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            if task.done() and not task.cancelled() and (error := task.exception()):
                raise error


async def _small(lanes: tm.Lanes, rate: float | None, seconds: float) -> tuple[float, float]:
    """Small calls per second that ended, and the seconds: as many as 16 callers get, or ``rate`` whoever is late."""
    columns = work.columns_of(20, 0)
    expected = work.light(columns)
    ended, last = 0, None
    began = time.perf_counter()
    until = began + seconds

    async def call() -> None:
        nonlocal ended, last
        last = await lanes.run(work.light, columns)
        ended += 1

    if rate is None:

        async def caller() -> None:
            while time.perf_counter() < until:
                await call()

        await asyncio.gather(*(caller() for _ in range(16)))
    else:
        under_way: set[asyncio.Task[None]] = set()
        asked = 0
        while (now := time.perf_counter()) < until:
            for _ in range(min(int((now - began) * rate) - asked, 1_000 - len(under_way))):
                task = asyncio.ensure_future(call())
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                asked += 1
            await asyncio.sleep(0.0005)
        await asyncio.gather(*under_way)
    work.require_same(last, expected, "small calls beside large results")
    return ended / (time.perf_counter() - began), time.perf_counter() - began


# -- a killed lane -----------------------------------------------------------------------------------------


async def recovery(table: Table, options: argparse.Namespace) -> None:
    row = "SIGKILL of a busy lane to its next completed call, p99"
    logging.getLogger("tidemill").setLevel(logging.ERROR)  # each death is told, which is right, and known here
    times = await attempt(table, row, lambda: _kills(options))
    if times is not None:
        ordered = sorted(times)
        p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        note = f"; median {median(times):.0f}, max {ordered[-1]:.0f} ms of {len(times)} kills"
        table.at_most(row, p99, 100, unit="ms", note=note)
    pool = await attempt(table, "SIGKILL, pool", lambda: _pool_kills(options))
    if pool is not None:
        table.note(
            "SIGKILL of a pool's worker to the next completed call",
            f"median {median(pool):.0f} ms, in a new pool: the old one is broken, all its calls failed",
        )


async def _kills(options: argparse.Namespace) -> list[float]:
    times = []
    async with tm.Lanes(options.lanes) as lanes:

        async def caller() -> None:
            while True:
                with contextlib.suppress(tm.LaneDied):
                    await lanes.run(work.busy, 0.001)

        callers = [asyncio.ensure_future(caller()) for _ in range(3 * options.lanes)]
        try:
            for number in range(options.kills):
                lane = number % options.lanes
                before = await _serving(lanes, lane, -1)
                await asyncio.sleep(0.02)
                pid = lanes.statistics().lanes[lane].pid
                assert pid is not None
                began = time.perf_counter()
                os.kill(pid, signal.SIGKILL)
                await _serving(lanes, lane, before)
                times.append((time.perf_counter() - began) * 1e3)
        finally:
            for task in callers:
                task.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
    return times


async def _serving(lanes: tm.Lanes, lane: int, restarts: int) -> int:
    """Wait for a call that ends in the lane once it has more ``restarts``; how many it has then."""
    while (now := lanes.statistics().lanes[lane]).restarts <= restarts:  # noqa: ASYNC110 - what is measured
        await asyncio.sleep(0.0002)
    while lanes.statistics().lanes[lane].done == now.done:  # noqa: ASYNC110
        await asyncio.sleep(0.0002)
    return lanes.statistics().lanes[lane].restarts


async def _pool_kills(options: argparse.Namespace) -> list[float]:
    times = []
    loop = asyncio.get_running_loop()
    for _ in range(max(3, options.kills // 10)):
        pool = ProcessPoolExecutor(options.lanes)
        calls = [loop.run_in_executor(pool, work.busy, 0.05) for _ in range(2 * options.lanes)]
        await asyncio.sleep(0.02)
        began = time.perf_counter()
        os.kill(next(iter(pool._processes)), signal.SIGKILL)
        broken = [error for error in await asyncio.gather(*calls, return_exceptions=True) if error]
        assert any(isinstance(error, BrokenProcessPool) for error in broken)
        pool.shutdown(wait=False)
        with ProcessPoolExecutor(options.lanes) as fresh:
            await loop.run_in_executor(fresh, work.busy, 0.001)
            times.append((time.perf_counter() - began) * 1e3)
    return times


# -- the pipeline ------------------------------------------------------------------------------------------


def pipeline(options: argparse.Namespace, table: Table) -> None:
    """W1 through the same transport: random arrival, input order, a checksum as sink."""
    from tidemill.core.batching import Limits

    w1 = _w1.W1.of(options.w1_records)
    oracle = _w1.Fold()
    _w1.inline_kernel(w1, oracle)
    right = oracle.digest()

    async def flow(limits: Limits) -> float:
        fold = _w1.Fold()
        source = _w1.Gated(list(w1.batches()))
        sink = tm.sinks.Callback(fold.add)
        await _w1.flow(source, w1.plan(), sink, lanes=options.lanes, limits=limits)
        if fold.digest() != right:
            raise Wrong("the checksum of the output is not the oracle's")
        return len(w1) / (fold.ended - source.began)

    for name, limits, least in (
        ("natural batching", Limits(), 0.75),
        ("at most 4,096 a batch", Limits(max_records=4_096), 0.5),
    ):
        row = f"W1, {name} / ({options.lanes} x strict kernels inline)"

        async def measured(limits: Limits = limits) -> list[float]:
            ratios = []
            for _ in range(options.runs):
                inline = _w1.inline_kernel(w1)
                ratios.append(await flow(limits) / (options.lanes * inline))
            return ratios

        ratios = asyncio.run(_attempted(table, row, measured))
        if ratios is not None:
            print(f"{row}: {median(ratios):.2f}", flush=True)
            table.at_least(row, median(ratios), least, note=_common.spread(ratios))


async def _attempted(table: Table, row: str, measured: Callable[[], Awaitable[list[float]]]) -> list[float] | None:
    return await attempt(table, row, measured)
