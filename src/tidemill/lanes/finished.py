"""What calls of a bundle have come to, in memory that outlives the process which runs them.

A bundle's answers are sent together, with its last one. A process that dies in the middle must not take those with it that
were finished: who called them has had the effects. So each is put here when it is there, which costs no system call, and
the parent looks here after a death, or when a bundle takes long.

    turn        of the bundle, 0 for none
    first       the number of the first answer that is here; those before were sent
    count       answers, in the upper half, and the bytes that they take
    answers     each: its length, negative where it raised, and its bytes

The count is written last, and only the lane writes: what it counts is whole.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

from tidemill.lanes.call_codec import Answer
from tidemill.lanes.memory import fence

__all__ = ["FINISHED_BYTES", "Finished"]

_CELLS: Final = 24
_LENGTH: Final = struct.Struct("<q")
FINISHED_BYTES: Final = _CELLS + (128 << 10)


class Finished:
    """The memory, over a buffer that both processes map.

    >>> finished = Finished(bytearray(FINISHED_BYTES))
    >>> finished.begin(turn=7)
    >>> finished.add(False, b"51.3"), finished.add(True, b"no such sensor")
    (True, True)
    >>> finished.of(7)
    (0, [Answer(raised=False, data=bytearray(b'51.3'), block=None), Answer(raised=True, data=bytearray(b'no such sensor'), block=None)])
    >>> finished.of(8)
    """

    def __init__(self, buffer: Any) -> None:
        memory = memoryview(buffer)
        self._cells = memory[:_CELLS].cast("q")
        self._data = memory[_CELLS:]
        self._count = self._used = 0

    # -- the lane --------------------------------------------------------------------------------------

    def begin(self, turn: int, first: int = 0) -> None:
        """What comes now are the answers of this bundle, from its ``first`` on."""
        self._count = self._used = 0
        self._cells[2] = 0
        with fence:
            self._cells[1] = first
            self._cells[0] = turn

    def add(self, raised: bool, data: bytes | bytearray) -> bool:
        """Put the next answer here; False when there is no room for it."""
        end = self._used + _LENGTH.size + len(data)
        if end > len(self._data):
            return False
        _LENGTH.pack_into(self._data, self._used, -1 - len(data) if raised else len(data))
        self._data[self._used + _LENGTH.size : end] = data
        self._count, self._used = self._count + 1, end
        with fence:
            self._cells[2] = self._count << 32 | end
        return True

    # -- the parent ------------------------------------------------------------------------------------

    def of(self, turn: int) -> tuple[int, Sequence[Answer]] | None:
        """The number of the first answer of this bundle that is here, and all that are, now; copied, since values may lie in them.
        None when this is about another bundle, or the memory was written over by what died in it.
        """
        with fence:
            here, first, packed = self._cells
        if here != turn:
            return None
        data = bytes(self._data[: packed & 0xFFFF_FFFF])
        with fence:
            if tuple(self._cells[:2]) != (turn, first):
                return None  # it went on meanwhile: that is on its way
        answers, at = [], 0
        for _ in range(packed >> 32):
            if at + _LENGTH.size > len(data):
                return None
            (length,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size
            raised, length = length < 0, -1 - length if length < 0 else length
            if at + length > len(data):
                return None
            answers.append(Answer(raised, bytearray(data[at : at + length])))
            at += length
        return first, answers

    def close(self) -> None:
        """Let go of the buffer."""
        self._cells.release()
        self._data.release()
