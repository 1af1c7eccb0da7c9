"""One sender of lines over TCP, and what it is told of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from tidemill.clock import Clock
from tidemill.formats.lines import LineSplitter, line_ends, shown, text_of
from tidemill.letters import MALFORMED, OVERSIZE
from tidemill.sources.inbox import Inbox

if TYPE_CHECKING:
    from tidemill.sources.tcp import TCP

__all__ = ["Block", "Connection"]

_READ_PAUSED: Final = 1 << 12
"""The same for connections that have not noticed yet that the buffer is full: thousands of them stay small."""
_LINE_NS: Final = 60 * 10**9
"""In which a line that has begun must have come."""
_UNFINISHED: Final = 64 << 20
"""Bytes of unfinished lines over all connections; the line that passes it is rejected as too long."""


@dataclass(frozen=True)
class Block:
    """Whole lines of one connection, as one read brought them."""

    lines: bytes
    known: Mapping[str, str]
    arrived_ns: int
    wall_ns: int
    sender: Connection
    count: int
    """Lines that the connection has brought, these and those set aside included, where it is told of them."""


class Connection(asyncio.BufferedProtocol):
    """One sender. All connections read into one shared buffer, which is copied from before the next read."""

    def __init__(self, source: TCP, inbox: Inbox[Block], clock: Clock, shared: memoryview) -> None:
        self.splitter = LineSplitter(source.limit)
        self._source = source
        self._inbox = inbox
        self._clock = clock
        self._shared = shared
        self._transport: asyncio.Transport | None = None
        self._known: Mapping[str, str] = {}
        self._stopped = False
        self._count = 0
        self._put_count = 0
        self._safe = 0
        self._said = 0
        self._full = False
        self._ended = False
        self._heard_ns = 0
        self._begun_ns = 0
        """When the unfinished line began to come."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        host, port = (str(peer[0]), str(peer[1])) if isinstance(peer, tuple) else ("", "")
        self._known = {"peer": f"{host}:{port}", "peer_host": host, "peer_port": port}
        self._source._connections.add(self)
        self._heard_ns = self._clock.monotonic_ns()
        self._transport.set_write_buffer_limits(0)  # one acknowledgement waits in it, and is told of
        if self._inbox.paused:
            self.pause()

    # -- what comes --------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._shared[:_READ_PAUSED] if self._inbox.paused else self._shared

    def buffer_updated(self, nbytes: int) -> None:
        held = self.splitter.held
        data = bytes(self._shared[:nbytes])
        lines = self.splitter.feed(data)
        if self._source.ack:
            self._count += line_ends(data)
        self._source._unfinished += self.splitter.held - held
        self._heard_ns = self._clock.monotonic_ns()
        if lines or not held:
            self._begun_ns = self._heard_ns
        if self._source._unfinished > _UNFINISHED:
            self._source._unfinished -= self.splitter.held
            self.splitter.give_up()
        self._put(lines)
        if self._inbox.paused:
            self.pause()

    def eof_received(self) -> bool:
        """With acknowledgements, the other side may still be reading: it is closed when it has the last one."""
        if not self._source.ack:
            return False
        if not self._ended and not self._stopped:
            self._ended = True
            self._finish()
            self._close_when_told()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._source._connections.discard(self)
        if self._source.ack:
            self._source._unfinished -= self.splitter.held
            self.splitter.finish()  # a line that was cut comes again
        elif self._stopped:
            self._source._unfinished -= self.splitter.held
        elif exc is None:
            self._finish()
        else:
            self._give_up("the connection broke in the middle of this line")

    def cut(self) -> None:
        """The run ends: read no more; a line that has only begun is no record."""
        if self._stopped:
            return
        self._give_up("the run ended in the middle of this line")
        if self._source.ack:  # the sender still hears of what was read, and sends again what was not
            self.pause()
        else:
            self.abort()

    def check(self, now_ns: int, idle_ns: int | None) -> None:
        """Close it when it has brought nothing for too long, or its line has not come to an end in time. While the inbox is
        full it is not read, which is not its fault."""
        if self._stopped or self._ended or self._inbox.paused:
            return
        if idle_ns is not None and now_ns - self._heard_ns > idle_ns:
            self._give_up("the connection brought nothing more, and was closed, in the middle of this line")
        elif self.splitter.held and now_ns - self._begun_ns > _LINE_NS:
            self._give_up(f"the line had not come to its end after {_LINE_NS // 10**9} s")
        else:
            return
        self.abort()

    def _give_up(self, reason: str) -> None:
        self._stopped = True
        self._source._unfinished -= self.splitter.held
        rest = self.splitter.finish()
        if rest and not self._source.ack:
            self._source._lost.append(self._source.edge.refuse(MALFORMED, reason, text_of(rest), known=self._known))

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        if self._reading():
            cast(asyncio.Transport, self._transport).pause_reading()

    def resume(self) -> None:
        if self._reading() and not self._stopped:
            cast(asyncio.Transport, self._transport).resume_reading()

    def _reading(self) -> bool:
        return self._transport is not None and not self._transport.is_closing() and not self._ended

    def _finish(self) -> None:
        """The sender has said all: a last line needs no end."""
        self._source._unfinished -= self.splitter.held
        skipping = self.splitter.skipping
        rest = self.splitter.finish()
        self._count += bool(rest) or skipping
        self._put(rest + b"\n" if rest else b"")

    def _put(self, lines: bytes) -> None:
        for line in self.splitter.oversize:
            reason = f"the line is longer than {self.splitter.limit} bytes, or than what is left for unfinished lines"
            self._source._lost.append(self._source.edge.refuse(OVERSIZE, reason, shown(line.head)))
        had_oversize = bool(self.splitter.oversize)
        self.splitter.oversize.clear()
        if lines or had_oversize or (self._source.ack and self._count > self._put_count):
            self._put_count = self._count
            now_ns, wall_ns = self._clock.monotonic_ns(), self._clock.wall_ns()
            self._inbox.put(Block(lines, self._known, now_ns, wall_ns, self, self._count), max(len(lines), 1))

    # -- what it is told ---------------------------------------------------------------------------

    def acknowledge(self, count: int) -> None:
        """So many of its lines are safe."""
        self._safe = count
        self._say()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._say()

    def _say(self) -> None:
        """The newest number, when the one before has gone."""
        if self._transport is None or self._transport.is_closing() or self._full:
            return
        if self._safe > self._said:
            self._said = self._safe
            self._transport.write(b"%d\n" % self._safe)
        self._close_when_told()

    def _close_when_told(self) -> None:
        if self._ended and self._said == self._count and self._transport is not None:
            self._transport.close()
