"""When sensors were last heard, and for how long not: the maths of `tidemill.stages.silence`.

A sensor's deadline is the newest of its times and what a silence takes. It is reported silent when the watermark passes
that, unless it was heard anew before; so it has been reported exactly if its deadline is behind the watermark, and
nothing else need be remembered of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from tidemill.column import FARTHEST

__all__ = ["NEVER", "Heard", "Silences"]

NEVER: Final = -(1 << 62)
"""Before all times."""
_AHEAD_NS: Final = 30 * 86_400_000_000_000
"""A record whose time is so far ahead of the watermark tells nothing: its clock is wrong."""


@dataclass(frozen=True)
class Silences:
    """Silences, each found when the watermark passed ``last`` and what a silence takes."""

    slots: NDArray[np.int32]
    """Key slot of the sensor."""
    last: NDArray[np.int64]
    """The newest time at which it was heard."""
    earliest: NDArray[np.int32]
    """Place in the slab of the record behind which it is told, if the watermark had been there before."""

    def and_then(self, more: Silences) -> Silences:
        """These, and others."""
        return Silences(
            np.concatenate([self.slots, more.slots]),
            np.concatenate([self.last, more.last]),
            np.concatenate([self.earliest, more.earliest]),
        )


@dataclass(frozen=True)
class Heard:
    """The records of a batch by sensor, in the order in which they came."""

    slots: NDArray[np.int32]
    times: NDArray[np.int64]
    places: NDArray[np.int32]
    marks: NDArray[np.int64]
    """The watermark behind each."""
    first: NDArray[np.bool_]
    """Which is its sensor's first of the batch."""
    last: NDArray[np.bool_]
    """Which is its last."""

    @classmethod
    def of(
        cls, times: NDArray[np.int64], slots: NDArray[np.int32], places: NDArray[np.int32], marks: NDArray[np.int64]
    ) -> Self:
        """``marks`` is the watermark before the slab and behind each of its records. The time of one that tells nothing is `NEVER`."""
        times = np.clip(times, -FARTHEST, FARTHEST)
        behind = marks[1:][places]
        # Before the watermark has begun nothing says that a time is wrong: see `believed`.
        tells = (times <= np.maximum(behind, NEVER) + _AHEAD_NS) | (behind < NEVER)
        if not tells.all():
            times = np.where(tells, times, NEVER)
        # Sorted by sensor, and by place among equals: one sort of plain numbers, for which NumPy has vector code.
        bits = len(slots).bit_length()
        rows = np.sort((slots.astype(np.int64) << bits) | np.arange(len(slots))) & ((1 << bits) - 1)
        own = slots[rows]
        border = np.ones(len(own) + 1, np.bool_)
        border[1:-1] = own[1:] != own[:-1]
        first, last = (border[:-1], border[1:]) if len(own) else (border[:0], border[:0])
        return cls(own, times[rows], places[rows], behind[rows], first, last)

    @property
    def _begun(self) -> NDArray[np.bool_]:
        """Which came when the watermark had begun; those of a sensor that had not come before these."""
        return self.marks >= NEVER

    def believed(self, before: NDArray[np.int64]) -> NDArray[np.int64]:
        """``before`` without times from when the watermark had not begun that it shows to be wrong."""
        wrong = self._begun[self.first] & (before > np.maximum(self.marks[self.first], NEVER) + _AHEAD_NS)
        return np.where(wrong, NEVER, before)

    def newest(self, before: NDArray[np.int64]) -> NDArray[np.int64]:
        """The newest time of the sensor with each record; ``before`` has it for each sensor, in order of slots (`believed`)."""
        times = self.times.copy()
        times[self.first] = np.maximum(times[self.first], before)
        self._forget_wrong(times)
        if bool(np.all((times[1:] >= times[:-1]) | self.first[1:])):
            return times
        # The running maximum of each sensor, in one go: of ranks that grow from sensor to sensor.
        order = np.argsort(times, kind="stable")
        ranks = np.empty(len(times), np.int64)
        ranks[order] = np.arange(len(times))
        sensors = np.cumsum(self.first) - 1
        running = np.maximum.accumulate(sensors * len(times) + ranks) - sensors * len(times)
        newest: NDArray[np.int64] = times[order[running]]
        return newest

    def _forget_wrong(self, times: NDArray[np.int64]) -> None:
        """As `believed`, where the watermark begins between two records of a sensor."""
        begun = self._begun
        starts = np.flatnonzero(self.first)
        for at in (np.flatnonzero(begun[1:] & ~begun[:-1] & ~self.first[1:]) + 1).tolist():
            start = int(starts[np.searchsorted(starts, at, "right") - 1])
            if times[start:at].max() > self.marks[at] + _AHEAD_NS:
                times[start:at] = NEVER

    def silences(self, newest: NDArray[np.int64], before: NDArray[np.int64], after_ns: int, until: int) -> Silences:
        """Those that begin with one of these records; ``until`` is where the watermark is behind the slab."""
        since, reached = self.marks.copy(), np.append(self.marks, until)[1:]
        # A sensor that is heard for the first time has not been reported yet, however late it is.
        known = np.roll(newest, 1)
        known[self.first] = before
        since[known == NEVER] = NEVER
        reached[self.last] = until
        deadlines = newest + after_ns
        found = (newest > NEVER) & (deadlines >= since) & (deadlines < reached)
        return Silences(self.slots[found], newest[found], self.places[found])
