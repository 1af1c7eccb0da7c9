"""When to form a slab, and how large: late-bound natural batching.

A slab is formed when a lane is idle, from whatever is there; while all lanes are busy, records gather, and the next
slab is as large as the load. So a lone record goes at once and alone, and under load the fixed cost of a slab is
shared by thousands of records, with nothing to tune. Caps keep a slab's time in the lanes near ``target_s``: the cap
follows what the lanes measured, at most doubling per slab and shrinking at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Batcher", "BatcherStatistics", "Limits"]


@dataclass(frozen=True)
class Limits:
    """Bounds of a slab."""

    max_records: int = 32_768
    target_s: float = 0.005
    """Seconds a slab should keep its slowest lane busy."""
    queued_per_lane: int = 2
    """Slabs that the least loaded lane may have before records wait for the next slab to fill."""


@dataclass(frozen=True)
class BatcherStatistics:
    """How the batcher is."""

    cap: int
    """The most records it would put in a slab now."""
    cost_s: float
    """Seconds a record costs the slowest lane of its slab, as last measured; 0.0 before."""


class Batcher:
    """Decides how many of the waiting records make the next slab.

    >>> batcher = Batcher(Limits(max_records=1000))
    >>> batcher.records(waiting=1, in_flight=[0, 2], free_slabs=3)  # a lane is idle: go, even alone
    1
    >>> batcher.records(waiting=10, in_flight=[1, 1], free_slabs=3)  # all busy: gather
    0
    """

    START = 64
    """Records of the first slab at most: its cost is not known yet."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._cap = min(self.START, self.limits.max_records)
        self._costs_s: dict[int, float] = {}
        self._cost_s = 0.0

    def records(self, *, waiting: int, in_flight: Sequence[int], free_slabs: int) -> int:
        """How many of ``waiting`` records to put in a slab now; 0 to wait.

        ``in_flight`` is the number of slabs each lane has not finished.
        """
        if not waiting or not free_slabs:
            return 0
        least = min(in_flight)
        if least == 0 or (waiting >= self._cap and least < self.limits.queued_per_lane):
            return min(waiting, self._cap)
        return 0

    def measured(self, records: int, busy_s: float, lane: int = 0) -> None:
        """``lane`` took ``busy_s`` for its share of a slab of ``records``.

        A slab that took too long shrinks the cap at once. One that did not can only raise it, to twice its own size
        at most, and to what the dearest lane can afford: a small slab's time is mostly fixed cost and says little about
        a large one's.
        """
        if not records or busy_s <= 0:
            return
        self._costs_s[lane] = busy_s / records
        self._cost_s = max(self._costs_s.values())
        if busy_s > self.limits.target_s:
            self._cap = max(1, int(self.limits.target_s / self._costs_s[lane]))
        else:
            affordable = int(self.limits.target_s / self._cost_s)
            self._cap = min(max(self._cap, min(2 * records, affordable)), self.limits.max_records)

    def statistics(self) -> BatcherStatistics:
        return BatcherStatistics(self._cap, self._cost_s)
