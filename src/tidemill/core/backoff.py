"""How long to wait before the next try."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Final

__all__ = ["Backoff", "level_of_try"]

_LASTED_NS: Final = 10 * 10**9
_TOLD: Final = 3
"""Tries that failed of which each is a line in the log."""


def level_of_try(tries: int) -> int:
    """The level at which the log tells of the try that failed, of so many: the first few as warnings. The others are counted in
    the line that the run writes each minute while it is not well.

    >>> [logging.getLevelName(level_of_try(tries)) for tries in (1, 3, 4)]
    ['WARNING', 'WARNING', 'DEBUG']
    """
    return logging.WARNING if tries <= _TOLD else logging.DEBUG


class Backoff:
    """Pauses that double from ``shortest_s`` to ``longest_s``, half of each by chance, so that many who were cut off at
    once do not come back at once. After a connection that has lasted 10 seconds they start anew; one that ends at once,
    again and again, is not tried ever faster.

    >>> backoff = Backoff(1.0, 4.0, chance=lambda: 1.0)
    >>> [backoff.failed(now_ns=0) for _ in range(4)]
    [1.0, 2.0, 4.0, 4.0]
    >>> backoff.connected(now_ns=0), backoff.failed(now_ns=10 * 10**9)
    (None, 1.0)
    >>> backoff.connected(now_ns=0), backoff.failed(now_ns=1), backoff.brief
    (None, 2.0, 1)
    """

    def __init__(
        self, shortest_s: float = 0.5, longest_s: float = 30.0, *, chance: Callable[[], float] = random.random
    ) -> None:
        self._shortest_s, self._longest_s = shortest_s, longest_s
        self._next_s = shortest_s
        self._chance = chance
        self._since_ns: int | None = None
        self.brief = 0
        """Connections in a row that did not last so long."""

    def connected(self, now_ns: int) -> None:
        """A try has succeeded."""
        self._since_ns = now_ns

    def failed(self, now_ns: int) -> float:
        """A try has failed, or what it had connected is lost: seconds until the next."""
        if self._since_ns is not None:
            self.brief += 1
            if now_ns - self._since_ns >= _LASTED_NS:
                self._next_s, self.brief = self._shortest_s, 0
        self._since_ns = None
        wait_s = self._next_s * (0.5 + self._chance() / 2)
        self._next_s = min(2 * self._next_s, self._longest_s)
        return wait_s
