"""`Records`: anything that can be iterated over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from tidemill.batch import Batch
from tidemill.errors import PlanError
from tidemill.held import Held
from tidemill.interchange import kind_of_table
from tidemill.letters import DeadLetter
from tidemill.schema import Field, Schema
from tidemill.sources.base import SourceContext
from tidemill.sources.edged import MOST_RECORDS, EdgedSource, pieces
from tidemill.sources.inbox import Inbox

__all__ = ["Records"]

_SLICE: Final = 1_000
"""Dicts taken from the user's iterator in one turn of the loop, and the first ones of a list."""
_SLICES: Final = (100, 4_000)
"""Dicts of a list that become one batch in one turn of the loop, at least and at most: as many as .."""
_TURN_NS: Final = 1_000_000
""".. take this time, by what those before took: records of four fields are many, of a hundred few."""
_SLICE_NS: Final = 500_000
"""Time spent pulling from the user's iterator in one turn of the loop."""
_AHEAD: Final = 4 * MOST_RECORDS
"""Records taken from an asynchronous iterable ahead of the pipeline."""


class Records(EdgedSource):
    """A sync or async iterable of records (dicts) or of `Batch`.

    A record without the default time field gets the time of its arrival. The user's iterator runs on the event loop,
    in slices of at most 1,000 records or half a millisecond; one that waits must be asynchronous. The report shows apart, as
    ``user_code``, how long it held the loop. Batches pass
    unsplit up to 32,768 records. Delivery: every item once, in the iterable's order.

    >>> Records([{"sensor": "S1", "time": 0, "value": 20}]).peek()
    Schema(sensor: text, time: float, value: float)
    """

    arrival = True

    def __init__(
        self,
        records: Iterable[Any] | AsyncIterable[Any],
        *,
        key: str | None = None,
        time: str | None = None,
        columns: Mapping[str, object] | None = None,
        tz: str = "UTC",
        time_format: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(key=key, time=time, columns=columns, tz=tz, time_format=time_format, name=name)
        kind = kind_of_table(records)
        if kind in ("pandas", "polars", "arrow"):
            raise PlanError(f"Records takes dicts or batches; for a {kind} table write sources.Frame(table).")
        if isinstance(records, Batch):
            records = [records]
        if isinstance(records, (str, bytes, Mapping)) or not isinstance(records, (Iterable, AsyncIterable)):
            raise PlanError(
                f"Records takes an iterable of dicts or batches, not a {type(records).__name__}; "
                f"for one record write [record]."
            )
        self.records = records
        self._slice = _SLICE

    def peek(self) -> Schema:
        """The first records' columns when they are in a list; else only what is declared."""
        if not isinstance(self.records, (list, tuple)) or not self.records:
            return self.declared(more=True)
        first = self.records[0]
        if isinstance(first, Batch):
            schema = Schema(
                Field(name, None if column.is_missing else column.kind) for name, column in first.columns.items()
            )
            return schema.adding(Field(name, kind) for name, kind in self.columns.items())
        head = list(self.records[:_SLICE])
        batch, _ = self.edge.twin().rows([row for row in head if isinstance(row, Mapping)])
        fields = dict.fromkeys((*batch.names, *self.columns))
        return Schema(Field(name, self.edge.kinds.get(name)) for name in fields)

    @property
    def seekable(self) -> bool:
        return isinstance(self.records, (list, tuple))

    async def stream(self, context: SourceContext) -> AsyncIterator[Batch]:
        self._connected = True
        try:
            items = self._pumped(context) if isinstance(self.records, AsyncIterable) else self._pulled(context)
            async for batch in items:
                yield batch
        finally:
            self._connected = False

    # -- synchronous -------------------------------------------------------------------------------

    async def _pulled(self, context: SourceContext) -> AsyncIterator[Batch]:
        assert not isinstance(self.records, AsyncIterable)
        slices = (
            self._slices_of_list(self.records)
            if isinstance(self.records, (list, tuple))
            else _slices(iter(self.records), context)
        )
        began_ns = context.clock.monotonic_ns()
        for rows in slices:
            if not isinstance(self.records, (list, tuple)):
                context.held(context.clock.monotonic_ns() - began_ns)
            arrived_ns = context.clock.monotonic_ns()
            for batch in self._batches(context, rows, arrived_ns):
                yield batch
            await asyncio.sleep(0)
            if context.stopping.is_set():
                return
            began_ns = context.clock.monotonic_ns()

    def _slices_of_list(self, items: Sequence[Any]) -> Iterator[Sequence[Any]]:
        start = 0
        while start < len(items):
            end = start + (1 if isinstance(items[start], Batch) else self._slice)
            yield items[start:end]
            start = end

    # -- asynchronous ------------------------------------------------------------------------------

    async def _pumped(self, context: SourceContext) -> AsyncIterator[Batch]:
        """The user's iterable runs in a task of its own, so that what it gave while we were away is one batch."""
        assert isinstance(self.records, AsyncIterable)
        room = asyncio.Event()
        room.set()
        inbox: Inbox[Any] = Inbox(_AHEAD, room.clear, room.set)
        arrivals = [0]
        pumping = _pump(self.records, inbox, arrivals, room, context)
        pump = asyncio.ensure_future(Held(pumping, context.clock.monotonic_ns, context.held))
        pump.add_done_callback(lambda _: inbox.close())
        try:
            async with inbox.until_stopping(context, pump.cancel):
                while await inbox.filled():
                    arrived_ns = arrivals[0]
                    for batch in self._batches(context, inbox.take(self._slice), arrived_ns):
                        yield batch
                    await asyncio.sleep(0)
            if pump.done() and not pump.cancelled():
                pump.result()  # what the user's iterator raised
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    # -- both --------------------------------------------------------------------------------------

    def _batches(self, context: SourceContext, items: Sequence[Any], arrived_ns: int) -> Iterator[Batch]:
        start = 0
        if any(issubclass(kind, Batch) for kind in set(map(type, items))):
            for place, item in enumerate(items):
                if isinstance(item, Batch):
                    yield from self._rows(context, items[start:place], arrived_ns)
                    yield from self._whole(context, item, arrived_ns)
                    start = place + 1
        yield from self._rows(context, items[start:], arrived_ns)

    def _rows(self, context: SourceContext, rows: Sequence[Any], arrived_ns: int) -> Iterator[Batch]:
        if rows:
            began_ns = context.clock.monotonic_ns()
            batch, letters = self.edge.rows(rows, arrived_ns=arrived_ns, wall_ns=context.clock.wall_ns())
            if len(rows) >= _SLICES[0]:
                spent_ns = max(context.clock.monotonic_ns() - began_ns, 1)
                self._slice = min(max(len(rows) * _TURN_NS // spent_ns, _SLICES[0]), _SLICES[1])
            yield from self._given(context, batch, letters)

    def _whole(self, context: SourceContext, batch: Batch, arrived_ns: int) -> Iterator[Batch]:
        if batch.key_column is None or batch.time_ns is None or self.key is not None or self.time is not None:
            made, letters = self.edge.columns(
                batch.columns, rows=len(batch), arrived_ns=arrived_ns, wall_ns=context.clock.wall_ns()
            )
            if not letters:
                made.origin, made.origin_names, made.orders = batch.origin, batch.origin_names, batch.orders
        else:
            made, letters = batch.slice(0, len(batch)), []
            if not batch.arrived_ns:
                made = batch.with_columns({})
                made.arrived_ns = arrived_ns
        yield from self._given(context, made, letters)

    def _given(self, context: SourceContext, batch: Batch, letters: list[DeadLetter]) -> Iterator[Batch]:
        yield from pieces(self.accept(context, batch, letters), _AHEAD)


def _slices(items: Iterator[Any], context: SourceContext) -> Iterator[list[Any]]:
    rows: list[Any] = []
    until = context.clock.monotonic_ns() + _SLICE_NS
    for item in items:
        rows.append(item)
        full = len(rows) >= _SLICE or isinstance(item, Batch)
        if full or (len(rows) % 16 == 0 and context.clock.monotonic_ns() >= until) or _slow(rows, context, until):
            yield rows
            rows = []
            until = context.clock.monotonic_ns() + _SLICE_NS
    if rows:
        yield rows


def _slow(rows: list[Any], context: SourceContext, until: int) -> bool:
    """The first sixteen are timed one by one: an iterator may be slow."""
    return len(rows) < 16 and context.clock.monotonic_ns() >= until


async def _pump(
    records: AsyncIterable[Any], inbox: Inbox[Any], arrivals: list[int], room: asyncio.Event, context: SourceContext
) -> None:
    """Fills the inbox; ``arrivals[0]`` is when the oldest item in it came, or earlier."""
    now_ns = context.clock.monotonic_ns
    put = inbox.put
    until = now_ns() + _SLICE_NS
    count = 0
    async for item in records:
        if not inbox.size:
            arrivals[0] = now_ns()
        put(item, len(item) if isinstance(item, Batch) else 1)
        count += 1
        if inbox.paused:
            await room.wait()
        elif (count % 16 == 0 or inbox.size < 16) and now_ns() >= until:
            await asyncio.sleep(0)
            until = now_ns() + _SLICE_NS
