"""How much of the machine others took while something was measured: a number on a shared machine is worth that much."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

_EVERY_S: Final = 0.25
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_UTIME, _STIME, _SESSION, _START = 11, 12, 3, 19
"""Fields of ``/proc/PID/stat`` after the command's name."""


def share_of_others(call: Callable[[], T]) -> tuple[T, float]:
    """What ``call`` gives, and the share of all cores, 0 to 1, that processes of other sessions had meanwhile.

    Everything of this program, lanes and peers included, must be in its session: start it with ``setsid`` where the shell
    has run something else in its own.
    """
    counting = _Counting()
    counting.start()
    began = time.perf_counter()
    try:
        made = call()
    finally:
        taken_s = counting.stop()
    return made, taken_s / (time.perf_counter() - began) / len(os.sched_getaffinity(0))


def quietest(call: Callable[[], T], limit: float, tries: int) -> tuple[T, float]:
    """The first of some tries in which others had no more than ``limit``, else the one in which they had least."""
    best: tuple[T, float] | None = None
    for _ in range(tries):
        made, share = share_of_others(call)
        if best is None or share < best[1]:
            best = made, share
        if share <= limit:
            break
    assert best is not None
    return best


class _Counting(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()
        self._taken_ticks = 0
        self._seen = _ticks_of_others()

    def run(self) -> None:
        while not self._over.wait(_EVERY_S):
            self._count()

    def stop(self) -> float:
        self._over.set()
        self.join()
        self._count()
        return self._taken_ticks / _TICKS

    def _count(self) -> None:
        """A process that began and ended in between is not seen."""
        seen = _ticks_of_others()
        self._taken_ticks += sum(ticks - self._seen.get(process, 0) for process, ticks in seen.items())
        self._seen = seen


def _ticks_of_others() -> dict[tuple[str, str], int]:
    """CPU time of each process of another session, by process and its start."""
    own = str(os.getsid(0))
    ticks = {}
    for process in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = process.read_text().rpartition(")")[2].split()
            if fields[_SESSION] != own:
                ticks[str(process), fields[_START]] = int(fields[_UTIME]) + int(fields[_STIME])
    return ticks
