"""The loop of a lane's process: read a message, act on it, write the replies."""

from __future__ import annotations

import gc
import os
import socket
import sys
from functools import partial
from typing import Final

from tidemill.lanes.control import Control
from tidemill.lanes.memory import Shared, write_at
from tidemill.lanes.worker import Worker

__all__ = ["main"]

YOUNG_OBJECTS: Final = 100_000
"""Objects made before the collector looks at them: rows are made by the thousand and freed by their counts."""


def main(control: socket.socket, memories: list[int]) -> None:
    """Run until told to stop or the parent is gone. ``memories`` are the state memory, one for copies of it, then the slabs."""
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)
    os.dup2(2, 1)  # what the user's function prints must not get between the rows of a sink on stdout
    state, copy, *slabs = memories
    parent = Control(control)
    worker = Worker(Shared.of(state), partial(write_at, copy), list(map(Shared.of, slabs)), parent.send)
    while (messages := parent.read()) is not None:
        for message, payload in messages:
            if not worker.handle(message, payload):  # type: ignore[arg-type]
                sys.stderr.flush()
                return
