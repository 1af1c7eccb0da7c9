"""The ledger: which slab is where, and what must happen next.

A slab is opened with the lanes that have rows in it, done when each of them has committed it, emitted in the order
of opening, and freed when every sink has taken it. A lane that is lost loses nothing: what it had not committed is
sent again to its replacement, which continues from the same state memory.

Rules of this file: every change of a slab's state happens here; nothing here knows what a slab contains.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tidemill.errors import EngineError

__all__ = ["Ledger", "LedgerStatistics"]


@dataclass
class _Slab:
    waiting: set[int]
    """Lanes that have not committed it."""


@dataclass(frozen=True)
class LedgerStatistics:
    """How the ledger is."""

    opened: int
    """Slabs opened so far."""
    in_lanes: int
    """Slabs that some lane has not committed."""
    done: int
    """Slabs committed by all their lanes, that wait for an earlier one."""
    in_sinks: int
    """Slabs handed to the sinks and not freed."""


@dataclass
class Ledger:
    """Slabs by number; numbers start at 1 and grow."""

    lanes: int
    _next: int = 1
    _open: OrderedDict[int, _Slab] = field(default_factory=OrderedDict)
    _emitted: set[int] = field(default_factory=set)
    _in_flight: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._in_flight = [0] * self.lanes

    def open(self, lanes: Iterable[int]) -> int:
        """A new slab with rows in ``lanes``; its number."""
        number = self._next
        waiting = set(lanes)
        if not waiting or not waiting <= set(range(self.lanes)):
            raise EngineError(f"slab {number} was opened for lanes {sorted(waiting)} of {self.lanes}")
        self._next += 1
        self._open[number] = _Slab(waiting)
        for lane in waiting:
            self._in_flight[lane] += 1
        return number

    def committed(self, lane: int, number: int) -> list[int]:
        """The lane has committed the slab; returns the slabs that may be emitted now, in order.

        A second word about the same slab, from a lane that was replaced in between, changes nothing.
        """
        slab = self._open.get(number)
        if slab is None or lane not in slab.waiting:
            return []
        slab.waiting.discard(lane)
        self._in_flight[lane] -= 1
        ready = []
        while self._open:
            first, slab = next(iter(self._open.items()))
            if slab.waiting:
                break
            del self._open[first]
            self._emitted.add(first)
            ready.append(first)
        return ready

    def freed(self, number: int) -> None:
        """All sinks have taken the slab; its memory may be used again."""
        self._emitted.remove(number)

    def owed(self, lane: int) -> list[int]:
        """The slabs this lane has not committed, in order: what its replacement must be sent."""
        return [number for number, slab in self._open.items() if lane in slab.waiting]

    def in_flight(self) -> list[int]:
        """Per lane, the number of slabs it has not committed."""
        return list(self._in_flight)

    @property
    def idle(self) -> bool:
        """Nothing is open and nothing is held by a sink."""
        return not self._open and not self._emitted

    def statistics(self) -> LedgerStatistics:
        in_lanes = sum(bool(slab.waiting) for slab in self._open.values())
        return LedgerStatistics(self._next - 1, in_lanes, len(self._open) - in_lanes, len(self._emitted))

    def validate(self) -> None:
        """Raise `EngineError` when the ledger contradicts itself; called after every step in tests."""
        numbers = list(self._open)
        if numbers != sorted(numbers):
            raise EngineError("open slabs are out of order")
        if self._open and not next(iter(self._open.values())).waiting:
            raise EngineError("the first open slab is done and was not emitted")
        if self._in_flight != [len(self.owed(lane)) for lane in range(self.lanes)]:
            raise EngineError("the counts of slabs in flight are not those of the open slabs")
        if self._emitted and self._open and max(self._emitted) >= numbers[0]:
            raise EngineError("a slab was emitted before an earlier one")
