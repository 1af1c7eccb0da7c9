"""The chain: a plan's stages, one after another, over one lane's share of a slab.

The same code runs in a lane, inline (``lanes=0``) and under ``Plan.apply``. A record that fails at stage k has passed
the stages before k and stays in their state, on every path: raised, killed, past its deadline, replayed. In the state of
stage k itself it stays when its function raised, since it had entered (a reading is a part of its sensor's window even
where nothing can be made of that window); a record that killed its lane or was past its deadline there is set aside
before stage k, so that it cannot strike again from its neighbours' windows. The objects of `Keyed` alone are the user's,
and are put back to what they were before a record that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import NULL_TAG, Column, object_array
from tidemill.core.blame import Orders
from tidemill.core.made_columns import MadeColumns
from tidemill.core.outcome import Dead, Outcome
from tidemill.core.watermark import BEGIN, held_back
from tidemill.errors import EngineError
from tidemill.letters import Reject
from tidemill.orders import Orders as FieldOrders
from tidemill.schema import Kind
from tidemill.stages.base import GONE, Emitted, Entered, Stage, Step
from tidemill.stages.narrowing import Piece, narrowed, rejected
from tidemill.stages.object_states import ObjectStates
from tidemill.stages.state import NOWHERE, StateMemory, opening

__all__ = ["Chain"]


@dataclass(frozen=True)
class _Worked:
    """What a stage made of a part of the batch."""

    before: Batch
    """The records that are in ``step.batch``, as they were before."""
    step: Step


class Chain:
    """Opened stages over one state memory.

    ``now`` reads the monotonic clock in nanoseconds.
    """

    def __init__(self, stages: Sequence[Stage], memory: StateMemory, now: Callable[[], int]) -> None:
        self._memory = memory
        self._now = now
        self._stages = [self._opened(index, stage) for index, stage in enumerate(stages)]
        self._columns = MadeColumns(self._stages)
        self._unshown: set[str] = set()  # in this batch, see `Step.unshown`
        self._keys: list[str] = []
        self.key_texts: NDArray[np.object_] = np.empty(0, object)
        """The sensors' names by key slot."""

    @property
    def kinds(self) -> dict[int, dict[str, Kind]]:
        """See `MadeColumns.kinds`; what a run knows from elsewhere is added here."""
        return self._columns.kinds

    @kinds.setter
    def kinds(self, kinds: dict[int, dict[str, Kind]]) -> None:
        self._columns.kinds = kinds

    def admit(self, keys: Sequence[str], first_slot: int) -> None:
        """Tell every stage of new sensors."""
        self._keys[first_slot:] = keys
        self.key_texts = object_array(self._keys)
        for stage, state in zip(self._stages, self._memory.stages, strict=True):
            state.keys = self.key_texts
            stage.admit(keys, first_slot)

    def change(self, index: int, stage: Stage) -> None:
        """From the next batch on, ``stage`` in the place of number ``index``: one without a state of its own."""
        opened = self._opened(index, stage)
        opened.admit(self._keys, 0)
        self._stages[index] = opened

    def _opened(self, index: int, stage: Stage) -> Stage:
        """The stage, opened; meanwhile the cursor says so, since a class of the user's may take its time."""
        if not stage.runs_user_code:
            return stage.opened()
        self._memory.mark(opening(index), since_ns=self._now())
        opened = stage.opened()
        self._memory.mark(NOWHERE)
        return opened

    def changed_objects(self) -> dict[int, ObjectStates]:
        """Per stage, the objects that changed since this was last asked; see `Stage.changed_objects`."""
        changed = {index: stage.changed_objects() for index, stage in enumerate(self._stages) if stage.keeps_objects}
        return {index: states for index, states in changed.items() if states is not None}

    def hold_objects(self, index: int, states: ObjectStates) -> None:
        """Objects of a stage, from a lane that died."""
        self._stages[index].hold_objects(states)

    def run(
        self,
        batch: Batch,
        slots: NDArray[np.int32],
        orders: Orders | None = None,
        *,
        places: NDArray[np.int32] | None = None,
        marks: NDArray[np.int64] | None = None,
        devices: NDArray[np.int32] | None = None,
    ) -> Outcome:
        """Work on a batch; ``slots`` are the key slots of its records.

        ``places`` and ``marks`` are the records' places in their slab and the watermark there, as `StageState` has them,
        where a stage follows it; ``devices`` the key slots of their devices, where sensors are placed by them.
        """
        orders = orders or Orders()
        columns = {id(column): (column, name) for name, column in batch.columns.items()}
        outcome = Outcome(batch, None, columns, slots=slots, places=places, devices=devices)
        entered, made = len(batch), 0
        self._unshown.clear()
        began = self._now()
        for index, stage in enumerate(self._stages):
            if outcome.ends is not None:
                outcome.count_made(index, len(outcome.slots) - outcome.records)
            if quarantined := orders.quarantine.get(index):
                self._set_aside(index, outcome, quarantined, entered)
            if stage.runs_user_code and not len(outcome.batch) and not stage.follows_watermark:
                outcome.stage_ns.append(0)
                continue  # nobody's function is called with nothing
            state = self._memory.stages[index]
            if stage.follows_watermark:
                assert outcome.places is not None, "the watermark is computed for such a stage"
                assert marks is not None
                state.places, state.marks = outcome.places, marks
                state.devices = outcome.slots if outcome.devices is None else outcome.devices
                first = entered + made
                state.calling_row = partial(self._mark_made, index, stage, first)
                away = orders.quarantine.get(index, {})
                state.quarantined = {row - first: why for row, why in away.items() if row >= first}
            step, before = self._step(index, stage, outcome, isolated=index in orders.isolate)
            outcome.follow(before if stage.changes_columns else step.batch)
            self._keep(index, stage, outcome, step, entered)
            if step.emitted is not None and len(step.emitted.batch):
                self._mix_in(index, outcome, step.emitted, entered + made)
                made += len(step.emitted.batch)
            if marks is not None:
                marks = held_back(marks, stage.delay_ns)
            if state.counts:
                _add(outcome.counts, state.counts)
                outcome.counted[index] = state.counts
                state.counts = {}
            ended = self._now()
            outcome.stage_ns.append(ended - began)
            began = ended
        self._memory.mark(NOWHERE)
        if self._unshown:
            outcome.drop_absent(self._unshown)
        outcome.orders = _own_orders(batch, outcome.batch)
        outcome.end()
        return outcome

    # -- one stage -------------------------------------------------------------------------------------

    def _step(self, index: int, stage: Stage, outcome: Outcome, *, isolated: bool) -> tuple[Step, Batch]:
        """The stage's step, and the records that are in it as they were before: what it left alone is in both."""
        batch, state, slots = outcome.batch, self._memory.stages[index], outcome.slots
        self._memory.make_room()
        if not stage.runs_user_code or stage.follows_watermark:  # which finds itself what its functions fail on
            self._memory.mark(index)
            if stage.follows_watermark or len(self._parts(index, len(batch))) == 1:
                state.slots = slots
                step = _as_step(stage.step(batch, state))
                return step, batch if step.before is None else step.before
            return self._in_parts(index, stage, batch, slots)

        pieces: list[Piece[_Worked]] = []
        for entered in self._entered(index, stage, outcome, isolated=isolated):
            attempt = partial(self._attempt, index, stage, outcome, entered)
            if isolated:
                pieces.extend(Piece(row, row + 1, attempt(row, row + 1)) for row in range(entered.start, entered.stop))
            else:
                pieces.extend(narrowed(entered.start, entered.stop, attempt))
            del entered, attempt  # the next may come in the same memory
        if len(pieces) == 1 and isinstance(pieces[0].made, _Worked):
            step, before = pieces[0].made.step, pieces[0].made.before
        else:
            step, before = self._joined(index, stage, batch, pieces)
        if stage.changes_columns:
            self._columns.fill(index, step)
        return step, before

    def _parts(self, index: int, rows: int) -> list[tuple[int, int]]:
        """How the rows of a batch are given to a stage: with a state no more at once than its memory is laid out for."""
        most = self._memory.layout.max_records
        if rows <= most or not self._memory.layout.stages[index]:
            return [(0, rows)]
        return [(start, min(start + most, rows)) for start in range(0, rows, most)]

    def _in_parts(self, index: int, stage: Stage, batch: Batch, slots: NDArray[np.int32]) -> tuple[Step, Batch]:
        """The step over more rows than fit at once, which stages before have made."""
        state = self._memory.stages[index]
        pieces: list[Piece[_Worked]] = []
        for start, stop in self._parts(index, len(batch)):
            self._memory.make_room()
            part, state.slots = batch.slice(start, stop), slots[start:stop]
            step = _as_step(stage.step(part, state))
            pieces.append(Piece(start, stop, _Worked(part if step.before is None else step.before, step)))
        made, before = self._joined(index, stage, batch, pieces)
        if not len(made.batch):
            made.batch = step.batch  # with the columns that there would be
        return made, before

    def _entered(self, index: int, stage: Stage, outcome: Outcome, *, isolated: bool) -> Iterator[Entered]:
        """The records as they enter the stage, each once, and ``isolated`` if the crash cursor is to name each."""
        batch, state, slots = outcome.batch, self._memory.stages[index], outcome.slots
        state.slots = slots
        if not stage.narrows_itself:
            self._memory.mark(index)
            for low, high in self._parts(index, len(batch)):
                self._memory.make_room()
                state.slots = slots[low:high]
                for entered in stage.enter(batch.slice(low, high), state):
                    yield entered.beginning(low)
                    del entered
            return
        for start in range(len(batch)) if isolated else (0,):
            stop = start + 1 if isolated else len(batch)
            row = outcome.position(start) if isolated else NOWHERE
            state.slots = slots[start:stop]
            state.calling = partial(self._mark, index, stage, row)
            state.calling()
            self._tell_kinds(index, stage)
            step = _as_step(stage.step(batch.slice(start, stop), state))
            yield Entered(start, stop, partial(_part_of, step, start))

    def _mark_made(self, index: int, stage: Stage, first: int, row: int) -> None:
        """The same for a row that a stage makes."""
        self._mark(index, stage, first + row)

    def _mark(self, index: int, stage: Stage, row: int) -> None:
        """Put the cursor on a call of the user's function, and say since when it is on."""
        self._memory.mark(index, row, self._now())

    def _tell_kinds(self, index: int, stage: Stage) -> None:
        stage.know(self._columns.known(index))

    def _attempt(
        self, index: int, stage: Stage, outcome: Outcome, entered: Entered, start: int, stop: int
    ) -> _Worked | Reject:
        """What the stage makes of some of the records that entered, found fit to go on."""
        part = outcome.batch.slice(start, stop)
        self._mark(index, stage, outcome.position(start) if stop - start == 1 else NOWHERE)
        self._tell_kinds(index, stage)
        try:
            step, before = _as_step(entered.work(part, start)), part
            if stage.changes_columns:
                self._unshown |= step.unshown
                if step.kept is not None:
                    before = part.take(step.kept)
                    step.batch.columns.update(_unchanged(before, step.batch))
                self._columns.check(index, stage, before, step)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the user's function raises costs its records
            return rejected(stage, error)
        if step.rejects and stage.narrows_itself and stage.on_error == "nan":
            return self._with_missing(index, stage, part, _Worked(before, step))
        return _Worked(before, step)

    # -- what was made in pieces -------------------------------------------------------------------------

    def _joined(self, index: int, stage: Stage, batch: Batch, pieces: Sequence[Piece[_Worked]]) -> tuple[Step, Batch]:
        rejects: list[Reject] = []
        gone: dict[str, int] = {}
        kept: list[NDArray[np.intp]] = []
        parts: list[Batch] = []
        same = set(batch.columns)
        for piece in pieces:
            worked = self._failed(index, stage, batch, piece) if isinstance(piece.made, Reject) else piece.made
            step = worked.step
            rejects.extend(Reject(r.row + piece.start, r.reason_code, r.reason) for r in step.rejects)
            _add(gone, step.gone)
            kept.append(np.arange(piece.start, piece.stop) if step.kept is None else step.kept + piece.start)
            if len(step.batch):
                parts.append(step.batch)
                made, before = step.batch.columns, worked.before.columns
                same = {name for name in same if made.get(name) is before[name]}
        rows = np.concatenate(kept)
        base = batch if len(rows) == len(batch) else batch.take(rows)
        if not parts or not stage.changes_columns:
            return Step(base, rows, rejects, gone), base
        return Step(Batch.concat(parts, whole={name: base.columns[name] for name in same}), rows, rejects, gone), base

    def _failed(self, index: int, stage: Stage, batch: Batch, piece: Piece[_Worked]) -> _Worked:
        """A record that the function failed on: rejected, or kept with the stage's columns missing."""
        assert isinstance(piece.made, Reject)
        part = batch.slice(piece.start, piece.stop)
        nothing = np.empty(0, np.intp)
        none = part.take(nothing)
        worked = _Worked(none, Step(none, nothing, [piece.made]))
        return self._with_missing(index, stage, part, worked) if stage.on_error == "nan" else worked

    def _with_missing(self, index: int, stage: Stage, part: Batch, worked: _Worked) -> _Worked:
        """The rejected records kept too, with the stage's columns missing for them."""
        step = worked.step
        self._memory.stages[index].count("failed_as_nan", len(step.rejects))
        added = self._columns.added(index, stage, part)
        failed = np.array([reject.row for reject in step.rejects], np.intp)
        lost = part if len(failed) == len(part) else part.take(failed)
        missing = lost.with_columns({name: Column.missing(kind, len(failed), NULL_TAG) for name, kind in added.items()})
        if len(failed) == len(part):
            return _Worked(part, Step(missing))
        kept = np.setdiff1d(np.arange(len(part)), failed) if step.kept is None else step.kept
        rows = np.concatenate([kept, failed])
        order = np.argsort(rows)
        before = part if len(rows) == len(part) else part.take(rows[order])
        same = [name for name, column in worked.before.columns.items() if step.batch.columns.get(name) is column]
        whole = Batch.concat([step.batch, missing]).take(order)
        whole.columns.update({name: before.columns[name] for name in same})
        return _Worked(before, Step(whole, None if before is part else rows[order]))

    # -- keeping the books ---------------------------------------------------------------------------------

    def _set_aside(
        self, index: int, outcome: Outcome, quarantined: Mapping[int, tuple[str, str]], entered: int
    ) -> None:
        """Take the quarantined rows out before the stage sees them."""
        rows = np.arange(len(outcome.batch)) if outcome.rows is None else outcome.rows
        away = np.isin(rows, list(quarantined))
        for place in np.flatnonzero(away).tolist():
            outcome.dead.append(outcome.died(place, index, *quarantined[int(rows[place])], entered))
        keep = np.flatnonzero(~away)
        outcome.keep(keep)
        left = outcome.batch.take(keep)
        outcome.follow(left)
        outcome.batch = left

    def _keep(self, index: int, stage: Stage, outcome: Outcome, step: Step, entered: int) -> None:
        """Note which rows went on, and which died here."""
        records, left = outcome.records, len(outcome.batch)
        rejects = [outcome.died(r.row, index, r.reason_code, r.reason, entered) for r in step.rejects]
        outcome.dead.extend(rejects)
        if step.kept is not None and len(step.kept) < len(outcome.batch):
            outcome.keep(step.kept)
        left -= len(outcome.slots)
        if len(step.batch) != len(outcome.slots):
            raise EngineError(f"{stage.name} made {len(step.batch)} rows of {len(outcome.slots)} without saying which")
        if step.gone:
            _check_gone(stage, step.gone, left - len(step.rejects))
            records -= outcome.records + sum(dead.made is None for dead in rejects)
            for what, times in step.gone.items():  # a row that a stage had made was no record
                _add(outcome.gone, {what: min(times, records)})
                records -= min(times, records)
        outcome.batch = step.batch

    def _mix_in(self, index: int, outcome: Outcome, emitted: Emitted, first: int) -> None:
        """Put the rows that a stage made among those of the records, each where it came out."""
        count = len(outcome.batch)
        made = emitted.batch.with_columns({})
        made.key_column = Column(Kind.TEXT, emitted.slots, texts=self.key_texts)
        outcome.count_made(index, len(made))
        for reject in emitted.rejects:
            row, key = made.slice(reject.row, reject.row + 1).to_rows()[0], str(made.keys[made.key[reject.row]])
            where = int(emitted.places[reject.row]), int(emitted.ends[reject.row])
            outcome.dead.append(Dead(first + reject.row, index, reject.reason_code, reject.reason, row, key, *where))
        rows = np.arange(count) if outcome.rows is None else outcome.rows
        ends = np.full(count, BEGIN) if outcome.ends is None else outcome.ends
        assert outcome.places is not None
        places = np.concatenate([outcome.places, emitted.places])
        ends = np.concatenate([ends, emitted.ends])
        order = np.lexsort((ends, places))  # stable: one sensor's rows keep their order
        if emitted.rejects:
            order = order[~np.isin(order - count, [reject.row for reject in emitted.rejects])]
        outcome.rows = np.concatenate([rows, first + np.arange(len(made))])[order]
        if outcome.devices is not None:  # whoever makes rows in such a plan makes them of devices
            outcome.devices = np.concatenate([outcome.devices, emitted.slots])[order]
        outcome.slots = np.concatenate([outcome.slots, emitted.slots])[order]
        outcome.places, outcome.ends = places[order], ends[order]
        outcome.batch = (Batch.concat([outcome.batch, made]) if count else made).take(order)
        outcome.unchanged = {}


def _part_of(step: Step, start: int, part: Batch, at: int) -> Step:
    """What a step made of records ``start`` and on made of this part of them."""
    low, high = at - start, at - start + len(part)
    rejects = [Reject(r.row - low, r.reason_code, r.reason) for r in step.rejects if low <= r.row < high]
    if step.kept is None:
        return Step(step.batch.slice(low, high), None, rejects)
    first, last = np.searchsorted(step.kept, (low, high)).tolist()
    return Step(step.batch.slice(first, last), step.kept[first:last] - low, rejects)


def _unchanged(before: Batch, after: Batch) -> dict[str, Column]:
    """The columns that hold what they held before, though they were copied with the records that go on."""
    left = ((name, column, after.columns.get(name)) for name, column in before.columns.items())
    return {name: column for name, column, other in left if other is not None and column.is_copy_of(other)}


def _add(sums: dict[str, int], more: Mapping[str, int]) -> None:
    for what, times in more.items():
        sums[what] = sums.get(what, 0) + times


def _check_gone(stage: Stage, gone: Mapping[str, int], most: int) -> None:
    """Books that do not balance are found where they were made."""
    if not gone.keys() <= set(GONE) or min(gone.values()) < 0 or sum(gone.values()) > most:
        raise EngineError(f"{stage.name} counts {dict(gone)} of {most} records that did not go on")


def _as_step(result: Batch | Step) -> Step:
    return result if isinstance(result, Step) else Step(result)


def _own_orders(entered: Batch, left: Batch) -> FieldOrders | None:
    if left.orders is None:
        return None if entered.orders is None else (np.zeros(len(left), np.int32), (left.names,))
    if entered.orders is not None and left.orders[1] is entered.orders[1]:
        return None
    return left.orders
