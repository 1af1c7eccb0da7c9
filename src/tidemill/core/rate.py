"""A rate that follows what happens: of the last seconds, weighing the newest most."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["Rate"]

_SPAN_NS: Final = 10_000_000_000


class Rate:
    """Amounts per second, in an average that forgets within ten seconds.

    >>> rate = Rate(0)
    >>> for second in range(1, 100):
    ...     rate.add(500, second * 1_000_000_000)
    >>> round(rate.per_second(99 * 1_000_000_000))
    525
    >>> rate.seconds_for(0, 99 * 1_000_000_000), Rate(0).seconds_for(1, 5)
    (0.0, inf)
    """

    def __init__(self, now_ns: int) -> None:
        self._amount = 0.0
        self._at_ns = self._begun_ns = now_ns

    def add(self, amount: float, now_ns: int) -> None:
        """So much came."""
        self._forget(now_ns)
        self._amount += amount

    def per_second(self, now_ns: int) -> float:
        """The rate, now."""
        self._forget(now_ns)
        seen = 1.0 - math.exp(-(now_ns - self._begun_ns) / _SPAN_NS)
        return self._amount / (_SPAN_NS / 1e9 * seen) if seen else 0.0

    def seconds_for(self, amount: float, now_ns: int) -> float:
        """How long it takes until so much has come."""
        rate = self.per_second(now_ns)
        return max(amount, 0.0) / rate if rate else math.inf

    def _forget(self, now_ns: int) -> None:
        self._amount *= math.exp(-(now_ns - self._at_ns) / _SPAN_NS)
        self._at_ns = now_ns
