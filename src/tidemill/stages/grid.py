"""Readings of each sensor, and what they say at the points of a regular grid in event time.

A point is told by the reading at or behind it: between two readings of a sensor there are the points behind the first, up
to the second. So nothing is told before a sensor's first reading, nor behind its last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tidemill.stages.event_buffer import Waiting
from tidemill.stages.newest import NEVER_READ
from tidemill.stages.statistics.segments import Segments

__all__ = ["METHODS", "NO_LIMIT", "Grid", "Points", "Readings", "merged"]

NO_LIMIT: Final = 1 << 61
"""73 years, which can be added to a time."""
_UNREACHED: Final = (1 << 63) - 1
_NOWHERE: Final = -(1 << 62)
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Places = NDArray[np.intp]


@dataclass(frozen=True)
class Grid:
    """The points ``offset_ns + n * every_ns``."""

    every_ns: int
    offset_ns: int = 0

    def at_or_before(self, times: Ints) -> Ints:
        """Number of the newest point at or before each time."""
        return (times - self.offset_ns) // self.every_ns

    def time(self, numbers: Ints) -> Ints:
        """The points of these numbers."""
        return numbers * self.every_ns + self.offset_ns


class Readings:
    """Readings with a value for each column, NaN for none, sorted by sensor, time and values.

    ``earlier`` has, of each sensor, time and value of the newest reading of each column before these, and behind the
    columns the time of the newest of any: shape ``(sensors, columns + 1)``; for `mean` the last alone will do.
    """

    def __init__(self, waiting: Waiting) -> None:
        self.waiting = waiting
        self.slots, self.times, self.values = waiting.slots, waiting.times, waiting.values
        first = _changes(self.slots)
        self.first = np.flatnonzero(first)
        """Place of each sensor's first."""
        self.sensor: NDArray[np.intp] = np.cumsum(first) - 1
        """Of each reading, the place of its sensor among them."""
        self.earlier: tuple[Ints, Floats] = np.empty((0, 1), np.int64), np.empty((0, 1))

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def sensors(self) -> NDArray[np.int32]:
        """The sensors' key slots."""
        return self.slots[self.first]

    def before(self) -> Ints:
        """Time of the reading before each; `NEVER_READ` where there was none."""
        before = np.empty(len(self), np.int64)
        before[1:] = self.times[:-1]
        before[self.first] = self.earlier[0][:, -1]
        return before

    def newest_with(self, column: int) -> Places:
        """Place of the column's newest value with or before each reading of the sensor, -1 if it was before all."""
        last = np.maximum.accumulate(np.where(np.isnan(self.values[column]), -1, np.arange(len(self))))
        return np.where(last < self.first[self.sensor], -1, last)

    def next_with(self, column: int) -> Places:
        """Place of the column's first value with or behind each reading of the sensor, -1 if there is none."""
        there = np.where(np.isnan(self.values[column]), len(self), np.arange(len(self)))
        following = np.minimum.accumulate(there[::-1])[::-1]
        stop = np.append(self.first[1:], len(self))
        return np.where(following < stop[self.sensor], following, -1)

    def up_to(self, pending: Places) -> NDArray[np.bool_]:
        """Which readings come before the first of their sensor that is pending."""
        marked = np.zeros(len(self), np.intp)
        marked[pending] = 1
        count = np.cumsum(marked)
        before: NDArray[np.bool_] = count == (count - marked)[self.first][self.sensor]
        return before

    def newest(self, done: NDArray[np.bool_]) -> tuple[Places, Ints, Floats]:
        """Which sensors have readings that are done, the first of each; and what is ``earlier`` of them then."""
        times, values = self.earlier[0].copy(), self.earlier[1].copy()
        counts = np.bincount(self.sensor[done], minlength=len(self.first))
        touched = np.flatnonzero(counts)
        at = self.first[touched] + counts[touched] - 1
        times[touched, -1] = self.times[at]
        for column in range(times.shape[1] - 1):
            last = self.newest_with(column)[at]
            there = touched[last >= 0]
            times[there, column] = self.times[last[last >= 0]]
            values[there, column] = self.values[column][last[last >= 0]]
        return touched, times[touched], values[touched]


@dataclass(frozen=True)
class Points:
    """Points of the grid of one sensor after another, ascending, and what the columns say there."""

    times: Ints
    tellers: Places
    """Of each, the place of the reading that tells it."""
    reach: Ints
    """The time up to which all must be known for it; does not fall from point to point of a sensor."""
    values: Sequence[Floats]

    def take(self, chosen: NDArray[np.bool_]) -> Points:
        """Some of them."""
        values = [column[chosen] for column in self.values]
        return Points(self.times[chosen], self.tellers[chosen], self.reach[chosen], values)


def last(readings: Readings, grid: Grid, max_gap_ns: int) -> Points:
    """The newest value at or before each point, no older than ``max_gap_ns``."""
    before = _before_or_none(readings)
    points = _between(readings, grid, before, grid.at_or_before(before + max_gap_ns))
    values = []
    for column in range(len(readings.values)):
        old, low = points.before(column)
        values.append(np.where(old >= points.times - max_gap_ns, low, np.nan))
    return Points(points.times, points.tellers, readings.times[points.tellers], values)


def linear(readings: Readings, grid: Grid, max_gap_ns: int) -> Points:
    """On the line between the values around each point, if these are at most ``max_gap_ns`` apart."""
    before = _before_or_none(readings)
    near = readings.times <= before + max_gap_ns
    points = _between(readings, grid, before, np.where(near, grid.at_or_before(readings.times), _NOWHERE))
    reach, values = readings.times[points.tellers], []
    for column in range(len(readings.values)):
        (old, low), (new, high) = points.before(column), points.after(column)
        here = old == points.times
        open_ = ~here & (old >= points.times - max_gap_ns)  # a value to come may make a line
        wait = np.where(open_, np.minimum(np.maximum(old, -NO_LIMIT * 2) + max_gap_ns, new), points.times)
        reach = np.maximum(reach, wait)
        made = np.where(here, low, np.nan)
        both = np.flatnonzero(open_ & (new <= wait))
        old, low, new, high = old[both], low[both], new[both], high[both]
        made[both] = low + (high - low) * ((points.times[both] - old) / (new - old))
        values.append(made)
    return Points(points.times, points.tellers, reach, values)


def mean(readings: Readings, grid: Grid, max_gap_ns: int) -> Points:
    """The mean of the values from each point up to the next; NaN where there are none."""
    numbers = grid.at_or_before(readings.times)
    fresh = _changes(readings.slots) | _changes(numbers)
    first = np.flatnonzero(fresh)
    own = numbers[first]
    known = readings.before()[first]
    gone = np.where(known == NEVER_READ, own - 1, grid.at_or_before(known))
    empty = own - gone <= max_gap_ns // grid.every_ns
    made, groups = _runs(np.where(empty, gone + 1, own), own)
    stop = np.append(first[1:], len(readings))
    held = made == own[groups]
    values = []
    for column in readings.values:
        means = np.full(len(made), np.nan)
        means[held] = Segments(column, readings.times, first, stop, 0).of("mean")
        values.append(means)
    return Points(grid.time(made), stop[groups] - 1, grid.time(own + 1)[groups] - 1, values)


METHODS: Final[Mapping[str, Callable[[Readings, Grid, int], Points]]] = {"last": last, "linear": linear, "mean": mean}


@dataclass(frozen=True)
class _Between:
    """Points that lie behind the reading before their teller, and not behind that."""

    readings: Readings
    times: Ints
    tellers: Places

    def before(self, column: int) -> tuple[Ints, Floats]:
        """Time and value of the column's newest at or before each point."""
        readings = self.readings
        newest = readings.newest_with(column)
        behind = np.append(-1, newest[:-1])
        behind[readings.first] = -1
        places = np.where(self.times == readings.times[self.tellers], newest[self.tellers], behind[self.tellers])
        sensors = readings.sensor[self.tellers]
        times, values = (known[sensors, column] for known in readings.earlier)
        there = places >= 0
        times[there], values[there] = readings.times[places[there]], readings.values[column][places[there]]
        return times, values

    def after(self, column: int) -> tuple[Ints, Floats]:
        """Time and value of its first at or behind each point; a time that nothing reaches where there is none."""
        readings = self.readings
        places = readings.next_with(column)[self.tellers]
        there = places >= 0
        times, values = np.full(len(places), _UNREACHED), np.full(len(places), np.nan)
        times[there], values[there] = readings.times[places[there]], readings.values[column][places[there]]
        return times, values


def _before_or_none(readings: Readings) -> Ints:
    """Time of the reading before each; where there was none, so close that no other point than its own lies between."""
    before = readings.before()
    return np.where(before == NEVER_READ, readings.times - 1, before)


def _between(readings: Readings, grid: Grid, before: Ints, most: Ints) -> _Between:
    """The points behind ``before`` up to each reading, numbers up to ``most``; a point at its very time in any case."""
    low, high = grid.at_or_before(before) + 1, grid.at_or_before(readings.times)
    numbers, tellers = _runs(low, np.minimum(high, most))
    here = np.flatnonzero((high > most) & (low <= high) & (grid.time(high) == readings.times))
    order = np.argsort(np.append(tellers, here), kind="stable")
    return _Between(readings, grid.time(np.append(numbers, high[here])[order]), np.append(tellers, here)[order])


def merged(waiting: Waiting) -> Waiting:
    """Readings in event order, those of one sensor and time made one: of each column the greatest value."""
    fresh = _changes(waiting.slots) | _changes(waiting.times)
    if fresh.all():
        return waiting
    first = np.flatnonzero(fresh)
    values = tuple(np.fmax.reduceat(column, first) for column in waiting.values)
    return Waiting(waiting.slots[first], waiting.times[first], values)


def _changes(values: NDArray[np.int32] | Ints) -> NDArray[np.bool_]:
    """Where each value is another than the one before it."""
    changes = np.ones(len(values), np.bool_)
    changes[1:] = values[1:] != values[:-1]
    return changes


def _runs(low: Ints, high: Ints) -> tuple[Ints, Places]:
    """All numbers from ``low`` to ``high`` of each pair, one pair after another, and the pair of each."""
    counts = np.maximum(high - low + 1, 0)
    ends = np.cumsum(counts)
    pairs = np.repeat(np.arange(len(low)), counts)
    return np.arange(int(counts.sum())) - (ends - counts)[pairs] + low[pairs], pairs
