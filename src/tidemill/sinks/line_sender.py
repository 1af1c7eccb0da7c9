"""Lines over one TCP connection at a time: what is lost with one is sent again over the next."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from tidemill.errors import InputError, OutsideError
from tidemill.printable import printable
from tidemill.sinks.connecting import PROGRESS_S, Patience, connected
from tidemill.sinks.sent import Sent, parts_of
from tidemill.sinks.server import Server

__all__ = ["LineSender"]

_BLOCK: Final = 1 << 16
"""Bytes of lines that are handed over, and lost, together."""
_UNDER_WAY: Final = 8 << 20
"""Bytes that were not acknowledged, above which no more are taken."""
_GOODBYE_S: Final = 5.0
"""For how long a server may go on reading at the end, before the connection is closed."""
_RECORD: Final = 1 << 14
"""Bytes of TLS, at most."""
_READ: Final = 1 << 16
_LONGEST: Final = 20
"""Digits of an acknowledgement."""
_NOT_NOW: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_log = logging.getLogger("tidemill")


class LineSender:
    """Sends lines in order.

    Without acknowledgements, a block counts when the system has taken it: what a broken connection loses on its way is not
    known. A block that was not taken whole is sent again over the next connection.

    With them the server writes back, as `tidemill.sources.TCP` with ``ack=True`` does, how many of the connection's lines are
    safe; what is not is sent again over the next: at least once.

    What a server says besides is read and forgotten, so that it can go on. A connection whose other side is closed is made
    again. Raises `OutsideError` when the server is away for longer than `connecting.PATIENCE_S`.
    """

    def __init__(
        self,
        server: Server,
        tls: ssl.SSLContext | None,
        sent: Sent,
        *,
        acknowledged: bool,
        tried: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._server, self._tls, self._sent, self._acknowledged = server, tls, sent, acknowledged
        self._waiting: deque[bytes] = deque()
        """Blocks of whole lines that may have to be sent again, the oldest first."""
        self._waiting_bytes = 0
        self._handed = 0
        """How many of these the system has taken."""
        self._at = 0
        """Bytes that it has taken of the one behind these."""
        self._handed_lines = 0
        """Lines of this connection that the system has taken."""
        self._said = b""
        """What has come of an acknowledgement."""
        self._safe = 0
        """Lines of this connection that are safe: so many less are waiting."""
        self._moved_s = 0.0
        """When the server last took or acknowledged anything."""
        self._given_up = threading.Event()
        self._patience = Patience(self._given_up, tried)
        self._socket: socket.socket | None = None

    def connect(self) -> None:
        """Try once."""
        self._drop()
        self._handed = self._safe = self._handed_lines = 0
        self._said, self._at = b"", 0
        self._socket = connected(self._server.host, self._server.port, self._tls, self._server)
        self._socket.setblocking(False)
        self._moved_s = time.monotonic()
        self._patience.connected()

    def send(self, lines: bytes) -> None:
        if not self._waiting:
            self._moved_s = time.monotonic()
        for block in parts_of(lines, _BLOCK):
            self._waiting.append(block)
            self._waiting_bytes += len(block)
        self._until(lambda: self._waiting_bytes <= (_UNDER_WAY if self._acknowledged else 0))

    def drain(self) -> None:
        self._until(lambda: not self._waiting)
        try:  # an idle run drains once a second: so it learns that the server has gone
            if self._socket is not None:
                self._hear(self._socket)
        except OSError:
            self._drop()

    def close(self) -> None:
        """Say goodbye, and let the server read what it was sent: one that writes to a connection which is gone is told so at
        once, and may throw away what it has not read."""
        if self._socket is not None and not self._waiting and not self._given_up.is_set():
            with contextlib.suppress(OSError):
                self._say_goodbye(self._socket, time.monotonic() + _GOODBYE_S)
        self._drop()

    def give_up(self) -> None:
        self._given_up.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _say_goodbye(self, to: socket.socket, until_s: float) -> None:
        if isinstance(to, ssl.SSLSocket):
            to.settimeout(_GOODBYE_S / 2)
            with contextlib.suppress(OSError, ValueError):
                to.unwrap()  # says that this was all; raises when the other side says something yet
            to = self._socket = socket.socket(fileno=to.detach())
        to.shutdown(socket.SHUT_WR)
        while (left := until_s - time.monotonic()) > 0:
            to.settimeout(left)
            if not to.recv(_READ):
                return

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    # -- on the way ----------------------------------------------------------------------------------

    def _until(self, enough: Callable[[], bool]) -> None:
        """Hand over, and listen, until it is so; over as many connections as it takes."""
        while self._handed < len(self._waiting) or not enough():
            try:
                self._require_wanted()
                if self._socket is None:
                    self.connect()
                else:
                    self._turn(self._socket)
            except OutsideError as error:
                self._patience.failed(error)
            except OSError as error:
                self._drop()
                self._require_wanted()
                lost = f"{self._server} is gone: {error.strerror or error}."
                _log.log(self._patience.level, "%s Connecting again.", lost)
                self._patience.failed(OutsideError(lost))

    def _require_wanted(self) -> None:
        if self._given_up.is_set():
            raise OutsideError(f"{self._server} was given up.")

    def _turn(self, to: socket.socket) -> None:
        """Read what there is and hand over what goes, once; wait if nothing does."""
        self._hear(to)
        went = self._hand_over(to)
        if went or (self._acknowledged and not self._waiting):
            return
        left = self._moved_s + PROGRESS_S - time.monotonic()
        if left <= 0:
            what = (
                "acknowledged nothing for {:.0f} s, as a source TCP(ack=True) of tidemill with state does"
                if self._acknowledged
                else "taken nothing for {:.0f} s"
            )
            raise TimeoutError(f"it has {what.format(PROGRESS_S)}")
        poll = select.poll()
        poll.register(to, select.POLLIN | (select.POLLOUT if self._handed < len(self._waiting) else 0))
        poll.poll(left * 1_000)

    def _hand_over(self, to: socket.socket) -> bool:
        """Whether the system has taken anything."""
        if self._handed == len(self._waiting):
            return False
        block = self._waiting[self._handed]
        # TLS tells nothing of a part that it has sent, though the server may know it: so there are no parts of its records.
        most = _RECORD if isinstance(to, ssl.SSLSocket) else len(block)
        try:
            taken = to.send(memoryview(block)[self._at : self._at + most])
        except _NOT_NOW:
            return False
        self._moved_s = time.monotonic()
        if self._acknowledged:
            self._handed_lines += block.count(b"\n", self._at, self._at + taken)
        self._at += taken
        if self._at == len(block):
            self._at = 0
            self._handed += 1
            if not self._acknowledged:
                self._done(block.count(b"\n"))
        return True

    def _done(self, lines: int) -> None:
        """So many of the oldest lines are where they were to go."""
        self._patience.progressed()
        while lines:
            block = self._waiting.popleft()
            count = block.count(b"\n")
            if count > lines:  # a part of it: only what is left would be sent again
                end = _end_of(lines, block)
                self._waiting.appendleft(block[end:])
                block, count = block[:end], lines
                if not self._handed:
                    self._at -= end
            else:
                self._handed -= 1
            self._waiting_bytes -= len(block)
            self._sent.went(block)
            lines -= count

    def _hear(self, of: socket.socket) -> None:
        """Read all that has come. Raises `OSError` when the connection has ended."""
        while True:
            try:
                came = of.recv(_READ)
            except _NOT_NOW:
                return
            if not came:
                raise ConnectionResetError("it has closed the connection")
            if self._acknowledged:
                self._learn(came)

    def _learn(self, came: bytes) -> None:
        """The newest number says how many of this connection's lines are safe."""
        *numbers, self._said = (self._said + came).split(b"\n")
        counts = [*map(self._believed, numbers), *([self._believed(self._said)] if len(self._said) > _LONGEST else [])]
        if counts and counts[-1] > self._safe:
            self._moved_s = time.monotonic()
            self._done(counts[-1] - self._safe)
            self._safe = counts[-1]

    def _believed(self, number: bytes) -> int:
        count = int(number) if number.isdigit() and len(number) <= _LONGEST else -1
        if 0 <= count <= self._handed_lines:
            return count
        told = printable(number.decode("utf-8", "replace"), longest=_LONGEST)
        raise InputError(
            f"{self._server} answers {told!r}, where the number of lines that are safe was awaited; ack=True is for a source "
            "TCP(ack=True) of tidemill."
        )


def _end_of(count: int, lines: bytes) -> int:
    """Where so many of them end."""
    end = 0
    for _ in range(count):
        end = lines.find(b"\n", end) + 1
    return end
