"""One stage tried on its own: over state memory of its own, slab by slab, as the chain of a lane runs it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.core.chain import Chain, Dead
from tidemill.core.differences import Difference, first_difference
from tidemill.core.keys import KeyTable
from tidemill.errors import PlanError
from tidemill.stages.base import Stage
from tidemill.stages.state import StateLayout, StateMemory

__all__ = ["Change", "Made", "Trial", "change", "cut_at", "keys_of", "layout"]


@dataclass(frozen=True)
class Made:
    """What a stage made of the records it was fed so far."""

    batch: Batch
    """The rows that came out, in memory of their own."""
    rows: NDArray[np.intp]
    """For each of them, the place of its record among all that were fed."""
    dead: tuple[Dead, ...]
    """The records that were rejected, with the same places."""

    def of(self, records: NDArray[Any]) -> Made:
        """What came of these records alone."""
        mine, numbers = np.isin(self.rows, records), set(records.tolist())
        dead = tuple(letter for letter in self.dead if letter.row in numbers)
        return Made(self.batch.take(np.flatnonzero(mine)), self.rows[mine], dead)

    def numbered(self, records: NDArray[Any]) -> Made:
        """The same, in the order of other numbers: the record that was fed as number i is ``records[i]``."""
        rows = records[self.rows].astype(np.intp)
        order = np.argsort(rows, kind="stable")
        dead = sorted((replace(letter, row=int(records[letter.row])) for letter in self.dead), key=_row_of)
        return Made(self.batch.take(order), rows[order], tuple(dead))

    @staticmethod
    def joined(made: Sequence[Made]) -> Made:
        """What came of one batch after another."""
        full = [one.batch for one in made if len(one.batch)] or [made[-1].batch]  # an empty one may lack columns
        dead = [letter for one in made for letter in one.dead]
        return Made(Batch.concat(full), np.concatenate([one.rows for one in made]), tuple(dead))


@dataclass(frozen=True)
class Change:
    """The first record of which something else came."""

    record: int
    """Its place among all that were fed."""
    what: Difference | str
    """The cell of its row, or what became of it."""

    def __str__(self) -> str:
        return f"record {self.record}: {self.what}"


def change(got: Made, expected: Made) -> Change | None:
    """Where two outcomes of the same records differ first: rows, rejects, the order of rows, and every bit of a cell."""
    fates = _fates(got), _fates(expected)
    moved = [record for record in {**fates[0], **fates[1]} if fates[0].get(record) != fates[1].get(record)]
    if moved:
        record = min(moved)
        ends = [fate.get(record, "was dropped") for fate in fates]
        return Change(record, f"it {ends[0]}, and {ends[1]} otherwise")
    if (got.rows != expected.rows).any():
        row = int(np.argmax(got.rows != expected.rows))
        return Change(int(expected.rows[row]), f"row {row} is that of record {got.rows[row]} instead")
    found = first_difference(got.batch, expected.batch)
    return None if found is None else Change(int(expected.rows[found.row]), found)


def _fates(made: Made) -> dict[int, str]:
    """What became of each record that was not dropped."""
    fates = dict.fromkeys(made.rows.tolist(), "came out")
    fates.update((letter.row, f"was rejected as {letter.reason_code}") for letter in made.dead)
    return fates


class Trial:
    """A stage, opened, over a fresh state memory; `feed` is one slab.

    ``keys``     every sensor that the records will have, in the order of their slots
    ``records``  the most of one `feed`
    ``slots``    of ``keys``, where they are not to be 0, 1, 2, ...; ascending
    ``buffer``   memory of the layout's size (see `layout`) in place of its own; what it holds is the state to go on with
    ``kinds``    what `learned` gave, for a trial that goes on with the state of another
    ``fed``      the number of the first record
    """

    def __init__(
        self,
        stage: Stage,
        keys: Sequence[str],
        *,
        records: int,
        slots: Sequence[int] | None = None,
        buffer: Any = None,
        kinds: Any = None,
        fed: int = 0,
    ) -> None:
        self.stage = stage
        self._keys = tuple(keys)
        self._slots = range(len(self._keys)) if slots is None else slots
        self._slot_of = dict(zip(self._keys, self._slots, strict=True))
        self.layout = layout(stage, max(self._slots, default=0) + 1, records)
        self.buffer = np.zeros(self.layout.total_bytes, np.uint8) if buffer is None else buffer
        self._memory = StateMemory(self.layout, self.buffer)
        self._memory.roll_back()
        self._chain = Chain([stage], self._memory, lambda: 0)
        self._chain.kinds = copy.deepcopy(kinds) if kinds is not None else {}
        for key, slot in self._slot_of.items():
            self._chain.admit([key], slot)
        self._slab = self._memory.committed
        self._fed = fed

    def feed(self, batch: Batch, *, commit: bool = True) -> Made:
        """One slab; without ``commit`` it is left half done, as by a lane that was killed before its end."""
        self._slab += 1
        self._memory.begin(self._slab)
        outcome = self._chain.run(batch, self._slots_of(batch))
        if commit:
            self._memory.commit(self._slab)
        rows = np.arange(len(batch)) if outcome.rows is None else outcome.rows
        made = Made(
            outcome.batch.take(np.arange(len(outcome.batch))),
            rows.astype(np.intp) + self._fed,
            tuple(sorted((replace(one, row=one.row + self._fed) for one in outcome.dead), key=_row_of)),
        )
        if commit:
            self._fed += len(batch)
        return made

    def feed_all(self, pieces: Iterable[Batch]) -> Made:
        """One slab after another, and what came of them together."""
        return Made.joined([self.feed(piece) for piece in pieces])

    @property
    def learned(self) -> Any:
        """The kinds of the columns that a function was seen to make."""
        return copy.deepcopy(self._chain.kinds)

    def state(self) -> bytes:
        """A snapshot: what its fields hold for every key."""
        state = self._memory.stages[0]
        return b"".join(state[name].tobytes() for name in self.layout.stages[0])

    def _slots_of(self, batch: Batch) -> NDArray[np.int32]:
        if batch.key_column is None:
            raise PlanError('these records have no key; give one with key="column".')
        slots = np.array([self._slot_of.get(key, -1) for key in batch.keys.tolist()], np.int32)
        return slots[batch.key] if len(batch) else np.empty(0, np.int32)


def _row_of(letter: Dead) -> int:
    return letter.row


def layout(stage: Stage, keys: int, records: int) -> StateLayout:
    """The state memory of one stage alone."""
    return StateLayout((dict(stage.state_fields()),), max(keys, 1), max(records, 1))


def keys_of(batch: Batch) -> list[str]:
    """Its sensors, in the order of their first records."""
    table = KeyTable(lanes=1, max_keys=max(len(batch), 1))
    if batch.key_column is not None:
        table.encode(batch.key_column)
    return list(table.untold(0)[1])


def cut_at(batch: Batch, places: Sequence[int]) -> list[Batch]:
    """The batch in pieces that begin at these places; each with arrays of its own columns' memory.

    >>> from tidemill.column import Column
    >>> batch = Batch({"value": Column.of_array(np.arange(5.0))})
    >>> [len(piece) for piece in cut_at(batch, [2, 2, 3])]
    [2, 0, 1, 2]
    """
    bounds = [0, *places, len(batch)]
    return [batch.slice(start, stop) for start, stop in pairwise(bounds)]
