"""``lanes=0``: the same worker, the same slabs and the same order of events, without a process.

Breakpoints and tracebacks work as anywhere; the user's function runs on the loop's thread and holds it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from tidemill.lanes.framing import Part, Payload
from tidemill.lanes.wire import FromLane, Message, ToLane
from tidemill.lanes.worker import Worker

__all__ = ["InlineLane"]


class InlineLane:
    """A lane in this process; see `tidemill.lanes.channel.ProcessChannel` for the interface."""

    def __init__(
        self,
        state: Any,
        copy: memoryview,
        slabs: list[Any],
        received: Callable[[FromLane, Payload], None],
        *,
        tells_objects: bool = False,
    ) -> None:

        def put(at: int, part: memoryview) -> None:
            copy[at : at + len(part)] = part

        self._received = received
        self._waiting: deque[tuple[ToLane, Payload]] = deque()
        self._scheduled = False
        self._worker = Worker(state, put, slabs, self._reply, replaceable=tells_objects)
        self.pid: int | None = None

    def send(self, message: ToLane, payload: Part = b"") -> None:
        """Work on it at the loop's next turn, so that replies never come from inside ``send``."""
        self._waiting.append((message, memoryview(payload)))
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if not self._waiting:
            return
        message, payload = self._waiting.popleft()
        if self._waiting:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)
        self._worker.handle(message, payload)

    def _reply(self, message: Message, payload: bytes | Payload) -> None:
        self._received(message, bytes(payload))  # type: ignore[arg-type]

    def kill(self) -> None:
        """There is nothing to kill: a hung function hangs the program, as it would without tidemill."""
