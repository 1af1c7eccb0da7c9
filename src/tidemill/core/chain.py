"""The chain: a plan's stages, one after another, over one lane's share of a slab.

The same code runs in a lane, inline (``lanes=0``) and under ``Plan.apply``. A record that fails at stage k has passed
the stages before k and stays in their state, on every path: raised, killed, past its deadline, replayed.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import NULL_TAG, Column
from tidemill.core.blame import Orders
from tidemill.errors import EngineError, StageError
from tidemill.letters import RAISED, WRONG_TYPE, Reject
from tidemill.schema import Kind
from tidemill.stages.base import Stage, Step
from tidemill.stages.state import NOWHERE, StateMemory, StageState

__all__ = ["Chain", "Dead", "Outcome"]

_NARROWING_CALLS = 32
"""Calls spent on halving a batch in which the user's function fails, before going row by row."""


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
    dead: list[Dead] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


class _WrongKind(Exception):
    """A function returned another kind of column than before."""

    reason_code = WRONG_TYPE


class Chain:
    """Opened stages over one state memory.

    ``now`` reads the monotonic clock in nanoseconds; it is called only for stages with a deadline.
    """

    def __init__(self, stages: Sequence[Stage], memory: StateMemory, now: Callable[[], int]) -> None:
        self._stages = [stage.opened() for stage in stages]
        self._memory = memory
        self._now = now
        self.kinds: dict[int, dict[str, Kind]] = {}
        """Per stage of user code, the kinds of the columns it adds, once known; fixed for the run."""

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
            if not len(outcome.batch):
                # The schema must not depend on whether anything is left: the remaining stages see an empty batch only
                # when they are built in.
                if stage.runs_user_code:
                    continue
            state = self._memory.stages[index]
            state.slots = slots
            before = outcome.batch
            step = self._step(index, stage, outcome, state, isolated=index in orders.isolate)
            slots = self._keep(index, stage, outcome, step, slots)
            _follow(outcome, before, step.batch, moved=step.kept is not None, filters=not stage.changes_columns)
            for what, times in state.counts.items():
                outcome.counts[what] = outcome.counts.get(what, 0) + times
            state.counts = {}
        self._memory.mark(NOWHERE)
        return outcome

    # -- one stage -------------------------------------------------------------------------------------

    def _step(self, index: int, stage: Stage, outcome: Outcome, state: StageState, *, isolated: bool) -> Step:
        if not stage.runs_user_code:
            self._memory.mark(index)
            result = stage.step(outcome.batch, state)
            return result if isinstance(result, Step) else Step(result)
        if isolated:
            return self._in_pieces(index, stage, outcome, state, [(i, i + 1) for i in range(len(outcome.batch))])
        try:
            return self._call(index, stage, outcome.batch, NOWHERE)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's function raises
            self._stop_if_asked(stage, error)
        return self._narrowed(index, stage, outcome, state)

    def _call(self, index: int, stage: Stage, batch: Batch, row: int) -> Step:
        """One call of the user's function, with the cursor on it and its deadline armed."""
        self._memory.mark(index, row, self._now() if stage.deadline_s is not None else 0)
        result = stage.step(batch, self._memory.stages[index])
        step = result if isinstance(result, Step) else Step(result)
        self._check_kinds(index, stage, batch, step)
        return step

    def _check_kinds(self, index: int, stage: Stage, before: Batch, step: Step) -> None:
        known = self.kinds.setdefault(index, {})
        recast = {}
        for name, column in step.batch.columns.items():
            if column is before.columns.get(name):
                continue
            unknown = column.kind is Kind.OBJECT and column.tags is not None and bool(column.tags.all())
            kind = known.get(name)
            if kind is None and not unknown and len(column):
                known[name] = column.kind
            elif kind is not None and column.kind is not kind:
                if not unknown:
                    raise _WrongKind(
                        f"{stage.name} returned {name!r} as {column.kind.value}; it has been {kind.value} so far"
                    )
                recast[name] = Column.missing(kind, len(column))
                recast[name].tags = column.tags
        if recast:
            step.batch = step.batch.with_columns(recast)

    def _stop_if_asked(self, stage: Stage, error: BaseException) -> None:
        if stage.on_error == "stop":
            raise StageError(f"{stage.name} failed: {_told(error)}\n{traceback.format_exc()}") from error

    # -- finding the records at fault --------------------------------------------------------------------

    def _narrowed(self, index: int, stage: Stage, outcome: Outcome, state: StageState) -> Step:
        """Halve until the failing records are alone, within a budget of calls; then row by row."""
        batch = outcome.batch
        pieces: list[tuple[int, int]] = []
        budget = _NARROWING_CALLS
        failing = [(0, len(batch))]
        while failing:
            start, stop = failing.pop()
            if stop - start == 1 or budget <= 0:
                pieces.extend((row, row + 1) for row in range(start, stop))
                continue
            middle = (start + stop) // 2
            for half in ((middle, stop), (start, middle)):  # the first half ends on top of the stack
                budget -= 1
                if self._works(index, stage, batch.slice(*half)):
                    pieces.append(half)
                else:
                    failing.append(half)
        return self._in_pieces(index, stage, outcome, state, sorted(pieces))

    def _works(self, index: int, stage: Stage, batch: Batch) -> bool:
        try:
            self._call(index, stage, batch, NOWHERE)
        except (Exception, SystemExit):  # noqa: BLE001 - whatever the user's function raises
            return False
        return True

    def _in_pieces(
        self, index: int, stage: Stage, outcome: Outcome, state: StageState, pieces: Sequence[tuple[int, int]]
    ) -> Step:
        """The stage over each piece apart; a piece of one record that fails is rejected (or kept without the columns)."""
        batch, done, kept = outcome.batch, [], []
        rejects: list[Reject] = []
        for start, stop in pieces:
            piece = batch.slice(start, stop)
            row = start if outcome.rows is None else int(outcome.rows[start])
            try:
                step = self._call(index, stage, piece, row if stop - start == 1 else NOWHERE)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's function raises
                self._stop_if_asked(stage, error)
                code = getattr(error, "reason_code", RAISED)
                step = self._failed(index, stage, piece, Reject(0, code, _told(error)))
            done.append(step.batch)
            positions = np.arange(start, stop) if step.kept is None else step.kept + start
            kept.append(positions)
            rejects.extend(Reject(r.row + start, r.reason_code, r.reason) for r in step.rejects)
        whole = Batch.concat(done) if done else batch
        return Step(whole, np.concatenate(kept) if kept else None, rejects)

    def _failed(self, index: int, stage: Stage, piece: Batch, reject: Reject) -> Step:
        nothing = np.empty(0, np.intp)
        if stage.on_error != "nan":
            rejects = [Reject(row, reject.reason_code, reject.reason) for row in range(len(piece))]
            return Step(piece.take(nothing), nothing, rejects)
        added = self.kinds.get(index, {})
        self._memory.stages[index].count("failed_as_nan", len(piece))
        return Step(
            piece.with_columns({name: Column.missing(kind, len(piece), NULL_TAG) for name, kind in added.items()})
        )

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
        outcome.dead.extend(
            Dead(r.row if rows is None else int(rows[r.row]), index, r.reason_code, r.reason) for r in step.rejects
        )
        if step.kept is not None and len(step.kept) < entered:
            outcome.rows = step.kept if rows is None else rows[step.kept]
            slots = slots[step.kept]
            entered = len(step.kept)
        if len(step.batch) != entered:
            raise EngineError(f"{stage.name} made {len(step.batch)} rows of {entered} without saying which")
        outcome.batch = step.batch
        return slots


def _follow(outcome: Outcome, before: Batch, after: Batch, *, moved: bool, filters: bool) -> None:
    """Keep ``outcome.carried`` true: which columns are still what entered the chain, under which name."""
    if filters:
        return
    identity = {id(column): name for name, column in before.columns.items()}
    carried = {}
    for name, column in after.columns.items():
        old = identity.get(id(column))
        if old is not None and old in outcome.carried:
            carried[name] = outcome.carried[old]
    outcome.carried = carried


def _told(error: BaseException) -> str:
    """One line: what was raised, and where in the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].name}, line {frames[-1].lineno})" if frames and frames[-1].name != "_check_kinds" else ""
    text: Any = str(error)
    return f"{type(error).__name__}: {text}{place}"[:1000]
