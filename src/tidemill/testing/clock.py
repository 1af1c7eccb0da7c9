"""`ManualClock`: a clock that is moved by hand."""

from __future__ import annotations

import asyncio
import heapq
from typing import Final

__all__ = ["ManualClock"]

_SETTLING_TURNS: Final = 100
"""Turns of the loop after which `ManualClock.run_for` believes that what it woke has gone to sleep again."""


class ManualClock:
    """A `tidemill.clock.Clock` that stands still until it is moved.

    >>> clock = ManualClock()
    >>> clock.advance(1.5)
    >>> clock.monotonic_ns()
    1500000000
    """

    def __init__(self, *, monotonic_ns: int = 0, wall_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now = monotonic_ns
        self._wall_offset = wall_ns - monotonic_ns
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = 0

    def monotonic_ns(self) -> int:
        return self._now

    def wall_ns(self) -> int:
        return self._now + self._wall_offset

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waking: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1  # of two sleepers due at one time, the first to sleep wakes first
        heapq.heappush(self._sleepers, (self._now + round(seconds * 1e9), self._count, waking))
        await waking

    @property
    def sleeping(self) -> int:
        """How many are asleep."""
        return sum(not waking.done() for _, _, waking in self._sleepers)

    def advance(self, seconds: float) -> None:
        """Move both times on, and wake those whose time has come, in the order of their times.

        They run at the loop's next turn, and all see the new time; see `run_for` for one after another.
        """
        self._require_forward(seconds)
        self._now += round(seconds * 1e9)
        while self._sleepers and self._sleepers[0][0] <= self._now:
            _wake(heapq.heappop(self._sleepers)[2])

    async def run_for(self, seconds: float) -> None:
        """Move on step by step: each sleeper wakes at its own time, and all go to sleep again before the next wakes.

        So a task that does something each second does it ten times in ``run_for(10)``.
        """
        self._require_forward(seconds)
        end = self._now + round(seconds * 1e9)
        await _settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, waking = heapq.heappop(self._sleepers)
            if not waking.done():
                self._now = max(self._now, due)
                _wake(waking)
                await _settle()
        self._now = end

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward or, below 0, back, as time synchronisation does; nobody wakes."""
        self._wall_offset += round(seconds * 1e9)

    def _require_forward(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"monotonic time never goes back, and this is {seconds} s; see step_wall()")


def _wake(waking: asyncio.Future[None]) -> None:
    if not waking.done():  # it may have been cancelled
        waking.set_result(None)


async def _settle() -> None:
    for _ in range(_SETTLING_TURNS):
        await asyncio.sleep(0)
