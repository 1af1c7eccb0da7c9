"""Lines over one TCP connection at a time: what is lost with one is sent again over the next."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from tidemill.errors import InputError, OutsideError
from tidemill.printable import printable
from tidemill.sinks.connecting import PROGRESS_S, Patience, connected
from tidemill.sinks.sent_lines import Sent
from tidemill.sinks.server import Server

__all__ = ["LineSender"]

_BLOCK: Final = 1 << 16
"""Bytes of lines that are handed over, and lost, together."""
_UNDER_WAY: Final = 8 << 20
"""Bytes that were not acknowledged, above which no more are taken."""
_GOODBYE_S: Final = 5.0
"""For how long a server may go on reading at the end, before the connection is closed."""
_READ: Final = 1 << 12
_LONGEST: Final = 20
"""Digits of an acknowledgement."""
_log = logging.getLogger("tidemill")


@dataclass(frozen=True)
class _Block:
    """Whole lines."""

    lines: bytes
    count: int


class LineSender:
    """Sends lines in order.

    Without acknowledgements, a block counts when the system has taken it: what a broken connection loses on its way is not
    known. A block that was not taken whole is sent again over the next connection.

    With them the server writes back, as `tidemill.sources.TCP` with ``ack=True`` does, how many of the connection's lines are
    safe; what is not is sent again over the next: at least once.

    Raises `OutsideError` when the server is away for longer than `connecting.PATIENCE_S`.
    """

    def __init__(self, server: Server, tls: ssl.SSLContext | None, sent: Sent, *, acknowledged: bool) -> None:
        self._server, self._tls, self._sent, self._acknowledged = server, tls, sent, acknowledged
        self._waiting: deque[_Block] = deque()
        """Blocks that may have to be sent again, the oldest first."""
        self._waiting_bytes = 0
        self._handed = 0
        """How many of these the system has taken."""
        self._safe = 0
        """Lines of this connection that are in blocks which no longer wait."""
        self._handed_lines = 0
        self._said = b""
        """What has come of an acknowledgement."""
        self._patience = Patience()
        self._socket: socket.socket | None = None

    def connect(self) -> None:
        """Try once."""
        self._drop()
        self._handed = self._safe = self._handed_lines = 0
        self._said = b""
        self._socket = connected(self._server.host, self._server.port, self._tls, self._server)
        self._socket.settimeout(PROGRESS_S)
        self._patience.connected()

    def send(self, lines: bytes) -> None:
        for block in _blocks(lines):
            self._waiting.append(block)
            self._waiting_bytes += len(block.lines)
        self._until(lambda: self._waiting_bytes <= (_UNDER_WAY if self._acknowledged else 0))

    def drain(self) -> None:
        self._until(lambda: not self._waiting)
        try:  # an idle run drains once a second: so it learns that the server has gone
            if self._socket is not None:
                self._hear(self._socket)
        except OSError:
            self._drop()

    def close(self) -> None:
        """Say goodbye, and let the server read what it was sent: one that is told of data it has not read, of a connection that is
        gone, may throw it away."""
        if self._socket is not None and not self._waiting:
            with contextlib.suppress(OSError):
                self._socket.settimeout(_GOODBYE_S)
                if isinstance(self._socket, ssl.SSLSocket):
                    self._socket = self._socket.unwrap()
                self._socket.shutdown(socket.SHUT_WR)
                until = time.monotonic() + _GOODBYE_S
                while time.monotonic() < until and self._socket.recv(_READ):
                    pass
        self._drop()

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    # -- on the way ----------------------------------------------------------------------------------

    def _until(self, enough: Callable[[], bool]) -> None:
        """Hand over, and listen, until it is so; over as many connections as it takes."""
        while self._handed < len(self._waiting) or not enough():
            try:
                if self._socket is None:
                    self.connect()
                else:
                    self._turn(self._socket, enough)
            except OutsideError as error:
                self._patience.failed(error)
            except OSError as error:
                self._drop()
                lost = f"{self._server} is gone: {error.strerror or error}."
                _log.log(self._patience.level, "%s Connecting again.", lost)
                self._patience.failed(OutsideError(lost))

    def _turn(self, to: socket.socket, enough: Callable[[], bool]) -> None:
        self._hear(to)
        while self._handed < len(self._waiting):
            block = self._waiting[self._handed]
            to.sendall(block.lines)
            self._handed += 1
            self._handed_lines += block.count
            if not self._acknowledged:
                self._done()
            self._hear(to)
        if not enough() and not self._hear(to, PROGRESS_S):
            raise TimeoutError(
                f"it has acknowledged nothing for {PROGRESS_S:.0f} s, as a source TCP(ack=True) of tidemill with state does"
            )

    def _done(self) -> None:
        block = self._waiting.popleft()
        self._waiting_bytes -= len(block.lines)
        self._handed -= 1
        self._safe += block.count
        self._sent.went(block.lines)
        self._patience.progressed()

    def _hear(self, of: socket.socket, wait_s: float = 0.0) -> bool:
        """Read what has come; whether anything has. Raises `OSError` when the connection has ended."""
        there = isinstance(of, ssl.SSLSocket) and of.pending() > 0
        if not there and not select.select([of], [], [], wait_s)[0]:
            return False
        of.settimeout(0)  # what came may be TLS's own business
        try:
            came = of.recv(_READ)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        finally:
            of.settimeout(PROGRESS_S)
        if not came:
            raise ConnectionResetError("it has closed the connection")
        if self._acknowledged:
            self._learn(came)
        return True

    def _learn(self, came: bytes) -> None:
        """The newest number says how many of this connection's lines are safe."""
        *numbers, self._said = (self._said + came).split(b"\n")
        newest = numbers[-1] if numbers else b"0"
        count = int(newest) if newest.isdigit() and len(newest) <= _LONGEST else -1
        if not 0 <= count <= self._handed_lines or len(self._said) > _LONGEST:
            told = printable((newest if numbers else self._said).decode("utf-8", "replace"), longest=_LONGEST)
            raise InputError(
                f"{self._server} answers {told!r}, where the number of lines that are safe was awaited; ack=True is for a source "
                "TCP(ack=True) of tidemill."
            )
        while self._handed and self._safe + self._waiting[0].count <= count:
            self._done()


def _blocks(lines: bytes) -> Iterator[_Block]:
    start = 0
    while start < len(lines):
        end = lines.rfind(b"\n", start, start + _BLOCK) + 1 or lines.find(b"\n", start) + 1
        yield _Block(lines[start:end], lines.count(b"\n", start, end))
        start = end
