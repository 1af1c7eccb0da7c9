"""The loop of a lane that takes calls: read messages, run calls, write what became of them."""

from __future__ import annotations

import io
import os
import socket
import sys

from tidemill.initialized import InitializedGlobals, initialized_here
from tidemill.lanes.call_worker import CallWorker
from tidemill.lanes.control import Control
from tidemill.lanes.cursor import CURSOR_BYTES, Cursor
from tidemill.lanes.finished import Finished
from tidemill.lanes.last_words import LAST_WORDS_BYTES, keep_last_words
from tidemill.lanes.memory import Shared
from tidemill.lanes.wire import Stop

__all__ = ["main"]


def main(control: socket.socket, memories: list[int]) -> None:
    """Run until told to stop or the parent is gone. ``memories`` are the cursor's and, if there is one, the arena's."""
    os.dup2(2, 1)  # what a function prints must not get into the application's output
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # a crash must not swallow what was printed before it
    words = os.dup(memories[0])
    memory = memoryview(Shared.of(memories[0]))
    keep_last_words(memory[CURSOR_BYTES:], words, CURSOR_BYTES)
    finished = Finished(memory[CURSOR_BYTES + LAST_WORDS_BYTES :])
    cursor = Cursor(memory[:CURSOR_BYTES])
    cursor.use()
    initialized_here.set(InitializedGlobals())
    arena = memoryview(Shared.of(memories[1])) if len(memories) > 1 else None
    _Host(Control(control), cursor, arena, finished).serve()


class _Host:
    def __init__(self, parent: Control, cursor: Cursor, arena: memoryview | None, finished: Finished) -> None:
        self._parent = parent
        self._worker = CallWorker(cursor, parent.send, self._wait, arena, finished)
        self._stopped = False

    def serve(self) -> None:
        going_on = True
        while going_on:
            going_on = self._worker.run_next() if self._worker.waiting else not self._stopped and self._wait()

    def _wait(self) -> bool:
        messages = self._parent.read()
        if messages is None:
            return False
        for message, payload in messages:
            if isinstance(message, Stop):
                self._stopped = True
            else:
                self._worker.handle(message, payload)
        return True
