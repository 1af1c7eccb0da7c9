"""Work on the loop's thread that would hold it too long in one piece: done in slices, some of them each turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from time import monotonic
from typing import Any, Final

import numpy as np

__all__ = ["Slices", "copied"]

_TURN_S: Final = 0.0005
_SLICE: Final = 256 * 1024
"""Bytes copied at once: some 40 us."""


class Slices:
    """Jobs, one after another. A job is an iterator that does a slice each time it is asked for more."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[Iterator[None]] = deque()
        self._scheduled: asyncio.Handle | None = None

    @property
    def busy(self) -> bool:
        """Whether a job is under way: another would have to wait."""
        return bool(self._jobs)

    def do(self, job: Iterator[None]) -> None:
        """Begin the job, when those before it are done; a short one is done when this returns, if there are none."""
        self._jobs.append(job)
        if len(self._jobs) == 1:
            self._go_on()

    def _go_on(self) -> None:
        self._scheduled = None
        until = monotonic() + _TURN_S
        while self._jobs:
            for _ in self._jobs[0]:
                if monotonic() >= until:
                    self._scheduled = self._loop.call_soon(self._go_on)
                    return
            self._jobs.popleft()

    def finish(self) -> None:
        """Do all that is left, now."""
        while self._jobs:
            for _ in self._jobs[0]:
                pass
            self._jobs.popleft()
        self.drop()

    def drop(self) -> None:
        """Do nothing more."""
        self._jobs.clear()
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None


def copied(source: Any, target: memoryview) -> Iterator[None]:
    """Copy bytes from one memory to another of the same size, a slice each time."""
    ours, theirs = np.frombuffer(source, np.uint8), np.frombuffer(target, np.uint8)
    for start in range(0, len(ours), _SLICE):
        theirs[start : start + _SLICE] = ours[start : start + _SLICE]
        yield
