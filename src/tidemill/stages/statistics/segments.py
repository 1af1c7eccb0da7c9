"""Statistics of segments: consecutive values of flat arrays, such as the windows of records that are sorted by time.

A segment's statistic depends on the values in it and their order alone. NaN is left out, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["SEGMENT_STATISTICS", "Segments"]

_S: Final = 1e9  # nanoseconds in a second


class Segments:
    """Segments ``first[i]`` to ``stop[i]`` of ``values``, at ``times`` (int64 ns, ascending in each segment).

    They may overlap, and must not fall back: both ends ascend.
    """

    def __init__(
        self,
        values: NDArray[np.float64],
        times: NDArray[np.int64],
        first: NDArray[np.intp],
        stop: NDArray[np.intp],
        ddof: int,
    ) -> None:
        there = values == values  # noqa: PLR0124 - false for NaN alone
        if not there.all():
            before = np.concatenate(([0], np.cumsum(there)))
            values, times, first, stop = values[there], times[there], before[first], before[stop]
        self.values, self.times, self.first, self.stop = values, times, first, stop
        self.ddof = ddof
        self.counts = stop - first
        self._held = self.counts > 0
        self._known: dict[str, NDArray[np.float64]] = {}

    def of(self, statistic: str) -> NDArray[np.float64]:
        """A statistic by name, float64, one per segment; NaN where there is none."""
        if statistic not in self._known:
            with np.errstate(all="ignore"):
                self._known[statistic] = SEGMENT_STATISTICS[statistic](self)
        return self._known[statistic]

    def quantile(self, q: float) -> NDArray[np.float64]:
        """The value at place ``(n - 1) * q`` of the sorted ones, linearly between two."""
        values, first, stop = self._apart()
        owners = np.repeat(np.arange(len(first)), stop - first)
        ordered = values[np.lexsort((values, owners))]
        place = np.maximum(self.counts - 1, 0) * q
        low = np.floor(place).astype(np.intp)
        high = np.minimum(low + 1, np.maximum(self.counts - 1, 0))
        below, above = self._at(ordered, first + low), self._at(ordered, first + high)
        share = place - low
        with np.errstate(invalid="ignore"):
            between = np.where(np.isinf(below) | np.isinf(above), below + above, below + (above - below) * share)
            return self._where_held(np.where(share > 0, between, below))

    def each(self, function: Callable[[NDArray[np.float64]], Any], row: int) -> Any:
        """A function of one's own of one segment's values."""
        values = self.values[self.first[row] : self.stop[row]]
        values.flags.writeable = False
        return function(values)

    # -- how ------------------------------------------------------------------------------------------------

    def _apart(self) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.intp]]:
        """The values with no value in two segments, and where the segments are then."""
        stop = np.cumsum(self.counts)
        return self.values[self._places()], stop - self.counts, stop

    def _places(self) -> NDArray[np.intp]:
        starts = np.cumsum(self.counts) - self.counts
        places: NDArray[np.intp] = np.arange(int(self.counts.sum())) - np.repeat(starts - self.first, self.counts)
        return places

    def _fold(self, fold: np.ufunc, values: NDArray[np.float64], first: Any, stop: Any) -> NDArray[np.float64]:
        """``fold`` over each segment that holds something; NaN for the others."""
        made = np.full(len(first), np.nan)
        held = stop > first
        if held.any():
            bounds = np.stack([first[held], stop[held]], axis=1).ravel()
            made[held] = fold.reduceat(np.append(values, 0.0), bounds)[::2]
        return made

    def _at(self, values: NDArray[np.float64], places: NDArray[np.intp]) -> NDArray[np.float64]:
        if not len(values):
            return np.full(len(places), np.nan)
        return values[np.clip(places, 0, len(values) - 1)]

    def _where_held(self, made: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(self._held, made, np.nan)

    def _sum(self) -> NDArray[np.float64]:
        return np.where(self._held, self._fold(np.add, self.values, self.first, self.stop), 0.0)

    def _mean(self) -> NDArray[np.float64]:
        """Exactly the value itself where all are equal, as in `Rolling`."""
        still = self.of("min") == self.of("max")
        return np.where(still, self.of("min"), self._where_held(self.of("sum") / self.counts))

    def _squares(self, around: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums of squared distances from a centre of each segment."""
        values, first, stop = self._apart()
        off = values - np.repeat(around, self.counts)
        return self._fold(np.add, off * off, first, stop)

    def _var(self) -> NDArray[np.float64]:
        divisor = np.where(self.counts > self.ddof, self.counts - self.ddof, np.nan)
        return self._squares(self.of("mean")) / divisor

    def _seconds(self) -> NDArray[np.float64]:
        """Elapsed from the first value to the last."""
        if not len(self.times):
            return np.full(len(self.first), np.nan)
        last = self.times[np.clip(self.stop - 1, 0, len(self.times) - 1)]
        return (last - self.times[np.clip(self.first, 0, len(self.times) - 1)]) / _S

    def _rate(self) -> NDArray[np.float64]:
        seconds = self._seconds()
        return self._where_held(self.of("delta") / np.where(seconds > 0, seconds, np.nan))

    def _slope(self) -> NDArray[np.float64]:
        """Least squares: ``sum((t - mean(t)) * (x - mean(x))) / sum((t - mean(t)) ** 2)``, t in seconds."""
        if not len(self.values):
            return np.full(len(self.first), np.nan)
        places, stop = self._places(), np.cumsum(self.counts)
        first = stop - self.counts
        origin = np.repeat(self.times[np.clip(self.first, 0, len(self.times) - 1)], self.counts)
        ahead = (self.times[places] - origin) / _S
        mean = self._fold(np.add, ahead, first, stop) / self.counts
        off = ahead - np.repeat(mean, self.counts)
        above = self.values[places] - np.repeat(self.of("mean"), self.counts)
        spread = self._fold(np.add, off * off, first, stop)
        return self._fold(np.add, off * above, first, stop) / np.where(spread > 0, spread, np.nan)


SEGMENT_STATISTICS: Final[Mapping[str, Callable[[Segments], NDArray[np.float64]]]] = {
    "count": lambda s: s.counts.astype(np.float64),
    "sum": Segments._sum,
    "mean": Segments._mean,
    "var": Segments._var,
    "std": lambda s: np.sqrt(s.of("var")),
    "min": lambda s: s._fold(np.minimum, s.values, s.first, s.stop),
    "max": lambda s: s._fold(np.maximum, s.values, s.first, s.stop),
    "range": lambda s: s.of("max") - s.of("min"),
    "median": lambda s: s.quantile(0.5),
    "first": lambda s: s._where_held(s._at(s.values, s.first)),
    "last": lambda s: s._where_held(s._at(s.values, s.stop - 1)),
    "delta": lambda s: s.of("last") - s.of("first"),
    "rate": Segments._rate,
    "slope": Segments._slope,
    "rms": lambda s: np.sqrt(s._squares(np.zeros(len(s.first))) / np.where(s._held, s.counts, np.nan)),
}
"""The statistics by name."""
