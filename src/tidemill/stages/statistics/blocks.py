"""What a lane keeps of rings in memory of its own, so as not to go through them again (decisions 14 and 24).

Nothing here is state: all of it follows from the rings and is made anew where it is not known, so nothing of it is
undone, saved or restored.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tidemill.stages.statistics.growing import Growing

__all__ = ["Blocks", "Sorted"]

_NEAR: Final = 1 << 20
"""Bytes of rings and blocks that a processor has at hand; beyond, kernels ask for memory ahead of its use."""

_SMALL: Final = 5
"""Bits of the size of a block of which a few lines hold everything."""
_LINE: Final = 8
"""Numbers in a line of the processor's cache."""


class _Known:
    """Memory for ``numbers`` float64 of each key, and for which keys it is good."""

    def __init__(self, numbers: int) -> None:
        self._numbers = numbers
        self._held = Growing("float64")
        self._stamps = Growing("int64")
        self._stamp = 1

    @property
    def bytes_per_key(self) -> int:
        return 8 * (self._numbers + 1)

    def forget(self) -> None:
        """What is held of any key is void: its ring may have changed behind the kernels' back."""
        self._stamp += 1

    def stamped(self, keys: int) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
        """Memory for so many keys; what is held of a key is good while its stamp is the last number, which kernels see to."""
        return self._held.of(keys * self._numbers), self._stamps.of(keys), self._stamp


class Blocks(_Known):
    """What is known of the blocks of rings with ``window`` cells: ``numbers`` of each block.

    A block has 16 cells, or some more than there are blocks.
    """

    def __init__(self, window: int, numbers: int = 4) -> None:
        self.shift = max(4, ((window - 1).bit_length() + 2) // 2)
        self._blocks = -(-window // (1 << self.shift))
        super().__init__(_whole_lines(numbers * self._blocks))
        self._gapped = Growing("float64")
        self._near = _NEAR // (8 * (window + self._numbers))

    @property
    def bytes_per_key(self) -> int:
        return super().bytes_per_key + 16 * self._blocks

    def gapped(self, keys: int) -> NDArray[np.float64]:
        """Two numbers more of each block, for those in which values are missing: no memory is taken for others."""
        return self._gapped.of(2 * keys * self._blocks)

    def are_far(self, keys: int) -> bool:
        """Whether the rings and blocks of so many keys are more than the processor has at hand, and small each: what
        lies side by side in long ones it fetches ahead by itself."""
        return keys > self._near and self.shift <= _SMALL


class Sorted(_Known):
    """The values of rings with ``window`` cells in order, NaN left out, in chunks that are rings themselves.

    A value that leaves and one that enters move the values between them in their own two chunks, and one value of each
    chunk in between: so a chunk has about as many values as there are chunks, and at least 64 or all.
    """

    def __init__(self, window: int) -> None:
        bits = (window - 1).bit_length()
        self.shift = min(bits, max(6, (bits + 1) // 2))
        self.chunks = -(-window // (1 << self.shift))
        super().__init__(self.chunks << self.shift)
        self._own = Growing("int64")

    @property
    def bytes_per_key(self) -> int:
        return super().bytes_per_key + 8 * (self.chunks + 2)

    def owned(self, keys: int) -> NDArray[np.int64]:
        """For each key: how many values are held, of how many cells, and where each chunk begins."""
        return self._own.of(keys * (self.chunks + 2))


def _whole_lines(numbers: int) -> int:
    return -(-numbers // _LINE) * _LINE
