"""The outlet of a sink that blocks: a process of its own, fed through a few regions of shared memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
from collections import deque
from typing import Final

from tidemill.batch import Batch
from tidemill.core.flows import SinkCounts
from tidemill.engine.outlets import CLOSE_S, FLUSH_S, Commitment, Delivery, Outlet, error_of
from tidemill.engine.sendable import sent_sink
from tidemill.engine.unseen import Unseen
from tidemill.errors import EngineError, OutsideError
from tidemill.formats.packed import Full, Packer, TextTables
from tidemill.lanes.channel import Exit, ProcessChannel
from tidemill.lanes.fork_client import NO_ROOM, PATIENCE_S, ForkServer
from tidemill.lanes.framing import Payload
from tidemill.lanes.memory import Shared
from tidemill.lanes.wire import (
    Commit,
    Failed,
    FromLane,
    Kept,
    Logged,
    OpenSink,
    SinkClosed,
    Stop,
    Tried,
    Write,
    Written,
)
from tidemill.schema import Schema
from tidemill.sinks.base import Keeping, ProcessSink

__all__ = ["SINK_BYTES", "ProcessOutlet"]

_NICE: Final = 3
"""Added to the priority number of a sink's process: after the loop, before the lanes."""
_REGIONS: Final = 3
_REGION_BYTES: Final = 160 << 20
_log = logging.getLogger("tidemill")
SINK_BYTES: Final = _REGIONS * _REGION_BYTES
"""Shared memory of a sink's process, at most; only what is written to is taken from the machine."""


class ProcessOutlet(Outlet):
    """For a blocking sink: its own process, fed through a few regions of shared memory."""

    sink: ProcessSink

    def __init__(self, sink: ProcessSink, server: ForkServer, keeping: Keeping | None = None) -> None:
        self.sink = sink
        self.keeping = keeping
        self._server = server
        self.name = sink.name
        self._regions = [Shared(f"sink-{number}", _REGION_BYTES) for number in range(_REGIONS)]
        tables = TextTables()
        self._packers = [Packer(region.buffer, tables) for region in self._regions]
        self._free = list(range(_REGIONS))
        self._waiting: deque[Delivery | Commitment] = deque()
        self._sent: deque[tuple[int, int, Delivery | None]] = deque()  # (number, region, delivery or None if a part)
        self._unseen = Unseen()
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
        self._channel = self._server.spawn(
            "sink", memories, self._received, self._died, nice=_NICE, patience_s=PATIENCE_S
        )
        keeping = pickle.dumps(self.keeping) if self.keeping is not None else b""
        self._channel.send(OpenSink(sent_sink(self.sink), pickle.dumps(schema), FLUSH_S, keeping))
        await asyncio.wait([self._opened, self._failed], return_when=asyncio.FIRST_COMPLETED)
        if self._failed.done():
            self._failed.result()

    def put(self, delivery: Delivery) -> None:
        self._queue(delivery)

    def commit(self, position: int) -> None:
        self._queue(Commitment(position))

    def _queue(self, step: Delivery | Commitment) -> None:
        self._waiting.append(step)
        if not self._pumping and self._opened.done():  # rows may come while the sinks are opened one by one
            self._pump()

    def _pump(self) -> None:
        """Copy one batch; the next has its own turn of the loop."""
        self._pumping = False
        if self._released:
            return
        if self._waiting and self._free:
            step = self._waiting.popleft()
            if isinstance(step, Commitment):
                assert self._channel is not None
                self._channel.send(Commit(step.position))
                self._close_if_done()
            else:
                self._send(step)
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
        from_row = int(batch.sequence[0]) if self.sink.numbered and batch.sequence is not None and len(batch) else -1
        self._channel.send(Write(self._number, region, packed, from_row))
        delivery.taken()

    def _wanted(self, batch: Batch) -> list[str] | None:
        if self.sink.where is not None or self.sink.columns is None:
            return None
        return [name for name in self.sink.columns if name in batch.columns]

    def _received(self, message: FromLane, _: Payload) -> None:
        match message:
            case Written(number, flushed, rows, _, left_out, deleted):
                self.note(SinkCounts(rows, deleted, left_out))
                while self._sent and self._sent[0][0] <= number:
                    sent, region, delivery = self._sent.popleft()
                    self._free.append(region)
                    assert delivery is not None
                    delivery.written()
                    self._unseen.add(sent, delivery.shown)
                self._unseen.show(flushed)
                if not self._opened.done():
                    self._opened.set_result(None)
                if not self._pumping:
                    self._pump()
                self._close_if_done()
            case Logged(level, said):
                _log.log(level, "%s", said, extra={"sink": self.name})
            case Tried(said):
                self.tried(said)
            case Kept(position) if not self._opened.done():
                self.resumed_at = position
            case Kept(position):
                self.kept(position)
            case SinkClosed(rows, _, left_out, deleted):
                self.note(SinkCounts(rows, deleted, left_out))
                self._unseen.show_rest()
                if not self._closed.done():
                    self._closed.set_result(None)
            case Failed():
                self._fail(error_of(message))
            case _:
                self._fail(EngineError(f"a sink's process sent {message}"))

    def _fail(self, error: Exception) -> None:
        if not self._failed.done() and not self._released:
            self._failed.set_exception(error)

    def _died(self, how: Exit) -> None:
        if how.error:
            self._fail(OutsideError(f"the process of sink {self.name} {how}. {NO_ROOM}"))
        elif not self._server.alive:
            self._fail(self._server.lost())
        elif not self._closed.done():
            lost = "; rows not yet flushed are lost" if self.keeping is None else ""
            self._fail(OutsideError(f"the process of sink {self.name} ended: {how}{lost}."))

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
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._channel.gone.wait()
            self._channel.kill()
        if self._failed.done():
            self._failed.exception()
        self._release()

    def _release(self) -> None:
        self._released = True
        self._packers.clear()
        for region in self._regions:
            region.close()


def _nothing() -> None:
    """A part of a batch was taken or written: nothing to tell yet."""
