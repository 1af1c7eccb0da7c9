"""The undo log: what stood in state memory before a slab overwrote it.

It lies in the same memory, and one word says how far it reaches: a byte offset, stored last. A plan whose stages make rows
has slabs of any number of rows, and so two places for its log. When one has little room left, what stood *first* at each
entry of state is written to the other, and the word is set to its end there: until that store the old place counts, and
from then on the new one. So a log never holds more than all of the state, and a process killed at any instant leaves one
that is whole.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.errors import EngineError

__all__ = ["Saving", "UndoLog"]

_ENTRY: Final = struct.Struct("=3q")  # field, entries, bytes of the whole entry
_INT32: Final = np.dtype(np.int32)

Saving = tuple[NDArray[np.int32], NDArray[np.int32] | None, NDArray[Any]]
"""Slots, cells, and what stood there; no cells where whole rows are saved."""


class _Field:
    """How what stands in one array is saved."""

    def __init__(self, array: NDArray[Any], cellwise: bool) -> None:
        self._dtype, self._cellwise = array.dtype, cellwise
        self._shape = () if cellwise else array.shape[1:]
        self._each = math.prod(self._shape)

    def size(self, entries: int) -> int:
        """Bytes of an entry."""
        places = _words(4 * entries) * (2 if self._cellwise else 1)
        return _ENTRY.size + places + _words(self._dtype.itemsize * self._each * entries)

    def entry(self, buffer: Any, at: int, entries: int) -> Saving:
        """The arrays of the entry at byte ``at`` of the buffer."""
        at += _ENTRY.size
        slots = np.frombuffer(buffer, _INT32, entries, at)
        at += _words(4 * entries)
        cells = None
        if self._cellwise:
            cells = np.frombuffer(buffer, _INT32, entries, at)
            at += _words(4 * entries)
        old = np.frombuffer(buffer, self._dtype, self._each * entries, at)
        return slots, cells, old.reshape(entries, *self._shape) if self._shape else old


@dataclass(frozen=True)
class _Saved:
    """What stood at some places of one field."""

    field: int
    slots: NDArray[np.int32]
    cells: NDArray[np.int32] | None
    old: NDArray[Any]


class UndoLog:
    """The log of one state memory, at byte ``start`` of its ``buffer``.

    ``end``     the one int64 that says how far it reaches
    ``arrays``  the fields that are saved, and ``cellwise`` how
    ``size``    bytes of one place; there are two if it is ``compacted``
    """

    def __init__(
        self,
        buffer: Any,
        start: int,
        end: memoryview[int],
        arrays: Sequence[NDArray[Any]],
        cellwise: Sequence[bool],
        *,
        size: int,
        compacted: bool,
    ) -> None:
        self._buffer, self._start, self._end = buffer, start, end
        self._arrays = arrays
        self._fields = [_Field(array, by_cell) for array, by_cell in zip(arrays, cellwise, strict=True)]
        self._size, self._compacted = size, compacted
        self._pending = 0  # bytes written, not yet sealed

    def clear(self) -> None:
        """Nothing is saved."""
        self._end[0] = 0
        self._pending = 0

    def make_room(self, needed: int) -> None:
        """Have room for so many bytes, where that can be had. Everything is sealed, and what was reserved is done with."""
        begin, end = self._bounds
        if begin + self._size - end > needed:
            return
        if not self._compacted:
            self.clear()
            return
        at = 0 if begin else self._size
        for saved in self._first_saved():
            size = self._fields[saved.field].size(len(saved.slots))
            slots, cells, old = self._entry(at, size, saved.field, len(saved.slots))
            slots[:], old[...] = saved.slots, saved.old
            if cells is not None and saved.cells is not None:
                cells[:] = saved.cells
            at += size
        self._end[0] = at

    def reserve(self, field: int, entries: int) -> Saving:
        """Room to save so many in."""
        begin, end = self._bounds
        at, size = end + self._pending, self._fields[field].size(entries)
        if at + size >= begin + self._size:
            raise EngineError("the undo log is full: a stage saved more than its state fields announce")
        self._pending += size
        return self._entry(at, size, field, entries)

    def seal(self) -> None:
        """Everything reserved so far counts."""
        self._end[0] += self._pending
        self._pending = 0

    def restore(self) -> None:
        """Put back what was saved and sealed; doing it twice does no harm."""
        for saved in reversed(list(self._all())):  # a field saved twice goes back to what stood there first
            self._arrays[saved.field][saved.slots if saved.cells is None else (saved.slots, saved.cells)] = saved.old

    @property
    def _bounds(self) -> tuple[int, int]:
        """Where the place that counts begins, and where the log in it ends: never at the place's own end."""
        end = self._end[0]
        return (self._size if end >= self._size else 0), end

    def _all(self) -> Iterator[_Saved]:
        at, end = self._bounds
        while at < end:
            field, entries, size = _ENTRY.unpack_from(self._buffer, self._start + at)
            yield _Saved(field, *self._fields[field].entry(self._buffer, self._start + at, entries))
            at += size

    def _first_saved(self) -> Iterator[_Saved]:
        """Of each field, and each of its places, what was saved first. A field is always saved in one way."""
        fields: dict[int, list[_Saved]] = {}
        for saved in self._all():
            fields.setdefault(saved.field, []).append(saved)
        for field, parts in fields.items():
            slots = np.concatenate([part.slots for part in parts])
            cells = np.concatenate([part.cells for part in parts if part.cells is not None] or [slots[:0]])
            cellwise = parts[0].cells is not None
            places = slots.astype(np.int64) * self._arrays[field].shape[1] + cells if cellwise else slots
            first = np.unique(places, return_index=True)[1]
            old = np.concatenate([part.old for part in parts])
            yield _Saved(field, slots[first], cells[first] if cellwise else None, old[first])

    def _entry(self, at: int, size: int, field: int, entries: int) -> Saving:
        """A new entry, to be filled."""
        _ENTRY.pack_into(self._buffer, self._start + at, field, entries, size)
        return self._fields[field].entry(self._buffer, self._start + at, entries)


def _words(size: int) -> int:
    """Bytes rounded up to whole words, so that everything in the log is aligned."""
    return -(-size // 8) * 8
