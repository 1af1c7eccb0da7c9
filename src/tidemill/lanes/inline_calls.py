"""``Lanes(0)``: the same worker and the same order of events, without a process.

The function runs on the loop's thread and holds it; breakpoints and tracebacks work, and nothing can stop it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from tidemill.initialized import InitializedGlobals, initialized_here
from tidemill.lanes.call_worker import CallWorker
from tidemill.lanes.cursor import CURSOR_BYTES, Cursor
from tidemill.lanes.framing import Part, Payload
from tidemill.lanes.wire import FromLane, Message

__all__ = ["InlineCalls"]


class InlineCalls:
    """Stands for a `tidemill.lanes.channel.ProcessChannel` in this process."""

    def __init__(self, cursor: Cursor, received: Callable[[FromLane, Payload], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._messages: deque[tuple[Message, Payload]] = deque()
        self._worker = CallWorker(cursor, received, lambda: False)  # type: ignore[arg-type]
        self._initialized = InitializedGlobals()
        self._scheduled = False
        self.pid: int | None = None

    def send(self, message: Message, *payload: Part) -> None:
        """Act on it at the loop's next turn, so that replies never come from inside ``send``."""
        self._messages.append((message, bytearray().join(payload)))
        self._schedule()

    def kill(self) -> None:
        """What waits here is never run."""
        self._messages.clear()
        self._worker = CallWorker(Cursor(bytearray(CURSOR_BYTES)), lambda *_: None, lambda: False)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """All messages, then one call."""
        self._scheduled = False
        while self._messages:
            self._worker.handle(*self._messages.popleft())
        if self._worker.waiting:
            before = initialized_here.set(self._initialized)
            try:
                self._worker.run_next()
            finally:
                initialized_here.reset(before)
        if self._worker.waiting:
            self._schedule()
