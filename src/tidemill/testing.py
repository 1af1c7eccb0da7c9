"""For tests of pipelines, stages and sinks, ours and yours: a clock, a source, a sink and lanes that are driven by hand.

Tests with these never wait and never depend on the speed of the machine.
"""

from __future__ import annotations

import asyncio
import heapq
import types
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tidemill.batch import Batch
from tidemill.engine.batched import Batched
from tidemill.engine.call_process import Request
from tidemill.engine.lanes import Lanes
from tidemill.engine.lent import lending
from tidemill.errors import OutsideError, PlanError
from tidemill.formats.edge import Edge
from tidemill.schema import Schema
from tidemill.sinks.base import IfExists, LoopSink, SinkStatistics, Where
from tidemill.sources.base import Source, SourceContext, SourceStatistics

__all__ = ["CRASH", "EOF", "PAUSE", "InlineLanes", "ListSink", "ManualClock", "ScriptedSource"]

_SETTLING_TURNS: Final = 100
"""Turns of the loop after which `ManualClock.run_for` believes that what it woke has gone to sleep again."""


class ManualClock:
    """A `tidemill.clock.Clock` that stands still until it is moved.

    >>> clock = ManualClock()
    >>> clock.advance(1.5)
    >>> clock.monotonic_ns()
    1500000000
    """

    def __init__(self, *, monotonic_ns: int = 0, wall_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now = monotonic_ns
        self._wall_offset = wall_ns - monotonic_ns
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = 0

    def monotonic_ns(self) -> int:
        return self._now

    def wall_ns(self) -> int:
        return self._now + self._wall_offset

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waking: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1  # of two sleepers due at one time, the first to sleep wakes first
        heapq.heappush(self._sleepers, (self._now + round(seconds * 1e9), self._count, waking))
        await waking

    @property
    def sleeping(self) -> int:
        """How many are asleep."""
        return sum(not waking.done() for _, _, waking in self._sleepers)

    def advance(self, seconds: float) -> None:
        """Move both times on, and wake those whose time has come, in the order of their times.

        They run at the loop's next turn, and all see the new time; see `run_for` for one after another.
        """
        self._require_forward(seconds)
        self._now += round(seconds * 1e9)
        while self._sleepers and self._sleepers[0][0] <= self._now:
            _wake(heapq.heappop(self._sleepers)[2])

    async def run_for(self, seconds: float) -> None:
        """Move on step by step: each sleeper wakes at its own time, and all go to sleep again before the next wakes.

        So a task that does something each second does it ten times in ``run_for(10)``.
        """
        self._require_forward(seconds)
        end = self._now + round(seconds * 1e9)
        await _settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, waking = heapq.heappop(self._sleepers)
            if not waking.done():
                self._now = max(self._now, due)
                _wake(waking)
                await _settle()
        self._now = end

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward or, below 0, back, as time synchronisation does; nobody wakes."""
        self._wall_offset += round(seconds * 1e9)

    def _require_forward(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"monotonic time never goes back, and this is {seconds} s; see step_wall()")


def _wake(waking: asyncio.Future[None]) -> None:
    if not waking.done():  # it may have been cancelled
        waking.set_result(None)


async def _settle() -> None:
    for _ in range(_SETTLING_TURNS):
        await asyncio.sleep(0)


@dataclass(frozen=True)
class PAUSE:
    """In a script: wait so many seconds of the run's clock."""

    seconds: float


class _Mark:
    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name

    def __reduce__(self) -> str:
        return self._name


CRASH: Final = _Mark("CRASH")
"""In a script: the source fails with an `OutsideError`; its next stream goes on behind it."""
EOF: Final = _Mark("EOF")
"""In a script: the source ends here; its next stream goes on behind it."""

Step = Batch | Sequence[Mapping[str, Any]] | PAUSE | _Mark


class ScriptedSource(Source):
    """A source that does what its script says: batches (or lists of dicts), ``PAUSE(2.0)``, ``CRASH``, ``EOF``.

    A record without a time gets its arrival's. A stream begins at the start of the script, or behind the ``CRASH`` or
    ``EOF`` that ended the stream before it. Delivery: each record once in a stream, in order.

    >>> source = ScriptedSource([[{"sensor": "S1", "value": 20}], PAUSE(2.0), [{"sensor": "S1", "value": 21}], EOF])
    >>> async def read():
    ...     context = SourceContext(ManualClock(), reject=print)
    ...     stream = source.stream(context)
    ...     return (await anext(stream)).to_rows()
    >>> asyncio.run(read())
    [{'sensor': 'S1', 'value': 20}]
    """

    def __init__(
        self,
        script: Sequence[Step],
        *,
        key: str | None = None,
        time: str | None = None,
        columns: Mapping[str, object] | None = None,
        tz: str = "UTC",
        name: str | None = None,
    ) -> None:
        super().__init__(key=key, time=time, columns=columns, tz=tz, name=name)
        for step in script:
            if isinstance(step, str | bytes | Mapping) or not isinstance(step, Batch | Sequence | PAUSE | _Mark):
                raise PlanError(
                    f"a script holds batches, lists of dicts, PAUSE(seconds), CRASH and EOF; this is {step!r}."
                )
        self.script = tuple(script)
        self.pulled = 0
        """Steps taken so far, in all streams: how far the run has read."""
        self._next = 0
        self._edge = Edge(key=key, time=time, columns=self.columns, tz=tz, arrival=True, source=self.name)
        self._connected = False
        self._records = 0
        self._rejected = 0

    @property
    def accepted(self) -> int:
        return self._edge.accepted

    def number(self, number: int) -> None:
        super().number(number)
        self._edge.source = self.name

    async def stream(self, context: SourceContext) -> AsyncIterator[Batch]:
        place, self._next = self._next, 0
        self._connected = True
        try:
            for step in self.script[place:]:
                if context.stopping.is_set():
                    return
                place += 1
                self.pulled += 1
                match step:
                    case PAUSE(seconds):
                        await _pause(context, seconds)
                    case _Mark():
                        self._next = place
                        if step is EOF:
                            return
                        raise OutsideError(f"source {self.name} was told to crash")
                    case _:
                        yield self._batch(step, context)
        finally:
            self._connected = False

    def statistics(self) -> SourceStatistics:
        return SourceStatistics(self.name, self._connected, self._records, self._rejected)

    def _batch(self, step: Batch | Sequence[Mapping[str, Any]], context: SourceContext) -> Batch:
        arrived, wall = context.clock.monotonic_ns(), context.clock.wall_ns()
        if not isinstance(step, Batch):
            batch, letters = self._edge.rows(list(map(dict, step)), arrived_ns=arrived, wall_ns=wall)
        elif step.key_column is None or step.time_ns is None:
            batch, letters = self._edge.columns(step.columns, rows=len(step), arrived_ns=arrived, wall_ns=wall)
        else:
            batch, letters = step.with_columns({}), []
            batch.arrived_ns = arrived
        for letter in letters:
            context.reject(letter)
        self._records += len(batch)
        self._rejected += len(letters)
        return batch


async def _pause(context: SourceContext, seconds: float) -> None:
    """Sleep, or until the run wants to end."""
    waits = [asyncio.ensure_future(context.clock.sleep(seconds)), asyncio.ensure_future(context.stopping.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


class ListSink(LoopSink):
    """A sink that keeps copies of all it gets.

    >>> sink = ListSink()
    >>> asyncio.run(sink.write(Batch.from_rows([{"sensor": "S1", "value": 20}])))
    >>> sink.rows
    [{'sensor': 'S1', 'value': 20}]
    """

    delivery = "at-least-once; in memory"

    def __init__(
        self,
        *,
        where: Where | None = None,
        columns: Sequence[str] | None = None,
        if_exists: IfExists = "fail",
        name: str | None = None,
    ) -> None:
        super().__init__(where=where, columns=columns, if_exists=if_exists, name=name)
        self.batches: list[Batch] = []
        """Copies of the batches, in the order and with the boundaries they came in."""
        self.schema: Schema | None = None
        """What the run said when it opened the sink."""
        self.closed = False

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows so far, as dicts."""
        return [row for batch in self.batches for row in batch.to_rows()]

    async def open(self, schema: Schema) -> None:
        self.schema = schema
        self.closed = False

    async def write(self, batch: Batch) -> None:
        self.batches.append(batch.take(np.arange(len(batch))))

    async def close(self) -> None:
        self.closed = True

    def statistics(self) -> SinkStatistics:
        return SinkStatistics(self.name, sum(map(len, self.batches)))


class InlineLanes(Lanes):
    """`tidemill.Lanes` without processes: for the tests of programs that use lanes.

    Every call runs on the loop's thread when its turn comes, in order, so breakpoints and coverage see it; nothing can
    stop a function, and a function that ends its process ends the test. Arrays are lent for the call: behind it they
    are overwritten, so that a function that keeps a view of one is caught. (Those of `keyed` are left alone: to keep
    something is what its objects are for.)

    >>> async def main():
    ...     async with InlineLanes() as lanes:
    ...         return await lanes.run(sum, [1, 2, 3])
    >>> asyncio.run(main())
    6
    """

    def __init__(self) -> None:
        super().__init__(0)
        self._lending: weakref.WeakKeyDictionary[Callable[..., Any], Callable[..., Any]] = weakref.WeakKeyDictionary()

    def batched(self, fn: Callable[[list[Any]], Sequence[Any]], **options: Any) -> Batched:
        return super().batched(self._lender(fn), **options)

    def _request(self, fn: Callable[..., Any], *rest: Any) -> Request:
        return super()._request(self._lender(fn), *rest)

    def _lender(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """The same one each time for a plain function, so that it is still sent once."""
        if not isinstance(fn, types.FunctionType):
            return lending(fn) if callable(fn) else fn
        return self._lending.get(fn) or self._lending.setdefault(fn, lending(fn))
