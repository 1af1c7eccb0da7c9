"""`Records`: anything that can be iterated over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from tidemill.batch import Batch
from tidemill.errors import InputError, PlanError, StageError, TidemillError
from tidemill.held import Held, is_cancelled
from tidemill.interchange import kind_of_table
from tidemill.kinds import Learned
from tidemill.letters import DeadLetter, Letters
from tidemill.rows import fields_of_rows
from tidemill.schema import Field, Schema
from tidemill.sources.base import SourceContext
from tidemill.sources.edged import MOST_RECORDS, EdgedSource, in_turns, pieces
from tidemill.sources.inbox import Inbox
from tidemill.sources.nested_values import light_runs
from tidemill.sources.standing import OR_FRESH
from tidemill.stages.narrowing import told
from tidemill.stages.own_values import row_as_now

__all__ = ["Records"]

_SLICE: Final = 1_000
"""Dicts taken from the user's iterator in one turn of the loop, and the first ones of a list."""
_SLICES: Final = (100, 4_000)
"""Dicts of a list that become one batch in one turn of the loop, at least and at most: as many as .."""
_TURN_NS: Final = 1_000_000
""".. take this time, by what those before took: records of four fields are many, of a hundred few."""
_SLICE_NS: Final = 500_000
"""Time spent pulling from the user's iterator in one turn of the loop."""
_BLOCK: Final = 4_000
"""Dicts of a list of which those rejected are handed over before the others are yielded: what their order follows from."""
_AHEAD: Final = 4 * MOST_RECORDS
"""Records taken from an asynchronous iterable ahead of the pipeline."""


class Records(EdgedSource):
    """A sync or async iterable of records (dicts) or of `Batch`.

    A record without the default time field gets the time of its arrival. The user's iterator runs on the event loop,
    in slices of at most 1,000 records or half a millisecond; one that waits must be asynchronous. The report shows apart, as
    ``user_code``, how long it held the loop. What it raises, `sys.exit` too, stops the run with a `StageError` that names the
    source. Batches pass unsplit up to 32,768 records.

    ``key``      the field that names the sensor (``"sensor"``), or a template over fields: ``"{line}/{machine}"``
    ``time``     the field of its time (``"time"``; without that, its arrival)
    ``time_format``  the ``strptime`` format of times that are neither ISO 8601 nor epochs
    ``columns``  kinds of fields that are not to be learned: ``{"status": object}``; this, and ``tz``, the zone of times without
                 one (UTC), as `Source` has them
    ``live``  of an asynchronous iterable: its records come when they come, as those of `TCP` do, and where they end, the next
              start of the run brings more. The run keeps state, shows its pages, watches tables and models, and goes on with the watermark
              when no record comes (`Pipeline(idle_after=)`), which `Silence` and windows of time need. Without it an iterable
              is a recording, whose records alone tell the time

    Delivery: every item once, in the iterable's order, and as it was when it was given: a generator may yield one dict again
    and again. A list or tuple goes on with state where the run stood, and its records' arrival is when the reading of it
    began; of 4,000 dicts in it, those rejected come before the others. What came from another iterable is in the ingest log.

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
        live: bool = False,
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
        if live and not isinstance(records, AsyncIterable):
            raise PlanError(
                f"live=True of Records is for an asynchronous iterable, which can wait for its records; a "
                f"{type(records).__name__} is read to its end."
            )
        self.records = records
        if live:
            self.finite, self.goes_on = False, True  # type: ignore[misc]  # of this one, not of the class
        self._slice = _SLICE
        self._sought: dict[str, Any] | None = None
        self._block: dict[str, Any] | None = None
        """Of a list: where the block begins whose records are on their way, and what was known there."""
        self._given = (0, 0)
        """Rejects and records of this block that are given."""

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
        batch, _ = self.edge.twin().rows([row for row in head if isinstance(row, Mapping)], parsed=True)
        fields = dict.fromkeys((*batch.names, *self.columns))
        return Schema(Field(name, self.edge.kinds.get(name)) for name in fields)

    async def stream(self, context: SourceContext) -> AsyncIterator[Batch]:
        self._connected = True
        items = self._pulled if isinstance(self.records, Iterable) else self._pumped
        if isinstance(self.records, (list, tuple)):
            items = self._listed
        try:
            async for batch in items(context):
                yield batch
        finally:
            self._connected = False

    # -- a list ------------------------------------------------------------------------------------

    @property
    def seekable(self) -> bool:
        return isinstance(self.records, (list, tuple))

    def offset(self) -> Any:
        if not self.seekable:
            return super().offset()
        if self._sought is not None or self._block is None:
            return self._sought or {"of": self.kind, "items": None}
        rejects, records = self._given
        return {**self._block, "learned": self.edge.kinds.learned, "rejects": rejects, "records": records}

    def beginning(self, wall_ns: int) -> Any:
        if not isinstance(self.records, (list, tuple)):
            return super().beginning(wall_ns)
        learned = self.edge.kinds.learned
        return {
            "of": self.kind,
            "items": len(self.records),
            "start": 0,
            "known": len(learned),
            "learned": learned,
            "accepted": self.accepted,
            "rejects": 0,
            "records": 0,
            "wall_ns": wall_ns,
        }

    def seek(self, offset: Any) -> None:
        if not isinstance(self.records, (list, tuple)):
            super().seek(offset)
            return
        self.check_offset(offset)
        items, now = offset["items"], len(self.records)
        if items is not None and (now < items or (now > items and offset["start"] < items)):
            raise InputError(f"the list has {now:,} items, and had {items:,} when the state was made; {OR_FRESH}.")
        self._sought = None if items is None else offset

    async def _listed(self, context: SourceContext) -> AsyncIterator[Batch]:
        assert isinstance(self.records, (list, tuple))
        sought, self._sought = self._sought, None
        start, rejects, records, wall_ns = 0, 0, 0, context.clock.wall_ns()
        learned: Learned = []
        if sought is not None:
            start, rejects, records, wall_ns = (sought[name] for name in ("start", "rejects", "records", "wall_ns"))
            learned = sought["learned"]
            self.edge.kinds.relearn(learned[: sought["known"]])
            self._go_on_counting(sought["accepted"])
        items = len(self.records)
        while start <= items and not context.stopping.is_set():
            self._given = rejects, records
            self._block = {
                "of": self.kind,
                "items": items,
                "start": start,
                "known": len(self.edge.kinds.learned),
                "accepted": self.accepted,
                "wall_ns": wall_ns,
            }
            if start == items:
                return
            block = _block_of(self.records, start, items)
            if not block:  # somebody has shortened the list meanwhile
                return
            start += len(block)
            batches: list[Batch] = []
            letters: list[Sequence[DeadLetter]] = []
            place = 0
            while place < len(block):
                end = place + self._slice
                arrived_ns = context.clock.monotonic_ns()
                for batch, refused in self._decoded(context, block[place:end], arrived_ns, wall_ns):
                    batches.append(batch)
                    letters.append(refused)
                    await asyncio.sleep(0)
                place = end
            async for batch in self._handed_over(context, batches, Letters.joined(*letters), rejects, records):
                yield batch
            rejects = records = 0

    async def _handed_over(
        self, context: SourceContext, batches: list[Batch], letters: Sequence[DeadLetter], rejects: int, records: int
    ) -> AsyncIterator[Batch]:
        """The rejects of a block and then its records, but for those that were given before."""
        async for number, letter in in_turns(letters):
            if number > rejects:
                self._given = number, records
                self._rejected += 1
                context.reject(letter)
        skipped = records
        for batch in batches:
            arrived_ns = batch.arrived_ns
            rest = batch.slice(skipped, len(batch))
            skipped -= len(batch) - len(rest)
            for piece in pieces(rest, _AHEAD):
                if context.stopping.is_set():
                    return
                if piece is not batch:
                    piece.arrived_ns = arrived_ns
                self._given = self._given[0], self._given[1] + len(piece)
                yield await self.accept(context, piece, ())
                await asyncio.sleep(0)

    # -- synchronous -------------------------------------------------------------------------------

    async def _pulled(self, context: SourceContext) -> AsyncIterator[Batch]:
        assert not isinstance(self.records, AsyncIterable)
        began_ns = context.clock.monotonic_ns()
        slices = _slices(self.records, context)
        while (rows := self._next(slices)) is not None:
            context.held(context.clock.monotonic_ns() - began_ns)
            arrived_ns = context.clock.monotonic_ns()
            async for batch in self._batches(context, rows, arrived_ns):
                yield batch
            await asyncio.sleep(0)
            if context.stopping.is_set():
                return
            began_ns = context.clock.monotonic_ns()

    def _next(self, slices: Iterator[list[Any]]) -> list[Any] | None:
        try:
            return next(slices, None)
        except (TidemillError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise self._broken(error) from error

    def _broken(self, error: BaseException) -> StageError:
        return StageError(f"source {self.name}: what Records iterates over raised {told(error)}")

    # -- asynchronous ------------------------------------------------------------------------------

    async def _pumped(self, context: SourceContext) -> AsyncIterator[Batch]:
        """The user's iterable runs in a task of its own, so that what it gave while we were away is one batch."""
        assert isinstance(self.records, AsyncIterable)
        room = asyncio.Event()
        room.set()
        inbox: Inbox[Any] = Inbox(_AHEAD, room.clear, room.set)
        arrivals = [0]
        pumping = self._pump(inbox, arrivals, room, context)
        pump = asyncio.ensure_future(Held(pumping, context.clock.monotonic_ns, context.held))
        pump.add_done_callback(lambda _: inbox.close())
        try:
            async with inbox.until_stopping(context, pump.cancel):
                while await inbox.filled():
                    arrived_ns = arrivals[0]
                    async for batch in self._batches(context, inbox.take(self._slice), arrived_ns):
                        yield batch
                    await asyncio.sleep(0)
            if pump.done() and not pump.cancelled():
                pump.result()  # raises what the user's iterator did
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    async def _pump(self, inbox: Inbox[Any], arrivals: list[int], room: asyncio.Event, context: SourceContext) -> None:
        assert isinstance(self.records, AsyncIterable)
        try:
            await _fill(self.records, inbox, arrivals, room, context)
        except (TidemillError, KeyboardInterrupt):
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            raise self._broken(error) from error

    # -- all ---------------------------------------------------------------------------------------

    async def _batches(self, context: SourceContext, items: Sequence[Any], arrived_ns: int) -> AsyncIterator[Batch]:
        for number, (batch, letters) in enumerate(self._decoded(context, items, arrived_ns, context.clock.wall_ns())):
            for piece in pieces(await self.accept(context, batch, letters), _AHEAD):
                yield piece
            if number:
                await asyncio.sleep(0)

    def _decoded(
        self, context: SourceContext, items: Sequence[Any], arrived_ns: int, wall_ns: int
    ) -> Iterator[tuple[Batch, Sequence[DeadLetter]]]:
        start = 0
        if any(issubclass(kind, Batch) for kind in set(map(type, items))):
            for place, item in enumerate(items):
                if isinstance(item, Batch):
                    yield from self._rows(context, items[start:place], arrived_ns, wall_ns)
                    yield self._whole(item, arrived_ns, wall_ns)
                    start = place + 1
        yield from self._rows(context, items[start:], arrived_ns, wall_ns)

    def _rows(
        self, context: SourceContext, rows: Sequence[Any], arrived_ns: int, wall_ns: int
    ) -> Iterator[tuple[Batch, Sequence[DeadLetter]]]:
        if not rows:
            return
        began_ns = context.clock.monotonic_ns()
        fields = fields_of_rows(rows) if set(map(type, rows)) <= {dict} else None
        for run in light_runs(rows, fields, self.edge.kinds):
            whole = run == slice(0, len(rows))
            if not whole:
                began_ns = context.clock.monotonic_ns()
            yield self.edge.rows(rows[run], arrived_ns=arrived_ns, wall_ns=wall_ns, fields=fields if whole else None)
            if whole and len(rows) >= _SLICES[0]:
                spent_ns = max(context.clock.monotonic_ns() - began_ns, 1)
                self._slice = min(max(len(rows) * _TURN_NS // spent_ns, _SLICES[0]), _SLICES[1])

    def _whole(self, batch: Batch, arrived_ns: int, wall_ns: int) -> tuple[Batch, Sequence[DeadLetter]]:
        if batch.key_column is None or batch.time_ns is None or self.key is not None or self.time is not None:
            made, letters = self.edge.columns(batch.columns, rows=len(batch), arrived_ns=arrived_ns, wall_ns=wall_ns)
            if not letters:
                read = {name for name, column in made.columns.items() if column is not batch.columns[name]}
                made.origin, made.origin_names, made.orders = batch.origin, batch.origin_names - read, batch.orders
            return made, letters
        made = batch.slice(0, len(batch))
        if not batch.arrived_ns:
            made = batch.with_columns({})
            made.arrived_ns = arrived_ns
        return made, []


def _block_of(items: Sequence[Any], start: int, end: int) -> Sequence[Any]:
    """The items from ``start`` on that go together: a batch, or dicts up to the next batch."""
    block = items[start : min(start + _BLOCK, end)]
    if any(issubclass(kind, Batch) for kind in set(map(type, block))):
        first = next(place for place, item in enumerate(block) if isinstance(item, Batch))
        return block[: max(first, 1)]
    return block


def _slices(items: Iterable[Any], context: SourceContext) -> Iterator[list[Any]]:
    rows: list[Any] = []
    until = context.clock.monotonic_ns() + _SLICE_NS
    for item in items:
        rows.append(row_as_now(item))
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


async def _fill(
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
        put(row_as_now(item), len(item) if isinstance(item, Batch) else 1)
        count += 1
        if inbox.paused:
            await room.wait()
        elif (count % 16 == 0 or inbox.size < 16) and now_ns() >= until:
            await asyncio.sleep(0)
            until = now_ns() + _SLICE_NS
