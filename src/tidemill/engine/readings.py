"""What is measured of a run, and how it is told: while it goes on, and at its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from tidemill.batch import Batch
from tidemill.clock import Clock, thread_cpu_ns
from tidemill.core.flows import LaneFlow, SinkCounts, SinkFlow, SinkProgress, Trouble, TroubleBook
from tidemill.core.lately import Lately
from tidemill.core.load import LoadMeter, LoadSample
from tidemill.core.plan import Plan
from tidemill.core.rejections import MostlyDead
from tidemill.engine.loop_lag import LagMonitor
from tidemill.engine.metrics import (
    Histogram,
    LaneReport,
    LaneStatistics,
    Report,
    Spread,
    Statistics,
)
from tidemill.engine.outlets import Delivery, Outlet
from tidemill.engine.reading import SourceReader
from tidemill.engine.slabs import SLAB_COUNT
from tidemill.engine.work import Work
from tidemill.held import Held

if TYPE_CHECKING:
    from tidemill.engine.attempt import Attempt

__all__ = ["Readings"]

Arrivals = list[tuple[int, int]]
"""(records, when they arrived: monotonic ns, 0 when they did not come from outside)"""

_SECONDS_NS: Final = tuple(
    round(seconds * 1e9) for seconds in (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
)
_LAGS_NS: Final = tuple(
    round(seconds * 1e9) for seconds in (0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1)
)
_SIZES: Final = (1, 10, 100, 1_000, 10_000, 100_000)


class Readings:
    """The clocks of one run, which starts when this is made; ``lanes`` is 0 inline, where one lane is measured."""

    def __init__(self, clock: Clock, lanes: int, plan: Plan) -> None:
        self._clock = clock
        self._begun_ns = clock.monotonic_ns()
        self._last: dict[str, tuple[int, int, list[int]]] = {}
        self._lanes = max(lanes, 1)
        self.work = Work(plan, self._lanes)
        self._load = LoadMeter()
        self._outlets: Sequence[Outlet] = ()
        self._sinks: dict[str, SinkProgress] = {}
        self._lost = [Lately() for _ in range(self._lanes)]
        self._inline = not lanes
        self._latency = Histogram()
        self._visible = Histogram()
        self._user_code = Histogram()
        self.loop_lag = LagMonitor(clock)
        self.told: dict[tuple[str, str], float] = {}
        """Counters as others were told of them, by name and label: none goes back while inputs are worked on again."""
        self.kernels = ""
        """"compiled", "interpreted", or empty when no stage needs them."""
        self.columns = ""
        """What records have once all functions have added theirs, as it was told last."""
        self.cold_s = 0.0
        """Seconds that the kernels took to load."""
        self.memory: dict[str, int] = {}
        """Bytes taken from the machine, read at the end."""

    def delivery(self, outlet: Outlet, batch: Batch, arrivals: Arrivals, taken: Callable[[], None]) -> Delivery:
        """A batch on its way to a sink, from now on, with what is measured of it; its rows need not be kept for that."""
        progress, now = self._sinks[outlet.name], self._clock.monotonic_ns()
        waits = outlet.keeping is not None  # once it is written, for a commit; else it is to be flushed at once
        progress.given(now)
        progress.asked(now)

        def written() -> None:
            progress.came_back(self._clock.monotonic_ns(), done=waits)
            self._add(self._latency, arrivals)

        def shown() -> None:
            now = self._clock.monotonic_ns()
            progress.shown(now)
            if not waits:
                progress.came_back(now, done=True)
            self._add(self._visible, arrivals)

        return Delivery(batch, taken, written, shown)

    def commits(self, outlet: Outlet) -> None:
        """This sink is to commit what it was given."""
        self._sinks[outlet.name].asked(self._clock.monotonic_ns())

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

    def attempt_begins(self, outlets: Sequence[Outlet]) -> None:
        """How the resources are used is measured anew; what lanes and sinks have done so far stays."""
        now = self._clock.monotonic_ns()
        self._load = LoadMeter()
        before = {outlet.name: self._sinks[outlet.name].again(outlet.counts) for outlet in self._outlets}
        self._sinks = {outlet.name: before.get(outlet.name) or SinkProgress(now) for outlet in outlets}
        self._outlets = outlets
        for outlet in outlets:
            outlet.tried = partial(self._tried, f"sink {outlet.name}", self._sinks[outlet.name].troubles)

    def _tried(self, culprit: str, troubles: TroubleBook, said: str) -> None:
        if said:
            troubles.failed(culprit, said, self._clock.monotonic_ns())
        else:
            troubles.over()

    def attempt_ends(self, culprit: str) -> Trouble | None:
        """By this one's failure; what it had tried until then, if it is a sink that tries again by itself."""
        now = self._clock.monotonic_ns()
        tried = {f"sink {name}": progress.troubles.read(now) for name, progress in self._sinks.items()}
        for progress in self._sinks.values():
            progress.troubles.over()
        return tried.get(culprit)

    @property
    def shown(self) -> int:
        """Batches that sinks have shown so far."""
        return sum(progress.commits for progress in self._sinks.values())

    def resumed(self, outlet: Outlet) -> None:
        """This sink was opened, and goes on where its output ends."""
        self._sinks[outlet.name].resumed(outlet.resumed_at)

    def kept(self, outlet: Outlet, position: int) -> None:
        """What this sink has written so far will not be put again: its rows are of the inputs up to there."""
        progress = self._sinks[outlet.name]
        progress.came_back(self._clock.monotonic_ns(), done=True)
        progress.kept(outlet.counts, position)

    def sample(self, attempt: Attempt) -> None:
        """Look at how the resources are used; called a few times a second."""
        mill, state = attempt.mill, attempt.state_statistics()
        now, queue = self._clock.monotonic_ns(), attempt.intake.statistics()
        attempt.keys.look(now)
        for lane in mill.lanes:
            self._lost[lane.number].look(lane.work.restarts, now)
        self._load.add(
            LoadSample(
                now,
                mill.counts.records_in,
                mill.counts.records_in - mill.counts.in_flight,
                tuple(work.busy_ns for work in self.work.lanes),
                thread_cpu_ns(),
                waiting=queue.waiting,
                queue=queue.fill,
                sinks=mill.ledger.statistics().in_sinks / SLAB_COUNT,
                backlog=state is not None and state.log_waiting > 0,
                sink_rows=tuple(outlet.counts.rows for outlet in attempt.outflow.outlets),
            )
        )

    def statistics(
        self,
        attempt: Attempt,
        reader: SourceReader,
        *,
        trouble: Trouble | None = None,
        ending: str = "",
        mostly_dead: tuple[MostlyDead, ...] = (),
        dead: Mapping[tuple[str, str], int] = MappingProxyType({}),
        by: str = "",
    ) -> Statistics:
        """How the run is, now; rates and busy shares are since the last reading ``by`` the same one who asks."""
        now, mill, outlets = self._clock.monotonic_ns(), attempt.mill, attempt.outflow.outlets
        then, records, busy = self._last.get(by, (self._begun_ns, 0, [0] * self._lanes))
        span = max(now - then, 1)
        in_flight = mill.ledger.in_flight()
        lanes = tuple(
            LaneStatistics(
                min(1.0, (lane.work.busy_ns - before) / span),
                lane.work.batches,
                lane.work.restarts,
                slabs,
                lane.pid,
                lane.work.busy_ns / 1e9,
            )
            for lane, before, slabs in zip(mill.lanes, busy, in_flight, strict=True)
        )
        self._last[by] = (now, mill.counts.records_in, [work.busy_ns for work in self.work.lanes])
        ledger, queue, counts = mill.ledger.statistics(), attempt.intake.statistics(), mill.counts
        sinks = [(name, progress, written.rows) for name, progress, written in self._written(outlets)]
        return Statistics(
            seconds=(now - self._begun_ns) / 1e9,
            records_in=counts.records_in,
            rows_out=counts.rows_out,
            dead_letters=counts.dead_letters,
            filtered=counts.filtered,
            records_per_s=max(counts.records_in - records, 0) / span * 1e9,  # what comes again is not counted twice
            lanes=lanes,
            queue_records=queue.waiting,
            queue_limit=queue.high_records,
            slabs_in_flight=ledger.in_lanes + ledger.done + ledger.in_sinks,
            batch_records=self.work.batches.read(),
            latency=self._latency.quantiles(),
            loop_lag=self.loop_lag.histogram.quantiles(),
            keys=len(attempt.keys),
            keys_live=attempt.keys.live,
            sources=tuple(source.statistics() for source in attempt.pipeline.sources),
            sinks={name: rows for name, _, rows in sinks},
            inline=self._inline,
            state=attempt.state_statistics(),
            name=attempt.pipeline.name,
            ready=attempt.running,
            stopping=attempt.stopping.asked.is_set(),
            trouble=trouble,
            ending=ending,
            mostly_dead=mostly_dead,
            dead=dead,
            dead_letters_full=attempt.outflow.letters.statistics().full,
            load=self._load.read(),
            source_flows=tuple(reader.flow(source) for source in attempt.pipeline.sources),
            lane_flows=tuple(
                LaneFlow(
                    lane.number,
                    slabs,
                    (now - lane.went_on_ns) / 1e9 if slabs else 0.0,
                    self.work.stages.called_by(lane),
                    self._lost[lane.number].read(now),
                )
                for lane, slabs in zip(mill.lanes, in_flight, strict=True)
            ),
            sink_flows=tuple(
                SinkFlow(
                    name,
                    rows,
                    progress.waiting,
                    progress.waiting_s(now),
                    progress.commit_age_s(now),
                    progress.commits,
                    progress.troubles.read(now),
                    progress.call_s(now),
                )
                for name, progress, rows in sinks
            ),
            gone={what: getattr(counts, what) for what in ("filtered", "late", "deduplicated", "dropped", "absorbed")},
            dead_letters_by_reason=dict(attempt.outflow.letters.reasons),
            counters=mill.read_counters(),
        )

    def _written(self, outlets: Sequence[Outlet]) -> Iterator[tuple[str, SinkProgress, SinkCounts]]:
        """Each sink, with what it has done in the whole run."""
        for outlet in outlets:
            progress = self._sinks[outlet.name]
            yield outlet.name, progress, progress.total(outlet.counts)

    def spread(self) -> Spread:
        """The distributions so far."""
        return Spread(
            self._visible.distribution(_SECONDS_NS),
            self.loop_lag.histogram.distribution(_LAGS_NS),
            self.work.batches.distribution(_SIZES),
        )

    def report(self, attempt: Attempt, *, resumed_at: int | None = None) -> Report:
        """How the run was, which ended with this attempt."""
        seconds = max((self._clock.monotonic_ns() - self._begun_ns) / 1e9, 1e-9)
        mill, state, work = attempt.mill, attempt.state_statistics(), self.work
        counts, pipeline = mill.counts, attempt.pipeline
        written = {name: total for name, _, total in self._written(attempt.outflow.outlets)}
        return Report(
            **dataclasses.asdict(counts),
            rows_out=counts.rows_out,
            in_flight=counts.in_flight,
            gave_up=attempt.gave_up,
            rows_given_up=attempt.rows_given_up,
            seconds=seconds,
            records_per_s=counts.records_in / seconds,
            loop_lag=self.loop_lag.histogram.quantiles(),
            user_code=self._user_code.quantiles(),
            latency=self._latency.quantiles(),
            visible=self._visible.quantiles(),
            lanes=tuple(LaneReport(lane.busy_ns / 1e9 / seconds, lane.batches, lane.restarts) for lane in work.lanes),
            stages=work.stages.report(),
            inline=self._inline,
            batch_records=work.batches.read(),
            resumed_at=resumed_at,
            position=None if state is None else state.position,
            behind=attempt.behind,
            log_waiting=0 if state is None else state.log_waiting,
            delivery={
                sink.name: sink.delivery if state is None else sink.delivery_with_state for sink in pipeline.sinks
            },
            memory=self.memory,
            dead_letters_by_reason=dict(attempt.outflow.letters.reasons),
            counters=mill.read_counters(),
            sinks={name: total.rows for name, total in written.items()},
            lost={told.name: told.lost for told in (source.statistics() for source in pipeline.sources) if told.lost},
            left_out={name: dict(total.left_out) for name, total in written.items() if total.left_out},
            deleted={name: total.deleted for name, total in written.items() if total.deleted},
            kernels=self.kernels,
            cold_s=self.cold_s,
            start_s=max(work.first_done_ns - self._begun_ns, 0) / 1e9,
        )
