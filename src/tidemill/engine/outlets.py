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
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from tidemill import errors
from tidemill.batch import Batch
from tidemill.core.flows import SinkCounts
from tidemill.engine.unseen import Unseen
from tidemill.errors import EngineError, OutsideError, StageError, TidemillError
from tidemill.lanes.sink_main import SinkHost
from tidemill.lanes.wire import Failed
from tidemill.schema import Schema
from tidemill.sinks.base import Keeping, LoopSink, ProcessSink, Sink

__all__ = ["CLOSE_S", "FLUSH_S", "Commitment", "Delivery", "LoopOutlet", "Outlet", "ThreadOutlet", "error_of"]

FLUSH_S: Final = 0.25
"""Seconds that rows wait at most to become visible."""
CLOSE_S: Final = 2.0
"""Seconds that a sink gets to close after the run has failed."""
_log = logging.getLogger("tidemill")
T = TypeVar("T")


@dataclass
class Delivery:
    """A batch on its way to one sink."""

    batch: Batch
    taken: Callable[[], None]
    written: Callable[[], None]
    shown: Callable[[], None]


@dataclass
class Commitment:
    """Behind the deliveries before it: what was put so far reaches up to ``position``, and is to be committed."""

    position: int


class Outlet(abc.ABC):
    """One sink's end of the engine.

    In a run that keeps state (``keeping``), the sink is resumed and told when to commit; ``kept`` is called with the
    position up to which its rows are safe. A sink that commits no positions is past one when it has its rows.
    """

    sink: Sink
    name: str
    keeping: Keeping | None = None
    kept: Callable[[int], None] = staticmethod(lambda _: None)
    tried: Callable[[str], None] = staticmethod(lambda _: None)
    """Called with what the sink says of its tries (`ProcessSink.tried`)."""
    resumed_at = 0
    """Up to where in the input the sink had committed when it was opened: those rows are not put again."""
    counts = SinkCounts()
    """What the sink has done since it was opened."""

    def note(self, counts: SinkCounts) -> None:
        """What the sink tells of itself."""
        new = [name for name in counts.left_out if name not in self.counts.left_out]
        for name, why in self.sink.whys_left_out(new).items():
            _log.warning("sink %s: %s", self.name, why, extra={"sink": self.name, "field": name})
        self.counts = counts

    @abc.abstractmethod
    async def open(self, schema: Schema) -> None:
        """Make the sink ready; raises what it refuses."""

    @abc.abstractmethod
    def put(self, delivery: Delivery) -> None:
        """Hand over a batch; never blocks. The slabs bound how many can be under way."""

    @abc.abstractmethod
    def commit(self, position: int) -> None:
        """What was put so far reaches up to there: the sink shall commit it, and `kept` tell; never blocks."""

    @abc.abstractmethod
    async def run(self) -> None:
        """Do the outlet's work until cancelled or failed."""

    @abc.abstractmethod
    async def finish(self) -> None:
        """Return once everything put has been written and flushed, and the sink is closed; what is put from now on is nobody's."""

    async def abandon(self) -> None:
        """Let go, whatever happened before; must not raise."""


class LoopOutlet(Outlet):
    """For a sink on the event loop: the application's own code. What it opens it closes, once, whatever happens."""

    sink: LoopSink

    def __init__(self, sink: LoopSink, timed: Callable[[Awaitable[None]], Awaitable[None]] = lambda work: work) -> None:
        self.sink = sink
        self._timed = timed
        self.name = sink.name
        self._before = _counts(sink)
        self._waiting: asyncio.Queue[Delivery | Commitment] = asyncio.Queue()
        self._released = False  # what a callback still brings is nobody's
        self._to_close = False

    async def open(self, schema: Schema) -> None:
        self._to_close = True
        await self._named(self.sink.open(schema))

    def put(self, delivery: Delivery) -> None:
        self._put(delivery)

    def commit(self, position: int) -> None:
        self._put(Commitment(position))

    def _put(self, todo: Delivery | Commitment) -> None:
        if not self._released:
            self._waiting.put_nowait(todo)

    async def run(self) -> None:
        while True:
            delivery = await self._waiting.get()
            if isinstance(delivery, Commitment):
                self.kept(delivery.position)
                self._waiting.task_done()
                continue
            await self._named(self._timed(self._write(delivery.batch)))
            self.counts = _counts(self.sink).since(self._before)
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
        self._released = True
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

    def __init__(self, sink: ProcessSink, keeping: Keeping | None = None) -> None:
        self.sink = sink
        self.keeping = keeping
        self._host = SinkHost(sink, FLUSH_S, keeping)
        self.name = sink.name
        self._before = _counts(sink)
        self._waiting: asyncio.Queue[Delivery | Commitment] = asyncio.Queue()
        self._came = asyncio.Event()
        self._unseen = Unseen()
        self._released = False  # what a callback still brings is nobody's
        self._finishing = False
        self._thread = concurrent.futures.ThreadPoolExecutor(1, f"tidemill-{sink.name}")

    async def _call(self, function: Callable[..., T], *arguments: object) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
        except TidemillError:
            raise
        except Exception as error:
            raise OutsideError(f"the sink {self.name} failed: {type(error).__name__}: {error}") from error

    async def _have(self, function: Callable[..., None], *arguments: object) -> None:
        """The sink do something, and tell how it is then."""
        await self._call(function, *arguments)
        self.note(_counts(self.sink).since(self._before))

    async def open(self, schema: Schema) -> None:
        loop = asyncio.get_running_loop()

        def tried(said: str) -> None:
            with contextlib.suppress(RuntimeError):  # a thread that was given up may outlive the loop
                loop.call_soon_threadsafe(self.tried, said)

        self.sink.tried = tried
        self.resumed_at = await self._call(lambda: self._host.open(schema) or 0)

    def put(self, delivery: Delivery) -> None:
        self._put(delivery)

    def commit(self, position: int) -> None:
        self._put(Commitment(position))

    def _put(self, todo: Delivery | Commitment) -> None:
        if not self._released:
            self._waiting.put_nowait(todo)
            self._came.set()

    async def run(self) -> None:
        while True:
            if await self._arrived(self._host.due_in()):
                await self._perform(self._waiting.get_nowait())
                self._waiting.task_done()
            elif self._finishing:
                return
            else:
                await self._have(self._host.flush)
                self._unseen.show(self._host.flushed)

    async def _arrived(self, seconds: float) -> bool:
        """Wait so long for something to do; it stays where it is, so that no end of the wait can lose it."""
        if self._waiting.empty():
            self._came.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):  # wait_for() of Python 3.11 may swallow a cancellation
                    await self._came.wait()
        return not self._waiting.empty()

    async def _perform(self, todo: Delivery | Commitment) -> None:
        if isinstance(todo, Commitment):
            await self._have(self._host.commit, todo.position)
            self._unseen.show(self._host.flushed)
            self.kept(todo.position)
            return
        await self._have(self._host.write, self._host.written + 1, todo.batch)
        todo.written()
        self._unseen.add(self._host.written, todo.shown)
        todo.taken()
        self._unseen.show(self._host.flushed)

    async def finish(self) -> None:
        self._released = True
        await self._waiting.join()
        self._finishing = True
        await self._have(self._host.flush)
        await self._have(self.sink.close)
        self._unseen.show_rest()
        self._thread.shutdown()
        self._hear_no_more()

    def _hear_no_more(self) -> None:
        """The sink is the application's, and may be sent to a process in its next run."""
        vars(self.sink).pop("tried", None)

    async def abandon(self) -> None:
        self._hear_no_more()
        with contextlib.suppress(RuntimeError):  # it had finished
            closing = asyncio.get_running_loop().run_in_executor(self._thread, self.sink.close)
            if not await _closed(self.name, closing):
                self.sink.give_up()
        self._thread.shutdown(wait=False)


def _counts(sink: LoopSink | ProcessSink) -> SinkCounts:
    """Since the sink was made, which may have been for an earlier attempt."""
    told = sink.statistics()
    return SinkCounts(told.rows, told.deleted, told.left_out)


async def _closed(name: str, closing: Awaitable[None]) -> bool:
    """Wait, but not for ever, and say whether it is; the run has failed already, and that is what is told."""
    try:
        await asyncio.wait_for(closing, CLOSE_S)
    except Exception as error:  # noqa: BLE001 - the sink's own code may raise anything
        _log.warning("the sink %s could not be closed: %s: %s", name, type(error).__name__, error)
        return False
    return True


def error_of(message: Failed) -> TidemillError:
    """The error that a process reported."""
    kind = getattr(errors, message.error, EngineError)
    if kind is OutsideError:
        return OutsideError(message.message, after_s=message.after_s)
    return kind(message.message) if kind is not errors.MissingExtra else TidemillError(message.message)
