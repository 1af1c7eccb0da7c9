"""What a run measured: live `Statistics`, the final `Report`, and the histograms behind both."""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemill.core.flows import LaneFlow, SinkFlow, SourceFlow, Trouble
from tidemill.core.load import Load
from tidemill.core.rejections import MostlyDead

__all__ = [
    "Counts",
    "Distribution",
    "Histogram",
    "LaneReport",
    "LaneStatistics",
    "Quantiles",
    "Report",
    "Spread",
    "StageReport",
    "StateStatistics",
    "Statistics",
]

_SUB = 5  # bits: 32 buckets an octave, so a quantile is at most 1/32 too low
_LONGEST = 2**63 - 1  # nanoseconds; 292 years


class Histogram:
    """Counts of durations in nanoseconds, in buckets of at most 1/32 of their height; exact below 64.

    >>> histogram = Histogram()
    >>> histogram.add(1_000_000, 99); histogram.add(50_000_000)
    >>> histogram.quantiles().max_ms
    50.0
    """

    def __init__(self) -> None:
        self._counts = array("q", bytes(8 * (64 << _SUB)))
        self._max = 0
        self._total = 0
        self._sum = 0

    def add(self, nanoseconds: int, times: int = 1) -> None:
        """Count a duration ``times`` times; negative ones count as 0."""
        value = min(max(nanoseconds, 0), _LONGEST)
        shift = max(value.bit_length() - _SUB - 1, 0)
        self._counts[(shift << _SUB) + (value >> shift)] += times
        self._total += times
        self._sum += value * times
        self._max = max(self._max, value)

    def quantile(self, q: float) -> int:
        """The duration below which a share ``q`` of the counts lies, in nanoseconds; 0 when empty."""
        if not self._total:
            return 0
        bucket = int(np.searchsorted(self._up_to(), max(q * self._total, 1)))
        shift = max((bucket >> _SUB) - 1, 0)
        return min((bucket - (shift << _SUB)) << shift, self._max)

    def _up_to(self) -> NDArray[np.int64]:
        """How many lie in each bucket and those below it."""
        return np.cumsum(np.frombuffer(self._counts, np.int64))

    @property
    def max(self) -> int:
        """The longest, in nanoseconds; exact."""
        return self._max

    def distribution(self, bounds: Sequence[int]) -> Distribution:
        """How many lie up to each of some ascending bounds, to within a bucket.

        >>> histogram = Histogram()
        >>> for value in (1, 5, 60): histogram.add(value)
        >>> histogram.distribution((4, 50))
        Distribution(bounds=(4, 50), up_to=(1, 2), samples=3, total=66)
        """
        counted = self._up_to()
        up_to = []
        for bound in bounds:
            shift = max(bound.bit_length() - _SUB - 1, 0)
            up_to.append(int(counted[(shift << _SUB) + (bound >> shift)]))
        return Distribution(tuple(bounds), tuple(up_to), self._total, self._sum)

    def quantiles(self) -> Quantiles:
        """p50, p99 and the maximum, in milliseconds."""
        return Quantiles(self.quantile(0.5) / 1e6, self.quantile(0.99) / 1e6, self._max / 1e6, self._total)


@dataclass(frozen=True)
class Quantiles:
    """Of a duration, in milliseconds."""

    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    samples: int = 0


@dataclass(frozen=True)
class Distribution:
    """Samples of one thing, counted by size."""

    bounds: tuple[int, ...] = ()
    up_to: tuple[int, ...] = ()
    """Of each bound, how many samples are as large at most."""
    samples: int = 0
    total: int = 0
    """Their sum, in the unit of the bounds."""


@dataclass
class Counts:
    """Where every record went.

    ``records_in = rows_from_records + filtered + dead_letters + late + deduplicated + dropped + absorbed + in_flight``
    and ``rows_out = rows_from_records + emitted``: always.
    """

    records_in: int = 0
    rows_from_records: int = 0
    filtered: int = 0
    dead_letters: int = 0
    late: int = 0
    deduplicated: int = 0
    dropped: int = 0
    absorbed: int = 0
    emitted: int = 0

    def book(self, records: int, gone: Iterable[Mapping[str, int]]) -> None:
        """Count records that did not become rows, nor dead letters: as what their stages say, the rest as filtered."""
        for shares in gone:
            for what, times in shares.items():
                setattr(self, what, getattr(self, what) + times)
                records -= times
        self.filtered += records

    @property
    def rows_out(self) -> int:
        return self.rows_from_records + self.emitted

    @property
    def in_flight(self) -> int:
        gone = self.filtered + self.dead_letters + self.late + self.deduplicated + self.dropped + self.absorbed
        return self.records_in - self.rows_from_records - gone


@dataclass(frozen=True)
class LaneReport:
    """One lane over the run."""

    busy: float
    """Share of the run's time it worked, 0 to 1."""
    batches: int
    restarts: int


@dataclass(frozen=True)
class StageReport:
    """One stage over the run."""

    name: str
    seconds: float
    """That all lanes together spent in it."""


@dataclass(frozen=True)
class LaneStatistics:
    """One lane, now."""

    busy: float
    """Share of the time since the last reading that it worked, 0 to 1."""
    batches: int
    restarts: int
    in_flight: int
    """Slabs it has not committed."""
    pid: int | None
    """Its process; None inline, or while a new one is being started."""
    busy_s: float = 0.0
    """Seconds that it worked, since the run began."""


@dataclass(frozen=True)
class BatchRecords:
    """Records in a slab."""

    p50: int = 0
    max: int = 0


@dataclass(frozen=True)
class Report:
    """What a run did; the same fields as JSON by ``--report FILE``. ``docs/dead-letters.md`` says what each word of the first ones
    means."""

    records_in: int = 0
    rows_out: int = 0
    rows_from_records: int = 0
    emitted: int = 0
    filtered: int = 0
    dead_letters: int = 0
    late: int = 0
    deduplicated: int = 0
    dropped: int = 0
    absorbed: int = 0
    in_flight: int = 0
    gave_up: bool = False
    """Whether the run was asked to stop, and the grace passed before everything read was worked on and taken by the sinks:
    records that are ``in_flight``, ``rows_given_up``, or windows that were still to be closed."""
    rows_given_up: int = 0
    """Rows that stages had made, such as those of windows, and that the sinks were not given when the grace had passed."""
    seconds: float = 0.0
    records_per_s: float = 0.0
    loop_lag: Quantiles = field(default_factory=Quantiles)
    user_code: Quantiles = field(default_factory=Quantiles)
    """How long the application's own code on the event loop held it at a stretch: what `Records` iterates over,
    `Callback` and the ``where=`` of sinks on the loop. That time is part of ``loop_lag``."""
    latency: Quantiles = field(default_factory=Quantiles)
    """From the return of the read that brought the record to the return of the sink's write."""
    visible: Quantiles = field(default_factory=Quantiles)
    """The same, to the flush that showed the row to readers."""
    lanes: tuple[LaneReport, ...] = ()
    stages: tuple[StageReport, ...] = ()
    """Where the lanes' time went."""
    inline: bool = False
    """Whether ``lanes=0``: the one lane is this process."""
    batch_records: BatchRecords = field(default_factory=BatchRecords)
    resumed_at: int | None = None
    """With state: up to where in the input all had been done when the run began, 0 at the first start."""
    position: int | None = None
    """With state: up to where all is done now, and the next run goes on."""
    behind: int = 0
    """With state: inputs since, which the next run works on again."""
    log_waiting: int = 0
    """With state: entries of the ingest log that the lanes were not given, which the next run works on."""
    delivery: dict[str, str] = field(default_factory=dict)
    """Per sink, its guarantee."""
    memory: dict[str, int] = field(default_factory=dict)
    """Bytes: ``slabs``, ``state`` and ``copies`` of it (for checkpoints) taken from the machine, ``state_per_key``, and ``objects``: what the objects of `Keyed` can be made
    from again, as the parent keeps it."""
    dead_letters_by_reason: dict[str, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    """What stages counted, such as ``unknown_key``."""
    sinks: dict[str, int] = field(default_factory=dict)
    """Per sink, the rows it wrote."""
    lost: dict[str, int] = field(default_factory=dict)
    """Per source that lost some, datagrams that the system dropped before they could be read."""
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    """Per sink, values that it had no place for, by their field."""
    deleted: dict[str, int] = field(default_factory=dict)
    """Per sink, rows that it has deleted in this run, since they were older than they are to be kept."""
    kernels: str = ""
    cold_s: float = 0.0
    """Seconds spent making the kernels ready."""
    start_s: float = 0.0
    """Seconds from the start of the engine to the end of its first slab."""

    def to_json(self, *, indent: int = 2) -> str:
        """The report as JSON, field by field."""
        data = msgspec.json.encode(dataclasses.asdict(self))
        return msgspec.json.format(data, indent=indent).decode()


@dataclass(frozen=True)
class StateStatistics:
    """How the state on disk is, now."""

    checkpoint: int
    """The number of the newest checkpoint; 0 before the first."""
    position: int
    """Up to where in the input it reaches."""
    behind: int
    """Inputs since, which the next start would work on again."""
    checkpoint_s: float
    """How long the last one took, from its barrier until it was published."""
    log_bytes: int = 0
    """Of the ingest log; 0 without one."""
    log_waiting: int = 0
    """Entries of the log that the lanes have not been given: above 0 the sinks, or the lanes, are behind."""
    log_seconds_left: float = math.inf
    """How long the log can go on taking what comes at the present rate, if nothing leaves it."""
    log_full: bool = False
    """Whether sources wait for room in the log."""
    log_room_bytes: float = math.inf
    """That the log may still take."""
    log_filled: float = 0.0
    """Share of what the log may take that is taken, 0 to 1."""
    log_why_full: str = ""
    """Which limit leaves no room, and what would make some; empty while there is room."""
    checkpoint_age_s: float = 0.0
    """Since the newest checkpoint was published, also if that was before this start; without one, since the run began."""
    waiting_s: float = 0.0
    """How long inputs that were worked on have waited for a checkpoint."""
    interval_s: float = 1.0
    """How long they are meant to wait at least."""


@dataclass(frozen=True)
class Statistics:
    """How a run is, now."""

    seconds: float
    records_in: int
    rows_out: int
    dead_letters: int
    filtered: int
    records_per_s: float
    """Over the time since the last reading of these statistics."""
    lanes: tuple[LaneStatistics, ...]
    queue_records: int
    queue_limit: int
    slabs_in_flight: int
    batch_records: BatchRecords
    latency: Quantiles
    loop_lag: Quantiles
    keys: int
    sources: tuple[Any, ...] = ()
    sinks: dict[str, int] = field(default_factory=dict)
    inline: bool = False
    """Whether ``lanes=0``: the one lane is this process."""
    state: StateStatistics | None = None
    """None for a run that keeps none."""
    name: str = ""
    """The pipeline's."""
    ready: bool = True
    """Whether lanes and sinks are ready."""
    stopping: bool = False
    """Whether the run was asked to stop."""
    keys_live: int = 0
    """Sensors that had a record in the last five minutes; where a run has gone on from a checkpoint, all until then."""
    ending: str = ""
    """Why the run ends itself; empty while it does not."""
    mostly_dead: tuple[MostlyDead, ...] = ()
    """Sources and stages of which most records, or most of the rows that stages made, became dead letters lately."""
    dead_letters_full: bool = False
    """Whether the file of dead letters has no more room: further ones are counted, and only the newest are kept."""
    dead: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Dead letters, rows that stages had made among them, by whose they are and reason code; as of the last look."""
    trouble: Trouble | None = None
    """With state: what the outside refused since the run last got something done, such as a database that is away."""
    load: Load = field(default_factory=Load)
    """How the resources were used over the last seconds, whoever reads, and how often."""
    source_flows: tuple[SourceFlow, ...] = ()
    """What each source gave, and when."""
    lane_flows: tuple[LaneFlow, ...] = ()
    """What each lane is at."""
    sink_flows: tuple[SinkFlow, ...] = ()
    """What each sink has shown to its readers, and when."""
    gone: dict[str, int] = field(default_factory=dict)
    """Records that became neither rows nor dead letters, by what became of them."""
    dead_letters_by_reason: dict[str, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    """What stages counted, such as ``unknown_key``."""

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """What the outside refuses, of each culprit one: first what has ended an attempt, then that of sinks that try again by
        themselves."""
        found: dict[str, Trouble] = {}
        for one in (self.trouble, *(sink.trouble for sink in self.sink_flows)):
            if one is not None:
                found[one.culprit] = found[one.culprit] + one if one.culprit in found else one
        return tuple(found.values())


@dataclass(frozen=True)
class Spread:
    """The distributions of a run, which take longer to read than its `Statistics`."""

    end_to_end: Distribution
    """From the return of the read that brought a record to the flush that showed its row, in nanoseconds."""
    loop_lag: Distribution
    """How late the event loop ran timers, in nanoseconds."""
    batch_records: Distribution
    """Records in a slab."""


class BatchSizes:
    """Sizes of slabs: the median and the largest."""

    def __init__(self) -> None:
        self._histogram = Histogram()

    def add(self, records: int) -> None:
        self._histogram.add(records)

    def distribution(self, bounds: Sequence[int]) -> Distribution:
        return self._histogram.distribution(bounds)

    def read(self) -> BatchRecords:
        return BatchRecords(self._histogram.quantile(0.5), self._histogram.max)
