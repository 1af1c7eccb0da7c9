"""A run: one TaskGroup, and the picture of the flow.

    Source ──▶ Intake ──▶ Mill ══slabs══▶ lanes ══▶ Mill ──▶ Outlets ──▶ Sinks
      ▲          │ keys, input order                  │ dead letters
      └─ waits ──┘ while the intake is full           └──────────▶ DeadLetterFile

The tasks: one per source, one per outlet, the dead letters, the lag monitor, the watch over deadlines. What ends the
run: all sources have ended, ``stop()``, ``seconds``, a signal, or the first error; the way out is the same for all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

from tidemill.batch import Batch
from tidemill.clock import Clock, SystemClock
from tidemill.core.batching import Batcher, Limits
from tidemill.core.keys import KeyTable
from tidemill.core.plan import Plan
from tidemill.engine.dead_letters import DeadLetterFile
from tidemill.engine.file_watch import FileWatch
from tidemill.engine.intake import Intake
from tidemill.engine.lane import LaneFactory
from tidemill.engine.lanes_count import no_interpreter, resolved_lanes
from tidemill.engine.metrics import Counts, Report, Statistics
from tidemill.engine.mill import Finished, Mill
from tidemill.engine.outlets import Delivery, LoopOutlet, Outlet, ThreadOutlet
from tidemill.engine.pipeline import Checked, Pipeline
from tidemill.engine.process_outlet import ProcessOutlet
from tidemill.engine.readings import Readings
from tidemill.engine.responsive import responsive
from tidemill.errors import EngineError, OutsideError, PlanError
from tidemill.lanes.fork_client import ForkServer
from tidemill.letters import DeadLetter
from tidemill.sinks.base import LoopSink, ProcessSink
from tidemill.sources.base import Source, SourceContext

__all__ = ["Run", "first_error"]

ALL_REJECTED: Final = 100
"""Records rejected before the first good one, at which the run says what it saw and what to type."""
_PRELOAD_S: Final = 2.0
"""Seconds after which a run says why it has not begun."""
_TICK_EVERY: Final = 10
"""Looks of the watch at deadlines for each at the clock of an idle input: five times a second."""
_log = logging.getLogger("tidemill")
T = TypeVar("T")


class Run:
    """One run of a pipeline; made by `tidemill.engine.entrance`."""

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        lanes: int | None = None,
        seconds: float | None = None,
        dead_letters: str | Path | None = None,
        grace: float = 10.0,
        clock: Clock | None = None,
        limits: Limits | None = None,
        on_statistics: Callable[[Statistics], None] | None = None,
    ) -> None:
        if seconds is not None and not seconds > 0:
            raise PlanError(f"seconds={seconds!r} must be more than 0.")
        if not grace >= 0:
            raise PlanError(f"grace={grace!r} must be 0 seconds or more.")
        self.pipeline = pipeline
        self.report: Report | None = None
        """Set when the run has ended."""
        self._lanes = resolved_lanes(lanes)
        if self._lanes and (missing := no_interpreter()):
            raise OutsideError(f"{missing} lanes=0 runs the pipeline in this process.")
        self._seconds = seconds
        self._grace = grace
        self._clock = clock or SystemClock()
        self._on_statistics = on_statistics
        self._limits = limits or Limits()
        self._dead_letters_path = dead_letters
        self._readings = Readings(self._clock, self._lanes)
        self._mill: Mill | None = None
        self._intake: Intake | None = None
        self._letters: DeadLetterFile | None = None
        self._outlets: list[Outlet] = []
        self._stopping = asyncio.Event()
        self._lanes_ready = asyncio.Event()
        self._stop_asked_ns = 0
        self._idle = asyncio.Event()
        self._failed: asyncio.Future[None] | None = None
        self._learning = False
        self._task: asyncio.Task[Report] | None = None
        self.started = asyncio.Event()
        """Set when lanes and sinks are ready."""

    # -- the way through -------------------------------------------------------------------------------------

    async def execute(self) -> Report:
        """Run to the end; raises the first error, after everything has been let go."""
        checked = self.pipeline.check()
        loop = asyncio.get_running_loop()
        self._failed = loop.create_future()
        self._letters = DeadLetterFile(self._dead_letters_path)
        self._letters.check()
        if not self._lanes:
            _warn_of_deadlines(checked.plan)
        server = ForkServer() if self._lanes else None
        if server is not None:
            server.begin()  # its imports take longest; everything else happens meanwhile
        try:
            with responsive():
                await self._flow(checked, server)
        finally:
            try:
                await self._letters.aclose()
            finally:
                if self._mill is not None:
                    self._readings.memory = self._mill.memory()
                    self._mill.close()
                if server is not None:
                    await server.aclose()
        assert self._mill is not None
        self.report = self._readings.report(self._mill, self.pipeline.sinks, self._outlets, self._letters)
        _tell_of_letters(self._letters, self.report.records_in)
        return self.report

    async def _flow(self, checked: Checked, server: ForkServer | None) -> None:
        assert self._letters is not None
        mill, intake = self._build(checked)
        self._outlets = [self._outlet(sink, server) for sink in self.pipeline.sinks]
        try:
            async with asyncio.TaskGroup() as group:
                background = [group.create_task(work) for work in self._background(mill, checked)]
                sources = [group.create_task(self._read(source, intake)) for source in self.pipeline.sources]
                await self._start(checked, server, mill, intake)
                background += [group.create_task(outlet.run()) for outlet in self._outlets]
                await self._sources_ended(sources)
                await self._drained(mill)
                await self._flushed(mill)
                await self._finished()
                mill.stop()
                for task in background:
                    task.cancel()
        except BaseException as error:  # noqa: BLE001 - its first leaf is raised
            for outlet in self._outlets:
                await outlet.abandon()
            raise first_error(error) from None

    def _background(self, mill: Mill, checked: Checked) -> list[Coroutine[Any, Any, None]]:
        """What goes on until all else has ended."""
        assert self._letters is not None
        live = [] if self.pipeline.finite else [self._watch_files(mill, checked)]
        return [
            *live,
            self._letters.write(),
            self._readings.loop_lag.watch(),
            self._watch(mill),
            self._raise_failure(),
            self._end_after_seconds(),
        ]

    def _build(self, checked: Checked) -> tuple[Mill, Intake]:
        assert self._letters is not None
        self._learning = checked.schemas[-1].open
        keys = KeyTable(max(self._lanes, 1), self.pipeline.max_keys)
        loop = asyncio.get_running_loop()
        mill = Mill(
            checked.plan,
            checked.schemas[0],
            lanes=self._lanes,
            keys=keys,
            batcher=Batcher(self._limits),
            clock=self._clock,
            max_keys=self.pipeline.max_keys,
            watermark=self.pipeline.watermark(),
            emit=self._emit,
            fail=self._fail,
            reject=self._reject_record,
            reject_row=self._letters.add,
            defer=loop.call_soon,
            ready=self._lanes_ready.set,
        )
        intake = Intake(keys, reject=self._reject_record, arrived=mill.pump, place_by=checked.place_by)
        self._mill, self._intake = mill, intake
        return mill, intake

    async def _start(self, checked: Checked, server: ForkServer | None, mill: Mill, intake: Intake) -> None:
        if server is not None:
            await server.wait_ready()
            preloaded = await _told_when_long(server.preload(mill.pickled, kernels=checked.plan.uses_kernels))
            self._readings.kernels, self._readings.cold_s = preloaded.kernels, preloaded.cold_s
            if preloaded.reason:
                _log.warning("rolling statistics run interpreted, some 100 times slower: %s", preloaded.reason)
        mill.start(LaneFactory(server, mill.slabs.shared), intake)
        for outlet in self._outlets:
            await outlet.open(checked.schemas[-1])
        await self._lanes_ready.wait()
        self.started.set()

    # -- in --------------------------------------------------------------------------------------------------

    async def _read(self, source: Source, intake: Intake) -> None:
        """Everything a source gives, into the intake."""
        accepted = rejected = 0

        def reject(letter: DeadLetter) -> None:
            nonlocal rejected
            rejected += 1
            self._reject_input(letter)
            if rejected == ALL_REJECTED and not accepted and not source.accepted:
                fields = {"source": source.name, "rejected": rejected}
                _log.warning("the first %d records were all rejected: %s", rejected, source.explain(), extra=fields)

        if source.makes:
            await self.started.wait()
        stream = source.stream(SourceContext(self._clock, reject, self._readings.held, self._stopping))
        try:
            async for batch in stream:
                accepted += len(batch)
                self._mill_counts().records_in += len(batch)
                await intake.put(batch, source.name)
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()
        if 0 < rejected < ALL_REJECTED and not accepted:
            fields = {"source": source.name, "rejected": rejected}
            _log.warning("all %d records were rejected: %s", rejected, source.explain(), extra=fields)

    async def _sources_ended(self, sources: list[asyncio.Task[None]]) -> None:
        """Wait for the end of input; after a stop for the grace, and then cancel what still reads."""
        waiting = await self._until(set(sources))
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)

    async def _until(self, waiting: set[asyncio.Task[Any]], *, more_s: float = 0.0) -> set[asyncio.Task[Any]]:
        """Wait for these tasks; once a stop was asked for, only as long as the grace (and ``more_s``) lasts.

        Returns what is not done by then.
        """
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            while waiting and not self._stopping.is_set():
                await asyncio.wait({*waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
                waiting = {task for task in waiting if not task.done()}
            if waiting:
                _, waiting = await asyncio.wait(waiting, timeout=max(self._grace_left() + more_s, 0.0))
        finally:
            stopping.cancel()
        return waiting

    def _grace_left(self) -> float:
        """Seconds until a stop that was asked for must have ended."""
        return self._grace - (self._clock.monotonic_ns() - self._stop_asked_ns) / 1e9

    async def _end_after_seconds(self) -> None:
        if self._seconds is not None:
            await self.started.wait()
            await self._clock.sleep(self._seconds)
            self.stop_soon()

    async def _drained(self, mill: Mill) -> None:
        """Wait until nothing is in flight; after a stop, for what is left of the grace."""
        late = await self._until({asyncio.ensure_future(self._nothing_in_flight(mill))})
        for task in late:
            task.cancel()
            _log.warning(
                "the grace of %g s is over: %d records in flight are given up",
                self._grace,
                mill.counts.in_flight,
                extra={"in_flight": mill.counts.in_flight},
            )

    async def _flushed(self, mill: Mill) -> None:
        """The input has ended: so do open windows."""
        if mill.idle:
            mill.end_input()
            await self._drained(mill)

    async def _nothing_in_flight(self, mill: Mill) -> None:
        while not mill.idle:
            self._idle.clear()
            await self._idle.wait()

    async def _finished(self) -> None:
        """Wait until every sink has flushed and closed; after a stop, for what is left of the grace, and a second."""
        tasks: set[asyncio.Task[Any]] = {asyncio.ensure_future(outlet.finish()) for outlet in self._outlets}
        try:
            late = await self._until(set(tasks), more_s=1.0)
            for task in tasks - late:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # of several that failed, one is told
        if late:
            raise OutsideError(f"a sink did not finish within the grace of {self._grace:g} s after the stop.")

    def _reject_input(self, letter: DeadLetter) -> None:
        """A source could not make a record of something: it came in all the same."""
        self._mill_counts().records_in += 1
        self._reject_record(letter)

    def _reject_record(self, letter: DeadLetter) -> None:
        assert self._letters is not None
        self._mill_counts().dead_letters += 1
        self._letters.add(letter)
        self._check_idle()  # it may have been the last record

    def _mill_counts(self) -> Counts:
        assert self._mill is not None
        return self._mill.counts

    def _outlet(self, sink: Any, server: ForkServer | None) -> Outlet:
        if isinstance(sink, LoopSink):
            return LoopOutlet(sink, self._readings.timed)
        if isinstance(sink, ProcessSink):
            return ProcessOutlet(sink, server) if server is not None else ThreadOutlet(sink)
        raise PlanError(f"{sink!r} is neither a LoopSink nor a ProcessSink.")

    # -- out -------------------------------------------------------------------------------------------------

    def _emit(self, finished: Finished) -> None:
        """A slab's rows, to every sink; its memory is free when the last has taken them."""
        left = len(self._outlets)

        def taken() -> None:
            nonlocal left
            left -= 1
            if not left:
                finished.freed()
                self._check_idle()

        if not len(finished.batch):
            left = 1
            taken()
            return
        self._tell_learned(finished.batch)
        delivery = Delivery(
            finished.batch,
            taken,
            lambda: self._readings.taken(finished.arrivals),
            lambda: self._readings.seen(finished.arrivals),
        )
        for outlet in self._outlets:
            outlet.put(delivery)

    def _tell_learned(self, batch: Batch) -> None:
        """The columns, once a record has shown what the functions add."""
        if self._learning and self._mill is not None and not self._mill._learned.probing:
            self._learning = False
            _log.info("the columns are: %s", batch.schema)
            for sink in self.pipeline.sinks:
                for name in set(sink.columns or ()) - set(batch.columns):
                    told = "sink %s: there is no column %r so far; the columns are: %s"
                    _log.warning(told, sink.name, name, ", ".join(batch.columns), extra={"sink": sink.name})

    def _check_idle(self) -> None:
        if self._mill is not None and self._mill.idle:
            self._idle.set()

    # -- watching --------------------------------------------------------------------------------------------

    async def _watch(self, mill: Mill) -> None:
        """Deadlines, the watermark of a live run, and the reader of live statistics."""
        live = mill.follows_watermark and not self.pipeline.finite
        ticks = 0
        while True:
            await asyncio.sleep(0.02)
            mill.enforce_deadlines()
            ticks += 1
            if live and ticks % _TICK_EVERY == 0 and self.started.is_set():
                mill.tick()
            if self._on_statistics is not None and ticks % 12 == 0:
                self._on_statistics(self.statistics())

    async def _watch_files(self, mill: Mill, checked: Checked) -> None:
        """Tables and models that are replaced while a live run goes on."""
        watch = FileWatch(self.pipeline.plan, checked.schemas, self._clock, mill.change)
        await self.started.wait()
        await watch.run()

    async def _raise_failure(self) -> None:
        """What fails in a callback ends the run here."""
        assert self._failed is not None
        await self._failed

    def _fail(self, error: BaseException) -> None:
        if self._mill is not None:
            self._mill.stop()  # a lane that ends now was not lost
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    def stop_soon(self) -> None:
        """Stop reading, finish what is in flight, flush, end; returns at once."""
        if not self._stopping.is_set():
            self._stop_asked_ns = self._clock.monotonic_ns()
        self._stopping.set()

    async def wait(self) -> Report:
        """Wait until it has ended by itself (inside `serve`)."""
        assert self._task is not None
        return await asyncio.shield(self._task)

    async def stop(self) -> None:
        """The same, and wait until all is done (inside `serve`)."""
        self.stop_soon()
        if self._task is not None:
            await asyncio.wait([self._task])

    def statistics(self) -> Statistics:
        """How the run is, now; rates and busy shares are since the last reading."""
        if self._mill is None or self._intake is None:
            raise EngineError("the run has not started")
        return self._readings.statistics(self._mill, self._intake, self.pipeline.sources, self._outlets)


def _tell_of_letters(letters: DeadLetterFile, records: int) -> None:
    """Nothing is silent: a script that looks at its rows alone would not see what is missing there."""
    if letters.count:
        first = letters.samples[0]
        _log.warning(
            "%d of %d records are dead letters, in %s; the first of them%s: %s",
            letters.count,
            records,
            letters.path,
            f", at {first.stage}" if first.stage else "",
            first.reason,
            extra={"dead_letters": letters.count},
        )


async def _told_when_long(preloading: Coroutine[Any, Any, T]) -> T:
    """Kernels are compiled once for a user and a version, and that takes a while: nobody should wonder."""
    task = asyncio.ensure_future(preloading)
    try:
        done, _ = await asyncio.wait([task], timeout=_PRELOAD_S)
        if not done:
            _log.info("getting ready; the first run of all compiles the kernels, which takes some ten seconds, once")
        return await task
    finally:
        task.cancel()


def _warn_of_deadlines(plan: Plan) -> None:
    unguarded = [stage.name for stage in plan.stages if stage.deadline_s is not None]
    if unguarded:
        _log.warning(
            "lanes=0: nothing can stop a function inline, so the deadline_s of %s does nothing; use lanes=1 or more",
            ", ".join(unguarded),
        )


def first_error(error: BaseException) -> BaseException:
    """The first leaf of a group: the others followed from it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
