"""The watermark: how far event time has come, record by record in input order.

It is the greatest event time so far less ``lag``, and never goes back. It says nothing of any one sensor: one that is
silent holds nobody up. A window ends for all sensors at the record (or the tick) with which the watermark passes its
end, so where rows come out follows from the input's order alone.

Clocks are wrong now and then, and one record from the year 2030 would make every record after it late. So:

- a record whose time is more than ``max_ahead`` after its arrival never moves the watermark;
- neither does one that leaps more than ``max_ahead`` beyond all before it, unless it came when it says (a live source
  after a night of silence), or eight in a row leap (a recording with a hole in it: `_AGREEING`), whatever ``max_ahead`` is;
- the first record's time, unless it came when it says, moves nothing before a second is less than ``max_ahead`` away;
  where the two are further apart, nine are heard, and the newest that is not so far ahead of their median is believed.

A time of 1970 moves nothing either, but it is as wrong: a record more than thirty days behind the newest time that was
believed, and more than the lag, is counted as far behind, whatever ``max_ahead`` is, since that says nothing of backlogs.

What was too far ahead is counted, and so is how often eight agreed. Rules of this file: times come in with the records, ``now`` is passed in; nothing here knows windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.column import FARTHEST

__all__ = ["BEGIN", "END", "Watermark", "WatermarkStatistics", "held_back"]

BEGIN: Final = -(1 << 63)
"""Before the first record: nothing is late, nothing ends."""
END: Final = (1 << 63) - 1
"""At the end of input: everything ends."""
_AGREEING: Final = 8
"""Records in a row that must leap before their time is believed: the least of theirs is then the newest time."""
_HEARD: Final = 9
"""Records that say what time it is at the beginning, where the first two do not agree."""
_LIVE_NS: Final = 3_600_000_000_000
"""``max_ahead`` against the arrival, when not given: an hour."""
_LEAP_NS: Final = 30 * 86_400_000_000_000
"""``max_ahead`` against the records before, when not given: thirty days, since recordings have holes."""


@dataclass(frozen=True)
class WatermarkStatistics:
    """How a watermark is."""

    mark_ns: int
    """The watermark, nanoseconds since 1970-01-01 UTC; `BEGIN` before the first record."""
    ahead: int
    """Records whose time was too far ahead to move it."""
    behind: int
    """Records whose time was far behind."""


def held_back(marks: NDArray[np.int64], delay_ns: int) -> NDArray[np.int64]:
    """The watermark as it is behind a stage whose rows come out this much later than it: to others they are not late.

    >>> held_back(np.array([BEGIN, 100, END]), 30).tolist() == [BEGIN, 70, END]
    True
    """
    if not delay_ns:
        return marks
    return np.where(marks == END, END, np.maximum(marks, BEGIN + delay_ns) - delay_ns)


class Watermark:
    """The watermark of one run.

    ``lag_ns``        how much later than the newest time a record may come without being late
    ``max_ahead_ns``  see above; None for an hour against the arrival and thirty days against the records before
    ``idle_ns``       without any record for so long, it goes on with the clock (`tick`)

    >>> mark = Watermark(lag_ns=10)
    >>> mark.advance(np.array([100, 90, 130]), wall_ns=None).tolist()[2:]
    [90, 120]
    """

    def __init__(self, *, lag_ns: int, max_ahead_ns: int | None = None, idle_ns: int = 10_000_000_000) -> None:
        self._lag = lag_ns
        self._live = _LIVE_NS if max_ahead_ns is None else max_ahead_ns
        self._leap = _LEAP_NS if max_ahead_ns is None else max_ahead_ns
        self._past = max(_LEAP_NS, lag_ns)
        self._idle = idle_ns
        self._newest = BEGIN
        self._moved_at = 0  # monotonic: when a record last came
        self._leaping: list[int] = []  # times of the records in a row that leap
        self._first: list[int] = []  # times of the first records, until one is believed
        self.mark = BEGIN
        """Where it stands."""
        self.ahead = 0
        """Records whose time was too far ahead to move it."""
        self.behind = 0
        """Records whose time was thirty days or more, and more than the lag, behind the newest."""
        self.leaps = 0
        """How often it went on because enough records in a row were too far ahead."""

    def statistics(self) -> WatermarkStatistics:
        """How it is, now."""
        return WatermarkStatistics(self.mark, self.ahead, self.behind)

    def advance(self, times: NDArray[np.int64], *, wall_ns: int | None, now_ns: int = 0) -> NDArray[np.int64]:
        """Take records in; the watermark before the first of them and after each, int64 of shape ``(n + 1,)``.

        ``wall_ns`` is the wall clock at their arrival, None where there was none; ``now_ns`` the monotonic one.
        """
        times = np.clip(times, -FARTHEST, FARTHEST)
        marks = np.empty(len(times) + 1, np.int64)
        marks[0] = self.mark
        self._moved_at = now_ns
        at = self._begin(times, marks, wall_ns) if self._newest == BEGIN else 0
        while at < len(times):
            at = self._believe(times, at, marks, wall_ns)
            if at < len(times):
                self._doubt(int(times[at]), wall_ns)
                at += 1
                marks[at] = self.mark
        return marks

    def hear(self, times: NDArray[np.int64], *, wall_ns: int | None, now_ns: int = 0) -> None:
        """The same where nobody needs the steps: a run without stages that follow it has times judged too."""
        newest = min(int(times.max(initial=self._newest)), FARTHEST)
        ahead = newest > self._newest + self._leap or (wall_ns is not None and newest > wall_ns + self._live)
        behind = int(times.min(initial=newest)) < newest - self._past
        if self._newest == BEGIN or ahead or behind or not len(times):
            self.advance(times, wall_ns=wall_ns, now_ns=now_ns)
            return
        self._leaping.clear()
        self._newest, self._moved_at = newest, now_ns
        self.mark = max(self.mark, newest - self._lag)

    def tick(self, now_ns: int) -> int | None:
        """No record has come for long: how far it should go on with the clock (`go_on`); None when it should not."""
        idle = now_ns - self._moved_at
        if self._heard == BEGIN or idle < self._idle:
            return None
        mark = self._heard + idle - self._lag
        return mark if mark > self.mark else None

    def go_on(self, mark_ns: int) -> bool:
        """Go on to there, as was decided. Whether that moved it."""
        before = self.mark
        self.mark = max(before, mark_ns)
        return self.mark > before

    def catch_up(self) -> bool:
        """The input has ended, so nothing can be late any more: go on to the newest time. Whether that moved it."""
        before = self.mark
        self.mark = max(before, self._heard)
        return self.mark > before

    def end(self) -> None:
        """The input has ended: so does everything."""
        self.mark = END

    def snapshot(self) -> dict[str, Any]:
        """All there is to know of it, for `restore`."""
        return {
            "newest": self._newest,
            "leaping": list(self._leaping),
            "first": list(self._first),
            "mark": self.mark,
            "ahead": self.ahead,
            "behind": self.behind,
            "leaps": self.leaps,
        }

    def restore(self, snapshot: Mapping[str, Any], now_ns: int) -> None:
        """Go on where another stood."""
        self._newest, self.mark = snapshot["newest"], snapshot["mark"]
        self.ahead, self.leaps = snapshot["ahead"], snapshot["leaps"]
        self.behind = snapshot["behind"]
        self._leaping, self._first = list(snapshot["leaping"]), list(snapshot["first"])
        self._moved_at = now_ns

    @property
    def _heard(self) -> int:
        """The newest time, as far as is known; `BEGIN` before the first record."""
        return self._newest if self._newest != BEGIN or not self._first else self._agreed()

    def _agreed(self) -> int:
        """The newest of the first times that is not far ahead of their median."""
        middle = sorted(self._first)[(len(self._first) - 1) // 2]
        return max(time_ns for time_ns in self._first if time_ns <= middle + self._leap)

    def _begin(self, times: NDArray[np.int64], marks: NDArray[np.int64], wall_ns: int | None) -> int:
        """Go through the first records until a time is believed; the place behind."""
        for at, time_ns in enumerate(times.tolist(), 1):
            marks[at] = self.mark
            if wall_ns is not None and time_ns > wall_ns + self._live:
                self.ahead += 1
                continue
            self._first.append(time_ns)
            heard, oldest, newest = len(self._first), min(self._first), max(self._first)
            if wall_ns is not None and time_ns >= wall_ns - self._live:
                self._newest = newest
            elif heard == _HEARD or (heard == 2 and newest <= oldest + self._leap):
                self._newest = self._agreed()
            else:
                continue
            self.ahead += sum(time_ns > self._newest for time_ns in self._first)
            self.behind += sum(time_ns < self._newest - self._past for time_ns in self._first)
            self._first.clear()
            self.mark = max(self.mark, self._newest - self._lag)
            marks[at] = self.mark
            return at
        return len(times)

    def _believe(self, times: NDArray[np.int64], start: int, marks: NDArray[np.int64], wall_ns: int | None) -> int:
        """Go through the records up to the next whose time is doubtful; its place."""
        rest = times[start:]
        newest = self._newest
        running = np.maximum(np.maximum.accumulate(rest), newest)
        top, stop = int(running[-1]), len(rest)
        if top > newest + self._leap or (wall_ns is not None and top > wall_ns + self._live):
            doubtful = rest - np.concatenate(([newest], running[:-1])) > self._leap
            if wall_ns is not None:
                doubtful = (doubtful & (rest < wall_ns - self._live)) | (rest > wall_ns + self._live)
            stop = int(np.argmax(doubtful)) if doubtful.any() else stop
        if stop:
            self._leaping.clear()
            self._newest = int(running[stop - 1])
            if int(rest[:stop].min()) < self._newest - self._past:
                self.behind += int(np.count_nonzero(rest[:stop] < running[:stop] - self._past))
            marks[start + 1 : start + stop + 1] = np.maximum(running[:stop] - self._lag, self.mark)
            self.mark = int(marks[start + stop])
        return start + stop

    def _doubt(self, time_ns: int, wall_ns: int | None) -> None:
        """A record that leaps: it counts as ahead, unless enough of its kind come in a row."""
        self.ahead += 1
        if wall_ns is not None and time_ns > wall_ns + self._live:
            return
        self._leaping.append(time_ns)
        if len(self._leaping) == _AGREEING:
            self.ahead -= _AGREEING
            self.leaps += 1
            self._newest = min(self._leaping)
            self.mark = max(self.mark, self._newest - self._lag)
            self._leaping.clear()
