"""What the system has dropped of a socket's datagrams."""

from __future__ import annotations

import socket
import struct
from typing import Final

__all__ = ["Losses"]

_SO_MEMINFO: Final = 55
_FIELDS: Final = struct.Struct("9I")
_DROPS: Final = 8
_TOLD_AGAIN: Final = 10


class Losses:
    """Counts over any number of sockets, one after the other. 0 where the system does not say (it does on Linux)."""

    def __init__(self) -> None:
        self._listening: socket.socket | None = None
        self._lost = 0
        self._seen = 0
        self._told = 0

    def watch(self, listening: socket.socket) -> None:
        """Count what is lost of this socket, from its beginning."""
        self._listening, self._seen = listening, 0

    def end(self) -> None:
        """The socket is about to be closed."""
        self.read()
        self._listening = None

    def read(self) -> int:
        """All that was lost so far."""
        if self._listening is not None:
            drops = _drops(self._listening)
            self._lost += (drops - self._seen) % 2**32  # the system counts in 32 bits
            self._seen = drops
        return self._lost

    def news(self) -> int:
        """The same when somebody should be told: the first time, and each time it is ten times as much; else 0."""
        lost = self.read()
        if lost < max(1, self._told * _TOLD_AGAIN):
            return 0
        self._told = lost
        return lost


def _drops(listening: socket.socket) -> int:
    try:
        told = listening.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _FIELDS.size)
        return int(_FIELDS.unpack(told)[_DROPS])
    except (OSError, struct.error):
        return 0
