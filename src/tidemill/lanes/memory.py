"""Shared memory without names: created by the parent, mapped by both sides, freed by the kernel with its last user."""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from typing import Final

from tidemill.lanes.platform import in_forked_child, keep_to_oneself, sealed_memory

__all__ = ["ALIGN", "PADS", "Shared", "aligned", "fence", "write_at"]

ALIGN: Final = 16
"""Bytes; a buffer that another process reads where it lies begins at a multiple."""
PADS: Final = [bytes(-number % ALIGN) for number in range(ALIGN)]
"""What follows a buffer of so many bytes beyond a multiple, so that the next begins at one."""

fence: Final = threading.Lock()
"""Never contended: taking it is a full memory barrier, which Python has no other word for."""


def aligned(size: int) -> int:
    """Bytes that a buffer takes with what follows it, so that the next begins at a multiple of `ALIGN`."""
    return size + -size % ALIGN


def write_at(fd: int, at: int, data: memoryview) -> None:
    """Put bytes into shared memory that is not mapped here: of memory that nobody has touched yet this takes half the time."""
    while len(data):
        written = os.pwrite(fd, data, at)
        at, data = at + written, data[written:]


class Shared:
    """``size`` zero bytes that other processes can map by ``fd``.

    Only the pages that are touched are taken from the machine, so a generous size costs nothing. The size is sealed:
    nobody who has the memory can take it away from under another. A copy of this process that `os.fork` makes is none of those
    who share it: what it writes, it alone sees. Where lanes have no processes the memory is private to this one, which is all
    that ``lanes=0`` needs.
    """

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        self.fd = sealed_memory(name, size)
        try:
            self.buffer = mmap.mmap(self.fd, size)
        except OSError:  # no descriptor or no memory is left
            self.close()
            raise
        _ours.add(self)

    @classmethod
    def of(cls, fd: int) -> mmap.mmap:
        """Map memory that another process created."""
        buffer = mmap.mmap(fd, os.fstat(fd).st_size)
        os.close(fd)  # the mapping keeps the memory
        return buffer

    def touched_bytes(self) -> int:
        """What it takes from the machine now."""
        return os.fstat(self.fd).st_blocks * 512 if self.fd >= 0 else self.size

    def close(self) -> None:
        """Let go. NumPy views may still keep the mapping; the kernel frees it with the last of them."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


_ours: Final[weakref.WeakSet[Shared]] = weakref.WeakSet()


def _keep_to_oneself() -> None:
    """A copy of the application may leave the block of its lanes: it cancels its copies of their calls, moves marks, goes on
    copying, all in memory that lanes act on."""
    for shared in list(_ours):
        if shared.fd >= 0 and not shared.buffer.closed:
            keep_to_oneself(shared.buffer, shared.fd)


in_forked_child(_keep_to_oneself)
