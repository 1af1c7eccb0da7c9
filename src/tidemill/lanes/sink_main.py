"""The loop of a sink's process: rows come in shared memory, one message each; blocking calls happen here."""

from __future__ import annotations

import pickle
import select
import socket
import time
import traceback
from typing import Any, Protocol

from tidemill.batch import Batch
from tidemill.errors import OutsideError, TidemillError
from tidemill.formats.packed import Unpacker
from tidemill.lanes.lane_main import send_all
from tidemill.lanes.memory import Shared
from tidemill.lanes.wire import Failed, FrameReader, OpenSink, SinkClosed, Stop, Write, Written
from tidemill.schema import Schema

__all__ = ["SinkHost", "main"]


class BlockingSink(Protocol):
    """What this edge needs to know of another: a `tidemill.sinks.base.ProcessSink`."""

    @property
    def name(self) -> str: ...
    def open(self, schema: Schema) -> None: ...
    def chosen(self, batch: Batch) -> Batch: ...
    def write(self, batch: Batch) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...
    def statistics(self) -> Any: ...


class SinkHost:
    """A sink with its flushing: rows wait at most ``flush_s`` to become visible."""

    def __init__(self, sink: BlockingSink, flush_s: float) -> None:
        self.sink = sink
        self._flush_s = flush_s
        self._dirty_since: float | None = None
        self.written = 0
        self.flushed = 0

    def write(self, number: int, batch: Batch) -> None:
        """Write a batch; flush when rows have waited long enough."""
        self.sink.write(self.sink.chosen(batch))
        self.written = number
        if self._dirty_since is None:
            self._dirty_since = time.monotonic()
        elif self.due_in() == 0.0:
            self.flush()

    def due_in(self) -> float | None:
        """Seconds until a flush is due; None when there is nothing to flush."""
        if self._dirty_since is None:
            return None
        return max(0.0, self._dirty_since + self._flush_s - time.monotonic())

    def flush(self) -> None:
        """Make visible what was written."""
        self.sink.flush()
        self._dirty_since = None
        self.flushed = self.written


def main(control: socket.socket, memories: list[int]) -> None:
    """Run until told to stop or the parent is gone; in both cases what was written is flushed."""
    regions = list(map(Shared.of, memories))
    reader = FrameReader(to_lane=True)
    unpacker = Unpacker()
    host: SinkHost | None = None
    try:
        while True:
            due = host.due_in() if host else None
            if due is not None and not select.select([control], [], [], due)[0]:
                assert host is not None
                host.flush()
                send_all(control, _written(host), b"")
                continue
            data = control.recv(1 << 18)
            if not data:
                break
            reader.feed(data)
            for message, _ in reader.messages():
                match message:
                    case OpenSink():
                        sink: BlockingSink = pickle.loads(message.sink)  # noqa: S301 - our own parent's bytes
                        host = SinkHost(sink, message.flush_s)
                        sink.open(pickle.loads(message.schema))  # noqa: S301 - our own parent's bytes
                        send_all(control, _written(host), b"")
                    case Write():
                        assert host is not None
                        host.write(message.number, unpacker.batch(message.packed, regions[message.region]))
                        send_all(control, _written(host), b"")
                    case Stop():
                        _close(control, host)
                        host = None
                        return
    except TidemillError as error:
        send_all(control, Failed(type(error).__name__, str(error)), b"")
    except Exception as error:  # noqa: BLE001 - whatever a database raises
        told = f"the sink {host.sink.name if host else ''} failed: {type(error).__name__}: {error}"
        send_all(control, Failed(OutsideError.__name__, f"{told}\n{traceback.format_exc()}"), b"")
    finally:
        if host is not None:
            host.sink.close()


def _written(host: SinkHost) -> Written:
    statistics = host.sink.statistics()
    return Written(host.written, host.flushed, statistics.rows, statistics.bytes)


def _close(control: socket.socket, host: SinkHost | None) -> None:
    if host is None:
        send_all(control, SinkClosed(0, 0), b"")
        return
    host.sink.flush()
    host.sink.close()
    statistics = host.sink.statistics()
    send_all(control, SinkClosed(statistics.rows, statistics.bytes), b"")
