"""The loop of a sink's process: rows come in shared memory, one message each; blocking calls happen here."""

from __future__ import annotations

import contextlib
import logging
import pickle
import select
import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np

from tidemill.batch import Batch
from tidemill.errors import OutsideError, TidemillError
from tidemill.formats.packed import Unpacker
from tidemill.lanes.control import Control
from tidemill.lanes.memory import Shared
from tidemill.lanes.wire import Commit, Failed, Kept, Logged, OpenSink, SinkClosed, Stop, Tried, Write, Written
from tidemill.schema import Schema

__all__ = ["SinkHost", "main"]


IDLE_FLUSH_S: Final = 1.0


class BlockingSink(Protocol):
    """What this edge needs to know of another: a `tidemill.sinks.base.ProcessSink`."""

    tried: Callable[[str], None]

    @property
    def name(self) -> str: ...
    def open(self, schema: Schema) -> None: ...
    def resume(self, schema: Schema, keeping: Any) -> int: ...
    def commit(self, position: int) -> None: ...
    def chosen(self, batch: Batch) -> Batch: ...
    def write(self, batch: Batch) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...
    def statistics(self) -> Any: ...


class SinkHost:
    """A sink with its flushing: rows wait at most ``flush_s`` to become visible.

    In a run that keeps state (``keeping``, a `tidemill.sinks.base.Keeping`) they wait for `commit` instead.
    """

    def __init__(self, sink: BlockingSink, flush_s: float, keeping: Any = None) -> None:
        self.sink = sink
        self._flush_s = flush_s
        self._keeping = keeping
        self._dirty_since: float | None = None
        self.written = 0
        self.flushed = 0

    def open(self, schema: Schema) -> int | None:
        """Make the sink ready; the position up to which it is committed, in a run that keeps state."""
        if self._keeping is None:
            self.sink.open(schema)
            return None
        return self.sink.resume(schema, self._keeping)

    def write(self, number: int, batch: Batch, first: int = -1) -> None:
        """Write a batch; flush when rows have waited long enough. ``first`` is the number of its first row, if it has one
        that it does not know itself."""
        if first >= 0:
            batch.sequence = np.arange(first, first + len(batch))
            batch.epoch = self._keeping.epoch
        self.sink.write(self.sink.chosen(batch))
        self.written = number
        if self._keeping is not None:
            return
        if self._dirty_since is None:
            self._dirty_since = time.monotonic()
        elif self.due_in() == 0.0:
            self.flush()

    def due_in(self) -> float:
        """Seconds until a flush is due; a sink that is idle is flushed too, for what it does by age."""
        if self._dirty_since is None:
            return IDLE_FLUSH_S
        return max(0.0, self._dirty_since + self._flush_s - time.monotonic())

    def flush(self) -> None:
        """Make visible what was written; it waits for `commit` in a run that keeps state."""
        if self._keeping is None:
            self.sink.flush()
            self._dirty_since = None
            self.flushed = self.written

    def commit(self, position: int) -> None:
        """Commit what was written, and that it reaches up to ``position``."""
        self.sink.commit(position)
        self.flushed = self.written


def main(control: socket.socket, memories: list[int]) -> None:
    """Run until told to stop or the parent is gone; in both cases what was written is flushed."""
    parent = Control(control)
    log = logging.getLogger("tidemill")
    log.addHandler(_Log(parent))
    log.setLevel(logging.INFO)
    log.propagate = False
    loop = _Loop(parent, list(map(Shared.of, memories)))
    try:
        loop.run()
    except TidemillError as error:
        after_s = error.after_s if isinstance(error, OutsideError) else 0.0
        parent.send(Failed(type(error).__name__, str(error), after_s))
    except Exception as error:  # noqa: BLE001 - whatever a database raises
        told = f"the sink {loop.name} failed: {type(error).__name__}: {error}\n{traceback.format_exc()}"
        parent.send(Failed(OutsideError.__name__, told))
    finally:
        loop.close()


class _Log(logging.Handler):
    """What the sink has to say goes into the log of the run, wherever that is written and however."""

    def __init__(self, parent: Control) -> None:
        super().__init__()
        self._parent = parent

    def emit(self, record: logging.LogRecord) -> None:
        if threading.current_thread() is not threading.main_thread():  # which alone may send
            assert logging.lastResort is not None
            logging.lastResort.handle(record)
            return
        with contextlib.suppress(OSError):  # the parent is gone
            self._parent.send(Logged(record.levelno, record.getMessage()))


class _Loop:
    def __init__(self, parent: Control, regions: list[Any]) -> None:
        self._parent = parent
        self._regions = regions
        self._unpacker = Unpacker()
        self._host: SinkHost | None = None

    @property
    def name(self) -> str:
        return self._host.sink.name if self._host else ""

    def run(self) -> None:
        while self._wait() and (messages := self._parent.read()) is not None:
            for message, _ in messages:
                if not self._handle(message):
                    return

    def _wait(self) -> bool:
        """Until a message comes; flushes meanwhile when that is due."""
        while self._host is not None:
            if select.select([self._parent], [], [], self._host.due_in())[0]:
                return True
            self._host.flush()
            self._tell()
        return True

    def _handle(self, message: Any) -> bool:
        match message:
            case OpenSink():
                sink: BlockingSink = pickle.loads(message.sink)  # noqa: S301 - our own parent's bytes
                sink.tried = lambda said: self._parent.send(Tried(said))
                keeping = pickle.loads(message.keeping) if message.keeping else None  # noqa: S301 - as above
                self._host = SinkHost(sink, message.flush_s, keeping)
                position = self._host.open(pickle.loads(message.schema))  # noqa: S301 - as above
                if position is not None:
                    self._parent.send(Kept(position))
                self._tell()
            case Write():
                assert self._host is not None
                batch = self._unpacker.batch(message.packed, self._regions[message.region])
                self._host.write(message.number, batch, message.first)
                self._tell()
            case Commit():
                assert self._host is not None
                self._host.commit(message.position)
                self._tell()
                self._parent.send(Kept(message.position))
            case Stop():
                self._stop()
                return False
        return True

    def _tell(self) -> None:
        assert self._host is not None
        statistics = self._host.sink.statistics()
        written = Written(
            self._host.written,
            self._host.flushed,
            statistics.rows,
            statistics.bytes,
            dict(statistics.left_out),
            statistics.deleted,
        )
        self._parent.send(written)

    def _stop(self) -> None:
        """Only a sink that has flushed and closed without complaint may say so."""
        host = self._host
        closed = SinkClosed(0, 0)
        if host is not None:
            host.flush()
            host.sink.close()
            statistics = host.sink.statistics()
            closed = SinkClosed(statistics.rows, statistics.bytes, dict(statistics.left_out), statistics.deleted)
        self._host = None
        self._parent.send(closed)

    def close(self) -> None:
        """After an error, or when the parent is gone."""
        if self._host is not None:
            self._host.sink.close()
