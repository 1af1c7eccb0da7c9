"""What a process wrote last to its standard streams, for the error that tells of its death.

It goes where it always went; a copy of the end of it stays in memory that outlives the process. That is what Python code
writes through ``sys.stdout`` and ``sys.stderr``, and the traceback of a crash, which `faulthandler` writes as it happens.
What C code writes itself goes by: to have that too, descriptor 2 would be a pipe, and who copied it on would have to run while
the process's own C code keeps the GIL, would hold all lanes up where stderr is not read, and there would be no terminal:

    front   text: how much was written (8 bytes), then a ring of 4 kB
    behind  the traceback of a crash, 4 kB at most
"""

from __future__ import annotations

import faulthandler
import os
import sys
from typing import Any, Final

__all__ = ["LAST_WORDS_BYTES", "keep_last_words", "last_words"]

_COUNT: Final = 8
_RING: Final = 4096
_CRASH: Final = 4096
LAST_WORDS_BYTES: Final = _COUNT + _RING + _CRASH
_TOLD: Final = 2_000
"""Characters that an error shows."""


class _Copied:
    """A text stream that keeps a copy of what is written."""

    def __init__(self, stream: Any, memory: memoryview) -> None:
        self._stream = stream
        self._count = memory[:_COUNT].cast("q")
        self._ring = memory[_COUNT : _COUNT + _RING]

    def write(self, text: str) -> int:
        written: int = self._stream.write(text)
        data = text.encode("utf-8", "replace")[-_RING:]
        at = self._count[0] % _RING
        first = min(len(data), _RING - at)
        self._ring[at : at + first] = data[:first]
        self._ring[: len(data) - first] = data[first:]
        self._count[0] += len(data)
        return written

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def keep_last_words(memory: memoryview, fd: int, at: int) -> None:
    """From now on, in this process. ``memory`` begins at byte ``at`` of the file ``fd``, which stays open."""
    if sys.stdout is not None:
        sys.stdout = _Copied(sys.stdout, memory)
    if sys.stderr is not None:
        sys.stderr = _Copied(sys.stderr, memory)
    os.lseek(fd, at + _COUNT + _RING, os.SEEK_SET)
    faulthandler.enable(fd, all_threads=False)


def last_words(memory: memoryview) -> str:
    """The end of what a process wrote, which has ended; empty when that was nothing."""
    count = memory[:_COUNT].cast("q")[0]
    ring = bytes(memory[_COUNT : _COUNT + _RING])
    at = count % _RING
    text = (ring[at:] + ring[:at] if count > _RING else ring[:at]).decode("utf-8", "replace")
    crash = bytes(memory[_COUNT + _RING : LAST_WORDS_BYTES]).rstrip(b"\0").decode("utf-8", "replace")
    return (text[-_TOLD:] + crash[:_TOLD]).strip("\ufffd").strip()
