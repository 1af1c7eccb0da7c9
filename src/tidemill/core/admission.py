"""Which connections a listener takes, and when one has said nothing for too long."""

from __future__ import annotations

from collections import Counter
from typing import Final

__all__ = ["Admission"]

_TELL_NS: Final = 60 * 10**9
"""What is turned away may come by the thousand: it is told once in this time."""


class Admission:
    """Counts the connections by the host that they come from, and turns away those beyond ``most``, or beyond ``each`` of one
    host. ``each`` None stands for no limit of its own; ``why`` says where ``most`` is from.

    >>> door = Admission(3, 2, "connections=3")
    >>> [door.enter(host) for host in ("a", "a", "a", "b", "c")]
    [True, True, False, True, False]
    >>> door.tell(now_ns=0)
    '2 connections were turned away, the last from c: 3 are open, and connections=3'
    >>> door.leave("a"), door.enter("c"), door.turned_away
    (None, True, 2)
    """

    def __init__(self, most: int, each: int | None, why: str) -> None:
        self._most, self._each, self._why = most, each, why
        self._open: Counter[str] = Counter()
        self._all = 0
        self.turned_away = 0
        self._told = 0
        self._told_ns: int | None = None
        self.last = ""
        """From where the last of them was, and why it was turned away."""

    @property
    def open(self) -> int:
        """How many there are."""
        return self._all

    def enter(self, host: str) -> bool:
        """Whether it is taken; one that is must `leave`."""
        if self._all >= self._most:
            self.turn_away(host, self._why)
            return False
        if self._each is not None and self._open[host] >= self._each:
            self._away(f"{host}, which has {self._open[host]:,} open, and per_host={self._each}")
            return False
        self._open[host] += 1
        self._all += 1
        return True

    def turn_away(self, host: str, why: str) -> None:
        """There is no room for it; ``why`` says what bounds it."""
        self._away(f"{host}: {self._all:,} are open, and {why}")

    def _away(self, last: str) -> None:
        self.last = last
        self.turned_away += 1

    def leave(self, host: str) -> None:
        """It is closed."""
        self._all -= 1
        self._open[host] -= 1
        if not self._open[host]:
            del self._open[host]

    def tell(self, now_ns: int) -> str | None:
        """What is to be told of those turned away since it was told last; None while that is too fresh, or nothing."""
        new = self.turned_away - self._told
        if not new or (self._told_ns is not None and now_ns - self._told_ns < _TELL_NS):
            return None
        self._told, self._told_ns = self.turned_away, now_ns
        many = "1 connection was" if new == 1 else f"{new:,} connections were"
        return f"{many} turned away, the last from {self.last}"
