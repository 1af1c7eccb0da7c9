"""How often something happened lately, from a count that only grows."""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["LATELY_S", "Lately"]

LATELY_S: Final = 60.0
_MOST: Final = 1_000
"""That are told apart; more within a minute is as bad."""


class Lately:
    """Looked at a few times a second; what happened between two looks did so at the second.

    >>> lately = Lately()
    >>> lately.look(3, now_ns=0)
    >>> lately.read(now_ns=59_000_000_000), lately.read(now_ns=61_000_000_000)
    (3, 0)
    """

    def __init__(self) -> None:
        self._count = 0
        self._times: deque[int] = deque(maxlen=_MOST)

    def look(self, count: int, now_ns: int) -> None:
        """It has happened so often, in all."""
        self._times.extend([now_ns] * min(count - self._count, _MOST))
        self._count = count

    def read(self, now_ns: int) -> int:
        """How often that was within the last minute."""
        while self._times and self._times[0] <= now_ns - LATELY_S * 1e9:
            self._times.popleft()
        return len(self._times)
