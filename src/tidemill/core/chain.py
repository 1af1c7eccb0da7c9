"""The chain: a plan's stages, one after another, over one lane's share of a slab.

The same code runs in a lane, inline (``lanes=0``) and under ``Plan.apply``. A record that fails at stage k has passed
the stages before k and stays in their state, on every path: raised, killed, past its deadline, replayed.
"""

from __future__ import annotations

import pickle
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import ABSENT, INTEGER_TAG, NULL_TAG, Column, object_array
from tidemill.core.blame import Orders
from tidemill.errors import BadResult, EngineError, StageError, TidemillError
from tidemill.kinds import Kinds
from tidemill.letters import RAISED, WRONG_TYPE, Reject
from tidemill.orders import Orders as FieldOrders
from tidemill.schema import Kind, Schema
from tidemill.stages.base import Stage, Step
from tidemill.stages.state import NOWHERE, StateMemory

__all__ = ["Chain", "Dead", "Outcome"]

_NARROWING_CALLS = 32
"""Calls spent on halving a batch in which the user's function fails, before going row by row."""
_LONGEST_REASON = 1_000  # characters


@dataclass(frozen=True)
class Dead:
    """A record that ended at a stage."""

    row: int
    """Its position in the batch that entered the chain."""
    stage: int
    reason_code: str
    reason: str


@dataclass
class Outcome:
    """What came out of the chain."""

    batch: Batch
    rows: NDArray[np.intp] | None
    """Positions, in the batch that entered, of the rows that came out; None for all of them."""
    carried: dict[str, str]
    """Columns that are still what entered, by their present name: the name they entered with."""
    orders: FieldOrders | None = None
    """The orders of the records' fields, where they are not what entered with what was added behind it."""
    dead: list[Dead] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class _Piece:
    """Consecutive records of a batch that a function was called with, and what came of it."""

    start: int
    entered: Batch
    made: Step | Reject

    @property
    def stop(self) -> int:
        return self.start + len(self.entered)


class Chain:
    """Opened stages over one state memory.

    ``now`` reads the monotonic clock in nanoseconds; it is called only for stages with a deadline.
    """

    def __init__(self, stages: Sequence[Stage], memory: StateMemory, now: Callable[[], int]) -> None:
        self._stages = [stage.opened() for stage in stages]
        self._memory = memory
        self._now = now
        self.kinds: dict[int, dict[str, Kind]] = {}
        """Per stage of user code, the kinds of the columns it adds, once known; fixed for the run. Under ``~stage``, for
        a stage that fixes the kinds of those that came to it too (`Stage.fixes_kinds`), theirs."""
        self._names: set[str] = set()  # of columns that functions added, found fit to be sent
        self._declared = [_declared(stage) for stage in self._stages]

    def admit(self, keys: Sequence[str], first_slot: int) -> None:
        """Tell every stage of new sensors."""
        for stage in self._stages:
            stage.admit(keys, first_slot)

    def run(self, batch: Batch, slots: NDArray[np.int32], orders: Orders | None = None) -> Outcome:
        """Work on a batch; ``slots`` are the key slots of its records."""
        orders = orders or Orders()
        outcome = Outcome(batch, None, {name: name for name in batch.columns})
        for index, stage in enumerate(self._stages):
            slots = self._set_aside(index, outcome, slots, orders.quarantine.get(index))
            if stage.runs_user_code and not len(outcome.batch):
                continue  # nobody's function is called with nothing
            state = self._memory.stages[index]
            step, before = self._step(index, stage, outcome, slots, isolated=index in orders.isolate)
            slots = self._keep(index, stage, outcome, step, slots)
            if stage.changes_columns:
                _follow(outcome, before, step.batch)
            for what, times in state.counts.items():
                outcome.counts[what] = outcome.counts.get(what, 0) + times
            state.counts = {}
        self._memory.mark(NOWHERE)
        outcome.orders = _own_orders(batch, outcome.batch)
        return outcome

    # -- one stage -------------------------------------------------------------------------------------

    def _step(
        self, index: int, stage: Stage, outcome: Outcome, slots: NDArray[np.int32], *, isolated: bool
    ) -> tuple[Step, Batch]:
        """The stage's step, and the records that are in it as they were before: what it left alone is in both."""
        batch, state = outcome.batch, self._memory.stages[index]
        if not stage.runs_user_code:
            self._memory.mark(index)
            state.slots = slots
            return _as_step(stage.step(batch, state)), batch

        def attempt(start: int, stop: int) -> _Piece:
            alone = start if outcome.rows is None else int(outcome.rows[start])
            entered = batch.slice(start, stop)
            state.slots = slots[start:stop]
            return _Piece(start, entered, self._attempt(index, stage, entered, alone if len(entered) == 1 else NOWHERE))

        if isolated:
            return self._joined(index, stage, batch, [attempt(row, row + 1) for row in range(len(batch))])
        whole = attempt(0, len(batch))
        if isinstance(whole.made, Step):
            return whole.made, batch
        return self._joined(index, stage, batch, _narrowed(whole, attempt))

    def _attempt(self, index: int, stage: Stage, batch: Batch, row: int) -> Step | Reject:
        """One call of the user's function, with the cursor on it and its deadline armed."""
        self._memory.mark(index, row, self._now() if stage.deadline_s is not None else 0)
        stage.know({**self.kinds.get(index, {}), **self.kinds.get(~index, {})})
        try:
            step = _as_step(stage.step(batch, self._memory.stages[index]))
            if stage.changes_columns:
                self._check_sendable(stage, batch, step)
                self._check_kinds(index, stage, batch, step)
        except (Exception, SystemExit) as error:
            if stage.on_error == "stop":
                trace = _printable(traceback.format_exc())
                raise StageError(f"{stage.name} failed: {_told(error)}\n{trace}") from error
            return Reject(0, error.reason_code if isinstance(error, BadResult) else RAISED, _told(error))
        return step

    def _check_sendable(self, stage: Stage, before: Batch, step: Step) -> None:
        """What a function makes must be able to leave the process; also where it need not, so that all runs agree."""
        for name, column in step.batch.columns.items():
            if column is before.columns.get(name):
                continue
            if name not in before.columns and name not in self._names:
                if _printable(name) != name:
                    message = f"{stage.name} returned the field {name!r}, whose name has half of a surrogate pair"
                    raise BadResult(WRONG_TYPE, message)
                self._names.add(name)
            if column.kind is Kind.OBJECT:
                try:
                    pickle.dumps(column.values.tolist(), pickle.HIGHEST_PROTOCOL)
                except Exception as error:
                    message = f"{stage.name} returned a value of {name!r} that cannot be sent to another process: "
                    raise BadResult(WRONG_TYPE, message + _printable(str(error))) from error

    def _check_kinds(self, index: int, stage: Stage, before: Batch, step: Step) -> None:
        """A column that a function adds has one kind for the whole run: the first that it was seen with."""
        added = self.kinds.setdefault(index, {})
        own = self.kinds.setdefault(~index, {}) if stage.fixes_kinds else added
        recast = {}
        for name, column in step.batch.columns.items():
            if column is before.columns.get(name):
                if stage.fixes_kinds and name not in own and column.has_values:
                    own[name] = column.kind
                continue
            kind = own.get(name) or added.get(name)
            if kind is None:
                if not column.is_missing:
                    (own if name in before.columns else added)[name] = column.kind
            elif kind is Kind.OBJECT and column.kind is not kind:
                recast[name] = _as_objects(column)
            elif column.is_missing and column.kind is not kind:
                recast[name] = Column.missing(kind, len(column))
                recast[name].tags = column.tags
            elif column.kind is Kind.OBJECT and (fitting := _as_kind(name, column, kind)) is not None:
                recast[name] = fitting
            elif column.kind is not kind:
                message = f"{stage.name} returned {name!r} as {column.kind.value}; it has been {kind.value} so far"
                raise BadResult(WRONG_TYPE, message)
        if recast:
            step.batch = step.batch.with_columns(recast)

    # -- what was made in pieces -------------------------------------------------------------------------

    def _joined(self, index: int, stage: Stage, batch: Batch, pieces: Sequence[_Piece]) -> tuple[Step, Batch]:
        rejects: list[Reject] = []
        kept: list[NDArray[np.intp]] = []
        parts: list[Batch] = []
        same = set(batch.columns)
        for piece in pieces:
            step = piece.made if isinstance(piece.made, Step) else self._failed(index, stage, piece)
            rejects.extend(Reject(r.row + piece.start, r.reason_code, r.reason) for r in step.rejects)
            kept.append(np.arange(piece.start, piece.stop) if step.kept is None else step.kept + piece.start)
            if len(step.batch):
                parts.append(step.batch)
                made, entered = step.batch.columns, piece.entered.columns
                same = {name for name in same if made.get(name) is entered[name]}
        rows = np.concatenate(kept)
        base = batch if len(rows) == len(batch) else batch.take(rows)
        if not parts or not stage.changes_columns:
            return Step(base, rows, rejects), base
        whole = Batch.concat(parts)
        whole.columns.update({name: base.columns[name] for name in same})
        return Step(whole, rows, rejects), base

    def _failed(self, index: int, stage: Stage, piece: _Piece) -> Step:
        """A record that the function failed on: rejected, or kept with the stage's columns missing."""
        if stage.on_error != "nan":
            assert isinstance(piece.made, Reject)
            nothing = np.empty(0, np.intp)
            return Step(piece.entered.take(nothing), nothing, [piece.made])
        self._memory.stages[index].count("failed_as_nan")
        added = {**self._declared[index], **self.kinds.get(index, {})}
        if stage.fixes_kinds:  # it is given whole records and may change any field: what they came with stays
            own = {*piece.entered.columns, *self.kinds.get(~index, {})}
            added = {name: kind for name, kind in added.items() if name not in own}
        missing = {name: Column.missing(kind, 1, NULL_TAG) for name, kind in added.items()}
        return Step(piece.entered.with_columns(missing))

    # -- keeping the books ---------------------------------------------------------------------------------

    def _set_aside(
        self,
        index: int,
        outcome: Outcome,
        slots: NDArray[np.int32],
        quarantined: Mapping[int, tuple[str, str]] | None,
    ) -> NDArray[np.int32]:
        """Take the quarantined rows out before the stage sees them."""
        if not quarantined:
            return slots
        rows = np.arange(len(outcome.batch)) if outcome.rows is None else outcome.rows
        away = np.isin(rows, list(quarantined))
        outcome.dead.extend(Dead(int(row), index, *quarantined[int(row)]) for row in rows[away])
        keep = np.flatnonzero(~away)
        outcome.rows = rows[keep]
        outcome.batch = outcome.batch.take(keep)
        return slots[keep]

    def _keep(
        self, index: int, stage: Stage, outcome: Outcome, step: Step, slots: NDArray[np.int32]
    ) -> NDArray[np.int32]:
        """Note which rows went on, and which died here."""
        entered = len(outcome.batch)
        rows = outcome.rows
        for r in step.rejects:
            outcome.dead.append(Dead(r.row if rows is None else int(rows[r.row]), index, r.reason_code, r.reason))
        if step.kept is not None and len(step.kept) < entered:
            outcome.rows = step.kept if rows is None else rows[step.kept]
            slots = slots[step.kept]
            entered = len(step.kept)
        if len(step.batch) != entered:
            raise EngineError(f"{stage.name} made {len(step.batch)} rows of {entered} without saying which")
        outcome.batch = step.batch
        return slots


def _narrowed(whole: _Piece, attempt: Callable[[int, int], _Piece]) -> list[_Piece]:
    """Halve until the failing records are alone, the largest pieces first, within a budget of calls; then row by row.

    The pieces cover all records, in order; only pieces of one record are left failing.
    """
    calls = _NARROWING_CALLS
    pieces: list[_Piece] = []
    failing = deque([whole])
    while failing:
        piece = failing.popleft()
        if piece.stop - piece.start == 1:
            pieces.append(piece)
            continue
        if calls <= 0:
            pieces.extend(attempt(row, row + 1) for row in range(piece.start, piece.stop))
            continue
        middle = (piece.start + piece.stop) // 2
        for start, stop in ((piece.start, middle), (middle, piece.stop)):
            calls -= 1
            half = attempt(start, stop)
            (pieces if isinstance(half.made, Step) else failing).append(half)
    return sorted(pieces, key=lambda piece: piece.start)


def _declared(stage: Stage) -> dict[str, Kind]:
    """The kinds of the columns that a stage of user code says it adds."""
    if not stage.runs_user_code or not stage.changes_columns:
        return {}
    return {field.name: field.kind for field in stage.bind(Schema(open=True)) if field.kind is not None}


def _as_step(result: Batch | Step) -> Step:
    return result if isinstance(result, Step) else Step(result)


def _as_kind(name: str, column: Column, kind: Kind) -> Column | None:
    """A column of objects as one of this kind, if all its values are."""
    made, rejects = Kinds({name: kind}).column(name, column.to_list())
    return None if rejects else made


def _as_objects(column: Column) -> Column:
    tags = column.tags
    if tags is not None:
        tags = np.where(tags == INTEGER_TAG, 0, tags).astype(np.uint8)
    items = [None if item is ABSENT else item for item in column.to_list()]
    return Column(Kind.OBJECT, object_array(items), tags=tags)


def _follow(outcome: Outcome, before: Batch, after: Batch) -> None:
    """Keep ``outcome.carried`` true: which columns are still what entered the chain, under which name."""
    left = after.columns
    identity = {id(column): name for name, column in before.columns.items()}
    again = any(id(column) in identity for name, column in left.items() if name not in before.columns)
    if not again and all(left.get(name) is column for name, column in before.columns.items()):
        return  # it only added some of its own
    carried = {}
    for name, column in after.columns.items():
        old = identity.get(id(column))
        if old is not None and old in outcome.carried:
            carried[name] = outcome.carried[old]
    outcome.carried = carried


def _own_orders(entered: Batch, left: Batch) -> FieldOrders | None:
    if left.orders is None:
        return None if entered.orders is None else (np.zeros(len(left), np.int32), (left.names,))
    if entered.orders is not None and left.orders[1] is entered.orders[1]:
        return None
    return left.orders


def _told(error: BaseException) -> str:
    """One line: what was raised, and where in the user's code."""
    try:
        text = _printable(str(error))
    except Exception:  # noqa: BLE001 - the message is code of the user's too
        text = "its message cannot be shown"
    if isinstance(error, TidemillError):
        return text[:_LONGEST_REASON]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text[:_LONGEST_REASON]}{place}"


def _printable(text: str) -> str:
    """Text as UTF-8 can hold it."""
    return text.encode("utf-8", "backslashreplace").decode()
