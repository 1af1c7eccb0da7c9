"""Whether the fork server still listens: one that is stopped would hide every death, and no lane could be replaced or ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

__all__ = ["ServerWatch"]

_LOOK_S: Final = 0.25
"""So often, while it owes a word."""
_LOOKS: Final = 12
"""So many of them without any word, though it was asked for one at each: it does not listen. They are counted, not the time
between: an application that was stopped itself, or has held its loop, has looked once."""


class ServerWatch:
    """Looks now and then while the server owes a word. On the event loop that is running.

    ``owes``     whether something is to come from it: that it has forked, or that a child has ended
    ``excused``  whether it may be silent now: it imports, or waits for a processor or a disk
    ``ask``      asks it for a word, which needs no more than that it listens
    ``silent``   called when none came
    """

    def __init__(
        self,
        *,
        owes: Callable[[], bool],
        excused: Callable[[], bool],
        ask: Callable[[], None],
        silent: Callable[[], None],
    ) -> None:
        self._owes, self._excused, self._ask, self._silent = owes, excused, ask, silent
        self._unheard = 0
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False

    def begin(self) -> None:
        """It owes a word, from now on."""
        if self._timer is None and not self._ended:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

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
        if self._unheard > _LOOKS:
            self._silent()
            return
        self._ask()
        self.begin()
