"""Codes of pairs of numbers, looked up for many pairs at once."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["MISSING", "PairCodes"]

MISSING: Final = -2
"""The code of a pair that has none."""
_EMPTY: Final = -(1 << 63)
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
"""2**64 over the golden ratio: multiples of it are spread evenly (Knuth, The Art of Computer Programming 3, 6.4)."""


class PairCodes:
    """A hash table with open addressing, of which at most a third is in use.

    Python's own would take a call for each pair; this takes some 15 ns, whatever pairs come.

    >>> codes = PairCodes()
    >>> codes.add(np.array([7, 7], np.int32), np.array([1, 2], np.int32), np.array([0, 1], np.int32))
    >>> codes.find(np.array([7, 7, 8], np.int32), np.array([2, 1, 1], np.int32)).tolist()
    [1, 0, -2]
    """

    def __init__(self) -> None:
        self._clear(10)

    def _clear(self, bits: int) -> None:
        self._bits = bits
        self._pairs = np.full(1 << bits, _EMPTY)
        self._codes = np.zeros(1 << bits, np.int32)
        self._used = 0

    def find(self, first: NDArray[np.int32], second: NDArray[np.int32]) -> NDArray[np.int32]:
        """The code of each pair; `MISSING` where there is none, as where a number is below 0."""
        pairs = _joined(first, second)
        places = self._home(pairs)
        found = self._pairs.take(places) == pairs
        codes = np.where(found, self._codes.take(places), np.int32(MISSING))
        left = np.flatnonzero(~found)
        while len(left):
            left = left[self._pairs[places[left]] != _EMPTY]
            places[left] = self._next(places[left])
            found = self._pairs[places[left]] == pairs[left]
            codes[left[found]] = self._codes[places[left[found]]]
            left = left[~found]
        return codes

    def add(self, first: NDArray[np.int32], second: NDArray[np.int32], codes: NDArray[np.int32]) -> None:
        """Pairs that it does not have, each once."""
        pairs = _joined(first, second)
        if 3 * (self._used + len(pairs)) > len(self._pairs):
            old = self._pairs != _EMPTY
            pairs, codes = np.append(self._pairs[old], pairs), np.append(self._codes[old], codes)
            self._clear((6 * len(pairs)).bit_length())
        self._used += len(pairs)
        places = self._home(pairs)
        while len(pairs):
            free = self._pairs[places] == _EMPTY
            self._pairs[places[free]] = pairs[free]  # of several that want one place, the last one has it
            placed = self._pairs[places] == pairs
            self._codes[places[placed]] = codes[placed]
            pairs, codes, places = pairs[~placed], codes[~placed], self._next(places[~placed])

    def _home(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        spread = pairs.view(np.uint64) * _GOLDEN
        return (spread >> np.uint64(64 - self._bits)).view(np.int64)

    def _next(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return (places + 1) & (len(self._pairs) - 1)


def _joined(first: NDArray[np.int32], second: NDArray[np.int32]) -> NDArray[np.int64]:
    return first.astype(np.int64) << 32 | second
