"""What is measured of a run, and how it is told: while it goes on, and at its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Sequence

from tidemill.clock import Clock
from tidemill.engine.dead_letters import DeadLetterFile
from tidemill.engine.intake import Intake
from tidemill.engine.metrics import (
    Histogram,
    LagMonitor,
    LaneReport,
    LaneStatistics,
    Report,
    StateStatistics,
    Statistics,
)
from tidemill.engine.mill import Mill
from tidemill.engine.outlets import Outlet
from tidemill.held import Held
from tidemill.sinks.base import Sink
from tidemill.sources.base import Source

__all__ = ["Readings"]

Arrivals = list[tuple[int, int]]
"""(records, when they arrived: monotonic ns, 0 when they did not come from outside)"""


class Readings:
    """The clocks of one run, which starts when this is made; ``lanes`` is 0 inline, where one lane is measured."""

    def __init__(self, clock: Clock, lanes: int) -> None:
        self._clock = clock
        self._begun_ns = clock.monotonic_ns()
        self._last = (self._begun_ns, 0, [0] * max(lanes, 1))
        self._inline = not lanes
        self._latency = Histogram()
        self._visible = Histogram()
        self._user_code = Histogram()
        self.loop_lag = LagMonitor(clock)
        self.kernels = ""
        """"compiled", "interpreted", or empty when no stage needs them."""
        self.cold_s = 0.0
        """Seconds that the kernels took to load."""
        self.memory: dict[str, int] = {}
        """Bytes taken from the machine, read at the end."""

    def taken(self, arrivals: Arrivals) -> None:
        """A sink has taken these records."""
        self._add(self._latency, arrivals)

    def seen(self, arrivals: Arrivals) -> None:
        """Readers of a sink can see these records."""
        self._add(self._visible, arrivals)

    def held(self, nanoseconds: int) -> None:
        """The application's own code held the loop for so long."""
        self._user_code.add(nanoseconds)

    def timed(self, work: Awaitable[None]) -> Awaitable[None]:
        """The application's own code, whose steps on the loop are measured."""
        return Held(work, self._clock.monotonic_ns, self.held)

    def _add(self, histogram: Histogram, arrivals: Arrivals) -> None:
        now = self._clock.monotonic_ns()
        for records, arrived_ns in arrivals:
            if arrived_ns:
                histogram.add(now - arrived_ns, records)

    def statistics(
        self,
        mill: Mill,
        intake: Intake,
        sources: Sequence[Source],
        outlets: Sequence[Outlet],
        state: StateStatistics | None = None,
    ) -> Statistics:
        """How the run is, now; rates and busy shares are since the last reading."""
        now = self._clock.monotonic_ns()
        then, records, busy = self._last
        span = max(now - then, 1)
        lanes = tuple(
            LaneStatistics(min(1.0, (lane.busy_ns - before) / span), lane.batches, lane.restarts, in_flight, lane.pid)
            for lane, before, in_flight in zip(mill.lanes, busy, mill.ledger.in_flight(), strict=True)
        )
        self._last = (now, mill.counts.records_in, [lane.busy_ns for lane in mill.lanes])
        ledger, queue = mill.ledger.statistics(), intake.statistics()
        return Statistics(
            seconds=(now - self._begun_ns) / 1e9,
            records_in=mill.counts.records_in,
            rows_out=mill.counts.rows_out,
            dead_letters=mill.counts.dead_letters,
            filtered=mill.counts.filtered,
            records_per_s=(mill.counts.records_in - records) / span * 1e9,
            lanes=lanes,
            queue_records=queue.waiting,
            queue_limit=queue.high_records,
            slabs_in_flight=ledger.in_lanes + ledger.done + ledger.in_sinks,
            batch_records=mill.sizes.read(),
            latency=self._latency.quantiles(),
            loop_lag=self.loop_lag.histogram.quantiles(),
            keys=mill.keys_seen,
            sources=tuple(source.statistics() for source in sources),
            sinks={outlet.name: outlet.rows for outlet in outlets},
            inline=self._inline,
            state=state,
        )

    def report(
        self,
        mill: Mill,
        sinks: Sequence[Sink],
        outlets: Sequence[Outlet],
        letters: DeadLetterFile,
        *,
        resumed_at: int | None = None,
        position: int | None = None,
    ) -> Report:
        """How the run was."""
        seconds = max((self._clock.monotonic_ns() - self._begun_ns) / 1e9, 1e-9)
        counts = mill.counts
        return Report(
            **dataclasses.asdict(counts),
            rows_out=counts.rows_out,
            in_flight=counts.in_flight,
            seconds=seconds,
            records_per_s=counts.records_in / seconds,
            loop_lag=self.loop_lag.histogram.quantiles(),
            user_code=self._user_code.quantiles(),
            latency=self._latency.quantiles(),
            visible=self._visible.quantiles(),
            lanes=tuple(LaneReport(lane.busy_ns / 1e9 / seconds, lane.batches, lane.restarts) for lane in mill.lanes),
            stages=mill.stage_times.report(),
            inline=self._inline,
            batch_records=mill.sizes.read(),
            resumed_at=resumed_at,
            position=position,
            delivery={sink.name: sink.delivery if position is None else sink.delivery_with_state for sink in sinks},
            memory=self.memory,
            dead_letters_by_reason=dict(letters.reasons),
            counters=mill.read_counters(),
            sinks={outlet.name: outlet.rows for outlet in outlets},
            left_out={outlet.name: dict(outlet.left_out) for outlet in outlets if outlet.left_out},
            kernels=self.kernels,
            cold_s=self.cold_s,
            start_s=max(mill.first_done_ns - self._begun_ns, 0) / 1e9,
        )
