"""How late the event loop is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from tidemill.clock import Clock
from tidemill.engine.metrics import Histogram

__all__ = ["LagMonitor"]


class LagMonitor:
    """A timer that is due every ``period_s`` seconds, and notes how late the loop ran it: at every 5 ms, 1 to 2 % of a core's time.

    >>> async def held():
    ...     import time
    ...     monitor = LagMonitor(SystemClock())
    ...     with monitor.measuring():
    ...         time.sleep(0.05)
    ...         await asyncio.sleep(0.001)
    ...     return monitor.histogram.max >= 40_000_000
    >>> from tidemill.clock import SystemClock
    >>> asyncio.run(held())
    True
    """

    def __init__(self, clock: Clock, period_s: float = 0.005) -> None:
        self._clock = clock
        self._period_s = period_s
        self._due_ns = 0
        self._timer: asyncio.TimerHandle | None = None
        self.histogram = Histogram()
        """Of nanoseconds."""

    def start(self) -> None:
        """Measure the running loop, until `stop`."""
        self.stop()
        self._due_ns = self._clock.monotonic_ns() + round(self._period_s * 1e9)
        self._timer = asyncio.get_running_loop().call_later(self._period_s, self._went_off)

    def _went_off(self) -> None:
        self.histogram.add(self._clock.monotonic_ns() - self._due_ns)
        self.start()

    def stop(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.cancel()

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """While inside."""
        self.start()
        try:
            yield
        finally:
            self.stop()
