"""The only door to time. Everything else is handed a `Clock`, or a ``now``."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

__all__ = ["Clock", "SystemClock", "thread_cpu_ns"]


class Clock(Protocol):
    """Reads time and waits for it; `tidemill.testing.ManualClock` is the one for tests."""

    def monotonic_ns(self) -> int:
        """Nanoseconds that never go back; comparable between processes of one machine."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC, as the machine believes."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds`` of this clock."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        return time.time_ns()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def thread_cpu_ns() -> int:
    """CPU time that this thread has used; only the difference of two readings says something."""
    return time.thread_time_ns()
