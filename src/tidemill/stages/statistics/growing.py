"""Memory that grows with what is put into it, without being copied."""

from __future__ import annotations

import contextlib
import mmap
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Growing"]

_LEAST: Final = 1 << 24
"""Bytes of address space, to begin with, so that large pages have room: of them only what is used is taken."""
_PAGE: Final = 4096


class Growing:
    """Numbers of one type, zeros at first, that keep their values and may move when there are more of them.

    The machine is asked for as many as there are, and a quarter more: a limit on address space, or a kernel that promises no
    memory that it does not have, refuses no more than that. They begin where a page does.
    """

    def __init__(self, dtype: str) -> None:
        self._dtype = np.dtype(dtype)
        self._mapped: mmap.mmap | None = None
        self._numbers: NDArray[Any] = np.empty(0, self._dtype)

    def of(self, numbers: int) -> NDArray[Any]:
        """At least so many of them; the view that was given before is no longer to be used."""
        if len(self._numbers) < numbers:
            size = (numbers + numbers // 4) * self._dtype.itemsize
            self._grow(max(_LEAST, -(-size // _PAGE) * _PAGE))
        return self._numbers

    def _grow(self, size: int) -> None:
        self._numbers = np.empty(0, self._dtype)  # a mapping with views is not moved
        self._mapped = _mapping(size) if self._mapped is None else _moved(self._mapped, size)
        self._numbers = np.frombuffer(self._mapped, self._dtype)


def _moved(held: mmap.mmap, size: int) -> mmap.mmap:
    try:
        held.resize(size)
    except (BufferError, SystemError):  # the traceback of an error has a view, or this system moves no mappings
        larger = _mapping(size)
        larger[: len(held)] = held[:]
        return larger
    return held


def _mapping(size: int) -> mmap.mmap:
    """Zeros, on large pages where there are any, as NumPy's are."""
    mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped
