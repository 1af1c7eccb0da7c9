"""Lines in datagrams."""

from __future__ import annotations

import errno
import socket
from typing import Final

from tidemill.errors import OutsideError
from tidemill.sinks.sent import REFUSED, TOO_LARGE, Sent, parts_of
from tidemill.sinks.server import Server

__all__ = ["LARGEST", "DatagramSender"]

LARGEST: Final = 65_507
"""Bytes of a datagram over IPv4; over IPv6 it may have a few more."""


class DatagramSender:
    """Sends whole lines, as many in a datagram as there is room for in ``size`` bytes; a longer line has one to itself, up to
    `LARGEST`.

    A line counts when the system has taken it. Where the other machine says that nobody listens, which it does of some and
    later, the lines of the datagram before are counted as refused, too.

    Raises `OutsideError` when the system has no way there.
    """

    def __init__(self, server: Server, size: int, sent: Sent) -> None:
        self._server, self._size, self._sent = server, size, sent
        self._last = b""
        try:
            found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_DGRAM)[0]
            self._socket = socket.socket(found[0], socket.SOCK_DGRAM)
        except (OSError, UnicodeError) as error:
            raise self._away(error) from None
        try:
            self._socket.connect(found[4])
        except OSError as error:
            self._socket.close()
            raise self._away(error) from None

    def send(self, lines: bytes) -> None:
        for part in parts_of(lines, self._size):
            self._put(part)

    def drain(self) -> None:
        """Nobody waits."""

    def close(self) -> None:
        self._socket.close()

    def give_up(self) -> None:
        """Nothing blocks for long."""

    def _put(self, lines: bytes) -> None:
        try:
            while not self._went(lines):
                pass
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise self._away(error) from None
            self._sent.leave_out(TOO_LARGE, lines.count(b"\n"))
        else:
            self._last = lines
            self._sent.went(lines)

    def _went(self, lines: bytes) -> bool:
        """Whether the system has taken it; if not, it has told of earlier ones instead."""
        try:
            self._socket.send(lines)
        except ConnectionRefusedError:
            if refused := self._last.count(b"\n"):
                self._sent.leave_out(REFUSED, refused)
            self._last = b""
            return False
        return True

    def _away(self, error: OSError | UnicodeError) -> OutsideError:
        return OutsideError(f"{self._server} cannot be reached: {getattr(error, 'strerror', None) or error}.")
