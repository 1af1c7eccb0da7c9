"""How a run's resources were used over the last seconds: what tells which of them is the limit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import lt
from typing import Final

__all__ = ["Load", "LoadMeter", "LoadSample"]

SPAN_NS: Final = 5_000_000_000
"""What is older counts for little: long enough for slabs that take a second, short enough to be now."""


@dataclass(frozen=True)
class LoadSample:
    """Counts since the run's attempt began, and how full things are at this moment."""

    now_ns: int
    records: int
    """Records that came in."""
    through: int
    """Of these, the ones that the lanes are through with, whatever became of them."""
    lanes_busy_ns: tuple[int, ...]
    loop_busy_ns: int
    """CPU time of the event loop's thread."""
    waiting: int
    """Records in the intake."""
    queue: float
    """Share of the intake that is filled, 0 to 1 and a little more."""
    sinks: float
    """Share of all slabs that wait for sinks, 0 to 1."""
    backlog: bool
    """Whether the ingest log has entries that wait for the lanes."""
    sink_rows: tuple[int, ...] = ()
    """Rows that each sink has written."""


@dataclass(frozen=True)
class Load:
    """Means over the last seconds; shares are 0 to 1."""

    records_per_s: float = 0.0
    """What came in."""
    through_per_s: float = 0.0
    """Records that the lanes got through."""
    lanes: tuple[float, ...] = ()
    """Of each lane, the share of time it worked."""
    loop: float = 0.0
    """The share of time that the event loop's thread had a CPU."""
    waiting: float = 0.0
    """Records in the intake."""
    queue: float = 0.0
    """How full the intake was."""
    sinks: float = 0.0
    """The share of slabs that waited for sinks."""
    backlog: float = 0.0
    """The share of time that the ingest log had entries waiting for the lanes."""
    sink_rows_per_s: tuple[float, ...] = ()
    """What each sink wrote."""


class LoadMeter:
    """Means that forget: a sample weighs as the time since the one before it, and less with age.

    >>> meter = LoadMeter()
    >>> for second in range(30):
    ...     now = second * 1_000_000_000
    ...     meter.add(LoadSample(now, 500 * second, 0, (now // 4,), now // 10, 40, 0.5, 0.0, False))
    >>> load = meter.read()
    >>> round(load.records_per_s), round(load.lanes[0], 2), round(load.loop, 2), load.queue
    (500, 0.25, 0.1, 0.5)
    """

    def __init__(self) -> None:
        self._last: LoadSample | None = None
        self._means: list[float] = []
        self._weight = 0.0

    def add(self, sample: LoadSample) -> None:
        """One more; counts that are smaller than before, or of other sinks, are another attempt's, measured from here on."""
        last, self._last = self._last, sample
        if last is None or sample.now_ns <= last.now_ns:
            return
        before = (last.records, *last.lanes_busy_ns)
        if len(sample.sink_rows) != len(last.sink_rows) or any(
            map(lt, (sample.records, *sample.lanes_busy_ns), before)
        ):
            self._means, self._weight = [], 0.0
            return
        passed = sample.now_ns - last.now_ns
        new = [
            (sample.records - last.records) / passed * 1e9,
            (sample.through - last.through) / passed * 1e9,
            (sample.loop_busy_ns - last.loop_busy_ns) / passed,
            sample.waiting,
            sample.queue,
            sample.sinks,
            float(sample.backlog),
            *((now - before) / passed for now, before in zip(sample.lanes_busy_ns, last.lanes_busy_ns, strict=True)),
            *((now - before) / passed * 1e9 for now, before in zip(sample.sink_rows, last.sink_rows, strict=True)),
        ]
        keep = math.exp(-passed / SPAN_NS)
        means = self._means or [0.0] * len(new)
        self._means = [keep * mean + (1.0 - keep) * value for mean, value in zip(means, new, strict=True)]
        self._weight = keep * self._weight + (1.0 - keep)

    def read(self) -> Load:
        """The means, now; all 0 before the second sample."""
        if self._last is None or not self._weight:
            return Load()
        records, through, loop, waiting, queue, sinks, backlog, *each = (mean / self._weight for mean in self._means)
        count = len(self._last.lanes_busy_ns)
        # A slab of seconds is counted at its end: more than the time since the look before it, not than that of many.
        lanes = tuple(min(share, 1.0) for share in each[:count])
        return Load(
            records, through, lanes, min(loop, 1.0), waiting, queue, sinks, backlog, sink_rows_per_s=tuple(each[count:])
        )
