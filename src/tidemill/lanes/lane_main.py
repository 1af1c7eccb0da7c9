"""The loop of a lane's process: read a message, act on it, write the replies."""

from __future__ import annotations

import gc
import os
import socket
import sys
from typing import Final

from tidemill.lanes.memory import Shared
from tidemill.lanes.wire import FrameReader, Message, frame
from tidemill.lanes.worker import Worker

__all__ = ["main", "send_all"]

YOUNG_OBJECTS: Final = 100_000
"""Objects made before the collector looks at them: rows are made by the thousand and freed by their counts."""


def main(control: socket.socket, memories: list[int]) -> None:
    """Run until told to stop or the parent is gone. ``memories`` are the state memory, then the slabs."""
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)
    os.dup2(2, 1)  # what the user's function prints must not get between the rows of a sink on stdout
    state, *slabs = map(Shared.of, memories)
    worker = Worker(state, slabs, lambda message, payload: send_all(control, message, payload))
    reader = FrameReader(to_lane=True)
    while data := control.recv(1 << 18):
        reader.feed(data)
        for message, _ in reader.messages():
            if not worker.handle(message):  # type: ignore[arg-type]
                sys.stderr.flush()
                return


def send_all(control: socket.socket, message: Message, payload: bytes | bytearray | memoryview) -> None:
    """Write a whole frame; blocks while the parent is behind."""
    parts = [memoryview(part) for part in frame(message, payload)]
    while parts:
        sent = control.sendmsg(parts)
        while parts and sent >= len(parts[0]):
            sent -= len(parts.pop(0))
        if sent:
            parts[0] = parts[0][sent:]
