"""What a sink has written and no reader can see yet. A commit shows a second's batches at once: they are told in turns."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["Unseen"]

_TURN_S: Final = 0.0005
"""Of the event loop, for the batches that one commit has shown."""


class Unseen:
    """Batches by number, ascending, each with what shall be called once readers can see it; of its rows nothing is kept."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._shown = 0
        self._telling = False

    def add(self, number: int, shown: Callable[[], None]) -> None:
        """One that the sink has written."""
        self._waiting.append((number, shown))

    def show(self, number: int) -> None:
        """Those up to this one can be seen: tell, as soon as the loop has time for it."""
        self._shown = max(self._shown, number)
        if not self._telling:
            self._tell_some()

    def show_rest(self) -> None:
        """All can be seen: tell, before this returns."""
        while self._waiting:
            self._waiting.popleft()[1]()

    def _tell_some(self) -> None:
        until = time.monotonic() + _TURN_S
        self._telling = False
        while self._waiting and self._waiting[0][0] <= self._shown:
            if time.monotonic() >= until:
                self._telling = True
                asyncio.get_running_loop().call_soon(self._tell_some)
                return
            self._waiting.popleft()[1]()
