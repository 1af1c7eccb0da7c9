"""One stage tried on its own: over state memory of its own, slab by slab, as the chain of a lane runs it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.core.chain import Chain
from tidemill.core.differences import Difference, first_difference, first_that_is_no_rounding
from tidemill.core.keys import KeyTable
from tidemill.core.order import input_order
from tidemill.core.outcome import Dead, Outcome
from tidemill.core.watermark import BEGIN, END, Watermark
from tidemill.errors import PlanError
from tidemill.schema import Kind
from tidemill.stages.base import Stage
from tidemill.stages.object_states import ObjectStates
from tidemill.stages.state import StateLayout, StateMemory

__all__ = ["MADE", "Change", "Made", "Trial", "change", "cut_at", "keys_of", "lag_of", "layout", "marks_of"]

MADE: Final = -1
"""In place of a record's number, for a row that the stage made without a record."""


@dataclass(frozen=True)
class Made:
    """What a stage made of records, which are numbered from 0 in the order of the whole input."""

    batch: Batch
    """The rows that came out, in the order of the input, in memory of their own."""
    rows: NDArray[np.intp]
    """The number of each row's record; `MADE` for those without one."""
    dead: tuple[Dead, ...]
    """The records that were rejected; ``row`` is their number, beyond all records for a row that had none."""

    def of(self, records: NDArray[Any]) -> Made:
        """What came of these records alone."""
        mine, numbers = np.isin(self.rows, records), set(records.tolist())
        dead = tuple(letter for letter in self.dead if letter.row in numbers)
        return Made(self.batch.take(np.flatnonzero(mine)), self.rows[mine], dead)

    def of_sensor(self, key: str, records: NDArray[Any]) -> Made:
        """What came of a sensor, which has these records."""
        mine = np.flatnonzero(self.batch.keys[self.batch.key] == key) if len(self.batch) else np.empty(0, np.intp)
        return Made(self.batch.take(mine), self.rows[mine], self.of(records).dead)

    def by_record(self) -> Made:
        """The same in the order of the records' numbers."""
        order = np.argsort(self.rows, kind="stable")
        return Made(self.batch.take(order), self.rows[order], tuple(sorted(self.dead, key=lambda letter: letter.row)))

    @staticmethod
    def joined(made: Sequence[Made]) -> Made:
        """What came of one slab after another."""
        full = [one.batch for one in made if len(one.batch)] or [made[0].batch]
        dead = [letter for one in made for letter in one.dead]
        return Made(Batch.concat(full), np.concatenate([one.rows for one in made]), tuple(dead))


@dataclass(frozen=True)
class Change:
    """The first record of which something else came, or the first such row where rows have no records."""

    record: int
    """Its number; `MADE` for a row without one."""
    what: Difference | str
    """The cell that differs, or what became of it."""
    row: int = 0
    """Of all rows that came out, for one without a record."""
    codes: frozenset[str] = frozenset()
    """For what the record was rejected in one of the two outcomes and not in the other."""

    def __str__(self) -> str:
        return f"{self.subject}: {self.what}"

    @property
    def subject(self) -> str:
        """Which record or row it is."""
        return f"row {self.row}" if self.record == MADE else f"record {self.record}"


def change(got: Made, expected: Made, *, gap: float | None = None) -> Change | None:
    """Where two outcomes of the same records differ first: rows, rejects, the order of rows, and every bit of a cell; with a
    ``gap`` a cell by more than rounding may do (`first_that_is_no_rounding`)."""
    fates = _fates(got), _fates(expected)
    moved = [record for record in {**fates[0], **fates[1]} if fates[0].get(record) != fates[1].get(record)]
    if moved:
        record = min(moved)
        ends = [fate.get(record, "was dropped") for fate in fates]
        codes = [{letter.reason_code for letter in made.dead if letter.row == record} for made in (got, expected)]
        return Change(record, f"it {ends[0]}, and {ends[1]} otherwise", codes=frozenset(codes[0] ^ codes[1]))
    if len(got.rows) != len(expected.rows):
        return Change(MADE, f"{len(got.rows)} rows came out instead of {len(expected.rows)}", len(expected.rows))
    if (got.rows != expected.rows).any():
        row = int(np.argmax(got.rows != expected.rows))
        return Change(int(expected.rows[row]), f"row {row} is that of record {got.rows[row]} instead", row)
    if gap is None:
        found = first_difference(got.batch, expected.batch)
    else:
        found = first_that_is_no_rounding(got.batch, expected.batch, gap=gap)
    return None if found is None else Change(int(expected.rows[found.row]), found, found.row)


def _fates(made: Made) -> dict[int, str]:
    """What became of each record that was not dropped."""
    fates = dict.fromkeys(made.rows[made.rows != MADE].tolist(), "came out")
    fates.update((letter.row, f"was rejected as {letter.reason_code}") for letter in made.dead)
    return fates


class Trial:
    """A stage, opened, over a fresh state memory; `feed` is one slab, `finish` the end of input.

    ``keys``     every sensor that the records will have, in the order of their slots
    ``records``  the most of one `feed`
    ``marks``    what `marks_of` gives for the whole input, for a stage that follows the watermark
    ``slots``    of ``keys``, where they are not to be 0, 1, 2, ...; ascending
    ``buffer``   memory of the layout's size (see `layout`) in place of its own; what it holds is the state to go on with
    ``kinds``    what `learned` gave, for a trial that goes on with the state of another
    ``objects``  what `objects` was, for the same
    ``fed``      the number of the first record
    """

    def __init__(
        self,
        stage: Stage,
        keys: Sequence[str],
        *,
        records: int,
        marks: NDArray[np.int64],
        slots: Sequence[int] | None = None,
        buffer: Any = None,
        kinds: Any = None,
        objects: Sequence[ObjectStates] = (),
        fed: int = 0,
    ) -> None:
        self._stage = stage
        self.keys = list(keys)
        self._slot_of = dict(zip(keys, range(len(keys)) if slots is None else slots, strict=True))
        self._layout = layout(stage, max(self._slot_of.values(), default=0) + 1, records)
        self.buffer = np.zeros(self._layout.total_bytes, np.uint8) if buffer is None else buffer
        self.memory = StateMemory(self._layout, self.buffer)
        self.memory.roll_back()
        self._chain = Chain([stage], self.memory, lambda: 0)
        self._chain.kinds = copy.deepcopy(kinds) if kinds is not None else {}
        for key, slot in self._slot_of.items():
            self._chain._keys.extend([""] * (slot - len(self._chain._keys)))  # nobody is there
            self._chain.admit([key], slot)
        self.objects = list(objects)
        """States of the stage's objects after each slab that was committed."""
        for states in objects:
            self._chain.hold_objects(0, states)
        self._marks = marks
        self._empty = Batch({})
        self._slab = self.memory.committed
        self._fed = fed

    def feed(
        self,
        batch: Batch,
        *,
        records: NDArray[Any] | None = None,
        slab: tuple[int, int] | None = None,
        commit: bool = True,
    ) -> Made:
        """One slab, of the records after the last ones; or, as in a lane, of all those from ``slab[0]`` to ``slab[1]`` (by
        default of the whole input) the ones with the numbers ``records``.

        Without ``commit`` the slab is left half done, as by a lane that was killed before its end.
        """
        first, stop = self._fed, self._fed + len(batch)
        if records is None:
            records = np.arange(first, stop)
        else:
            first, stop = slab or (0, len(self._marks) - 1)
        made = self._run(batch, records, first, self._marks[first : stop + 1], commit=commit)
        if commit:
            self._fed = stop
        return made

    def finish(self) -> Made:
        """The end of input, with which the watermark passes everything."""
        nothing, marks = np.empty(0, np.intp), np.array([self._marks[self._fed], END])
        return self._run(self._empty, nothing, self._fed, marks, commit=True)

    def feed_all(self, pieces: Iterable[Batch]) -> Made:
        """One slab after another to the end of input, and what came of them together."""
        made = [self.feed(piece) for piece in pieces]
        if self._stage.follows_watermark:
            made.append(self.finish())
        return Made.joined(made)

    @property
    def learned(self) -> Any:
        """The kinds of the columns that a function was seen to make."""
        return copy.deepcopy(self._chain.kinds)

    def _run(self, batch: Batch, records: NDArray[Any], first: int, marks: NDArray[np.int64], *, commit: bool) -> Made:
        slots = self._slots_of(batch)
        batch = batch.with_columns({})
        batch.key_column = Column(Kind.TEXT, slots, texts=self._chain.key_texts)
        self._empty = batch.slice(0, 0)
        self._slab += 1
        self.memory.begin(self._slab)
        if self._stage.follows_watermark:
            marks = marks if len(marks) > 1 else np.repeat(marks, 2)
            outcome = self._chain.run(batch, slots, places=(records - first).astype(np.int32), marks=marks)
        else:
            outcome = self._chain.run(batch, slots)
        if commit:
            self.objects.extend(self._chain.changed_objects().values())
            self.memory.commit(self._slab)
        return _numbered(outcome, records)

    def _slots_of(self, batch: Batch) -> NDArray[np.int32]:
        if batch.key_column is None:
            raise PlanError('these records have no key; give one with key="column".')
        slots = np.array([self._slot_of.get(key, -1) for key in batch.keys.tolist()], np.int32)
        return slots[batch.key] if len(batch) else np.empty(0, np.int32)


def _numbered(outcome: Outcome, records: NDArray[Any]) -> Made:
    """What came of a slab, by the numbers of its records, in the order in which a run gives it out."""
    entered = len(records)
    rows = np.arange(entered) if outcome.rows is None else outcome.rows
    order = np.arange(len(rows))
    if outcome.ends is not None:
        assert outcome.places is not None
        order = input_order(outcome.places, outcome.ends, outcome.slots, outcome.batch.keys)
        rows = np.where(outcome.ends == BEGIN, rows, entered)
    numbers = np.append(records, MADE).astype(np.intp)[rows[order]]
    dead = [
        replace(letter, row=int(records[letter.row])) if letter.row < entered else letter for letter in outcome.dead
    ]
    return Made(outcome.batch.take(order), numbers, tuple(sorted(dead, key=lambda letter: letter.row)))


def layout(stage: Stage, keys: int, records: int) -> StateLayout:
    """The state memory of one stage alone."""
    return StateLayout((dict(stage.state_fields()),), max(keys, 1), max(records, 1))


def marks_of(batch: Batch) -> NDArray[np.int64]:
    """The watermark before the first of these records and after each, lagging as much as their order is off."""
    if not len(batch):
        return np.array([BEGIN])
    return Watermark(lag_ns=lag_of(batch)).advance(batch.time, wall_ns=None)


def lag_of(batch: Batch) -> int:
    """How much the order of its records is off, in nanoseconds."""
    return int((np.maximum.accumulate(batch.time) - batch.time).max()) if len(batch) else 0


def keys_of(batch: Batch) -> list[str]:
    """Its sensors, in the order of their first records."""
    table = KeyTable(lanes=1, max_keys=max(len(batch), 1))
    if batch.key_column is not None:
        table.encode(batch.key_column)
    return list(table.untold(0)[1])


def cut_at(batch: Batch, places: Sequence[int]) -> list[Batch]:
    """The batch in pieces that begin at these places.

    >>> from tidemill.column import Column
    >>> batch = Batch({"value": Column.of_array(np.arange(5.0))})
    >>> [len(piece) for piece in cut_at(batch, [2, 2, 3])]
    [2, 0, 1, 2]
    """
    bounds = [0, *places, len(batch)]
    return [batch.slice(start, stop) for start, stop in pairwise(bounds)]
