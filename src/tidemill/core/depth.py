"""How many calls a busy lane may hold: enough to be busy for a few milliseconds while the parent does other things.

A call in a lane's queue is not bound to it: it moves when another lane falls idle. So depth costs nobody a place, and
buys that a lane need not wait for the parent between two short calls.
"""

from __future__ import annotations

from math import inf
from typing import Final

from tidemill.core.batching import Batcher, Limits
from tidemill.core.calls import MIN_DEPTH

__all__ = ["Depth"]

_LONG_NS: Final = 1_000_000
"""A call of a millisecond is looked at by itself; shorter ones in groups."""


class Depth:
    """Follows what calls cost, measured in the lanes: grows to twice itself at most, shrinks at once.

    >>> depth = Depth(lanes=1)
    >>> [depth.measured(0, busy_ns=50_000) for _ in range(8)]
    [2, 4, 4, 4, 4, 8, 8, 8]
    >>> depth.measured(0, busy_ns=20_000_000)  # one call of 20 ms
    2
    """

    MOST = 256

    def __init__(self, lanes: int) -> None:
        self.calls = MIN_DEPTH
        """The depth now."""
        self.call_s = inf
        """Seconds that a call takes, as last measured."""
        self._batcher = Batcher(Limits(max_records=self.MOST))
        self._unseen = [0] * lanes
        self._unseen_ns = [0] * lanes

    def measured(self, lane: int, busy_ns: int) -> int:
        """A call took the lane so long; the depth from now on."""
        calls, ns = self._unseen[lane] + 1, self._unseen_ns[lane] + busy_ns
        if calls < self.calls and ns < _LONG_NS:
            self._unseen[lane], self._unseen_ns[lane] = calls, ns
            return self.calls
        self._unseen[lane] = self._unseen_ns[lane] = 0
        self._batcher.measured(calls, ns / 1e9, lane)
        self.call_s = self._batcher.statistics().cost_s
        self.calls = max(MIN_DEPTH, min(self._batcher.statistics().cap, 2 * self.calls))
        return self.calls
