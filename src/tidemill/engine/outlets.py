"""Outlets: how a slab's output reaches a sink, wherever the sink runs.

Each takes batches in order. ``taken`` is called once the batch's memory is no longer needed here (the sink's process
has its own copy, or the write has returned), ``written`` once the sink's write has returned, ``shown`` once the rows
are visible to readers.
"""

from __future__ import annotations

import abc
import asyncio
import concurrent.futures
import contextlib
import logging
import pickle
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import cloudpickle

from tidemill import errors
from tidemill.batch import Batch
from tidemill.errors import EngineError, OutsideError, StageError, TidemillError
from tidemill.formats.packed import Full, Packer, TextTables
from tidemill.lanes.memory import Shared
from tidemill.lanes.process import Exit, ForkServer, ProcessChannel
from tidemill.lanes.sink_main import SinkHost
from tidemill.lanes.wire import Failed, FromLane, OpenSink, SinkClosed, Stop, Write, Written
from tidemill.schema import Schema
from tidemill.sinks.base import LoopSink, ProcessSink, Sink

__all__ = ["SINK_BYTES", "Delivery", "LoopOutlet", "Outlet", "ProcessOutlet", "ThreadOutlet", "error_of"]

FLUSH_S: Final = 0.25
"""Seconds that rows wait at most to become visible."""
_NICE: Final = 5
"""Added to the priority number of a sink's process: after the loop, before the lanes."""
_CLOSE_S: Final = 2.0
"""Seconds that a sink gets to close after the run has failed."""
_REGIONS: Final = 3
_REGION_BYTES: Final = 160 << 20
SINK_BYTES: Final = _REGIONS * _REGION_BYTES
"""Shared memory of a sink's process, at most; only what is written to is taken from the machine."""
_log = logging.getLogger("tidemill")


@dataclass
class Delivery:
    """A batch on its way to one sink."""

    batch: Batch
    taken: Callable[[], None]
    written: Callable[[], None]
    shown: Callable[[], None]


class Outlet(abc.ABC):
    """One sink's end of the engine."""

    sink: Sink
    name: str
    rows = 0
    """Rows the sink has written."""
    left_out: Mapping[str, int] = MappingProxyType({})
    """Values that the sink had no place for, by their field."""

    def note(self, rows: int, left_out: Mapping[str, int]) -> None:
        """What the sink tells of itself."""
        self.rows = rows
        for name in left_out.keys() - self.left_out.keys():
            _log.warning(
                "sink %s: the field %r is not in the header of %s, and rows are written without it; name the columns "
                "you want with columns=[...], or write NDJSON",
                self.name,
                name,
                getattr(self.sink, "path", None) or "standard output",
            )
        self.left_out = left_out

    @abc.abstractmethod
    async def open(self, schema: Schema) -> None:
        """Make the sink ready; raises what it refuses."""

    @abc.abstractmethod
    def put(self, delivery: Delivery) -> None:
        """Hand over a batch; never blocks. The slabs bound how many can be under way."""

    @abc.abstractmethod
    async def run(self) -> None:
        """Do the outlet's work until cancelled or failed."""

    @abc.abstractmethod
    async def finish(self) -> None:
        """Return once everything put has been written and flushed, and the sink is closed."""

    async def abandon(self) -> None:
        """Let go, whatever happened before; must not raise."""


class LoopOutlet(Outlet):
    """For a sink on the event loop: the application's own code. What it opens it closes, once, whatever happens."""

    sink: LoopSink

    def __init__(self, sink: LoopSink, timed: Callable[[Awaitable[None]], Awaitable[None]] = lambda work: work) -> None:
        self.sink = sink
        self._timed = timed
        self.name = sink.name
        self._waiting: asyncio.Queue[Delivery] = asyncio.Queue()
        self._to_close = False

    async def open(self, schema: Schema) -> None:
        self._to_close = True
        await self._named(self.sink.open(schema))

    def put(self, delivery: Delivery) -> None:
        self._waiting.put_nowait(delivery)

    async def run(self) -> None:
        while True:
            delivery = await self._waiting.get()
            await self._named(self._timed(self._write(delivery.batch)))
            self.rows = self.sink.statistics().rows
            delivery.written()
            delivery.shown()
            delivery.taken()
            self._waiting.task_done()

    async def _write(self, batch: Batch) -> None:
        await self.sink.write(self.sink.chosen(batch))

    async def _named(self, work: Awaitable[None]) -> None:
        """The application's code; what it raises names the sink."""
        try:
            await work
        except TidemillError:
            raise
        except Exception as error:
            raise StageError(f"the sink {self.name} failed: {type(error).__name__}: {error}") from error

    async def finish(self) -> None:
        await self._waiting.join()
        self._to_close = False
        await self._named(self.sink.close())

    async def abandon(self) -> None:
        if not self._to_close:
            return
        self._to_close = False
        await _closed(self.name, self.sink.close())


class ThreadOutlet(Outlet):
    """For a blocking sink with ``lanes=0``: one thread, no process."""

    sink: ProcessSink

    def __init__(self, sink: ProcessSink) -> None:
        self.sink = sink
        self._host = SinkHost(sink, FLUSH_S)
        self.name = sink.name
        self._waiting: asyncio.Queue[Delivery] = asyncio.Queue()
        self._unseen: list[Delivery] = []
        self._finishing = False
        self._thread = concurrent.futures.ThreadPoolExecutor(1, f"tidemill-{sink.name}")

    async def _call(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
        except TidemillError:
            raise
        except Exception as error:
            raise OutsideError(f"the sink {self.name} failed: {type(error).__name__}: {error}") from error

    async def open(self, schema: Schema) -> None:
        await self._call(self.sink.open, schema)

    def put(self, delivery: Delivery) -> None:
        self._waiting.put_nowait(delivery)

    async def run(self) -> None:
        while True:
            try:
                delivery = await asyncio.wait_for(self._waiting.get(), self._host.due_in())
            except TimeoutError:
                if self._finishing:
                    return
                await self._call(self._host.flush)
                self._show()
                continue
            await self._call(self._host.write, self._host.written + 1, delivery.batch)
            statistics = self.sink.statistics()
            self.note(statistics.rows, statistics.left_out)
            delivery.written()
            self._unseen.append(delivery)
            delivery.taken()
            if self._host.flushed == self._host.written:
                self._show()
            self._waiting.task_done()

    def _show(self) -> None:
        for delivery in self._unseen:
            delivery.shown()
        self._unseen.clear()

    async def finish(self) -> None:
        await self._waiting.join()
        self._finishing = True
        await self._call(self._host.flush)
        self._show()
        await self._call(self.sink.close)
        self._thread.shutdown()

    async def abandon(self) -> None:
        with contextlib.suppress(RuntimeError):  # it had finished
            closing = asyncio.get_running_loop().run_in_executor(self._thread, self.sink.close)
            await _closed(self.name, closing)
        self._thread.shutdown(wait=False)


class ProcessOutlet(Outlet):
    """For a blocking sink: its own process, fed through a few regions of shared memory."""

    sink: ProcessSink

    def __init__(self, sink: ProcessSink, server: ForkServer) -> None:
        self.sink = sink
        self._server = server
        self.name = sink.name
        self._regions = [Shared(f"sink-{number}", _REGION_BYTES) for number in range(_REGIONS)]
        tables = TextTables()
        self._packers = [Packer(region.buffer, tables) for region in self._regions]
        self._free = list(range(_REGIONS))
        self._waiting: deque[Delivery] = deque()
        self._sent: deque[tuple[int, int, Delivery | None]] = deque()  # (number, region, delivery or None if a part)
        self._unseen: deque[tuple[int, Delivery]] = deque()
        self._number = 0
        self._pumping = False  # a batch will be copied at the loop's next turn
        self._released = False  # abandoned or finished: what a callback still brings is nobody's
        self._channel: ProcessChannel | None = None
        loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = loop.create_future()
        self._closed: asyncio.Future[None] = loop.create_future()
        self._failed: asyncio.Future[None] = loop.create_future()
        self._finishing = False

    async def open(self, schema: Schema) -> None:
        memories = [region.fd for region in self._regions]
        self._channel = self._server.spawn("sink", memories, self._received, self._died, nice=_NICE)
        self._channel.send(OpenSink(cloudpickle.dumps(self.sink), pickle.dumps(schema), FLUSH_S))
        await asyncio.wait([self._opened, self._failed], return_when=asyncio.FIRST_COMPLETED)
        if self._failed.done():
            self._failed.result()

    def put(self, delivery: Delivery) -> None:
        self._waiting.append(delivery)
        if not self._pumping and self._opened.done():  # rows may come while the sinks are opened one by one
            self._pump()

    def _pump(self) -> None:
        """Copy one batch; the next has its own turn of the loop."""
        self._pumping = False
        if self._released:
            return
        if self._waiting and self._free:
            self._send(self._waiting.popleft())
            if self._waiting and self._free:
                self._pumping = True
                asyncio.get_running_loop().call_soon(self._pump)

    def _send(self, delivery: Delivery) -> None:
        """Copy the batch into a region; in halves when it does not fit."""
        region = self._free.pop()
        packer = self._packers[region]
        packer.rewind()
        batch = delivery.batch
        try:
            packed = packer.batch(batch, self._wanted(batch), key=self.sink.where is not None)
        except Full:
            self._free.append(region)
            if len(batch) == 1:
                raise OutsideError(
                    f"one row is larger than {_REGION_BYTES >> 20} MB and cannot reach {self.name}"
                ) from None
            middle = len(batch) // 2
            first = Delivery(batch.slice(0, middle), _nothing, _nothing, _nothing)
            rest = Delivery(batch.slice(middle, len(batch)), delivery.taken, delivery.written, delivery.shown)
            self._waiting.extendleft((rest, first))
            return
        self._number += 1
        self._sent.append((self._number, region, delivery))
        assert self._channel is not None
        self._channel.send(Write(self._number, region, packed))
        delivery.taken()

    def _wanted(self, batch: Batch) -> list[str] | None:
        if self.sink.where is not None or self.sink.columns is None:
            return None
        return [name for name in self.sink.columns if name in batch.columns]

    def _received(self, message: FromLane, _: bytes) -> None:
        match message:
            case Written(number, flushed, rows, _, left_out):
                self.note(rows, left_out)
                while self._sent and self._sent[0][0] <= number:
                    sent, region, delivery = self._sent.popleft()
                    self._free.append(region)
                    assert delivery is not None
                    delivery.written()
                    self._unseen.append((sent, delivery))
                self._show(flushed)
                if not self._opened.done():
                    self._opened.set_result(None)
                if not self._pumping:
                    self._pump()
                self._close_if_done()
            case SinkClosed(rows, _, left_out):
                self.note(rows, left_out)
                self._show(self._number)
                if not self._closed.done():
                    self._closed.set_result(None)
            case Failed():
                self._fail(error_of(message))
            case _:
                self._fail(EngineError(f"a sink's process sent {message}"))

    def _show(self, flushed: int) -> None:
        while self._unseen and self._unseen[0][0] <= flushed:
            self._unseen.popleft()[1].shown()

    def _fail(self, error: Exception) -> None:
        if not self._failed.done():
            self._failed.set_exception(error)

    def _died(self, how: Exit) -> None:
        if not self._closed.done():
            self._fail(OutsideError(f"the process of sink {self.name} ended: {how}; rows not yet flushed are lost"))

    async def run(self) -> None:
        await asyncio.shield(self._failed)

    def _close_if_done(self) -> None:
        if self._finishing and not self._waiting and not self._sent:
            self._finishing = False
            assert self._channel is not None
            self._channel.send(Stop())

    async def finish(self) -> None:
        self._finishing = True
        self._close_if_done()
        await asyncio.wait([self._closed, self._failed], return_when=asyncio.FIRST_COMPLETED)
        if self._failed.done():
            self._failed.result()
        self._release()

    async def abandon(self) -> None:
        self._released = True
        if self._channel is not None:
            self._channel.send(Stop())  # what was written is flushed, so that complete rows stay complete
            await asyncio.wait([asyncio.ensure_future(self._channel.gone.wait())], timeout=_CLOSE_S)
            self._channel.kill()
        if self._failed.done():
            self._failed.exception()
        self._release()

    def _release(self) -> None:
        self._released = True
        self._packers.clear()
        for region in self._regions:
            region.close()


async def _closed(name: str, closing: Awaitable[None]) -> None:
    """Wait, but not for ever; the run has failed already, and that is what is told."""
    try:
        await asyncio.wait_for(closing, _CLOSE_S)
    except Exception as error:  # noqa: BLE001 - the sink's own code may raise anything
        _log.warning("the sink %s could not be closed: %s: %s", name, type(error).__name__, error)


def _nothing() -> None:
    """A part of a batch was taken or written: nothing to tell yet."""


def error_of(message: Failed) -> TidemillError:
    """The error that a process reported."""
    kind = getattr(errors, message.error, EngineError)
    return kind(message.message) if kind is not errors.MissingExtra else TidemillError(message.message)
