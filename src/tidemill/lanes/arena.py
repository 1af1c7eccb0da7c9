"""The large buffers of calls in memory that a lane's process and its parent share: each is copied once each way.

    parent                                     arena                            process
    copies arguments to a free place ───────▶ [ out          ] ◀── views, while the call runs
    copies the result out, moves `taken` ◀─── [        back  ] ◀─── copies the result behind the last

The parent alone says what is free on the way out; the process fills the way back in a ring, up to what the parent has
taken. A place in a message is the publication: the system call that carries it is the memory barrier. What finds no
room goes through the socket.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.lanes.beside import has_gaps
from tidemill.lanes.memory import aligned, fence
from tidemill.lanes.parcels import Parcel, room_of

__all__ = ["ArenaBack", "ArenaOut", "copy_in", "laid_like"]

_PAGE: Final = 4096
_CELL: Final = 8
"""Bytes at the front: how far the parent has taken what came back, counted from the beginning."""
_FRONT: Final = 64
"""Bytes before the way out: the cell has a cache line of its own."""


def _halves(size: int) -> tuple[int, int]:
    """Where the way back begins, and where it ends, in an arena of ``size`` bytes; the way out lies before it."""
    return size // 2 // _PAGE * _PAGE, size // _PAGE * _PAGE


class ArenaOut:
    """Which places on the way out are free: the parent's books. The lowest that fits is given, since it was used before.

    >>> out = ArenaOut(16_384)
    >>> out.take(100), out.take(9_000), out.take(1)
    (64, None, 176)
    >>> out.give_back(64, 100)
    >>> out.take(64)
    64
    """

    def __init__(self, size: int) -> None:
        self._free: list[tuple[int, int]] = [(_FRONT, _halves(size)[0])]

    def take(self, size: int) -> int | None:
        """A place for so many bytes; None when there is none."""
        size = aligned(size)
        for number, (start, stop) in enumerate(self._free):
            if stop - start >= size:
                if stop - start == size:
                    del self._free[number]
                else:
                    self._free[number] = (start + size, stop)
                return start
        return None

    def give_back(self, start: int, size: int) -> None:
        """Nobody looks at that place any more."""
        stop = start + aligned(size)
        insort(self._free, (start, stop))
        number = self._free.index((start, stop))
        if number + 1 < len(self._free) and self._free[number + 1][0] == stop:
            stop = self._free.pop(number + 1)[1]
        if number and self._free[number - 1][1] == start:
            start = self._free.pop(number - 1)[0]
            number -= 1
        self._free[number] = (start, stop)


class ArenaBack:
    """The way back, as either side sees it: a ring of blocks, none of which is cut by its end.

    Positions count all bytes since the beginning; ``position % size`` is the place.
    """

    def __init__(self, memory: memoryview) -> None:
        start, stop = _halves(len(memory))
        self._taken = memory[:_CELL].cast("q")
        self._ring = memory[start:stop]
        self._size = stop - start
        self._written = 0  # by the process: the position of the next block
        self._first = 0  # and of the first that the parent may not have taken

    @property
    def size(self) -> int:
        """The most bytes that go this way at once."""
        return self._size

    # -- the process -----------------------------------------------------------------------------------

    def put(self, parcel: Parcel) -> int:
        """Copy a parcel's buffers in; the position, or -1 when the parent has not taken enough of what came before."""
        size = parcel.room
        at, first = self._written, max(self._taken[0], self._first)
        if first >= at:  # nothing is there
            first = at = at + -at % self._size  # the front was used before, and is in memory
        elif at % self._size + size > self._size:
            at += -at % self._size
        with fence:  # nothing is written before it was seen that it may be
            if at + size - first > self._size:
                return -1
        self._first = first
        self._written = at + size
        copy_in(parcel.buffers, self._ring[at % self._size : at % self._size + size])
        return at

    # -- the parent ------------------------------------------------------------------------------------

    def holds(self, at: int, size: int) -> bool:
        """Whether so much can have been put there."""
        return 0 <= at - self._taken[0] <= 2 * self._size and 0 < size <= self._size - at % self._size

    def block(self, at: int, size: int) -> memoryview:
        """What was put at a position."""
        place = at % self._size
        return self._ring[place : place + size]

    def taken(self, at: int, size: int) -> None:
        """The parent has copied what is there, and all before it."""
        with fence:  # all was read before it may be written over
            self._taken[0] = at + size

    def close(self) -> None:
        """Let go of the memory."""
        self._taken.release()
        self._ring.release()


def copy_in(buffers: Sequence[Any], place: memoryview) -> None:
    """Copy buffers one after another, each from a multiple of 16 bytes on."""
    at = 0
    for buffer in buffers:
        if has_gaps(buffer):
            laid_like(buffer, place[at : at + buffer.nbytes])[...] = buffer
        else:
            view = memoryview(buffer).cast("B")
            place[at : at + view.nbytes] = view
        at += room_of(buffer)


def laid_like(buffer: NDArray[Any], memory: memoryview) -> NDArray[Any]:
    """Memory as an array of the same dtype and shape as another."""
    return np.frombuffer(memory, buffer.dtype).reshape(buffer.shape)
