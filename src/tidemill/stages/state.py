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
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.errors import EngineError

__all__ = ["NOWHERE", "StageState", "StateField", "StateLayout", "StateMemory", "opening"]

_HEADER_BYTES: Final = 4096  # one page
_OPEN, _COMMITTED, _UNDO_TAIL, _CURSOR_STAGE, _CURSOR_ROW, _CURSOR_SINCE = range(6)
_ENTRY: Final = struct.Struct("=4q")  # field, entries, cellwise, bytes of the whole entry
_INT32: Final = np.dtype(np.int32)
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


@dataclass(frozen=True)
class StateLayout:
    """Where everything lies; the same on both sides, since it follows from the plan alone."""

    stages: tuple[Mapping[str, StateField], ...]
    """Per stage, its fields by name."""
    max_keys: int
    max_records: int
    """The most records of one slab that a lane may get."""

    @property
    def undo_bytes(self) -> int:
        fields = [field for stage in self.stages for field in stage.values()]
        return _page(sum(self.max_records * field.undo_bytes + 64 for field in fields) + 64)

    @property
    def total_bytes(self) -> int:
        """Size of the memory; nearly all of it is never touched, and so never taken from the machine."""
        return self.offsets()[1]

    @property
    def bytes_per_key(self) -> int:
        return sum(field.bytes_per_key for stage in self.stages for field in stage.values())

    def offsets(self) -> tuple[list[dict[str, int]], int]:
        """Byte offset of each field, and the end of the last."""
        at = _HEADER_BYTES + self.undo_bytes
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


def _words(size: int) -> int:
    """Bytes rounded up to whole words, so that everything in the log is aligned."""
    return -(-size // 8) * 8


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

    def reserve(self, name: str, entries: int) -> tuple[NDArray[np.int32], NDArray[np.int32] | None, NDArray[Any]]:
        """Room in the undo log for `save`ing ``entries`` in one pass of the caller's own: (slots, cells, old values).

        Views to be filled before `seal`; ``cells`` is None unless the field is cellwise.
        """
        return self._memory.reserve(self._fields[name], entries, self._memory.cellwise(self._fields[name]))

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
        self._header = np.frombuffer(buffer, np.int64, 16, 0)
        self.buffer = buffer
        self._undo_bytes = layout.undo_bytes
        self._arrays: list[NDArray[Any]] = []
        self._cellwise: list[bool] = []
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
                self._cellwise.append(field.cellwise)
            self.stages.append(StageState(self, arrays, numbers))
        self._pending = 0  # log bytes written, not yet sealed
        self.rewritten = 0
        """Grows when the arrays change otherwise than by steps of the stages; who changes them so must see to it."""

    # -- one slab --------------------------------------------------------------------------------------

    @property
    def committed(self) -> int:
        """Number of the last slab whose effects are all in; 0 before the first."""
        return int(self._header[_COMMITTED])

    def begin(self, slab: int) -> None:
        """Start slab number ``slab``; numbers grow."""
        self._header[_UNDO_TAIL] = 0
        self._pending = 0
        self._header[_OPEN] = slab

    def commit(self, slab: int) -> None:
        """From here on the slab's effects stay."""
        self._header[_COMMITTED] = slab

    def cellwise(self, field: int) -> bool:
        return self._cellwise[field]

    def reserve(
        self, field: int, entries: int, cellwise: bool
    ) -> tuple[NDArray[np.int32], NDArray[np.int32] | None, NDArray[Any]]:
        array = self._arrays[field]
        at = int(self._header[_UNDO_TAIL]) + self._pending
        shape = (entries,) if cellwise else (entries, *array.shape[1:])
        size = array.itemsize * math.prod(shape)
        end = at + _ENTRY.size + _words(4 * entries) * (2 if cellwise else 1) + _words(size)
        if end > self._undo_bytes:
            raise EngineError("the undo log is full: a stage saved more than its state fields announce")
        _ENTRY.pack_into(self.buffer, _HEADER_BYTES + at, field, entries, cellwise, end - at)
        slots, at = self._read(at + _ENTRY.size, _INT32, entries)
        cells = None
        if cellwise:
            cells, at = self._read(at, _INT32, entries)
        old, _ = self._read(at, array.dtype, size // array.itemsize)
        self._pending = end - int(self._header[_UNDO_TAIL])
        return slots, cells, old.reshape(shape)

    def save(self, field: int, slots: NDArray[Any], cells: NDArray[Any] | None) -> None:
        array = self._arrays[field]
        log_slots, log_cells, old = self.reserve(field, len(slots), cells is not None)
        log_slots[:] = slots
        if log_cells is not None and cells is not None:
            log_cells[:] = cells
            old[...] = array[log_slots, log_cells]
        else:
            old[...] = array[log_slots]

    def seal(self) -> None:
        self._header[_UNDO_TAIL] += self._pending
        self._pending = 0

    def roll_back(self) -> bool:
        """Undo the open slab if it was not committed; True if there was one. Idempotent."""
        if self._header[_OPEN] <= self._header[_COMMITTED]:
            return False
        self.rewritten += 1
        at, tail = 0, int(self._header[_UNDO_TAIL])
        entries = []
        while at < tail:
            entries.append(at)
            at += self._entry(at)[3]
        for at in reversed(entries):  # a field saved twice goes back to what stood there first
            self._restore(at)
        return True

    def _restore(self, at: int) -> None:
        field, entries, cellwise, _ = self._entry(at)
        at += _ENTRY.size
        array = self._arrays[field]
        slots, at = self._read(at, _INT32, entries)
        if cellwise:
            cells, at = self._read(at, _INT32, entries)
            array[slots, cells], _ = self._read(at, array.dtype, entries)
        else:
            width = math.prod(array.shape[1:])
            old, _ = self._read(at, array.dtype, entries * width)
            array[slots] = old.reshape(entries, *array.shape[1:])

    def _entry(self, at: int) -> tuple[int, int, int, int]:
        return _ENTRY.unpack_from(self.buffer, _HEADER_BYTES + at)

    def _read(self, at: int, dtype: np.dtype[Any], count: int) -> tuple[NDArray[Any], int]:
        return np.frombuffer(self.buffer, dtype, count, _HEADER_BYTES + at), at + _words(dtype.itemsize * count)

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
        slab = int(header[_OPEN]) if header[_OPEN] > header[_COMMITTED] else 0
        return slab, int(header[_CURSOR_STAGE]), int(header[_CURSOR_ROW]), int(header[_CURSOR_SINCE])
