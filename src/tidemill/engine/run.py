"""A run: what it is given, its attempts, and what can be asked of it meanwhile.

    without state   one attempt, from the sources to the end or the first error
    with state      the state folder is locked, the journal takes what cannot be read again, and attempts follow one another:
                    when the outside fails, such as a database that is away, the next one begins at the last checkpoint,
                    while the sources go on into the log

What ends the run: all sources have ended, ``stop()``, ``seconds``, a signal, or an error that will not pass by itself; the way
out is the same for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from tidemill import files
from tidemill.clock import Clock, SystemClock
from tidemill.core.batching import Limits
from tidemill.core.dead_rate import MaxDead
from tidemill.core.plan import Plan
from tidemill.core.resume import described
from tidemill.engine.attempt import Attempt
from tidemill.engine.dead_letters import DeadLetterFile
from tidemill.engine.first_error import first_error, one_error
from tidemill.engine.inflow import Direct, Inflow, Logged, Nothing, Seeking, Warming
from tidemill.engine.ingest_log import IngestLog
from tidemill.engine.journal import Journal
from tidemill.engine.keeper import Keeper
from tidemill.engine.lanes_count import no_processes, resolved_lanes
from tidemill.engine.logged_sources import LoggedSources
from tidemill.engine.metrics import Report, Statistics
from tidemill.engine.missing_told import tell_of_late, tell_of_letters
from tidemill.engine.option_types import check_types
from tidemill.engine.oversight import Oversight, Terms
from tidemill.engine.pages import Seen
from tidemill.engine.pipeline import Checked, Pipeline
from tidemill.engine.places_apart import places_of, require_apart
from tidemill.engine.reading import SourceReader
from tidemill.engine.readings import Readings
from tidemill.engine.responsive import responsive
from tidemill.engine.service_manager import service_manager
from tidemill.engine.setbacks import STATE_FOLDER, Setbacks
from tidemill.engine.showing import Showing
from tidemill.engine.state import State, state_of
from tidemill.engine.state_folder import StateFolder
from tidemill.engine.stopping import Stopping
from tidemill.errors import EngineError, InputError, OutsideError, PlanError
from tidemill.first_of import first_of
from tidemill.held import is_cancelled
from tidemill.lanes.fork_client import ForkServer
from tidemill.printable import counted
from tidemill.sinks.latest import Latest
from tidemill.sources.base import Source

__all__ = ["Run"]

_log = logging.getLogger("tidemill")


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
        state: bool | str | Path | State | None = None,
        metrics: bool | str = False,
        metrics_exposed: bool = False,
        stall_after: float | None = None,
        silent_after: float | None = None,
        max_dead: str | None = None,
        notify: bool = False,
    ) -> None:
        check_types(
            seconds=seconds,
            grace=grace,
            stall_after=stall_after,
            silent_after=silent_after,
            dead_letters=dead_letters,
            max_dead=max_dead,
            state=state,
            metrics=metrics,
            limits=limits,
        )
        if seconds is not None and not seconds > 0:
            raise PlanError(f"seconds={seconds!r} must be more than 0.")
        if not grace >= 0:
            raise PlanError(f"grace={grace!r} must be 0 seconds or more.")
        self.pipeline = pipeline.called(_script() or pipeline.name)
        self.report: Report | None = None
        """Set when the run has ended, in order or because it was asked to."""
        if lanes != 0 and (why := no_processes()):
            raise OutsideError(f"{why} lanes=0 runs the pipeline in this process.")
        self._lanes = resolved_lanes(lanes)
        self._seconds = seconds
        self._clock = clock or SystemClock()
        self._on_statistics = on_statistics
        self._limits = limits or Limits()
        self._dead_letters_path = dead_letters
        self._state = state_of(pipeline, state)
        self._showing = Showing(metrics, exposed=metrics_exposed)
        self._terms = Terms(stall_after, silent_after, None if max_dead is None else MaxDead.of(max_dead))
        self._stopping = Stopping(self._clock, grace)
        self._readings = Readings(self._clock, self._lanes, self.pipeline.plan)
        self._reader = SourceReader(self._clock, self._readings.held, self._stopping.asked, self._state is not None)
        self._oversight = Oversight(
            self._terms,
            self._clock,
            read=self._overseen,
            connect_anew=self._reader.connect_anew,
            stop=self.stop_soon,
            manager=service_manager() if notify else None,
        )
        self._attempt: Attempt | None = None
        self._server: ForkServer | None = None
        self._setbacks = Setbacks(self._clock, self._readings)
        self._task: asyncio.Task[Report] | None = None
        self.started = asyncio.Event()
        """Set when lanes and sinks are ready."""
        self._failed = asyncio.Event()
        """Set when an attempt has failed."""

    def require_places_apart(self, report: str | Path | None) -> None:
        """Refuse, with `InputError`, to write what the run reads or writes otherwise."""
        check_types(report=report)
        require_apart(places_of(self.pipeline, self._state, letters=self._dead_letters_path, report=report))

    # -- the way through -------------------------------------------------------------------------------------

    async def execute(self) -> Report:
        """Run to the end; raises the first error, after everything has been let go."""
        async with one_error(), self._showing.of(self._seen):
            with self._oversight.last_word(), self._sources_told():
                return await self._executed()

    @contextlib.contextmanager
    def _sources_told(self) -> Iterator[None]:
        """That the run begins, and that it has ended: somebody may wait for what they do in it."""
        for source in self.pipeline.sources:
            source.run_begins()
        try:
            yield
        finally:
            for source in self.pipeline.sources:
                source.run_ended()

    async def _executed(self) -> Report:
        with self._kept() as keeper:
            resumed_at = None if keeper is None else keeper.position
            checked = self.pipeline.check() if keeper is None else keeper.check(self.pipeline)
            if keeper is not None and keeper.found is not None:
                _log.info("%s", described(keeper.matching(checked)))
            letters = self._letters(keeper)
            letters.check(default=any(source.push and not source.seekable for source in self.pipeline.sources))
            if not self._lanes:
                _warn_of_deadlines(checked.plan)
            if self._lanes:
                self._begin_server()  # its imports take longest; everything else happens meanwhile
            try:
                with responsive(), self._readings.loop_lag.measuring():
                    attempt = await self._tried(checked, keeper, letters)
            except PlanError:
                if keeper is not None and not self.started.is_set():
                    await asyncio.to_thread(keeper.begun_nothing)
                raise
            except OutsideError:
                last = self._attempt
                if self._stopping.asked.is_set() and last is not None and last.pipeline is self.pipeline:
                    self._account(last, resumed_at)
                raise
            finally:
                if self._server is not None:
                    await self._server.aclose()
        return self._account(attempt, resumed_at)

    def _account(self, attempt: Attempt, resumed_at: int | None) -> Report:
        """Of a run that has ended, also one that was stopped while a sink was away."""
        self.report = self._readings.report(attempt, resumed_at=resumed_at)
        tell_of_letters(attempt.outflow.letters, self.report)
        tell_of_late(self.report, attempt.checked.plan, self.pipeline.sources)
        for doubt in attempt.mill.doubts() if self.report.records_in else ():
            _log.warning("%s", doubt)
        return self.report

    def _begin_server(self) -> None:
        self._server = ForkServer()
        self._server.begin()

    @contextlib.contextmanager
    def _kept(self) -> Any:
        """The state on disk, if this run keeps it."""
        state = self._state
        if state is None:
            for sink in self.pipeline.sinks:
                if sink.numbered:
                    _log.warning(
                        "sink %s: numbered=True is for a run with state (--state); its rows have no numbers", sink.name
                    )
            yield None
            return
        folder = StateFolder(
            state.place_of(self.pipeline.name), self.pipeline.name, fresh=state.fresh, may_begin=self._require_beginning
        )
        try:
            yield Keeper(folder, self._clock, state)
        finally:
            folder.close()

    def _require_beginning(self) -> None:
        """Refuse what a first start would be refused for, such as an output that is there, or a history that is not: an earlier
        state stays as it is then."""
        self.pipeline.check(waits=not self.pipeline.finite)
        if self._state is not None and self._state.warm is not None:
            self._on_history(self._state.warm).check()
        if self._dead_letters_path is not None:
            DeadLetterFile(self._dead_letters_path).check()

    async def _tried(self, checked: Checked, keeper: Keeper | None, letters: DeadLetterFile) -> Attempt:
        """The run's tasks; the attempt that went well."""
        async with one_error(), asyncio.TaskGroup() as group:
            background = [
                group.create_task(self._end_after_seconds()),
                group.create_task(self._oversight.watch()),
                group.create_task(self._reader.watch()),
            ]
            if keeper is not None and keeper.found is None and keeper.state.warm is not None:
                await self._warm(keeper.state.warm, keeper)
            async with self._inflow(keeper, group) as inflow:
                attempt = await self._attempts(checked, keeper, letters, inflow)
            for task in background:
                task.cancel()
        return attempt

    def _on_history(self, history: Source) -> Pipeline:
        return self.pipeline.between(history, Latest(name="nowhere"))

    async def _warm(self, history: Source, keeper: Keeper) -> None:
        """Work on a history, for the state it leaves."""
        if await asyncio.to_thread(keeper.has_input):
            raise InputError(
                f"the state in {keeper.folder.place} has inputs that an earlier start took in, and a history comes before the first: "
                "leave warm= (--warm) out, or start over with fresh=True (--fresh)."
            )
        pipeline = self._on_history(history)
        keeper.warming = True
        attempt = self._made_attempt(
            pipeline,
            keeper.check(pipeline),
            Warming(history, self._reader, keeper),
            keeper,
            DeadLetterFile(keeper.folder.place / "dead_letters.warm.ndjson"),
            asyncio.Event(),
        )
        await attempt.run()
        keeper.warming = False
        await keeper.begin_again()
        _log.info("warmed by %s of %s", counted(attempt.mill.counts.records_in, "record"), history.name)

    async def _attempts(
        self,
        checked: Checked,
        keeper: Keeper | None,
        letters: DeadLetterFile,
        inflow: Inflow,
    ) -> Attempt:
        latest: Attempt | None = None
        while True:
            attempt: Attempt | None = None
            try:
                if latest is not None and self._server is not None and not self._server.alive:
                    await self._server.aclose()
                    self._begin_server()
                if latest is not None and keeper is not None:
                    await keeper.begin_again()
                    letters = self._letters(keeper)
                    checked = keeper.check(self.pipeline, edges=False)
                self._oversight.begin_again()
                attempt = latest = self._made_attempt(self.pipeline, checked, inflow, keeper, letters, self.started)
                await attempt.run()
            except BaseException as error:  # noqa: BLE001 - its first leaf says what it was
                first = first_error(error)
                # Where the memory for the very first cannot be had, waiting changes nothing.
                if latest is None or keeper is None or is_cancelled() or not self._passes(first):
                    raise first from first.__cause__
                culprit = STATE_FOLDER if attempt is None else attempt.culprit
                wait_s = self._setbacks.failed(culprit, first, latest)
                self._failed.set()
                await self._back_off(first, wait_s)
            else:
                return attempt

    def _made_attempt(
        self,
        pipeline: Pipeline,
        checked: Checked,
        inflow: Inflow,
        keeper: Keeper | None,
        letters: DeadLetterFile,
        started: asyncio.Event,
    ) -> Attempt:
        self._attempt = Attempt(
            pipeline,
            checked,
            inflow,
            lanes=self._lanes,
            server=self._server,
            clock=self._clock,
            limits=self._limits,
            readings=self._readings,
            stopping=self._stopping,
            letters=letters,
            keeper=keeper,
            watch=self._watched,
            oversight=self._oversight,
            started=started,
        )
        return self._attempt

    def _passes(self, error: BaseException) -> bool:
        """Whether waiting may help: the outside of a live run, whose input goes on meanwhile, or somebody who has killed the
        fork server, and with it lanes and sinks."""
        passes = isinstance(error, OutsideError) or (self._server is not None and not self._server.alive)
        return passes and not self.pipeline.finite and not self._stopping.asked.is_set()

    async def _back_off(self, error: BaseException, wait_s: float) -> None:
        """Wait before the next attempt; raises the error if there is to be none, because a stop was asked for."""
        error.__traceback__ = None
        gc.collect()  # an attempt knows itself, and holds memory and files
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._stopping.asked.wait()
        if self._stopping.asked.is_set():
            raise error

    # -- in --------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _inflow(self, keeper: Keeper | None, group: asyncio.TaskGroup) -> AsyncIterator[Inflow]:
        sources = self.pipeline.sources
        if keeper is None:
            yield Direct(sources, self._reader)
        elif keeper.found is None and keeper.state.warm is not None:
            _log.warning("stopped before the history was worked through: the next start begins with it again")
            yield Nothing()
        elif keeper.ended:
            told = "the input was worked on to its end before: there is nothing left to do. Start over with fresh=True (--fresh)"
            _log.warning(told)
            yield Nothing()
        elif len(sources) == 1 and sources[0].seekable:
            yield Seeking(sources[0], self._reader, keeper)
        else:
            state = keeper.state
            log = IngestLog(keeper.folder.log, max_bytes=state.log_max_bytes, min_free=state.log_min_free)
            journal = keeper.journal = Journal(log, self._clock, sources, begin=keeper.begin)
            logged = LoggedSources(sources, journal, self._reader, self._stopping, self.started)
            tasks: list[asyncio.Task[None]] = []
            try:
                place = keeper.place
                await asyncio.to_thread(journal.seek, place.get("entry", 0), place.get("offsets", {}))
                tasks = [group.create_task(work) for work in (journal.sync(), logged.log_all(), journal.tell_of_room())]
                yield Logged(journal, keeper)
            finally:
                for task in tasks:
                    task.cancel()
                await journal.settle()  # the file must not be closed under a thread that writes to it
                log.close()

    def _letters(self, keeper: Keeper | None) -> DeadLetterFile:
        path = self._dead_letters_path
        if keeper is None:
            return DeadLetterFile(path)
        place = files.absolute(path or keeper.folder.dead_letters)
        return DeadLetterFile(place, keep_bytes=keeper.letters_bytes(place))

    # -- the end ---------------------------------------------------------------------------------------------

    async def _end_after_seconds(self) -> None:
        """They begin when lanes and sinks are ready, since functions may have to be compiled first, or an attempt has
        failed: a sink that is away is waited for within them."""
        if self._seconds is None:
            return
        await first_of(self.started.wait(), self._failed.wait())
        await self._clock.sleep(self._seconds)
        self.stop_soon()

    def stop_soon(self) -> None:
        """Stop reading, finish what is in flight, flush, end; returns at once."""
        self._stopping.ask()
        self._oversight.stopping()

    def look_at_files(self) -> None:
        """Look at the files of tables and models now, whose changes a live run finds by itself within seconds; returns at
        once. Nothing else is read again. The log says what comes of it."""
        if self._attempt is not None:
            self._attempt.look_at_files()

    async def wait(self) -> Report:
        """Wait until it has ended by itself (inside `serve`)."""
        assert self._task is not None
        return await asyncio.shield(self._task)

    async def stop(self) -> None:
        """The same, and wait until all is done (inside `serve`)."""
        self.stop_soon()
        if self._task is not None:
            await asyncio.wait([self._task])

    # -- how it is -------------------------------------------------------------------------------------------

    @property
    def metrics_url(self) -> str:
        """Where the run shows /metrics, /healthz and /readyz; empty while it does not."""
        return self._showing.url

    def statistics(self) -> Statistics:
        """How the run is, now; rates and busy shares are since the last reading."""
        return self._statistics("")

    def _statistics(self, by: str) -> Statistics:
        attempt = self._attempt
        if attempt is None:
            raise EngineError("the run has not started")
        seen = self._oversight
        return self._readings.statistics(
            attempt,
            self._reader,
            trouble=self._setbacks.read(attempt),
            ending=seen.ending,
            mostly_dead=seen.mostly_dead,
            dead=seen.dead,
            by=by,
        )

    def _seen(self) -> Seen:
        attempt = self._attempt
        if attempt is None:
            return Seen(None)
        return Seen(self._statistics("pages"), self._readings.spread(), self._terms, self._readings.told)

    def _overseen(self) -> Statistics | None:
        return None if self._attempt is None else self._statistics("oversight")

    def _watched(self) -> None:
        if self._attempt is not None:
            self._readings.sample(self._attempt)
        if self._on_statistics is not None:
            self._on_statistics(self._statistics("watch"))


def _script() -> str:
    """The name of the script that is being run, which names its only pipeline; empty where there is none, and of a command such as
    ``uvicorn``: the application would be another one under ``python -m uvicorn``, and not find what it keeps."""
    file = Path(getattr(sys.modules.get("__main__"), "__file__", None) or "")
    return file.stem if file.suffix == ".py" and not file.stem.startswith("__") else ""


def _warn_of_deadlines(plan: Plan) -> None:
    unguarded = [stage.name for stage in plan.stages if stage.deadline_s is not None]
    if unguarded:
        _log.warning(
            "lanes=0: nothing can stop a function inline, so the deadline_s of %s does nothing; use lanes=1 or more",
            ", ".join(unguarded),
        )
