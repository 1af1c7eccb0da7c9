"""What `Rolling` knows of the blocks of its rings while a batch goes through (decision 14)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Blocks"]


class Blocks:
    """What is known of the blocks of rings with ``window`` cells while a batch goes through; nothing of it is state.

    A block has 16 cells, or some more than there are blocks.
    """

    def __init__(self, window: int) -> None:
        self.shift = max(4, ((window - 1).bit_length() + 2) // 2)
        self.scratch = np.empty(window)
        self._each = 4 * -(-window // (1 << self.shift))
        self._held = np.empty((0, self._each))
        self._stamps = np.empty(0, np.int64)
        self._stamp = 0

    def stamped(self, keys: int) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
        """Memory for so many keys, of which only what is used is taken from the machine; nothing in it is good yet."""
        if len(self._stamps) < keys:
            self._held, self._stamps = np.zeros((keys, self._each)), np.zeros(keys, np.int64)
        self._stamp += 1
        return self._held, self._stamps, self._stamp
