"""Whether the fork server still listens: one that is stopped would hide every death, and no lane could be replaced or ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["ServerWatch"]


class ServerWatch:
    """Looks each ``look_s`` seconds while the server owes a word. On the event loop that is running.

    ``looks``    so many of them without any word: it does not listen. They are counted, not the time between: an application
                 that was stopped itself, or has held its loop, has looked once
    ``owes``     whether something is to come from it: that it has forked, or that a child has ended
    ``excused``  whether it may be silent now: it imports, or waits for a processor or a disk
    ``ask``      asks it for a word, which needs no more than that it listens
    ``silent``   called when none came
    """

    def __init__(
        self,
        look_s: float,
        looks: int,
        *,
        owes: Callable[[], bool],
        excused: Callable[[], bool],
        ask: Callable[[], None],
        silent: Callable[[], None],
    ) -> None:
        self._look_s, self._looks = look_s, looks
        self._owes, self._excused, self._ask, self._silent = owes, excused, ask, silent
        self._unheard = 0
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False

    def begin(self) -> None:
        """It owes a word, from now on."""
        if self._timer is None and not self._ended:
            self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look)

    def heard(self) -> None:
        """It has said something."""
        self._unheard = 0

    def end(self) -> None:
        """Look no more."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if not self._owes():
            self._unheard = 0
            return
        if not self._excused():
            self._unheard += 1
        if self._unheard > self._looks:
            self._silent()
            return
        self._ask()
        self.begin()
