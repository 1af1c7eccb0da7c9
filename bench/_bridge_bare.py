"""A bridge with nothing but the way there and back: no books, timeouts, cancelling, blame, arena or word of a death.

It is what asyncio, a socket and our codecs cost whoever writes them in Python: the share of it that `tm.Lanes` reaches is
what its guarantees leave, and a target that it misses too is out of reach of this interpreter on this machine.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from bench import _bridge
from bench import _bridge_work as work
from bench._bridge_calls import IN_FLIGHT, ITEMS, Sides
from bench._bridge_passes import Call, Pass, checked, looping
from bench._common import Table, attempt, median, spread
from tidemill.engine.lane import NICE
from tidemill.lanes.parcels import pack, unpack

_HEAD = struct.Struct("<IHxxI")
"""Bytes, function, number of the call."""
_READ = 1 << 20
_FUNCTIONS: list[Callable[[Any], Any]] = [work.same, work.light, work.light_object, _bridge.features]


def _frames(held: bytearray) -> Iterator[tuple[int, int, Any]]:
    """The frames that are whole, each with its value, taken out of ``held``."""
    at, end = 0, len(held)
    while end - at >= _HEAD.size:
        size, function, number = _HEAD.unpack_from(held, at)
        start = at + _HEAD.size
        if end - start < size:
            break
        at = start + size
        yield function, number, unpack(bytes(held[start:at]))
    del held[:at]


def _frame(function: int, number: int, value: Any) -> tuple[bytes, bytes]:
    data = pack(value).data
    return _HEAD.pack(len(data), function, number), data


def _serve(end: socket.socket) -> None:
    os.nice(NICE)
    held, room = bytearray(), memoryview(bytearray(_READ))
    while count := end.recv_into(room):
        held += room[:count]
        made = [_frame(function, number, _FUNCTIONS[function](value)) for function, number, value in _frames(held)]
        end.sendall(b"".join(itertools.chain.from_iterable(made)))


class _Lane:
    def __init__(self, bare: Bare) -> None:
        self._bare, self._loop = bare, asyncio.get_running_loop()
        self.under_way = 0
        self._unsent, self._scheduled = bytearray(), False
        self._held, self._room = bytearray(), memoryview(bytearray(_READ))
        self._socket, other = socket.socketpair()
        for each in (self._socket, other):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _READ)
        self._process = get_context("spawn").Process(target=_serve, args=(other,), daemon=True)
        self._process.start()
        other.close()
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._read)

    def send(self, head: bytes, data: bytes) -> None:
        self.under_way += 1
        self._unsent += head
        self._unsent += data
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        del self._unsent[: self._socket.send(self._unsent)]
        self._scheduled = bool(self._unsent)
        if self._scheduled:
            self._loop.add_writer(self._socket, self._write)
        else:
            self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        self._held += self._room[: self._socket.recv_into(self._room)]
        for _, number, value in _frames(self._held):
            self.under_way -= 1
            self._bare.waiting.pop(number).set_result(value)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._process.join()


class Bare(Executor):
    """Calls of `_FUNCTIONS` with one argument; ``submit`` is for the loop's own thread."""

    def __init__(self, lanes: int) -> None:
        self.waiting: dict[int, Any] = {}
        self._numbers = itertools.count()
        self._lanes = [_Lane(self) for _ in range(lanes)]
        self._loop = asyncio.get_running_loop()

    def _send(self, function: Any, value: Any, future: Any) -> None:
        number = next(self._numbers)
        self.waiting[number] = future
        lane = min(self._lanes, key=_under_way)
        lane.send(*_frame(_FUNCTIONS.index(function), number, value))

    async def run(self, function: Any, value: Any) -> Any:
        future = self._loop.create_future()
        self._send(function, value, future)
        return await future

    def submit(self, function: Any, /, *args: Any, **_: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._send(function, args[0], future)
        return future

    def close(self) -> None:
        for lane in self._lanes:
            lane.close()


def _under_way(lane: _Lane) -> int:
    return lane.under_way


@dataclass(frozen=True)
class _Case:
    """What the lanes are compared with the pool in elsewhere."""

    what: str
    function: Callable[[Any], Any]
    items: Sequence[Any]
    target: float
    in_flight: Sequence[int] = IN_FLIGHT
    by: str = "rate"
    """Or "latency", which is better below its target."""
    door: str = "run"
    """Or "executor"."""


async def bare(sides: Sides, table: Table) -> None:
    """What the lanes are compared with the pool in, by the bare bridge too: what it reaches, and the lanes' share of that."""
    bridge = Bare(len(sides.lanes.statistics().lanes))
    try:
        for case in _cases():
            await _row(sides, table, bridge, case)
    finally:
        bridge.close()


def _cases() -> Iterator[_Case]:
    columns = {size: [work.columns_of(size, seed) for seed in range(ITEMS)] for size in (20, 200, 2_000)}
    for size, items in columns.items():
        yield _Case(f"light NumPy at {size:,} records, dict of arrays", work.light, items, 8)
    for size, items in columns.items():
        objects = [work.object_of(item) for item in items]
        yield _Case(f"light NumPy at {size:,} records, generic pickle", work.light_object, objects, 3)
    records = _bridge.records_of(20 * ITEMS)
    parts = [records[start : start + 20] for start in range(0, len(records), 20)]
    yield _Case("run_in_executor, list of dicts at 20 records", _bridge.features, parts, 4, door="executor")
    for name, function, items in (
        ("nothing to do", work.same, list(range(ITEMS))),
        ("light NumPy at 20 records", work.light, columns[20]),
    ):
        yield _Case(f"round trip p50, {name}, alone", function, items, 1 / 3, [1], "latency")
        yield _Case(f"round trip p50, {name}, 8 in flight", function, items, 1 / 8, [8], "latency")


async def _row(sides: Sides, table: Table, bridge: Bare, case: _Case) -> None:
    expected = [case.function(item) for item in case.items]
    loop = asyncio.get_running_loop()

    def through(executor: Executor) -> Call:
        return lambda item: loop.run_in_executor(executor, case.function, item)

    pool = sides.by_pool(case.function)
    calls = [lambda item: bridge.run(case.function, item), sides.by_lanes(case.function), pool]
    if case.door == "executor":
        calls = [through(bridge), through(sides.lanes.executor()), pool]

    async def best(call: Call) -> Pass:
        await checked(call, case.items, expected, case.what)
        made = [
            await looping(call, case.items, expected, in_flight=number, seconds=sides.seconds, what=case.what)
            for number in case.in_flight
        ]
        return max(made, key=lambda one: one.rate)

    async def measured() -> list[list[Pass]]:
        return [[await best(call) for call in calls] for _ in range(sides.runs)]

    runs = await attempt(table, case.what, measured)
    if runs is None:
        return
    print(
        f"{case.what}: CPU us a call, parent + workers, bare, lanes, pool: {', '.join(one.cpu() for one in runs[-1])}"
    )
    if case.by == "latency":
        ratios = [made.p50_us / other.p50_us for made, _, other in runs]
        shares = [made.p50_us / own.p50_us for made, own, _ in runs]
        add, shown = table.below, "{:.3f}"
    else:
        ratios = [made.rate / other.rate for made, _, other in runs]
        shares = [own.rate / made.rate for made, own, _ in runs]
        add, shown = table.at_least, "{:.1f}x"
    note = f"{spread(ratios, shown)}; the lanes {median(shares):.2f} of it{spread(shares)}"
    add(f"{case.what}: a bare bridge / pool", median(ratios), case.target, shown=shown, note=note)
