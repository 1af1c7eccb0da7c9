"""The wish to stop: when it was uttered, and how long the way out may take."""

from __future__ import annotations

import asyncio
from typing import Any

from tidemill.clock import Clock

__all__ = ["Stopping"]


class Stopping:
    """Once `ask`ed, sources end, what is in flight is finished, sinks flush and close: within ``grace`` seconds."""

    def __init__(self, clock: Clock, grace: float) -> None:
        self._clock = clock
        self.grace = grace
        self.asked = asyncio.Event()
        self._since_ns = 0

    def ask(self) -> None:
        """Returns at once; again changes nothing."""
        if not self.asked.is_set():
            self._since_ns = self._clock.monotonic_ns()
        self.asked.set()

    @property
    def left(self) -> float:
        """Seconds until a stop that was asked for must have ended."""
        return self.grace - (self._clock.monotonic_ns() - self._since_ns) / 1e9

    async def until(self, waiting: set[asyncio.Task[Any]], *, more_s: float = 0.0) -> set[asyncio.Task[Any]]:
        """Wait for these tasks; once a stop was asked for, only as long as the grace (and ``more_s``) lasts.

        Returns what is not done by then.
        """
        stopping = asyncio.ensure_future(self.asked.wait())
        try:
            while waiting and not self.asked.is_set():
                await asyncio.wait({*waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
                waiting = {task for task in waiting if not task.done()}
            if waiting:
                _, waiting = await asyncio.wait(waiting, timeout=max(self.left + more_s, 0.0))
        finally:
            stopping.cancel()
        return waiting
