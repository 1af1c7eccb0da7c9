"""One attempt at a run: lanes, sinks, and the flow between them, from a place in the input to the end or the first error.

    Inflow ──▶ Intake ──▶ Mill ══slabs══▶ lanes ══▶ Mill ──▶ Outlets ──▶ Sinks
                 │ keys, input order                  │ dead letters
                 └─ the inflow waits while it is full └──────────▶ DeadLetterFile

A run without state has one attempt, whose inflow is its sources. One that keeps state has another after an error of the
outside, such as a database that is away: it begins where the last checkpoint stands.

The tasks: the inflow, one per outlet, the dead letters, the watch over deadlines and checkpoints. They are one TaskGroup.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from tidemill.batch import Batch
from tidemill.clock import Clock
from tidemill.core.batching import Batcher, Limits
from tidemill.core.controls import CatchUp, End, NewStage, NewStages
from tidemill.core.keys import KeyTable
from tidemill.engine.dead_letters import DeadLetterFile
from tidemill.engine.file_watch import FileWatch
from tidemill.engine.finishing import Finished
from tidemill.engine.inflow import Inflow
from tidemill.engine.intake import Beginning, Intake
from tidemill.engine.keeper import Keeper
from tidemill.engine.lane import LaneFactory
from tidemill.engine.metrics import StateStatistics
from tidemill.engine.mill import Mill
from tidemill.engine.outflow import Outflow
from tidemill.engine.outlets import LoopOutlet, Outlet, ThreadOutlet
from tidemill.engine.oversight import Oversight
from tidemill.engine.pipeline import Checked, Pipeline
from tidemill.engine.preloading import load_kernels_for, preloaded
from tidemill.engine.process_outlet import ProcessOutlet
from tidemill.engine.readings import Readings
from tidemill.engine.rehearsal import rehearsed
from tidemill.engine.saving import Saving
from tidemill.engine.state_readings import read_state
from tidemill.engine.stopping import Stopping
from tidemill.engine.tally import Tally
from tidemill.errors import OutsideError, PlanError
from tidemill.lanes.fork_client import ForkServer
from tidemill.letters import DeadLetter
from tidemill.printable import counted
from tidemill.sinks.base import LoopSink, ProcessSink

__all__ = ["CHECKPOINT", "Attempt"]

CHECKPOINT: Final = "checkpoint"
"""The culprit when one cannot be written."""

_TICK_EVERY: Final = 10
"""Looks of the watch at deadlines for each at the clock of an idle input: five times a second."""
_log = logging.getLogger("tidemill")


class Attempt:
    """See the module. ``keeper`` is None without state."""

    def __init__(
        self,
        pipeline: Pipeline,
        checked: Checked,
        inflow: Inflow,
        *,
        lanes: int,
        server: ForkServer | None,
        clock: Clock,
        limits: Limits,
        readings: Readings,
        stopping: Stopping,
        letters: DeadLetterFile,
        keeper: Keeper | None,
        watch: Callable[[], None],
        oversight: Oversight,
        started: asyncio.Event,
    ) -> None:
        self.pipeline, self.checked, self._inflow = pipeline, checked, inflow
        self._lanes, self._server = lanes, server
        self._clock, self._readings, self.stopping = clock, readings, stopping
        self._keeper = keeper
        self._watched, self._oversight = watch, oversight
        self.started = started
        self._lanes_ready = asyncio.Event()
        self._idle = asyncio.Event()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._saving: Saving | None = None
        self._ready = asyncio.Event()
        self.has_ended = False
        """Whether the input has come to its end, and nothing will ever follow."""
        self.keys = KeyTable(max(lanes, 1), pipeline.max_keys)
        self.watermark = pipeline.watermark()
        outlets = [self._outlet(sink) for sink in pipeline.sinks]
        readings.attempt_begins(outlets)
        epoch = None if keeper is None else keeper.folder.epoch
        self.outflow = Outflow(checked, outlets, letters, readings, epoch=epoch, taken=self._check_idle)
        self.mill = Mill(
            checked.plan,
            checked.schemas[0],
            keys=self.keys,
            batcher=Batcher(limits, longest_s=checked.plan.longest_call_s / 2),  # a call is of a batch
            clock=clock,
            max_keys=pipeline.max_keys,
            watermark=self.watermark,
            work=readings.work,
            emit=self._emit,
            fail=self._fail,
            reject=self._reject,
            reject_row=self._reject_row,
            made=oversight.made,
            defer=asyncio.get_running_loop().call_soon,
            ready=self._lanes_ready.set,
            copied=self._lane_copied,
            passed=self._barrier_passed,
            moved=self._check_idle,
        )
        self._has_failed = False
        self.gave_up = False
        """Whether the grace after a stop was over before all was with the sinks."""
        self.rows_given_up = 0
        """Rows without a record that stages had made by then, and that the sinks were not given."""
        self._file_watch: FileWatch | None = None
        self.culprit = ""
        """Which of the edges failed, if one has."""
        self.intake = self._made_intake(Beginning())
        if keeper is not None:  # now, since a database that is away may keep it from beginning for long
            self._go_on_from(keeper.tally)

    @property
    def running(self) -> bool:
        """Whether lanes and sinks are ready."""
        return self._ready.is_set()

    @property
    def idle(self) -> bool:
        """Whether it goes on, and all that has come in is done."""
        if not self.running or self._has_failed or self.outflow.letters.pending or not self.mill.idle:
            return False
        state = self.state_statistics()
        return state is None or not state.log_waiting

    @property
    def unsaved(self) -> bool:
        """Whether no checkpoint has what was worked on."""
        return self._saving is not None and self._saving.reached > self.saved_up_to

    @property
    def published_ns(self) -> int:
        """When the newest checkpoint was published; 0 without state."""
        return 0 if self._keeper is None else self._keeper.published_ns

    @property
    def saved_up_to(self) -> int:
        """With state: up to where in the input the newest checkpoint reaches."""
        return 0 if self._saving is None else self._saving.epochs.statistics().position

    @property
    def behind(self) -> int:
        """With state: inputs that were taken in and that the newest checkpoint does not cover."""
        return 0 if self._saving is None else max(self.intake.entered - self.saved_up_to, 0)

    def tally(self) -> Tally:
        """What was counted, where nothing is in flight of what is before the place, and all that is behind it may be: letters
        behind it are held."""
        counts = replace(self.mill.counts, dead_letters=self.mill.counts.dead_letters - self.outflow.held)
        counts.records_in -= counts.in_flight
        letters = self.outflow.letters
        return Tally(counts, dict(self.mill.counters), Counter(letters.reasons), tuple(letters.samples))

    def _go_on_from(self, tally: Tally) -> None:
        self.mill.counts = replace(tally.counts)
        self.mill.counters.update(tally.counters)
        self.outflow.letters.go_on_from(tally.reasons, tally.samples)

    def state_statistics(self) -> StateStatistics | None:
        """How the state on disk is; None without."""
        keeper = self._keeper
        return None if keeper is None else read_state(keeper, self._saving, self._clock.monotonic_ns())

    # -- the way through -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """To the end of the input, or of the grace after a stop; raises the first error, after everything has been let go."""
        try:
            async with asyncio.TaskGroup() as group:
                background = [group.create_task(work) for work in self._background()]
                inflow = [] if self._inflow.waits else self._begun(group)
                await self._started_by(group.create_task(self._start()))
                background += [group.create_task(self._of_sink(outlet, outlet.run)) for outlet in self.outflow.outlets]
                inflow = inflow or self._begun(group)
                await self._input_ended(inflow)
                await self._drained(group)
                await self._ended(group)
                await self._finished()
                self.mill.stop()
                for task in background:
                    task.cancel()
        except BaseException:
            self._has_failed = True
            for outlet in self.outflow.outlets:
                await outlet.abandon()
            raise
        finally:
            try:
                try:
                    await self.outflow.letters.aclose()
                finally:
                    if self._saving is not None:
                        await self._saving.aclose()
            finally:
                self._readings.memory = self.mill.memory()
                self.mill.close()

    def _begun(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        return [group.create_task(work) for work in self._inflow.tasks(self)]

    def _background(self) -> list[Coroutine[Any, Any, None]]:
        """What goes on until all else has ended."""
        live = [] if self.pipeline.finite else [self._watch_files()]
        return [*live, self._write_letters(), self._watch(), self._raise_failure()]

    async def _write_letters(self) -> None:
        with self._blamed("dead letters"):
            await self.outflow.letters.write()

    async def _started_by(self, starting: asyncio.Task[None]) -> None:
        """A database that never answers must not keep a run from being stopped."""
        if await self.stopping.until({starting}):
            told = f"the lanes and sinks were not ready within the grace of {self.stopping.grace:g} s after the stop"
            raise OutsideError(f"{told}: {opening} was being opened." if (opening := self.mill.opening) else f"{told}.")
        await starting

    async def _start(self) -> None:
        server, readings = self._server, self._readings
        if server is not None:
            await server.wait_ready()
            loaded = await preloaded(server, self.mill.pickled, self.checked.plan, self.pipeline.sources)
            readings.kernels, readings.cold_s = loaded.kernels, loaded.cold_s
        if self._keeper is not None:  # rows that a sink has already must not be made before it has said so
            await self._open_outlets()
            self.intake = self._made_intake(await self._keeper.restore(self))
            self._saving = Saving(self._keeper, self, self._clock)
        self.mill.start(LaneFactory(server, self.mill.slabs.shared, keeps=self._keeper is not None), self.intake)
        if self._keeper is None:
            await self._open_outlets()
        await self._lanes_ready.wait()
        await load_kernels_for(self.pipeline.sources)
        self._ready.set()
        self.started.set()

    async def _open_outlets(self) -> None:
        for outlet in self.outflow.outlets:
            await self._of_sink(outlet, outlet.open, self.checked.schemas[-1])

    async def _of_sink(self, outlet: Outlet, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        with self._blamed(f"sink {outlet.name}"):
            await work(*arguments)

    @contextlib.contextmanager
    def _blamed(self, who: str) -> Iterator[None]:
        """What fails here has this one as its culprit."""
        try:
            yield
        except Exception:
            self.culprit = self.culprit or who
            raise

    def _made_intake(self, beginning: Beginning) -> Intake:
        return Intake(
            self.keys,
            reject=self._reject,
            arrived=self.mill.pump,
            place_by=self.checked.place_by,
            asked=self.checked.asked,
            fills=self.checked.plan.reads() is None,
            beginning=beginning,
        )

    def _outlet(self, sink: Any) -> Outlet:
        keeping = None if self._keeper is None else self._keeper.of_sink(sink.name)
        if isinstance(sink, LoopSink):
            return LoopOutlet(sink, self._readings.timed)
        if isinstance(sink, ProcessSink):
            server = self._server
            return ThreadOutlet(sink, keeping) if server is None else ProcessOutlet(sink, server, keeping)
        raise PlanError(f"{sink!r} is neither a LoopSink nor a ProcessSink.")

    # -- the way out -----------------------------------------------------------------------------------------

    async def _input_ended(self, inflow: list[asyncio.Task[None]]) -> None:
        """Wait for the end of input; after a stop for the grace, and then cancel what still reads."""
        waiting = await self.stopping.until(set(inflow))
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)

    async def _drained(self, group: asyncio.TaskGroup) -> None:
        """Wait until nothing is in flight; after a stop, for what is left of the grace."""
        late = await self.stopping.until({group.create_task(self._nothing_in_flight())})
        for task in late:
            task.cancel()
        if late and not self.mill.idle:
            self._give_up()

    def _give_up(self) -> None:
        """The sinks get no more, so that they can be finished: rows of a slab that is half out are left behind too."""
        self.gave_up = True
        self.rows_given_up = rows = self.mill.give_up()
        records = self.mill.counts.in_flight
        what = [f"{counted(records, 'record')} in flight"] if records else []
        what += [f"{counted(rows, 'row')} on their way to sinks"] if rows else []
        _log.warning(
            "the grace of %g s is over: gave up %s%s",
            self.stopping.grace,
            " and ".join(what) or "rows on their way to sinks",
            "" if self._keeper is None else f", which the next start {'reads' if records else 'makes'} again",
            extra={"in_flight": records, "rows": rows},
        )

    async def _nothing_in_flight(self) -> None:
        while not self.mill.idle:
            self._idle.clear()
            await self._idle.wait()

    async def _ended(self, group: asyncio.TaskGroup) -> None:
        """The input has ended: so do open windows. With state they stay open, if it was only stopped."""
        if not self.mill.idle:
            return
        if self._keeper is None:
            self.end_input()
            await self._drained(group)
        if self._saving is not None and not (self._keeper and self._keeper.warming and self.stopping.asked.is_set()):
            last = group.create_task(self._saving.last())
            if await self.stopping.until({last}):
                last.cancel()
                told = "the grace of %g s is over before the last checkpoint: the next start works again on what came since"
                _log.warning(told, self.stopping.grace)

    def end_input(self) -> None:
        """There are no more records."""
        self.has_ended = True
        self.intake.decide(CatchUp())
        self.intake.decide(End())

    async def _finished(self) -> None:
        """Wait until every sink has flushed and closed; after a stop, for what is left of the grace, and a second."""
        tasks: dict[Outlet, asyncio.Task[Any]] = {
            outlet: asyncio.ensure_future(outlet.finish()) for outlet in self.outflow.outlets
        }
        try:
            late = await self.stopping.until(set(tasks.values()), more_s=1.0)
            for task in tasks.values():
                if task not in late:
                    task.result()
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)  # of several that failed, one is told
        if late:
            names = ", ".join(outlet.name for outlet, task in tasks.items() if task in late)
            raise OutsideError(
                f"sink {names} did not finish within the grace of {self.stopping.grace:g} s after the stop."
            )

    # -- in --------------------------------------------------------------------------------------------------

    def came(self, records: int, source: str, up_to: int | None = None) -> None:
        """So many have come in, up to this position of the input; without one, for the first time in this run."""
        self.mill.counts.records_in += records
        self._oversight.came(records, source, up_to)

    async def enter(self, batch: Batch, source: str, wall_ns: int) -> None:
        """A batch as it comes again in every attempt: what was done before does not count as having come in."""
        before = self.intake.entered
        new = len(batch) - min(max(self.intake.begins_at - before, 0), len(batch))
        self.came(new, source, before + len(batch))
        await self.intake.put(batch, source, wall_ns)
        await self.outflow.room()

    def refuse(self, *letters: DeadLetter) -> None:
        """A source could not make records of something: they came in all the same."""
        for letter in self.intake.refuse(letters):
            assert letter.position is not None
            self.came(1, letter.source, letter.position + 1)

    def _reject(self, letters: Sequence[DeadLetter]) -> None:
        self.mill.counts.dead_letters += len(letters)
        for letter in letters:
            self._oversight.buried(letter)
        self.outflow.bury(letters)
        self._check_idle()  # they may have been the last records

    def _reject_row(self, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            self._oversight.buried_row(letter)
        self.outflow.bury(letters)

    # -- out -------------------------------------------------------------------------------------------------

    def _emit(self, finished: Finished) -> None:
        self.outflow.emit(finished, learned=not self.mill.probing)

    def _lane_copied(self, lane: int) -> None:
        if self._saving is not None:
            self._saving.copied(lane)

    def _barrier_passed(self) -> None:
        if self._saving is not None and (position := self._saving.epochs.waits_at) is not None:
            self.outflow.release(position)
            self._saving.passed()

    def _check_idle(self) -> None:
        if self.mill.idle:
            self.outflow.release(self.intake.entered)
            self._idle.set()

    # -- watching --------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Deadlines, the watermark of a live run, checkpoints, and the reader of live statistics."""
        live = self.checked.plan.follows_watermark and not self.pipeline.finite
        ticks = 0
        while True:
            await asyncio.sleep(0.02)
            self.mill.enforce_deadlines()
            ticks += 1
            if self.running and live and ticks % _TICK_EVERY == 0 and (tick := self.mill.tick()):
                self._inflow.tick(self, tick)
            if self.running and self._saving is not None:
                with self._blamed(CHECKPOINT):
                    self._saving.turn()
            if ticks % 12 == 0:
                self._watched()

    async def _watch_files(self) -> None:
        """Tables and models that are replaced while a live run goes on."""

        async def change(made: NewStages) -> int:
            return await self._inflow.change(self, made)

        plan, schemas, keeper = self.pipeline.plan, self.checked.schemas, self._keeper
        if keeper is None:
            watch = FileWatch(plan, schemas, self._clock, change, opens=self.opens)
        else:
            stale = await asyncio.to_thread(keeper.stale, plan.stages)
            load = partial(keeper.files.loader, {})
            watch = FileWatch(plan, schemas, self._clock, change, opens=self.opens, load=load, stale=stale)
        await self._ready.wait()
        self._file_watch = watch
        await watch.run()

    async def opens(self, made: NewStage) -> None:
        """Return when a stage of a new file was opened as lanes would open it; raises what they would fail with."""
        await rehearsed(self.pipeline.plan.stages[made.stage], made.pickled, self._server)

    def look_at_files(self) -> None:
        """Now, and not at the next look of the watch."""
        if self.pipeline.finite:
            _log.info("a recording is worked through with tables and models as they were when it was begun")
        elif self._file_watch is None:
            _log.info("tables and models are being read at the moment")
        else:
            self._file_watch.look_now()

    async def _raise_failure(self) -> None:
        """What fails in a callback ends the attempt here."""
        await self._failed

    def _fail(self, error: BaseException) -> None:
        self.mill.stop()  # a lane that ends now was not lost
        self.culprit = self.culprit or self.mill.culprit
        if not self._failed.done():
            self._failed.set_exception(error)
