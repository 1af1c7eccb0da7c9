"""Work on the loop's thread that would hold it too long in one piece: done in slices, some of them each turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Failed", "Slices", "Turns", "copied", "copied_items", "in_turns"]

_ALONE_S: Final = 0.0005
_AMONG_OTHERS_S: Final = 0.0001
_OTHERS_S: Final = 0.00006
"""What the loop takes at most for a turn that has nothing else in it."""
_TURN_S: Final = 0.001
"""Of each turn of the loop, what a job has that somebody awaits."""
_SLICE: Final = 256 * 1024
"""Bytes copied at once: some 40 us."""
_SLICE_OF_ITEMS: Final = 32 * 1024
"""The same of items that lie apart, each of which may have to be fetched by itself."""

Failed = Callable[[Exception], None]
"""Told of what a job raised."""


class Turns:
    """The part of each turn of the loop that slices may have, for all queues of them together, a slice in turn: half a
    millisecond when the loop has nothing else to do, else a tenth."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queues: deque[Slices] = deque()
        self._is_on = False  # has its turn, or will have it
        self._left_s = 0.0  # when the loop was given back

    def join(self, queue: Slices) -> None:
        """Have slices of this queue done until it is empty: from now on, if no other has any, else with them."""
        self._queues.append(queue)
        if not self._is_on:
            self._is_on = True
            self._go_on()

    def leave(self, queue: Slices) -> None:
        """It wants no more."""
        if queue in self._queues:
            self._queues.remove(queue)

    def rest(self) -> Iterator[None]:
        """Have all that is left in the queues done, a slice each time: it need not wait for its turns."""
        while self._queues:
            self._slice()
            yield

    def _slice(self) -> None:
        queue = self._queues.popleft()
        if queue.slice():  # which may have others join
            self._queues.append(queue)

    def _go_on(self) -> None:
        now = monotonic()
        until = now + (_ALONE_S if now - self._left_s < _OTHERS_S else _AMONG_OTHERS_S)
        try:
            while self._queues and now < until:
                self._slice()
                now = monotonic()
        finally:
            self._is_on = bool(self._queues)
            if self._is_on:
                self._left_s = now
                self._loop.call_soon(self._go_on)


class Slices:
    """Jobs, one after another. A job is an iterator that does a slice each time it is asked for more.

    One that raises has ended with that, and those behind it are done all the same: whoever has it done says what becomes of
    the error, which holds no frames, since these would keep the memory that they copy from being closed.
    """

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._jobs: deque[tuple[Iterator[None], Failed]] = deque()

    @property
    def busy(self) -> bool:
        """Whether a job is under way: another would have to wait."""
        return bool(self._jobs)

    def do(self, job: Iterator[None], failed: Failed) -> None:
        """Begin the job, when those before it are done; a short one is done when this returns, if nothing else is."""
        self._jobs.append((job, failed))
        if len(self._jobs) == 1:
            self._turns.join(self)

    def slice(self) -> bool:
        """Do one; whether there are more."""
        job, failed = self._jobs[0]
        try:
            if next(job, self) is not self:
                return True
        except Exception as error:  # noqa: BLE001 - no memory for it, for example
            failed(error.with_traceback(None))
        self._jobs.popleft()
        return bool(self._jobs)

    def drop(self) -> None:
        """Do nothing more."""
        self._jobs.clear()
        self._turns.leave(self)


async def in_turns(job: Iterator[None]) -> None:
    """Do all of a job, for about a millisecond in each turn of the loop. What is left when this is cancelled is still in it."""
    until = monotonic() + _TURN_S
    for _ in job:
        if monotonic() >= until:
            await asyncio.sleep(0)
            until = monotonic() + _TURN_S


def copied(source: Any, target: memoryview) -> Iterator[None]:
    """Copy bytes from one memory to another of the same size, a slice each time."""
    ours, theirs = np.frombuffer(source, np.uint8), np.frombuffer(target, np.uint8)
    for start in range(0, len(ours), _SLICE):
        theirs[start : start + _SLICE] = ours[start : start + _SLICE]
        yield


def copied_items(source: NDArray[Any], target: NDArray[Any]) -> Iterator[None]:
    """Copy an array with gaps between its items to another of the same shape, a slice each time."""
    rows = _SLICE_OF_ITEMS * len(source) // source.nbytes
    if not rows and source.ndim > 1:
        for ours, theirs in zip(source, target, strict=True):
            yield from copied_items(ours, theirs)
        return
    rows = max(1, rows)
    for start in range(0, len(source), rows):
        target[start : start + rows] = source[start : start + rows]
        yield
