"""A child's end of its socket to the parent; reads and writes block, since a child has nothing else to do."""

from __future__ import annotations

import socket

from tidemill.lanes.framing import FrameReader, Payload, frame
from tidemill.lanes.wire import FromLane, Message, ToLane

__all__ = ["Control"]


class Control:
    """Messages from the parent, and to it."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._reader = FrameReader(to_lane=True)

    def fileno(self) -> int:
        """For ``select``."""
        return self._socket.fileno()

    def read(self) -> list[tuple[ToLane | FromLane, Payload]] | None:
        """The messages that one read completes, perhaps none; None when the parent is gone."""
        count = self._socket.recv_into(self._reader.room())
        if not count:
            return None
        self._reader.came(count)
        return list(self._reader.messages())

    def send(self, message: Message, payload: bytes | bytearray | memoryview = b"") -> None:
        """Write a whole frame; blocks while the parent is behind."""
        parts = frame(message, payload)
        if len(parts) == 1:
            self._socket.sendall(parts[0])
            return
        sent = self._socket.sendmsg(parts)  # at once: the parent is woken once
        for part in parts:
            if sent < len(part):
                self._socket.sendall(memoryview(part)[sent:])
            sent = max(0, sent - len(part))
