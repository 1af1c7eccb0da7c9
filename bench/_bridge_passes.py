"""One pass: callers that await in a loop, for some time; what it took of the wall clock and of each side's CPU."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench import _bridge_work as work
from bench._common import Wrong, median

Call = Callable[[Any], Awaitable[Any]]


@dataclass
class Pass:
    """What one pass measured."""

    calls: int = 0
    seconds: float = 0.0
    parent_s: float = 0.0
    """CPU seconds of this process, all its threads."""
    workers_s: float = 0.0
    """CPU seconds of all processes below it."""
    latencies_us: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.calls / self.seconds

    @property
    def p50_us(self) -> float:
        return median(self.latencies_us)

    def cpu(self) -> str:
        """CPU time a call, for those who make it less."""
        calls = max(self.calls, 1)
        return f"{self.parent_s / calls * 1e6:.1f} + {self.workers_s / calls * 1e6:.1f}"


class Meter:
    """``with Meter(made):`` adds wall and CPU time to a `Pass`; processes are looked up outside of the time."""

    def __init__(self, made: Pass) -> None:
        self._made = made

    def __enter__(self) -> None:
        self._pids = [child.pid for child in psutil.Process().children(recursive=True)]
        self._workers = self._used()
        self._parent = time.process_time()
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._made.seconds += time.perf_counter() - self._began
        self._made.parent_s += time.process_time() - self._parent
        self._made.workers_s += self._used() - self._workers

    def _used(self) -> float:
        return sum(map(_cpu_s, self._pids))


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process, to the nanosecond where the kernel counts so; 0.0 when it is gone."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except OSError:
        pass
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


async def looping(
    call: Call, items: Sequence[Any], expected: Sequence[Any], *, in_flight: int, seconds: float, what: str
) -> Pass:
    """``in_flight`` callers, each with one call under way, for ``seconds``; the last result of each item is checked."""
    made = Pass()
    kept: list[Any] = [None] * len(items)
    latencies, clock = made.latencies_us, time.perf_counter
    places = itertools.cycle(range(len(items)))

    async def caller() -> None:
        while (began := clock()) < until:
            place = next(places)
            kept[place] = await call(items[place])
            latencies.append((clock() - began) * 1e6)

    with Meter(made):
        until = clock() + seconds
        await asyncio.gather(*(caller() for _ in range(in_flight)))
    made.calls = len(latencies)
    _check(kept, expected, made.calls, what)
    return made


async def streaming(
    stream: Callable[[Iterator[Any]], AsyncIterator[Any]],
    items: Sequence[Any],
    expected: Sequence[Any],
    *,
    seconds: float,
    what: str,
) -> Pass:
    """Through one ``stream(source)`` for ``seconds``; the results come in order, and the last of each is checked."""
    made = Pass()
    kept: list[Any] = [None] * len(items)
    clock, count = time.perf_counter, len(items)

    def source() -> Iterator[Any]:
        for item in itertools.cycle(items):
            if clock() >= until:
                return
            yield item

    number = 0
    with Meter(made):
        until = clock() + seconds
        async for result in stream(source()):
            kept[number % count] = result
            number += 1
    made.calls = number
    _check(kept, expected, number, what)
    return made


def _check(kept: list[Any], expected: Sequence[Any], calls: int, what: str) -> None:
    if not calls:
        raise Wrong(f"{what}: no call ended")
    for own, right in zip(kept[:calls], expected[:calls], strict=True):
        work.require_same(own, right, what)


async def checked(call: Call, items: Sequence[Any], expected: Sequence[Any], what: str) -> None:
    """Every item once, several at a time, and every result compared: also the warm-up."""
    for start in range(0, len(items), 16):
        made = await asyncio.gather(*map(call, items[start : start + 16]))
        for own, right in zip(made, expected[start : start + 16], strict=True):
            work.require_same(own, right, what)


def cores() -> int:
    return len(os.sched_getaffinity(0))
