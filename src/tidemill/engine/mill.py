"""The mill: slabs out to the lanes, results back, output on to the sinks, in input order.

Everything here runs in callbacks of the event loop, each bounded: a record arrived, a lane spoke, a lane died, a sink
took a slab. What to do is decided by the batcher, the ledger and blame; the mill performs it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill.clock import Clock
from tidemill.core.batching import Batcher
from tidemill.core.blame import TooManyDeaths
from tidemill.core.controls import Barrier, CatchUp, Control, Controls, Decided, End, NewStages, Tick
from tidemill.core.keys import KeyTable
from tidemill.core.ledger import Ledger
from tidemill.core.plan import Plan
from tidemill.core.sparingly import Sparingly
from tidemill.core.watermark import Watermark
from tidemill.engine.assembly import Share
from tidemill.engine.barriers import Barriers
from tidemill.engine.burials import Burials
from tidemill.engine.filling import Filler, Slab
from tidemill.engine.finishing import Finished, Finishing
from tidemill.engine.intake import Intake, Taken
from tidemill.engine.lane import Lane, LaneFactory
from tidemill.engine.learned import Learned
from tidemill.engine.metrics import Counts
from tidemill.engine.outlets import error_of
from tidemill.engine.sendable import sent_stages
from tidemill.engine.slabs import Slabs
from tidemill.engine.work import Work
from tidemill.errors import EngineError, OutsideError, StageError
from tidemill.formats.packed import Full, Unpacker
from tidemill.lanes.channel import Exit
from tidemill.lanes.fork_client import NO_ROOM
from tidemill.lanes.framing import Payload
from tidemill.lanes.wire import (
    Admit,
    Committed,
    Copied,
    Failed,
    FromLane,
    LoadPlan,
    Ready,
    Result,
    StageChanged,
    Stop,
)
from tidemill.letters import DeadLetter
from tidemill.schema import Schema
from tidemill.stages.state import NOWHERE

__all__ = ["Mill"]

_log = logging.getLogger("tidemill")


def _dies_again(lane: Lane, death: TooManyDeaths, opened: str) -> Exception:
    if opened and not death.from_outside:
        return StageError(
            f"{opened}: lane {lane.number} dies again and again ({death}) where it makes its object or loads its model."
        )
    told = f"lane {lane.number} dies again and again ({death}), outside any function of yours"
    if death.from_outside:
        return OutsideError(
            f"{told}: the machine may be short of memory (its kernel's log says so), or somebody kills it."
        )
    return EngineError(told)


class Mill:
    """Lanes, slabs and the books of one run.

    What the lanes do is added to ``work``. ``emit`` gets each slab's output in input order; ``fail`` the error that ends the run; ``reject`` the dead letters of
    records, ``reject_row`` those of rows that stages had made, of which so many came to a stage as ``made`` is told.
    ``ready`` is called when all lanes have loaded the plan, ``copied`` when a lane has copied its state at a barrier, and
    ``passed`` when all before the barrier has been emitted, and nothing behind it; ``moved`` when a control record has
    taken effect.
    """

    def __init__(
        self,
        plan: Plan,
        schema: Schema,
        *,
        keys: KeyTable,
        batcher: Batcher,
        clock: Clock,
        max_keys: int,
        watermark: Watermark,
        work: Work,
        emit: Callable[[Finished], None],
        fail: Callable[[BaseException], None],
        reject: Callable[[Sequence[DeadLetter]], None],
        reject_row: Callable[[Sequence[DeadLetter]], None],
        made: Callable[[int, str], None],
        defer: Callable[[Callable[[], None]], object],
        ready: Callable[[], None],
        copied: Callable[[int], None] = lambda _: None,
        passed: Callable[[], None] = lambda: None,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self._plan = plan
        self._keys = keys
        self._batcher = batcher
        self._clock = clock
        self._fail, self._defer = fail, defer
        self._ready_to_work, self._moved = ready, moved
        self._layout = plan.layout(max_keys, batcher.limits.max_records)
        self.lanes = [Lane(number, self._layout, work) for number, work in enumerate(work.lanes)]
        self.ledger = Ledger(len(self.lanes))
        self.slabs = Slabs()
        self.counters: dict[str, int] = {}
        self._burials = Burials(plan, self.counters, reject, reject_row, made)
        self._work = work
        self.culprit = ""
        """Who failed, where the outside is to blame."""
        self._watermark = watermark
        self._filler = Filler(plan, schema, keys, len(self.lanes))
        self._controls = Controls()
        self._deaths_told = Sparingly()
        self.barriers = Barriers(self.lanes, keys, self._controls, copied=copied, passed=passed)
        self.files: dict[int, str] = {}
        """Of each stage that was made anew, the name under which its file is kept."""
        self.handed_out = 0
        """Up to where in the input everything was handed out to the lanes."""
        self._intake: Intake | None = None
        self._factory: LaneFactory | None = None
        self._open: dict[int, Slab] = {}
        unpacker = Unpacker()
        self._learned = Learned(plan, unpacker)
        self._finishing = Finishing(
            plan,
            lanes=self.lanes,
            slabs=self.slabs,
            filler=self._filler,
            learned=self._learned,
            burials=self._burials,
            unpacker=unpacker,
            counters=self.counters,
            clock=clock,
            emit=emit,
            emitted=self.barriers.emitted,
            freed=self._freed,
            fail=fail,
            defer=defer,
        )
        self._stopping = False
        self._gave_up = False
        self._scheduled = False
        self.pickled = sent_stages(plan.stages, self._layout)
        self._user_code = [stage.runs_user_code for stage in plan.stages]
        self._deadlines = [None if s.deadline_s is None else round(s.deadline_s * 1e9) for s in plan.stages]

    # -- life ----------------------------------------------------------------------------------------------

    def start(self, factory: LaneFactory, intake: Intake) -> None:
        """Start every lane; slabs flow as soon as records are there."""
        self._factory = factory
        self._intake = intake
        self.handed_out = self._finishing.done = intake.begins_at
        for lane in self.lanes:
            self._start(lane)
        self.pump()

    def _start(self, lane: Lane) -> None:
        assert self._factory is not None
        self._factory.start(
            lane,
            lambda message, payload: self._received(lane, message, payload),
            lambda how: self._died(lane, how),
        )
        lane.send(LoadPlan(self.pickled, self._learned.kinds))
        self._keys.forget_telling(lane.number)
        self._admit(lane)
        for message in lane.objects.messages():
            lane.send(message)

    def stop(self) -> None:
        """All is done: the lanes may end."""
        self._stopping = True
        for lane in self.lanes:
            lane.send(Stop())

    def give_up(self) -> int:
        """Hand nothing more to the lanes, nor to the sinks; how many rows that stages had made stay behind."""
        self._gave_up = True
        self._finishing.close()
        return self._finishing.made_left()

    def close(self) -> None:
        """Let go of the memory; lanes that were not stopped end, or else their processes would hold all of it."""
        if not self._stopping:
            self.stop()
        self._finishing.close()
        self.slabs.close()
        for lane in self.lanes:
            lane.close()

    @property
    def idle(self) -> bool:
        """Nothing waits, nothing is in a lane, nothing is on its way to a sink."""
        return self.ledger.idle and (self._intake is None or self._intake.empty)

    @property
    def counts(self) -> Counts:
        """The books: of records, rows and dead letters."""
        return self._finishing.counts

    @counts.setter
    def counts(self, before: Counts) -> None:
        self._finishing.counts = before

    @property
    def opening(self) -> str:
        """The stage that a lane is opening; empty while none does."""
        return next(filter(None, map(self._work.stages.opened_by, self.lanes)), "")

    @property
    def reached(self) -> int:
        """Up to where in the input all has left the lanes, and is with the sinks."""
        return self._intake.entered if self._intake is not None and self.idle else self._finishing.done

    @property
    def is_half_out(self) -> bool:
        """Whether the sinks have some of a slab's rows and not all."""
        return self._finishing.is_half_out

    @property
    def handed_up_to(self) -> int:
        """Up to where in the input everything was handed out to the lanes: where a barrier stands that is raised now."""
        return self._intake.entered if self._intake is not None and self.idle else self.handed_out

    def learned(self) -> dict[str, Any]:
        """What slabs have taught of the columns that functions make, as `learned_before` takes it."""
        return {
            "learned": {str(stage): kinds for stage, kinds in self._learned.kinds.items()},
            "results": self._filler.results,
            "probing": self._learned.probing,
        }

    def learned_before(
        self, learned: Mapping[str, Mapping[str, str]], results: Mapping[str, str], *, probing: bool
    ) -> None:
        """Before it starts: what another had learned."""
        self._learned.kinds.update({int(stage): dict(kinds) for stage, kinds in learned.items()})
        self._learned.probing = self._learned.probing and probing
        self._filler.results = results

    def memory(self) -> dict[str, int]:
        """Bytes taken from the machine."""
        return {
            "slabs": self.slabs.touched_bytes(),
            "state": sum(lane.state.touched_bytes() for lane in self.lanes),
            "copies": sum(lane.copy.touched_bytes() for lane in self.lanes),
            "state_per_key": self._layout.bytes_per_key,
            "objects": sum(lane.objects.statistics().held_bytes for lane in self.lanes),
        }

    @property
    def probing(self) -> bool:
        """Whether the columns that functions make are still to be learned."""
        return self._learned.probing

    def read_counters(self) -> dict[str, int]:
        """What stages counted, and what was counted of them; nothing that never happened."""
        own = {
            "over_budget": self._work.stages.over_budget,
            "time_ahead": self._watermark.ahead,
            "time_behind": self._watermark.behind,
            "time_leaps": self._watermark.leaps,
        }
        return self.counters | {what: times for what, times in own.items() if times}

    def doubts(self) -> list[str]:
        """What stages find strange in what they kept (`Stage.doubt`)."""
        slots = [self._keys.count(lane.number) for lane in self.lanes]
        states = [[lane.memory.stages[index] for lane in self.lanes] for index in range(len(self._plan.stages))]
        found = (stage.doubt(own, slots) for stage, own in zip(self._plan.stages, states, strict=True))
        return [doubt for doubt in found if doubt is not None]

    def enforce_deadlines(self) -> None:
        """Tell of functions that run long, and kill lanes whose function has run too long; called several times per
        deadline."""
        now = self._clock.monotonic_ns()
        self._work.stages.watch(self.lanes, now)
        for lane in self.lanes:
            if (number := lane.overdue(now, self._deadlines)) is not None and lane.kill():
                stage = self._plan.stages[number]
                told = "lane %d: a call of %s has passed its deadline of %g s and is stopped"
                fields = {"lane": lane.number, "pid": lane.pid, "stage": stage.name}
                _log.warning(told, lane.number, stage.name, stage.deadline_s, extra=fields)

    # -- out to the lanes ------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Form slabs while the batcher says so; no more than a turn of the loop may take."""
        if self._intake is None or self._stopping or self._gave_up:
            return
        turns = 0.0
        while turns < 1.0:
            control = self._intake.decided
            if control is not None:
                if not self._perform(self._intake, control):
                    return
            elif records := self._next_records(self._intake):
                turns += self._open_slab(self._intake, records)
            else:
                return
        self._pump_soon()

    def _pump_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._defer(self._pump_again)

    def _pump_again(self) -> None:
        self._scheduled = False
        try:
            self.pump()
        except Exception as error:  # noqa: BLE001 - a callback has nobody to raise to
            self._fail(error)

    def _next_records(self, intake: Intake) -> int:
        if not intake.waiting or not self.slabs.free:
            return 0
        records = self._batcher.records(
            waiting=intake.waiting, in_flight=self.ledger.in_flight(), free_slabs=self.slabs.free
        )
        if not self._learned.probing or not records:
            return records
        # Columns are learned from the first record, not from whatever a batch happens to hold: one record at a time.
        return 1 if self.ledger.idle else 0

    def _open_slab(self, intake: Intake, records: int) -> float:
        """Send the next records on their way; how much of a turn of the loop that took."""
        taken = intake.take(records)
        memory, packer = self.slabs.take()
        while True:
            try:
                slab = self._filler.fill(taken, memory, packer)
                break
            except Full:
                if len(taken.batch) == 1:
                    self.slabs.give_back(memory)
                    self._burials.oversize(taken, self.slabs.shared[memory].size)
                    return 1.0
                taken = intake.put_back(taken, len(taken.batch) // 2)
                packer.rewind()
        self._batcher.sent(len(taken.batch))
        self._work.batches.add(len(taken.batch))
        self._advance(taken, None if slab.marks is None else slab.marks[1])
        self._hand_out(slab)
        return taken.turns

    def _advance(self, taken: Taken, marks: NDArray[np.int64] | None) -> None:
        """The watermark, read by read: what is too far ahead of its arrival follows from when it came."""
        now, start = self._clock.monotonic_ns(), 0
        if marks is not None:
            marks[0] = self._watermark.mark
        for (records, _), wall_ns in zip(taken.arrivals, taken.walls, strict=True):
            wall = self._clock.wall_ns() if wall_ns is None else wall_ns
            times = taken.batch.time[start : start + records]
            if marks is None:
                self._watermark.hear(times, wall_ns=wall, now_ns=now)
            else:
                marks[start : start + records + 1] = self._watermark.advance(times, wall_ns=wall, now_ns=now)
            start += records

    def _hand_out(self, slab: Slab) -> None:
        self.handed_out = slab.taken.end
        now, idle = self._clock.monotonic_ns(), self.ledger.in_flight()
        number = self.ledger.open(slab.rows)
        self._open[number] = slab
        for lane in slab.rows:
            if not idle[lane]:
                self.lanes[lane].went_on_ns = now
            self._admit(self.lanes[lane])
            self._send(self.lanes[lane], number)

    # -- what was decided outside ------------------------------------------------------------------------------

    def _perform(self, intake: Intake, control: Decided) -> bool:
        """Let the control record that comes next take effect; False when it must wait for a slab."""
        if isinstance(control, NewStages):
            self.handed_out = intake.take_decided()
            self._change(control)
            return True
        if not self.slabs.free:
            return False
        self.handed_out = intake.take_decided()
        before = self._watermark.mark
        match control:
            case Tick(mark_ns):
                moved = self._watermark.go_on(mark_ns)
            case CatchUp():
                moved = self._watermark.catch_up()
            case End():
                self._watermark.end()
                moved = True
        if moved and self._plan.follows_watermark:
            self._open_empty(before, self.handed_out)
        self._moved()
        return True

    def _change(self, control: NewStages) -> None:
        opened = self.ledger.statistics().opened
        self._controls.forget(min(self._open, default=opened + 1))
        for made in control.stages:
            self._controls.add(opened, made.stage, made.pickled)
            if made.file:
                self.files[made.stage] = made.file
            for lane in self.lanes:
                lane.send(StageChanged(made.stage), made.pickled)
        self._moved()

    def tick(self) -> Tick | None:
        """What to decide if no record has come for long: the watermark goes on with the clock."""
        mark = self._watermark.tick(self._clock.monotonic_ns()) if self.idle else None
        return None if mark is None else Tick(mark)

    def _open_empty(self, before: int, position: int) -> None:
        """A slab without records, with which the watermark moves."""
        memory, packer = self.slabs.take()
        slab = self._filler.fill(Taken.nothing(position), memory, packer)
        assert slab.marks is not None
        slab.marks[1][:] = before, self._watermark.mark
        self._hand_out(slab)

    def raise_barrier(self, number: int) -> None:
        """Behind the last slab handed out, each lane copies its state, for checkpoint ``number``; one at a time."""
        self.barriers.raise_behind(self.ledger.statistics().opened, number)

    def _admit(self, lane: Lane) -> None:
        first, keys = self._keys.untold(lane.number)
        if keys:
            lane.send(Admit(first, list(keys)))

    def _send(self, lane: Lane, number: int) -> None:
        lane.send(self._open[number].work(number, lane.number, lane.blame.orders(number)))

    # -- back from the lanes ---------------------------------------------------------------------------------

    def _received(self, lane: Lane, message: FromLane, payload: Payload) -> None:
        try:
            match message:
                case Result():
                    lane.results[message.slab] = (message, payload)
                case Committed(number):
                    self._committed(lane, number)
                    self.pump()
                case Copied(number):
                    self.barriers.copied(lane, number)
                case Ready():
                    lane.ready = True
                    if all(lane.ready for lane in self.lanes):
                        self._ready_to_work()
                case Failed():
                    self._fail(error_of(message))
                case _:
                    self._fail(EngineError(f"lane {lane.number} sent {message}"))
        except Exception as error:  # noqa: BLE001 - a callback has nobody to raise to
            self._fail(error)

    def _committed(self, lane: Lane, number: int) -> None:
        result, payload = lane.results.pop(number)
        slab = self._open[number]
        names = None if result.made is None else self._keys.names(lane.number)
        slab.shares[lane.number] = Share(slab.rows[lane.number][1], result, payload, names)
        if len(slab.taken.batch):
            self._batcher.measured(len(slab.taken.batch), result.busy_ns / 1e9, lane.number)
        self._work.stages.add(result.stage_ns)
        lane.objects.committed(result.objects)
        lane.went_on_ns = self._clock.monotonic_ns()
        lane.work.busy_ns += result.busy_ns
        lane.work.batches += 1
        lane.blame.committed(number)
        done = [(number, self._open.pop(number)) for number in self.ledger.committed(lane.number, number)]
        if done and not self._work.first_done_ns:
            self._work.first_done_ns = self._clock.monotonic_ns()
        self._finishing.add(done)

    def _freed(self, number: int, memory: int) -> None:
        self.ledger.freed(number)
        self.slabs.give_back(memory)
        self._pump_soon()

    # -- when a lane is lost ---------------------------------------------------------------------------------

    def _died(self, lane: Lane, how: Exit) -> None:
        """Replace the process: same state memory, rolled back by the newcomer; what is owed is sent again."""
        if self._stopping:
            return
        if how.error:  # there was none: nobody is to blame
            self.culprit = f"lane {lane.number}"
            self._fail(OutsideError(f"the process of lane {lane.number} {how}. {NO_ROOM}"))
            return
        opened = self._work.stages.opened_by(lane)
        try:
            # Committed in the memory, but the word of it was lost with the process: its result came before, and holds.
            for number in sorted(lane.results):
                if number <= lane.memory.committed:
                    self.barriers.recall(lane, number)
                    self._committed(lane, number)
            self.barriers.recall(lane, lane.memory.committed + 1)
            self._blame(lane, how)
            self._replace(lane)
            if (behind := self._deaths_told.behind(self._clock.monotonic_ns())) is not None:
                fields = {"lane": lane.number, "signal": how.signal, "code": how.code, "restarts": lane.work.restarts}
                _log.warning("lane %d: %s; replaced, nothing is lost%s", lane.number, how, behind, extra=fields)
            self.pump()
        except TooManyDeaths as death:
            self._fail(_dies_again(lane, death, opened))
        except Exception as error:  # noqa: BLE001 - a callback has nobody to raise to
            self._fail(error)

    def _blame(self, lane: Lane, how: Exit) -> None:
        death = lane.death(how, self._user_code)
        lane.memory.mark(NOWHERE)  # read once: what comes next must not be blamed for it, nor its deadline enforced
        if lane.ready and not self.ledger.owed(lane.number):
            return  # it had nothing to do: nothing of ours killed it
        orders = lane.blame.died(death)
        for stage, rows in orders.quarantine.items():
            if self._plan.stages[stage].on_error == "stop":
                raise StageError(f"{self._plan.stages[stage].name} failed: {next(iter(rows.values()))[1]}")

    def _replace(self, lane: Lane) -> None:
        lane.work.restarts += 1
        lane.detach()
        self._start(lane)
        for step in self._controls.among(self.ledger.owed(lane.number)):
            match step:
                case Control():
                    lane.send(StageChanged(step.stage), step.pickled)
                case Barrier():
                    self.barriers.send(lane)
                case _:
                    self._send(lane, step)
