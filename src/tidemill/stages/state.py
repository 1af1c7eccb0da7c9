"""State memory: the keyed arrays of a lane's stages, with an undo log in the same memory.

    ┌────────┬──────────────────────────┬──────────────────┬──────────────────┬ ...
    │ header │ undo log                 │ stage 1, "ring"  │ stage 1, "count" │
    └────────┴──────────────────────────┴──────────────────┴──────────────────┴ ...

The memory outlives the process that works on it. What keeps it whole when that process is killed at any instant:

1. A slab is begun: the log is emptied, then ``OPEN`` is set to the slab's number.
2. Before a stage overwrites anything it ``save``s what stands there, then ``seal``s the log. The saved bytes are
   complete before the log's length includes them, and the length includes them before the first overwrite.
3. The slab is committed by one 8-byte store of its number to ``COMMITTED``.

So if ``OPEN`` is ahead of ``COMMITTED``, writing back the sealed entries gives the state as it was before the slab,
however far it got; doing it twice does no harm. All stores go through separate calls into compiled code, which the
compiler cannot reorder, and a killed process's stores are visible to its successor in program order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.stages.undo_log import Saving, UndoLog

__all__ = ["NOWHERE", "StageState", "StateField", "StateLayout", "StateMemory", "opening"]

_HEADER_BYTES: Final = 4096  # one page
_OPEN, _COMMITTED, _UNDO_TAIL, _CURSOR_STAGE, _CURSOR_ROW, _CURSOR_SINCE = range(6)
_LONGEST_LOG: Final = 1 << 36
"""Bytes: more of it than a machine could hold, should it ever be written."""
NOWHERE: Final = -1
"""The crash cursor's stage and row while no stage, or no single row, is being worked on."""


def opening(stage: int) -> int:
    """The crash cursor's stage while that of this number is opened, and of such a cursor the number: below 0 in any case, since
    no record is to blame there, nor has it a deadline.

    >>> opening(0), opening(opening(3))
    (-2, 3)
    """
    return NOWHERE - 1 - stage


@dataclass(frozen=True)
class StateField:
    """One array of a stage's state: ``shape`` and ``dtype`` per key, or for a whole lane."""

    dtype: str
    """NumPy's name, such as ``"float64"``."""
    shape: tuple[int, ...] = ()
    cellwise: bool = False
    """Saved cell by cell (a ring buffer), not a key's whole row at once."""
    per_lane: bool = False
    """One array for the whole lane: ``shape`` is all there is of it, and what `StageState.save` takes are places in
    its first dimension, no key slots."""
    region: tuple[str, int] | None = None
    """Of two such arrays one is in use, this one by this number: another field, named here, begins with the number of the
    one that is, and how much of it. None where all of the array counts."""

    @property
    def bytes_per_key(self) -> int:
        return 0 if self.per_lane else self._row_bytes * math.prod(self.shape)

    @property
    def _row_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize

    def array_shape(self, max_keys: int) -> tuple[int, ...]:
        return self.shape if self.per_lane else (max_keys, *self.shape)

    def total_bytes(self, max_keys: int) -> int:
        return self._row_bytes * math.prod(self.array_shape(max_keys))

    @property
    def undo_bytes(self) -> int:
        """The most that saving it once can take in the log, per record."""
        row = math.prod(self.shape[1:] if self.per_lane else self.shape)
        return self._row_bytes * (1 if self.cellwise else row) + 8

    def places(self, max_keys: int) -> int:
        """How many it has to be saved. Of an array for the whole lane the first alone is saved: what lies behind it is never
        overwritten while it counts."""
        if self.per_lane:
            return 1
        return max_keys * (math.prod(self.shape) if self.cellwise else 1)


@dataclass(frozen=True)
class StateLayout:
    """Where everything lies; the same on both sides, since it follows from the plan alone."""

    stages: tuple[Mapping[str, StateField], ...]
    """Per stage, its fields by name."""
    max_keys: int
    max_records: int
    """The most records of one slab that a lane may get, and the most rows that a stage with a state is given at once."""
    makes_rows: bool = False
    """Whether stages make rows beside those of the records: a slab may have any number of them."""
    undone: bool = True
    """Whether a slab may be rolled back. If not, the log of such a plan has what the last steps have saved, and no more."""

    @property
    def step_bytes(self) -> int:
        """The most that one step of each stage takes in the log."""
        rows = max(self.max_records, self.max_keys) if self.makes_rows else self.max_records
        return sum(rows * field.undo_bytes + 64 for field in self._fields) + 64

    @property
    def undo_bytes(self) -> int:
        """Size of one place for the log."""
        if not self.compacted:
            return _page(self.step_bytes)
        whole = sum(64 + field.undo_bytes * field.places(self.max_keys) for field in self._fields)
        return _page(self.step_bytes + min(3 * whole, _LONGEST_LOG))  # compacted now and then, and not before each step

    @property
    def compacted(self) -> bool:
        """Whether the log has two places, and is compacted from one into the other."""
        return self.makes_rows and self.undone

    @property
    def _fields(self) -> list[StateField]:
        return [field for stage in self.stages for field in stage.values()]

    @property
    def total_bytes(self) -> int:
        """Size of the memory; nearly all of it is never touched, and so never taken from the machine."""
        return self.offsets()[1]

    @property
    def bytes_per_key(self) -> int:
        return sum(field.bytes_per_key for stage in self.stages for field in stage.values())

    def offsets(self) -> tuple[list[dict[str, int]], int]:
        """Byte offset of each field, and the end of the last."""
        at = _HEADER_BYTES + (2 if self.compacted else 1) * self.undo_bytes
        offsets: list[dict[str, int]] = []
        for stage in self.stages:
            own = {}
            for name, field in stage.items():
                own[name] = at
                at += _page(field.total_bytes(self.max_keys))
            offsets.append(own)
        return offsets, at


def _page(size: int) -> int:
    return -(-size // 4096) * 4096


def _nothing() -> None:
    """Where there is no deadline."""


def _nothing_of(row: int) -> None:
    pass


class StageState:
    """What one stage sees of the state memory while it works on one batch."""

    def __init__(self, memory: StateMemory, arrays: Mapping[str, NDArray[Any]], fields: Mapping[str, int]) -> None:
        self._memory = memory
        self._arrays = arrays
        self._fields = fields
        self.slots: NDArray[np.int32] = np.empty(0, np.int32)
        """Key slot of each record of the batch, shape ``(len(batch),)``: the first index into every array."""
        self.keys: NDArray[np.object_] = np.empty(0, object)
        """The sensors' names by key slot."""
        self.places: NDArray[np.int32] = np.empty(0, np.int32)
        """For a stage that follows the watermark: place in its slab of each record of the batch. A row that a stage
        before made without a record has the place at which it was made."""
        self.marks: NDArray[np.int64] = np.empty(0, np.int64)
        """For such a stage: the watermark before the slab's first record and after each, so that ``marks[places]`` is
        what a record is late against, and ``marks[-1]`` how far it has come. Never falls."""
        self.devices: NDArray[np.int32] = np.empty(0, np.int32)
        """For such a stage: key slot of each record's device (`Stage.groups_by`), its own where it is its own device."""
        self.counts: dict[str, int] = {}
        """What the stage wants counted in the report, such as ``{"unknown_key": 3}``."""
        self.calling_row: Callable[[int], None] = _nothing_of
        """The same for a stage that makes rows: to be called with the place, among those that it makes, of the row whose
        function is called next. One that has killed its lane is in ``quarantined``, and is not called again."""
        self.quarantined: Mapping[int, tuple[str, str]] = {}
        """Reason code and reason of rows that it must not work on."""
        self.calling: Callable[[], None] = _nothing
        """To be called before each call of the user's function but the first of a step: the stage's deadline is one
        call's, and counts from here."""

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The field as an array of shape ``(max_keys, *field.shape)``, or ``field.shape`` when it is one for the whole
        lane; zero where never written."""
        return self._arrays[name]

    def save(self, name: str, slots: NDArray[Any], cells: NDArray[Any] | None = None) -> None:
        """Put what stands at ``array[slots]`` (or ``array[slots, cells]``) into the undo log; then `seal`.

        Repeated slots and cells do no harm as long as all are saved before any is overwritten.
        """
        self._memory.save(self._fields[name], slots, cells)

    def reserve(self, name: str, entries: int) -> Saving:
        """Room in the undo log for `save`ing ``entries`` in one pass of the caller's own: (slots, cells, old values).

        Views to be filled before `seal`; ``cells`` is None unless the field is cellwise.
        """
        return self._memory.reserve(self._fields[name], entries)

    def seal(self) -> None:
        """Everything saved so far counts; only now may it be overwritten."""
        self._memory.seal()

    @property
    def rewritten(self) -> int:
        """Grows when the arrays change otherwise than by the stage's steps: what it derived from them is void."""
        return self._memory.rewritten

    def count(self, what: str, times: int = 1) -> None:
        """Add to the counters of the report."""
        if times:
            self.counts[what] = self.counts.get(what, 0) + times


class StateMemory:
    """The arrays of all stages over one writable buffer of ``layout.total_bytes`` (zeros when new)."""

    def __init__(self, layout: StateLayout, buffer: Any) -> None:
        self.layout = layout
        self._header = memoryview(buffer)[:_HEADER_BYTES].cast("q")  # a word is stored in half of NumPy's time
        self.buffer = buffer
        self._arrays: list[NDArray[Any]] = []
        cellwise = []
        self.stages: list[StageState] = []
        """One per stage of the plan, in its order."""
        offsets, _ = layout.offsets()
        for fields, places in zip(layout.stages, offsets, strict=True):
            arrays, numbers = {}, {}
            for name, field in fields.items():
                shape = field.array_shape(layout.max_keys)
                flat = np.frombuffer(buffer, field.dtype, math.prod(shape), places[name])
                numbers[name] = len(self._arrays)
                arrays[name] = flat.reshape(shape)
                self._arrays.append(arrays[name])
                cellwise.append(field.cellwise)
            self.stages.append(StageState(self, arrays, numbers))
        self._step_bytes = layout.step_bytes
        self._log = UndoLog(
            buffer,
            _HEADER_BYTES,
            self._header[_UNDO_TAIL : _UNDO_TAIL + 1],
            self._arrays,
            cellwise,
            size=layout.undo_bytes,
            compacted=layout.compacted,
        )
        self.rewritten = 0
        """Grows when the arrays change otherwise than by steps of the stages; who changes them so must see to it."""

    # -- one slab --------------------------------------------------------------------------------------

    @property
    def committed(self) -> int:
        """Number of the last slab whose effects are all in; 0 before the first."""
        return self._header[_COMMITTED]

    def begin(self, slab: int) -> None:
        """Start slab number ``slab``; numbers grow."""
        self._log.clear()
        self._header[_OPEN] = slab

    def commit(self, slab: int) -> None:
        """From here on the slab's effects stay."""
        self._header[_COMMITTED] = slab

    def make_room(self) -> None:
        """To be called before each step of a stage: what it saves of at most ``max_records`` rows, or once of every key, has
        room in the log."""
        if self.layout.makes_rows:
            self._log.make_room(self._step_bytes)

    def reserve(self, field: int, entries: int) -> Saving:
        return self._log.reserve(field, entries)

    def save(self, field: int, slots: NDArray[Any], cells: NDArray[Any] | None) -> None:
        array = self._arrays[field]
        log_slots, log_cells, old = self.reserve(field, len(slots))
        log_slots[:] = slots
        if log_cells is not None and cells is not None:
            log_cells[:] = cells
            old[...] = array[log_slots, log_cells]
        else:
            old[...] = array[log_slots]

    def seal(self) -> None:
        self._log.seal()

    def roll_back(self) -> bool:
        """Undo the open slab if it was not committed; True if there was one. Idempotent."""
        if self._header[_OPEN] <= self._header[_COMMITTED]:
            return False
        self.rewritten += 1
        self._log.restore()
        return True

    # -- the crash cursor ------------------------------------------------------------------------------

    def mark(self, stage: int, row: int = NOWHERE, since_ns: int = 0) -> None:
        """Say where work is about to go, so that a death there can be blamed; ``since_ns`` arms its deadline."""
        self._header[_CURSOR_SINCE] = 0
        self._header[_CURSOR_ROW] = row
        self._header[_CURSOR_STAGE] = stage
        self._header[_CURSOR_SINCE] = since_ns

    @property
    def cursor(self) -> tuple[int, int, int, int]:
        """(open slab or 0, stage, row, monotonic ns since which the stage has been running or 0)."""
        header = self._header
        slab = header[_OPEN] if header[_OPEN] > header[_COMMITTED] else 0
        return slab, header[_CURSOR_STAGE], header[_CURSOR_ROW], header[_CURSOR_SINCE]
