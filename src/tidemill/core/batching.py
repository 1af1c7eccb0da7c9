"""When to form a batch, and how large: late-bound natural batching, for slabs and for calls alike.

A batch is formed when a lane is idle, from whatever is there; while all lanes are busy, records gather, and the next
batch is as large as the load. So a lone record goes at once and alone, and under load the fixed cost of a batch is
shared by many records, with nothing to tune.

Rules of this file:

- A record never waits while a lane is idle. A parent that is the bottleneck gathers while it works; to linger on top
  of that only makes records late (decision 11).
- A batch takes about ``target_s`` in a lane at most, or the time its callers have left. What a record costs is
  measured in the lanes, twice: over the last few batches, and over many records. The dearer counts, so the cap falls
  with one dear batch and rises slowly after it.
- A batch is at most twice as large as the largest before it that was sent under the present cap, and at most four
  times as large as one that was measured: one doubling at most is under way unmeasured.
- A batch of few records that takes nearly as long as one of many has a cost of its own, which is told apart from its
  records': it works at least twice as long as that. To see it, sizes must differ; so where all are as small as the cap,
  one in a while is of twice the size.
- What waits long anyway may wait in larger batches: one may work for a quarter of the time that all that waits will take,
  up to ten times ``target_s`` or to ``longest_s``, where nobody is in a hurry. Such batches grow to twice those before them
  at most.
- Where it is known how long a batch travels: none is larger than makes nine tenths of the time work, idle lanes share
  what waits only if that saves more than a frame costs, and a lane that works gets a second batch as soon as that
  would keep it busy for twice the time of travel. Where it is not known, that second batch is a full one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Final

from tidemill.errors import EngineError

__all__ = ["Batcher", "BatcherStatistics", "Limits"]

_EFFICIENT: Final = 9.0
"""Times that a batch works as long as it travels, beyond which a larger one gains less than a tenth."""
_QUEUED: Final = 2.0
"""The same, from which it is worth binding records to a lane that still works."""
_SHARED: Final = 0.5
"""The same, below which a lane's share of what waits costs more frames than it saves time."""
_TELLING: Final = 1 / 25
"""A batch that took less than this share of the target is mostly fixed cost: it is no reason to shrink."""
_FAST: Final = 0.5
"""Weight of the last batch, at least, in the cost over the last few; a larger one than before says more."""
_SLOW: Final = 0.2
"""Share of its records that the cost over many forgets with each batch."""
_UNVARIED: Final = 8
"""Batches in a row of one size, after which one of twice the size tells what of their cost is their records'."""
_STEADY: Final = 0.3
"""Weight of the last batch in what a batch costs however few records it has."""
_OWN: Final = 0.05
"""Share of a batch's time that is its records' at least."""
_PATIENT: Final = 0.25
"""Of the time that what waits will take, what a batch may work: nothing is later by more than that for it."""
_LONGEST: Final = 10.0
"""Times the target that a batch may work, at most, however much waits."""
_SOONER: Final = 0.3
_LATER: Final = 0.02
"""Weights of a travel that was shorter or longer than thought: what held it up once is not its length."""


@dataclass(frozen=True)
class Limits:
    """Bounds of a batch, for ``tm.run(limits=...)``: batches are sized by themselves, and tests may want them small."""

    max_records: int = 32_768
    target_s: float = 0.005
    """Seconds a batch should keep its slowest lane busy; up to ten times as long while much waits."""
    queued_per_lane: int = 2
    """Batches that the least loaded lane may have before records wait for the next batch to fill."""
    max_bytes: int = 1 << 62
    """Of a batch of more than one record."""


@dataclass(frozen=True)
class BatcherStatistics:
    """How the batcher is."""

    cap: int
    """The most records it would put in a batch now, as far as their cost goes, with little behind them."""
    cost_s: float
    """Seconds a record costs the slowest lane of its batch, as last measured; 0.0 before."""
    fixed_s: float
    """Seconds a batch costs however few records it has, as last measured."""
    travel_s: float
    """Seconds of a batch's round trip in which no lane works on it; 0.0 when nobody measures it."""


class _Cost:
    """Seconds a record costs in one lane, and a batch however few it has: a DataFrame costs a millisecond to make."""

    __slots__ = ("_busy_s", "_fast_s", "_records", "_small", "_small_s", "fixed_s", "last", "record_s", "same", "tried")

    def __init__(self) -> None:
        self.record_s = self._fast_s = self._busy_s = self._records = 0.0
        self.last = 0
        """Records of the last batch."""
        self.fixed_s = 0.0
        self.tried = False
        """Whether batches of different sizes were seen: before, all that a batch costs is taken for its records'."""
        self.same = 0
        """Batches in a row of about one size, the cap at least, while it was not tried."""
        self._small, self._small_s = 0, 0.0  # the smallest batch, and what such a one takes

    def measured(self, records: int, busy_s: float) -> None:
        if self._fast_s:
            self._fix(records, busy_s)
        own_s = max(busy_s - self.fixed_s, _OWN * busy_s) / records
        busy_s = own_s * records
        if not self._fast_s:  # a process's first batch imports and compiles: it is not what records cost
            self.record_s = self._fast_s = own_s
            self.last = records
            return
        self._fast_s += max(_FAST, records / (records + self.last)) * (own_s - self._fast_s)
        self.last = records
        self._busy_s += busy_s - _SLOW * self._busy_s
        self._records += records - _SLOW * self._records
        self.record_s = max(self._fast_s, self._busy_s / self._records)

    def _fix(self, records: int, busy_s: float) -> None:
        """What a small batch takes beyond its share of a larger one."""
        if not self._small or records < self._small:
            self._small, self._small_s = records, busy_s
        elif records == self._small:
            self._small_s += _STEADY * (busy_s - self._small_s)
        elif records >= 2 * self._small:
            record_s = max(0.0, (busy_s - self._small_s) / (records - self._small))
            fixed_s = max(0.0, self._small_s - record_s * self._small)
            if not self.tried:  # all before was taken for what records cost
                self.tried, self.fixed_s = True, fixed_s
                self._fast_s = self._busy_s = self._records = 0.0
            self.fixed_s += _STEADY * (fixed_s - self.fixed_s)


class Batcher:
    """Decides how many of the waiting records make the next batch.

    >>> batcher = Batcher(Limits(max_records=1000))
    >>> batcher.records(waiting=1, in_flight=[0, 2], free_slabs=3)  # a lane is idle: go, even alone
    1
    >>> batcher.records(waiting=10, in_flight=[1, 1], free_slabs=3)  # all busy: gather
    0
    """

    START = 64
    """Records of the first batch at most, where its maker says no other ``start``: its cost is not known yet."""

    def __init__(self, limits: Limits | None = None, *, start: int = START, longest_s: float = inf) -> None:
        self.limits = limits or Limits()
        self._longest_s = longest_s
        """That a batch may work where much waits; none of the target is cut by it."""
        self._cap = self._proven = min(start, self.limits.max_records)
        self._largest = 0  # sent since the cap last fell
        self._lately = 0  # sent, the larger of the last and of half of those before
        self._affordable = 0
        self._costs: dict[int, _Cost] = {}
        self._cost_s = self._fixed_s = 0.0
        self._target_s = self.limits.target_s
        self._travel_s = 0.0

    # -- how many --------------------------------------------------------------------------------------

    def records(
        self,
        *,
        waiting: int,
        in_flight: Sequence[int],
        free_slabs: int = 1,
        slack_s: float = inf,
        one_lane: bool = False,
    ) -> int:
        """How many of ``waiting`` records to put in a batch now; 0 to wait.

        ``in_flight`` is the number of batches each lane has not finished, ``slack_s`` the time that the record which
        waits longest has left. A batch that goes to ``one_lane`` leaves the other idle lanes their share.
        """
        if not waiting or not free_slabs or not in_flight:
            return 0
        least = min(in_flight)
        if least and least >= self.limits.queued_per_lane:
            return 0
        cap = self._patient(waiting, slack_s) if slack_s >= 2 * self.limits.target_s else self._hurried(slack_s)
        if self._travel_s:
            cap = min(cap, self._working(_EFFICIENT))
        if least == 0:
            share = max(-(-waiting // in_flight.count(0)), self._working(_SHARED)) if one_lane else waiting
            return min(waiting, share, cap)
        enough = min(cap, self._working(_QUEUED)) if self._travel_s else cap
        return min(waiting, cap) if waiting >= enough else 0

    def _hurried(self, slack_s: float) -> int:
        """The cap when callers have less time than a batch may take twice: half of it is for waiting and travelling.

        Batches too small to be efficient would make everybody late, so haste stops at an efficient size.
        """
        if not self._cost_s:
            return self._cap
        in_time = int((slack_s / 2 - self._travel_s) / self._cost_s)
        return max(1, min(self._cap, max(in_time, self._working(_EFFICIENT))))

    def _patient(self, waiting: int, slack_s: float) -> int:
        """The cap, or more when so much waits that what a larger batch costs in time is little beside it."""
        if not self._cost_s or 2 * self._cap <= self._affordable:  # it is on its way up
            return self._cap
        waiting_s = min(waiting * self._cost_s, slack_s)
        allowed_s = min(_PATIENT * waiting_s, _LONGEST * self._target_s, self._longest_s)
        records = int((allowed_s - self._fixed_s) / self._cost_s)
        return max(self._cap, min(records, 2 * self._lately, self.limits.max_records))

    def _working(self, times: float) -> int:
        """Records that keep a lane busy for so many times as long as their batch travels; at least 1."""
        return max(1, ceil(times * self._travel_s / self._cost_s)) if self._cost_s else 1

    def fitting(self, sizes: Iterable[int], records: int) -> int:
        """How many of the first ``records`` go into one batch by their ``sizes`` in bytes: at least one.

        >>> Batcher(Limits(max_bytes=100)).fitting([60, 30, 20, 5], records=4)
        2
        """
        room, fitting = self.limits.max_bytes, 0
        for size in sizes:
            room -= size
            if fitting == records or (room < 0 and fitting):
                break
            fitting += 1
        return fitting

    # -- what happened ---------------------------------------------------------------------------------

    def sent(self, records: int) -> None:
        """A batch of so many records is on its way: the next may be twice as large, if its cost is known to fit."""
        self._lately = max(records, self._lately // 2)
        if records == self._cap:
            self._largest = records
            self._grow()

    def measured(self, records: int, busy_s: float, lane: int = 0, travel_s: float | None = None) -> None:
        """``lane`` took ``busy_s`` for its share of a batch of ``records``; the rest of its round trip ``travel_s``.

        Say the travel only of batches that waited behind no other.
        """
        if not records or busy_s <= 0:
            return
        if travel_s is not None:
            self._travelled(travel_s)
        own = self._costs.get(lane)
        if own is None:
            own = self._costs[lane] = _Cost()
        before = own.last
        own.measured(records, busy_s)
        dearest = max(self._costs.values(), key=lambda cost: cost.record_s)
        self._cost_s, self._fixed_s = dearest.record_s, dearest.fixed_s
        fixed_s = self._fixed_s
        # At least half of a batch's time is its records'.
        self._target_s = target_s = max(self.limits.target_s, 2 * fixed_s)
        self._affordable = max(1, min(self.limits.max_records, int((target_s - fixed_s) / self._cost_s)))
        if busy_s > target_s:
            over = (target_s - fixed_s) / max(busy_s - fixed_s, target_s - fixed_s)
            self._affordable = max(1, min(self._affordable, int(records * over)))
        if busy_s > _TELLING * target_s and self._affordable < self._cap:
            self._cap = self._proven = self._affordable
            self._largest = 0
        elif busy_s <= target_s or records > self._cap:
            self._cap = max(self._cap, min(2 * records, self._affordable))
            self._proven = max(self._proven, min(records, self._cap))
            self._grow()
        # Sizes less than twice one another tell as little as one size. Each lane tells its cost apart by itself.
        alike = records == self._cap or (self._cap < records < 2 * before and before < 2 * records)
        own.same = own.same + 1 if alike and not own.tried else 0
        if own.same >= _UNVARIED and 2 * records <= self.limits.max_records:
            self._cap, self._proven = 2 * records, max(self._proven, records)

    def _grow(self) -> None:
        self._cap = max(self._cap, min(2 * self._largest, 4 * self._proven, self._affordable))

    def _travelled(self, travel_s: float) -> None:
        if not self._travel_s:
            self._travel_s = max(travel_s, 0.0)
            return
        weight = _SOONER if travel_s < self._travel_s else _LATER
        self._travel_s += weight * (max(travel_s, 0.0) - self._travel_s)

    # -- readings --------------------------------------------------------------------------------------

    def statistics(self) -> BatcherStatistics:
        return BatcherStatistics(self._cap, self._cost_s, self._fixed_s, self._travel_s)

    def validate(self) -> None:
        """Raise `EngineError` if a rule of this file is broken; tests call it after each step."""
        if not 1 <= self._proven <= self._cap <= self.limits.max_records:
            raise EngineError(f"the cap is {self._cap}, proven {self._proven}, of {self.limits.max_records}")
        if self._cap > 4 * self._proven:
            raise EngineError(f"the cap {self._cap} ran ahead of {self._proven} records that were measured")
