"""Readings of several channels side by side: for each device and time, what each channel says then.

The rows of a `Table` are the distinct times of each device's readings, sorted by device and time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tidemill.stages.event_buffer import Waiting

__all__ = ["NO_LIMIT", "Table"]

NO_LIMIT: Final = 1 << 61
"""73 years: a tolerance that nothing is beyond, and that can be added to a time."""
_UNREACHED: Final = (1 << 63) - 1


@dataclass(frozen=True)
class _Channel:
    """The readings of one channel, sorted by row."""

    rows: NDArray[np.intp]
    times: NDArray[np.int64]
    values: NDArray[np.float64]


class Table:
    """Of readings, with a column of channel numbers and one of values.

    ``slots``, ``times``  of each row
    ``devices``           each device's slot, in the order of the rows; ``device`` has its place there for each row

    Of several readings of one channel at one time the greatest counts, whatever order they came in.
    """

    def __init__(self, readings: Waiting, channels: int) -> None:
        self._readings = readings = _distinct(readings)
        self._of_channel, self._values = readings.values
        new_device = _changes(readings.slots)
        new_row = new_device | _changes(readings.times)
        self._row = np.cumsum(new_row) - 1
        self.slots, self.times = readings.slots[new_row], readings.times[new_row]
        self.devices = readings.slots[new_device]
        self.device = np.cumsum(new_device[new_row]) - 1
        self._first = np.flatnonzero(new_device[new_row])
        self._stop = np.append(self._first[1:], len(self))
        self._channels = channels

    def __len__(self) -> int:
        return len(self.slots)

    @cached_property
    def channels(self) -> list[_Channel]:
        """The readings by channel."""
        order = np.argsort(self._of_channel, kind="stable")
        ends = np.searchsorted(self._of_channel[order], np.arange(1, self._channels))
        return [_Channel(self._row[own], self._readings.times[own], self._values[own]) for own in np.split(order, ends)]

    def with_reading(self, channel: int) -> NDArray[np.bool_]:
        """Which rows have a reading of the channel."""
        there = np.zeros(len(self), np.bool_)
        there[self.channels[channel].rows] = True
        return there

    def readings_of(self, rows: NDArray[np.bool_]) -> Waiting:
        """The readings that are in these rows."""
        return self._readings.take(rows[self._row])

    def before(
        self, channel: int, earlier: tuple[NDArray[np.int64], NDArray[np.float64]]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Time and value of the channel's newest reading at or before each row; ``earlier`` has those of each device
        before the first."""
        own = self.channels[channel]
        place: NDArray[np.intp] = np.cumsum(self.with_reading(channel)) - 1
        first = self._first[self.device]
        there: NDArray[np.bool_] = place >= 0
        there[there] = own.rows[place[there]] >= first[there]
        times, values = earlier[0][:, channel][self.device], earlier[1][:, channel][self.device]
        times[there], values[there] = own.times[place[there]], own.values[place[there]]
        return times, values

    def after(self, channel: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Time and value of the channel's first reading at or after each row; a time that nothing reaches where there
        is none."""
        own = self.channels[channel]
        at = self.with_reading(channel)
        place: NDArray[np.intp] = np.cumsum(at) - at
        there: NDArray[np.bool_] = place < len(own.rows)
        there[there] = own.rows[place[there]] < self._stop[self.device][there]
        times, values = np.full(len(self), _UNREACHED), np.full(len(self), np.nan)
        times[there], values[there] = own.times[place[there]], own.values[place[there]]
        return times, values

    def reach(self, tolerance_ns: int) -> NDArray[np.int64]:
        """The time up to which all must be known for each row to be interpolated: that of the first reading at or after
        it of every channel, or the tolerance where that is less. It does not fall from row to row of a device."""
        reach, most = self.times.copy(), self.times + tolerance_ns
        for channel in range(self._channels):
            np.maximum(reach, np.minimum(self.after(channel)[0], most), out=reach)
        return reach

    def last(
        self, channel: int, earlier: tuple[NDArray[np.int64], NDArray[np.float64]], tolerance_ns: int
    ) -> NDArray[np.float64]:
        """The channel's newest reading at or before each row and no older than the tolerance, else NaN."""
        times, values = self.before(channel, earlier)
        return np.where(times >= self.times - tolerance_ns, values, np.nan)

    def linear(
        self, channel: int, earlier: tuple[NDArray[np.int64], NDArray[np.float64]], tolerance_ns: int
    ) -> NDArray[np.float64]:
        """Between the readings around each row, if both are within the tolerance, else NaN; a reading at its very time
        as it is."""
        old, low = self.before(channel, earlier)
        new, high = self.after(channel)
        both = np.flatnonzero((old >= self.times - tolerance_ns) & (new <= self.times + tolerance_ns))
        old, low, new, high = old[both], low[both], new[both], high[both]
        made = np.full(len(self), np.nan)
        made[both] = low + (high - low) * ((self.times[both] - old) / np.maximum(new - old, 1))
        own = self.channels[channel]
        made[own.rows] = own.values
        return made

    def newest(
        self, rows: NDArray[np.bool_], earlier: tuple[NDArray[np.int64], NDArray[np.float64]]
    ) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.float64]]:
        """The devices with readings in these rows, and the newest of each channel there, or the ``earlier`` one."""
        times, values = earlier[0].copy(), earlier[1].copy()
        for number, own in enumerate(self.channels):
            gone = rows[own.rows]
            places = self.device[own.rows[gone]]  # of several at one place, the last is the one that stays
            times[places, number], values[places, number] = own.times[gone], own.values[gone]
        touched = np.unique(self.device[rows])
        return touched, times[touched], values[touched]


def _distinct(readings: Waiting) -> Waiting:
    """Sorted by device and time; of those of one channel at one time, the greatest alone."""
    channels, values = readings.values
    bits = values.view(np.int64)
    rank = bits ^ ((bits >> 63) & np.int64(_UNREACHED))  # orders all floats, -0.0 below 0.0
    readings = readings.take(np.lexsort((rank, channels, readings.times, readings.slots)))
    channels = readings.values[0]
    new = _changes(readings.slots) | _changes(readings.times) | _changes(channels)
    return readings.take(np.append(new[1:], True)) if len(new) else readings


def _changes(values: NDArray[np.int32] | NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where each value is another than the one before it."""
    changes = np.ones(len(values), np.bool_)
    changes[1:] = values[1:] != values[:-1]
    return changes
