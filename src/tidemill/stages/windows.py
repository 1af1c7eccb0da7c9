"""The last records of each sensor in state memory, and as the arrays that a user's function over windows gets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.stages.base import Entered, Step
from tidemill.stages.state import StageState, StateField
from tidemill.stages.statistics.compiled import Kernels, check_slots

__all__ = ["Places", "Room", "Span", "Windows", "spans", "worked"]

_CELLS_AT_ONCE: Final = 1_048_576
"""Of all columns together: eight megabytes. Fewer would stay nearer to the core, and be lost in the cost of more calls."""
_HELD: Final = 2
"""One is enough where nothing that functions return is a view of it."""


@dataclass(frozen=True)
class Span:
    """Consecutive records of a batch, and for each column their windows."""

    start: int
    stop: int
    arrays: list[NDArray[np.float64]]
    """Shape ``(stop - start, window)``: oldest left, the record itself rightmost, NaN before the first reading."""

    def of(self, part: Batch, at: int) -> list[NDArray[np.float64]]:
        """The windows of ``batch.slice(at, at + len(part))``, read-only."""
        low = at - self.start
        shown = [array[low : low + len(part)] for array in self.arrays]
        for array in shown:
            array.flags.writeable = False
        return shown


class Windows:
    """Rings of the last ``window`` values, one for each of ``columns`` columns and each sensor.

    State: 8 bytes per cell of the window and column, and 8 per sensor.
    """

    def __init__(self, columns: int, window: int) -> None:
        self.window = window
        self._rings = [f"ring{i}" for i in range(columns)]
        self._room = Room(columns, window)

    def opened(self) -> Windows:
        """For one lane: with memory of its own."""
        return Windows(len(self._rings), self.window)

    def state_fields(self) -> Mapping[str, StateField]:
        rings = {ring: StateField("float64", (self.window,), cellwise=True) for ring in self._rings}
        return {"head": StateField("int64"), **rings}

    def enter(self, kernels: Kernels, values: Sequence[NDArray[np.float64]], state: StageState) -> Iterator[Span]:
        """Take records into the rings, each once, and give their windows span by span.

        What is overwritten is saved and sealed before the first span.
        """
        heads = state["head"]
        slots, _ = check_slots(state.slots, len(heads))
        kernels.keep(slots, heads, state.reserve("head", len(slots)))
        state.seal()
        first, *further = self._rings
        cells, filled = kernels.advance(slots, heads, state[first], state.reserve(first, len(slots)))
        for ring in further:
            kernels.gather(slots, cells, state[ring], state.reserve(ring, len(slots)))
        state.seal()
        places = Places(slots, cells, filled)
        rings = [state[ring] for ring in self._rings]

        def fill(own: slice, arrays: Sequence[NDArray[np.float64]]) -> None:
            places.unroll(kernels, own, values, rings, arrays)

        yield from spans(len(slots), self._room, fill)


@dataclass(frozen=True)
class Places:
    """Where in the rings each record of a batch goes: its key slot, its cell, and how many cells its window then has."""

    slots: NDArray[np.int32]
    cells: NDArray[np.int32]
    filled: NDArray[np.int32]

    def unroll(
        self,
        kernels: Kernels,
        own: slice,
        values: Sequence[NDArray[np.float64]],
        rings: Sequence[NDArray[np.float64]],
        arrays: Sequence[NDArray[np.float64]],
    ) -> None:
        """Write some records' values into the rings, and their windows into the arrays, one of each a column."""
        for column, ring, out in zip(values, rings, arrays, strict=True):
            kernels.unroll(self.slots[own], self.cells[own], self.filled[own], column[own], ring, out)


def spans(records: int, room: Room, fill: Callable[[slice, Sequence[NDArray[np.float64]]], None]) -> Iterator[Span]:
    """The windows of so many records, span by span; ``fill(own, arrays)`` puts those of some of them into the arrays.

    A span's arrays stay as they are for as long as anything refers to them: what a function returns may be a view of them.
    Who has let go of a span before asking for the next gets it in the same memory.
    """
    rows = -(-records // -(-records // room.rows_at_once)) if records else 1  # all spans of about one length
    for start in range(0, records, rows):
        own = slice(start, min(start + rows, records))
        arrays = room.taken(own.stop - own.start)
        fill(own, arrays)
        yield Span(own.start, own.stop, arrays)
        del arrays


class Room:
    """Memory for windows, used again once no array is a view of it: taken anew it costs more than what is put there."""

    def __init__(self, columns: int, window: int) -> None:
        self._columns, self._window = columns, window
        self.rows_at_once = max(1, _CELLS_AT_ONCE // (window * columns))
        self._held: list[NDArray[np.float64]] = []

    def taken(self, rows: int) -> list[NDArray[np.float64]]:
        """An array of shape ``(rows, window)`` for each column, holding anything."""
        columns, cells = self._columns, rows * self._window
        free = [
            place
            for place in range(len(self._held))
            if _references(self._held, place) == _UNUSED and len(self._held[place]) >= cells * columns
        ]
        flat = self._held.pop(free[0]) if free else np.empty(cells * columns)
        self._held = [flat, *self._held][:_HELD]
        return [flat[n * cells : (n + 1) * cells].reshape(rows, self._window) for n in range(columns)]


def _references(held: list[NDArray[np.float64]], place: int) -> int:
    return sys.getrefcount(held[place])


_UNUSED: Final = _references([np.empty(0)], 0)
"""Of memory that only the list refers to; every view refers to what it is a view of."""


def worked(batch: Batch, spans: Iterator[Entered]) -> Batch:
    """Everything that entered worked on, where nobody needs to know on which records it fails."""
    made = []
    for span in spans:
        step = span.work(batch.slice(span.start, span.stop), span.start)
        assert not isinstance(step, Step)
        made.append(step)
        del span
    return Batch.concat(made) if made else batch
