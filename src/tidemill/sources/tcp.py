"""`TCP`: sensors that connect and write lines."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np

from tidemill.batch import Batch
from tidemill.clock import Clock
from tidemill.errors import OutsideError, PlanError
from tidemill.formats.json_lines import decode_json_lines
from tidemill.formats.lines import LINE_LIMIT, LineSplitter, shown, text_of
from tidemill.letters import MALFORMED, OVERSIZE, DeadLetter
from tidemill.schema import Schema
from tidemill.sources.base import SourceContext, SourceStatistics
from tidemill.sources.edged import EdgedSource, checked_limit
from tidemill.sources.inbox import Inbox

__all__ = ["TCP"]

_READ: Final = 1 << 15
"""Bytes taken from one connection at a time; also what is decoded in one turn of the loop (well below 1 ms)."""
_READ_PAUSED: Final = 1 << 12
"""The same for connections that have not noticed yet that the buffer is full: thousands of them stay small."""
_UNFINISHED: Final = 64 << 20
"""Bytes of unfinished lines over all connections; the line that passes it is rejected as too long."""
_BACKLOG: Final = 4_096


@dataclass(frozen=True)
class _Block:
    """Whole lines of one connection, as one read brought them."""

    lines: bytes
    known: Mapping[str, str]
    arrived_ns: int
    wall_ns: int


class TCP(EdgedSource):
    """NDJSON lines from any number of TCP connections.

    ``host``, ``port``  where to listen; port 0 takes a free one, which `port` names once the run has started
    ``limit``           bytes of one line; a longer one is rejected and read over
    ``buffer``          bytes of lines that wait to be decoded; above, connections are not read, so that senders wait

    A record without the default key field belongs to a sensor named by its connection (``peer``, ``host:port``); a
    record without the default time field gets the time of its arrival. A last line without an end counts when the
    sender closes; one that the end of the run cuts is rejected. Delivery: at most once, since the protocol has no
    acknowledgement: what is read is delivered in order for each connection. `check` raises `OutsideError` when the
    port is in use.
    """

    push = True
    finite = False
    arrival = True
    fallback = "peer"

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        key: str | None = None,
        time: str | None = None,
        columns: Mapping[str, object] | None = None,
        tz: str = "UTC",
        time_format: str | None = None,
        limit: int = LINE_LIMIT,
        buffer: int = 4 << 20,
        name: str | None = None,
    ) -> None:
        super().__init__(key=key, time=time, columns=columns, tz=tz, time_format=time_format, name=name)
        if not isinstance(port, int) or not 0 <= port <= 65_535:
            raise PlanError(f"port={port!r} of TCP must be a number from 0 (any free port) to 65535.")
        if buffer < 1:
            raise PlanError(f"buffer={buffer!r} of TCP must be a number of bytes above 0.")
        self.host = host
        self.limit = checked_limit(limit, "TCP")
        self.buffer = buffer
        self._wanted_port = port
        self._address: tuple[str, int] | None = None
        self._connections: set[_Connection] = set()
        self._inbox: Inbox[_Block] | None = None
        self._lost: list[DeadLetter] = []
        self._unfinished = 0
        self._started = asyncio.Event()

    @property
    def port(self) -> int:
        """The port listened on; before the run, the one asked for."""
        return self._address[1] if self._address is not None else self._wanted_port

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return (self.host, self.port)

    async def wait_listening(self) -> tuple[str, int]:
        """Return the address once connections are accepted."""
        await self._started.wait()
        return self.address

    @property
    def buffered(self) -> int:
        """Bytes that wait here: lines to be decoded and unfinished lines."""
        return self._unfinished + (self._inbox.size if self._inbox is not None else 0)

    def check(self) -> None:
        self._bound().close()

    def peek(self) -> Schema:
        return self.declared(more=True)

    def statistics(self) -> SourceStatistics:
        return SourceStatistics(self.name, self._connected, self._records, self._rejected, len(self._connections))

    # -- the run -----------------------------------------------------------------------------------

    async def stream(self, context: SourceContext) -> AsyncIterator[Batch]:
        loop = asyncio.get_running_loop()
        inbox: Inbox[_Block] = Inbox(self.buffer, self._pause, self._resume)
        self._inbox = inbox
        shared = memoryview(bytearray(_READ))
        server = await loop.create_server(
            lambda: _Connection(self, inbox, context.clock, shared), sock=self._bound(), backlog=_BACKLOG
        )
        self._address = server.sockets[0].getsockname()[:2]
        self._connected = True
        self._started.set()

        def stop() -> None:
            server.close()
            for connection in list(self._connections):
                connection.cut()

        try:
            async with inbox.until_stopping(context, stop):
                while await inbox.filled():
                    batch, letters = self._decode(inbox.take(_READ))
                    batch = self.accept(context, batch, letters + self._taken_lost())
                    if len(batch):
                        yield batch
                    await asyncio.sleep(0)
        finally:
            self._connected = False
            self._started.clear()
            stop()
            self.accept(context, Batch({}, rows=0), self._taken_lost())
            await asyncio.sleep(0)  # let the transports close

    def _decode(self, blocks: list[_Block]) -> tuple[Batch, list[DeadLetter]]:
        rows: list[Any] = []
        counts: list[int] = []
        letters: list[DeadLetter] = []
        for block in blocks:
            made, bad = decode_json_lines(block.lines)
            rows += made
            counts.append(len(made))
            letters += [self.edge.refuse(line.reason_code, line.reason, line.raw, known=block.known) for line in bad]
        known = [block.known for block, count in zip(blocks, counts, strict=True) for _ in range(count)]
        wall_ns = np.repeat(np.array([block.wall_ns for block in blocks], np.int64), counts)
        batch, more = self.edge.rows(rows, arrived_ns=blocks[0].arrived_ns, wall_ns=wall_ns, known=known, parsed=True)
        return batch, letters + more

    def _taken_lost(self) -> list[DeadLetter]:
        lost, self._lost = self._lost, []
        return lost

    def _pause(self) -> None:
        for connection in self._connections:
            connection.pause()

    def _resume(self) -> None:
        for connection in self._connections:
            connection.resume()

    def _bound(self) -> socket.socket:
        """A socket bound to the address. Raises `OutsideError` that says why there is none."""
        try:
            family, kind, proto, _, address = socket.getaddrinfo(
                self.host or None, self._wanted_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except OSError as error:
            raise OutsideError(f"TCP cannot listen on host {self.host!r}: {error.strerror or error}.") from None
        bound = socket.socket(family, kind, proto)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            if self._wanted_port:
                bound.listen(_BACKLOG)  # a port that another program listens on is refused only here on some systems
        except OSError as error:
            bound.close()
            if error.errno == errno.EADDRINUSE:
                what = "is in use by another program; stop it or choose another port (0 takes a free one)"
            elif error.errno == errno.EACCES:
                what = "may not be used by this user; choose one above 1023"
            else:
                what = f"cannot be used: {error.strerror or error}"
            raise OutsideError(f"TCP port {self._wanted_port} on {self.host} {what}.") from None
        return bound


class _Connection(asyncio.BufferedProtocol):
    """One sender. All connections read into one shared buffer, which is copied from before the next read."""

    def __init__(self, source: TCP, inbox: Inbox[_Block], clock: Clock, shared: memoryview) -> None:
        self.splitter = LineSplitter(source.limit)
        self._source = source
        self._inbox = inbox
        self._clock = clock
        self._shared = shared
        self._transport: asyncio.Transport | None = None
        self._known: Mapping[str, str] = {}
        self._stopped = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        host, port = (str(peer[0]), str(peer[1])) if isinstance(peer, tuple) else ("", "")
        self._known = {"peer": f"{host}:{port}", "peer_host": host, "peer_port": port}
        self._source._connections.add(self)
        if self._inbox.paused:
            self.pause()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._shared[:_READ_PAUSED] if self._inbox.paused else self._shared

    def buffer_updated(self, nbytes: int) -> None:
        held = self.splitter.held
        lines = self.splitter.feed(bytes(self._shared[:nbytes]))
        self._source._unfinished += self.splitter.held - held
        if self._source._unfinished > _UNFINISHED:
            self._source._unfinished -= self.splitter.held
            self.splitter.give_up()
        self._put(lines)
        if self._inbox.paused:
            self.pause()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._source._connections.discard(self)
        self._source._unfinished -= self.splitter.held
        if not self._stopped:
            self._put(self.splitter.finish())

    def cut(self) -> None:
        """The run ends: read no more; a line that has only begun is no record."""
        self._stopped = True
        self._source._unfinished -= self.splitter.held
        rest = self.splitter.finish()
        if rest:
            reason = "the run ended in the middle of this line"
            self._source._lost.append(self._source.edge.refuse(MALFORMED, reason, text_of(rest), known=self._known))
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _put(self, lines: bytes) -> None:
        for line in self.splitter.oversize:
            reason = f"the line is longer than {self.splitter.limit} bytes, or than what is left for unfinished lines"
            self._source._lost.append(self._source.edge.refuse(OVERSIZE, reason, shown(line.head)))
        had_oversize = bool(self.splitter.oversize)
        self.splitter.oversize.clear()
        if lines or had_oversize:
            block = _Block(lines, self._known, self._clock.monotonic_ns(), self._clock.wall_ns())
            self._inbox.put(block, len(lines))
