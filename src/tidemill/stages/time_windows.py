"""Windows in event time, per sensor: which of them a record is in, and when they end.

A window holds the records with ``start <= time < end``.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tidemill.durations import duration_ns, shown
from tidemill.errors import PlanError
from tidemill.stages.event_buffer import NEVER

__all__ = ["Cut", "Session", "Sliding", "TimeWindow", "session", "sliding", "tumbling"]

Duration = str | float | timedelta
_MOST_WINDOWS: Final = 10_000
"""That a record may be in."""
_LONGEST: Final = 1 << 61  # ns, 73 years: the end of a window that holds a time of today is a time too


@dataclass(frozen=True)
class Cut:
    """Windows, found in records that are sorted by sensor and time."""

    first: NDArray[np.intp]
    """Position of each one's first record."""
    stop: NDArray[np.intp]
    """Position behind its last."""
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def take(self, chosen: NDArray[np.bool_]) -> Cut:
        return Cut(self.first[chosen], self.stop[chosen], self.starts[chosen], self.ends[chosen])


class TimeWindow(abc.ABC):
    """A way to cut event time into windows."""

    @abc.abstractmethod
    def late_after(self, times: NDArray[np.int64]) -> NDArray[np.int64]:
        """The watermark at which a record of each time is late: no window is open for it any more."""

    @abc.abstractmethod
    def first_end(self, times: NDArray[np.int64]) -> NDArray[np.int64]:
        """The least watermark at which a window that a record of each time is in may end."""

    @abc.abstractmethod
    def next_end(self, slots: NDArray[np.int32], times: NDArray[np.int64], mark: int) -> int:
        """The least end beyond ``mark`` of a window of these records; a number that no watermark reaches if there are none."""

    @abc.abstractmethod
    def cut(self, slots: NDArray[np.int32], times: NDArray[np.int64], after: int, until: int) -> Cut:
        """The windows with ``after < end <= until`` that hold one of these records, sorted by sensor and then time."""

    @abc.abstractmethod
    def needed(self, slots: NDArray[np.int32], times: NDArray[np.int64], mark: int) -> NDArray[np.bool_]:
        """Which of these records are in a window that has not ended at the watermark ``mark``."""


@dataclass(frozen=True)
class Sliding(TimeWindow):
    """Windows of one size, one beginning every so often; made by `sliding` and `tumbling`."""

    size_ns: int
    every_ns: int
    offset_ns: int = 0

    def __repr__(self) -> str:
        if self.size_ns == self.every_ns:
            return f"tumbling({shown(self.size_ns)!r})"
        return f"sliding({shown(self.size_ns)!r}, {shown(self.every_ns)!r})"

    def late_after(self, times: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._last_start(times) + self.size_ns

    def first_end(self, times: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._last_start(times) + self.every_ns

    def next_end(self, slots: NDArray[np.int32], times: NDArray[np.int64], mark: int) -> int:
        if not len(times):
            return NEVER
        begins = (mark - self.size_ns - self.offset_ns) // self.every_ns + 1
        return max(int(self.first_end(times).min()), begins * self.every_ns + self.offset_ns + self.size_ns)

    def cut(self, slots: NDArray[np.int32], times: NDArray[np.int64], after: int, until: int) -> Cut:
        if not len(times):
            return _no_windows()
        steps = (self._last_start(times) - self.offset_ns) // self.every_ns
        span = self.size_ns // self.every_ns
        # A record's windows begin at its step and the span - 1 before it; so do those of all records of one step.
        fresh = np.ones(len(steps), np.bool_)
        fresh[1:] = (slots[1:] != slots[:-1]) | (steps[1:] != steps[:-1])
        owners, last = slots[fresh].astype(np.int64), steps[fresh]
        ended = self._begins(after, until, int(last.min()) - span, int(last.max()))
        begins, owners = _ranges(np.maximum(last - span + 1, ended[0]), np.minimum(last, ended[1]), owners)
        order = np.lexsort((begins, owners))
        owners, begins = owners[order], begins[order]
        fresh = np.ones(len(owners), np.bool_)
        fresh[1:] = (owners[1:] != owners[:-1]) | (begins[1:] != begins[:-1])
        owners, begins = owners[fresh], begins[fresh]
        first = _search(slots, steps, owners, begins)
        stop = _search(slots, steps, owners, begins + span)
        starts = begins * self.every_ns + self.offset_ns
        return Cut(first, stop, starts, starts + self.size_ns)

    def _begins(self, after: int, until: int, least: int, most: int) -> tuple[int, int]:
        """First and last begin, in steps, of the windows with ``after < end <= until``, as far as records may lie."""
        to_begin = self.size_ns + self.offset_ns
        low, high = ((end - to_begin) // self.every_ns for end in (after, until))
        return max(low + 1, least), min(high, most)

    def needed(self, slots: NDArray[np.int32], times: NDArray[np.int64], mark: int) -> NDArray[np.bool_]:
        needed: NDArray[np.bool_] = self.late_after(times) > mark
        return needed

    def _last_start(self, times: NDArray[np.int64]) -> NDArray[np.int64]:
        """Start of the last window that holds each time."""
        start: NDArray[np.int64] = (times - self.offset_ns) // self.every_ns * self.every_ns + self.offset_ns
        return start


@dataclass(frozen=True)
class Session(TimeWindow):
    """Records that follow one another within less than a gap; made by `session`."""

    gap_ns: int

    def __repr__(self) -> str:
        return f"session({shown(self.gap_ns)!r})"

    def late_after(self, times: NDArray[np.int64]) -> NDArray[np.int64]:
        return times + 1  # one nanosecond behind the watermark: it might belong to a session that has ended

    def first_end(self, times: NDArray[np.int64]) -> NDArray[np.int64]:
        return times + self.gap_ns

    def next_end(self, slots: NDArray[np.int32], times: NDArray[np.int64], mark: int) -> int:
        return min(self._sessions(slots, times).ends.tolist(), default=NEVER)

    def cut(self, slots: NDArray[np.int32], times: NDArray[np.int64], after: int, until: int) -> Cut:
        whole = self._sessions(slots, times)
        return whole.take((whole.ends > after) & (whole.ends <= until))

    def needed(self, slots: NDArray[np.int32], times: NDArray[np.int64], mark: int) -> NDArray[np.bool_]:
        whole = self._sessions(slots, times)
        return np.repeat(whole.ends > mark, whole.stop - whole.first)

    def _sessions(self, slots: NDArray[np.int32], times: NDArray[np.int64]) -> Cut:
        if not len(times):
            return _no_windows()
        begins = np.ones(len(times), np.bool_)
        begins[1:] = (slots[1:] != slots[:-1]) | (times[1:] - times[:-1] >= self.gap_ns)
        first = np.flatnonzero(begins)
        stop = np.append(first[1:], len(times))
        return Cut(first, stop, times[first], times[stop - 1] + self.gap_ns)


def _length_ns(value: Duration, *, name: str) -> int:
    """Of a window; raises `PlanError` for one whose ends nanoseconds could not tell."""
    length_ns = duration_ns(value, name=name)
    if length_ns > _LONGEST:
        raise PlanError(f"{name}={value!r} is too long; a window may last 73 years.")
    return length_ns


def _no_windows() -> Cut:
    return Cut(*np.zeros((4, 0), np.int64))


def _ranges(
    low: NDArray[np.int64], high: NDArray[np.int64], owners: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All numbers from ``low`` to ``high`` of each pair, one pair after another, and the owner of each."""
    counts = np.maximum(high - low + 1, 0)
    starts = np.cumsum(counts) - counts
    within = np.arange(int(counts.sum())) - np.repeat(starts, counts)
    return np.repeat(low, counts) + within, np.repeat(owners, counts)


def _search(
    slots: NDArray[np.int32], steps: NDArray[np.int64], owners: NDArray[np.int64], begins: NDArray[np.int64]
) -> NDArray[np.intp]:
    """Where (owner, begin) would stand among the sorted (slot, step)."""
    if not len(owners):
        return np.zeros(0, np.intp)
    low = min(int(steps.min()), int(begins.min()))
    width = max(int(steps.max()), int(begins.max())) - low + 1
    if (
        width * (int(owners.max()) + 1) >= 1 << 62
    ):  # one time of another century, and windows of microseconds: by their ranks
        known, ranks = np.unique(np.concatenate([steps, begins]), return_inverse=True)
        steps, begins, low, width = ranks[: len(steps)], ranks[len(steps) :], 0, len(known)
    return np.searchsorted(slots * np.int64(width) + (steps - low), owners * width + (begins - low))


def tumbling(size: Duration, *, offset: Duration = 0) -> Sliding:
    """Windows that follow one another without a gap, of ``size``, beginning at multiples of it since 1970-01-01 UTC.

    ``offset`` moves all of them: ``tumbling("1d", offset="6h")`` begins its days at six. Sizes are texts such as
    ``"10s"``, seconds, or timedeltas. Raises `PlanError` for what is no duration, or longer than 73 years.

    >>> tumbling("10s")
    tumbling('10s')
    """
    size_ns = _length_ns(size, name="tumbling: size")
    return Sliding(size_ns, size_ns, duration_ns(offset, name="tumbling: offset", zero=True) % size_ns)


def sliding(size: Duration, every: Duration, *, offset: Duration = 0) -> Sliding:
    """Windows of ``size``, one beginning at each multiple of ``every``: a record is in ``size / every`` of them.

    ``size`` must be a multiple of ``every``, at most 10,000 times that, and at most 73 years; else, or for what is no
    duration, raises `PlanError`. What it costs grows with the windows that a record is in.

    >>> sliding("60s", "10s")
    sliding('1min', '10s')
    """
    size_ns = _length_ns(size, name="sliding: size")
    every_ns = duration_ns(every, name="sliding: every")
    if size_ns % every_ns:
        raise PlanError(
            f"sliding({size!r}, {every!r}): the size must be a multiple of every, such as ({every!r} times 6)."
        )
    if size_ns // every_ns > _MOST_WINDOWS:
        raise PlanError(
            f"sliding({size!r}, {every!r}): a record would be in {size_ns // every_ns:,} windows, of at most {_MOST_WINDOWS:,}."
        )
    return Sliding(size_ns, every_ns, duration_ns(offset, name="sliding: offset", zero=True) % every_ns)


def session(gap: Duration) -> Session:
    """Windows of records that follow one another within less than ``gap``; each ends a gap after its last record.

    Raises `PlanError` for a ``gap`` that is no duration, or longer than 73 years.

    >>> session("5min")
    session('5min')
    """
    return Session(_length_ns(gap, name="session: gap"))
