"""Small calls: many in flight, alone, awaited one record at a time; and what the books alone cost."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import itertools
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import tidemill as tm
from bench import _bridge
from bench import _bridge_work as work
from bench._bridge_passes import Call, Meter, Pass, checked, looping, streaming
from bench._common import Table, Wrong, attempt, median, spread

SIZES = (20, 200, 2_000, 20_000)
IN_FLIGHT = (8, 16, 32)
ITEMS = 32


@dataclass
class Sides:
    """The lanes and the pool, both open and warm, and how long a pass is."""

    lanes: tm.Lanes
    pool: ProcessPoolExecutor
    seconds: float
    runs: int

    def by_lanes(self, fn: Callable[..., Any]) -> Call:
        return lambda item: self.lanes.run(fn, item)

    def by_pool(self, fn: Callable[..., Any]) -> Call:
        loop, pool = asyncio.get_running_loop(), self.pool
        return lambda item: loop.run_in_executor(pool, fn, item)


async def open_sides(options: argparse.Namespace, measure: Callable[[Sides], Awaitable[None]]) -> None:
    """The pool first: it forks, and its workers should not hold what belongs to the lanes."""
    with ProcessPoolExecutor(options.lanes) as pool:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(pool, work.busy, 0.02) for _ in range(4 * options.lanes)))
        async with tm.Lanes(options.lanes) as lanes:
            await asyncio.gather(*(lanes.run(work.busy, 0.02) for _ in range(4 * options.lanes)))
            await measure(Sides(lanes, pool, options.seconds, options.runs))


# -- light -------------------------------------------------------------------------------------------------


async def light(sides: Sides, table: Table) -> None:
    """One vectorised function at each batch size, by each door, against the pool with the same data as a dict."""
    for size in SIZES:
        columns = [work.columns_of(size, seed) for seed in range(ITEMS)]
        expected = [work.light(item) for item in columns]
        batches = [work.batch_of(item) for item in columns]
        least = 8 if size <= 2_000 else 4
        what = f"light NumPy at {size:,} records"
        for name, items in (("dict of arrays", columns), ("Batch", batches)):
            doors = {
                "run": _looping(sides.by_lanes(work.light), items, expected, sides.seconds),
                "stream": _streaming(sides.lanes, work.light, items, expected, sides.seconds),
            }
            pool = _looping(sides.by_pool(work.light), columns, expected, sides.seconds)
            for door, through in doors.items():
                row = f"{what}, {name}: lanes.{door} / pool"
                await _ratio(table, row, sides, through, pool, least)
        objects = [work.object_of(item) for item in columns]
        made = [work.light_object(item) for item in objects]
        row = f"{what}, generic pickle: lanes.run / pool"
        through = _looping(sides.by_lanes(work.light_object), objects, made, sides.seconds)
        pool = _looping(sides.by_pool(work.light_object), objects, made, sides.seconds)
        await _ratio(table, row, sides, through, pool, 3)


async def executor(sides: Sides, table: Table) -> None:
    """What programs have today, with another executor: a list of dicts at 20 records."""
    records = _bridge.records_of(20 * ITEMS)
    items = [records[start : start + 20] for start in range(0, len(records), 20)]
    expected = [_bridge.features(item) for item in items]
    row = "run_in_executor, list of dicts at 20 records: lanes.executor() / pool"

    loop, own = asyncio.get_running_loop(), sides.lanes.executor()
    through = _looping(lambda item: loop.run_in_executor(own, _bridge.features, item), items, expected, sides.seconds)
    pool = _looping(sides.by_pool(_bridge.features), items, expected, sides.seconds)
    await _ratio(table, row, sides, through, pool, 4)


_Through = Callable[[int, str], Awaitable[Pass]]


def _looping(call: Call, items: Sequence[Any], expected: Sequence[Any], seconds: float) -> _Through:
    async def through(in_flight: int, what: str) -> Pass:
        await checked(call, items, expected, what)
        return await looping(call, items, expected, in_flight=in_flight, seconds=seconds, what=what)

    return through


def _streaming(
    lanes: tm.Lanes, fn: Callable[..., Any], items: Sequence[Any], expected: Sequence[Any], seconds: float
) -> _Through:
    async def through(in_flight: int, what: str) -> Pass:
        def stream(source: Iterator[Any]) -> AsyncIterator[Any]:
            return lanes.stream(fn, source, window=in_flight)

        return await streaming(stream, items, expected, seconds=seconds, what=what)

    return through


async def _ratio(table: Table, row: str, sides: Sides, own: _Through, pool: _Through, least: float) -> None:
    """Each side at each number in flight, in turn; the best of each is compared, run by run."""

    async def measured() -> list[list[tuple[Pass, Pass]]]:
        return [[(await own(number, row), await pool(number, row)) for number in IN_FLIGHT] for _ in range(sides.runs)]

    runs = await attempt(table, row, measured)
    if runs is None:
        return
    ratios = [max(each.rate for each, _ in passes) / max(each.rate for _, each in passes) for passes in runs]
    at_eight = [passes[0][0].rate / passes[0][1].rate for passes in runs]
    first, other = runs[-1][0]
    print(
        f"{row}: {ratios[-1]:.1f}x; 8 in flight: {first.rate:,.0f} and {other.rate:,.0f} batches/s; "
        f"CPU us a batch, parent + workers: {first.cpu()} and {other.cpu()}",
        flush=True,
    )
    note = f"{spread(ratios, '{:.1f}')}; 8 in flight {median(at_eight):.1f}x"
    table.at_least(row, median(ratios), least, shown="{:.1f}x", note=note)


# -- the round trip ----------------------------------------------------------------------------------------


async def round_trip(sides: Sides, table: Table) -> None:
    columns = [work.columns_of(20, seed) for seed in range(ITEMS)]
    for name, fn, items in (
        ("nothing to do", work.same, list(range(ITEMS))),
        ("light NumPy at 20 records", work.light, columns),
    ):
        expected = [fn(item) for item in items]
        for in_flight, most in ((1, 1 / 3), (8, 1 / 8)):
            row = f"round trip p50, {name}, {'alone' if in_flight == 1 else '8 in flight'}: lanes / pool"

            async def measured(
                row: str = row, fn: Any = fn, items: Any = items, expected: Any = expected, in_flight: int = in_flight
            ) -> list[tuple[Pass, Pass]]:
                return [
                    (
                        await _looping(sides.by_lanes(fn), items, expected, sides.seconds)(in_flight, row),
                        await _looping(sides.by_pool(fn), items, expected, sides.seconds)(in_flight, row),
                    )
                    for _ in range(sides.runs)
                ]

            passes = await attempt(table, row, measured)
            if passes is None:
                continue
            ratios = [own.p50_us / other.p50_us for own, other in passes]
            shown = tuple(median([each[side].p50_us for each in passes]) for side in (0, 1))
            print(
                f"{row}: {shown[0]:.0f} and {shown[1]:.0f} us; CPU us a call, parent + workers: "
                f"{passes[-1][0].cpu()} and {passes[-1][1].cpu()}",
                flush=True,
            )
            note = f"{spread(ratios, '{:.3f}')}: {shown[0]:.0f} / {shown[1]:.0f} us"
            table.below(row, median(ratios), most, shown="{:.3f}", note=note)


# -- the books ---------------------------------------------------------------------------------------------


async def books(sides: Sides, table: Table) -> None:
    """Ledger, dispatch and futures with lanes that answer at once: no process, no codec, no socket."""
    row = "ledger, batching and futures alone, CPU a batch in the parent"

    async def measured() -> list[float]:
        return [await _books(20_000) for _ in range(max(3, sides.runs))]

    costs = await attempt(table, row, measured)
    if costs is not None:
        table.at_most(row, median(costs), 6, unit="us", note=spread(costs))


async def _books(count: int) -> float:
    from tidemill.core.call_commands import Send
    from tidemill.core.calls import Calls

    loop = asyncio.get_running_loop()
    calls = Calls(2)
    for lane in range(2):
        calls.attached(lane)
    numbers = itertools.count(1)
    futures: dict[int, asyncio.Future[int]] = {}
    sent: list[tuple[int, int]] = []

    def perform(commands: Any) -> None:
        for command in commands:
            if isinstance(command, Send):
                if not sent:
                    loop.call_soon(answer)
                sent.append((command.lane, command.call))

    def answer() -> None:
        answered = sent.copy()
        sent.clear()
        for lane, call in answered:
            perform(calls.returned(lane, call))
            futures.pop(call).set_result(call)

    async def caller(times: int) -> None:
        for _ in range(times):
            call = next(numbers)
            future = futures[call] = loop.create_future()
            perform(calls.add(call))
            await future

    began = time.process_time()
    await asyncio.gather(*(caller(count // 8) for _ in range(8)))
    return (time.process_time() - began) / count * 1e6


# -- batched -----------------------------------------------------------------------------------------------


async def batched(sides: Sides, table: Table) -> None:
    predict, armed = _predict(sides.lanes)
    note = "" if armed else "; timeouts armed: not there yet"
    for what, way, least in (
        ("looping callers", _loopers, 150_000),
        ("a fresh task a call", _fresh, 70_000),
    ):
        row = f"batched, awaited calls/s, {what}"

        async def measured(way: Any = way) -> list[list[Pass]]:
            return [[await way(predict, count, sides.seconds) for count in (256, 1_000)] for _ in range(sides.runs)]

        passes = await attempt(table, row, measured)
        if passes is None:
            continue
        rates = [max(each.rate for each in one) for one in passes]
        print(f"{row}: {rates[-1]:,.0f}; CPU us a call, parent + workers: {passes[-1][-1].cpu()}", flush=True)
        table.at_least(row, median(rates), least, shown="{:,.0f}", note=spread(rates, "{:,.0f}") + note)
    await _lone(sides, table, predict, note)


def _predict(lanes: tm.Lanes) -> tuple[Callable[[int], Awaitable[int]], bool]:
    """The callable, with a timeout for each call where there is one; whether there is one."""
    if "timeout" in inspect.signature(lanes.batched).parameters:
        return lanes.batched(work.doubled, max_batch=256, timeout=5.0), True  # type: ignore[call-arg]
    predict = lanes.batched(work.doubled, max_batch=256)
    if "timeout" in inspect.signature(predict).parameters:
        return lambda record: predict(record, timeout=5.0), True  # type: ignore[call-arg]
    return predict, False


async def _loopers(predict: Callable[[int], Awaitable[int]], callers: int, seconds: float) -> Pass:
    made, clock = Pass(), time.perf_counter
    counts = [0] * callers

    async def looper(number: int) -> None:
        count = 0
        while clock() < until:
            for value in range(number, number + 20):
                if await predict(value) != 2 * value:
                    raise Wrong("batched: a value came to another caller")
            count += 20
        counts[number] = count

    with Meter(made):
        until = clock() + seconds
        await asyncio.gather(*map(looper, range(callers)))
    made.calls = sum(counts)
    return made


async def _fresh(predict: Callable[[int], Awaitable[int]], callers: int, seconds: float) -> Pass:
    made, clock = Pass(), time.perf_counter

    async def one(value: int) -> int:
        return await predict(value)

    right = [2 * value for value in range(callers)]
    with Meter(made):
        until = clock() + seconds
        while clock() < until:
            if await asyncio.gather(*(asyncio.create_task(one(value)) for value in range(callers))) != right:
                raise Wrong("batched: a value came to another caller")
            made.calls += callers
    return made


async def _lone(sides: Sides, table: Table, predict: Callable[[int], Awaitable[int]], note: str) -> None:
    row = "batched, a lone call's p50 over the bare ping's"
    items = list(range(ITEMS))

    async def measured() -> list[tuple[float, float]]:
        made = []
        async with _Ping() as ping:
            for _ in range(sides.runs):
                bare = await looping(ping, items, items, in_flight=1, seconds=sides.seconds, what="ping")
                doubles = [2 * item for item in items]
                call = await looping(predict, items, doubles, in_flight=1, seconds=sides.seconds, what=row)
                made.append((call.p50_us, bare.p50_us))
        return made

    pairs = await attempt(table, row, measured)
    if pairs is not None:
        over = [call - bare for call, bare in pairs]
        shown = f": {median([call for call, _ in pairs]):.0f} - {median([bare for _, bare in pairs]):.0f} us"
        table.at_most(row, median(over), 120, unit="us", note=spread(over, "{:.0f}") + shown + note)


def _echo(end: socket.socket, nice: int) -> None:
    import os

    os.nice(nice)
    while data := end.recv(8):
        end.send(data)


class _Ping:
    """Eight bytes to a process and back through the event loop: what no bridge can be faster than."""

    async def __aenter__(self) -> Call:
        from tidemill.engine.lane import NICE

        self._loop = asyncio.get_running_loop()
        self._own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = get_context("spawn").Process(target=_echo, args=(other, NICE))
        self._process.start()
        other.close()
        self._own.setblocking(False)
        self._waiting: asyncio.Future[int] | None = None
        self._loop.add_reader(self._own, self._read)
        await self._ping(0)
        return self._ping

    async def _ping(self, number: int) -> int:
        self._waiting = self._loop.create_future()
        self._own.send(number.to_bytes(8, "little"))
        return await self._waiting

    def _read(self) -> None:
        assert self._waiting is not None
        self._waiting.set_result(int.from_bytes(self._own.recv(8), "little"))

    async def __aexit__(self, *_: object) -> None:
        self._loop.remove_reader(self._own)
        self._own.close()
        self._process.join(5)
