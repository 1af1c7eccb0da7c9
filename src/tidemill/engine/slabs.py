"""The slabs: shared memories that hold one batch each, unsplit, with its lanes' row lists and result columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from tidemill.formats.packed import Packer, TextTables
from tidemill.lanes.memory import Shared

__all__ = ["SLAB_BYTES", "SLAB_COUNT", "Slabs", "SlabsStatistics"]

SLAB_BYTES: Final = 96 << 20
"""Size of a slab; only what is written to is taken from the machine."""
SLAB_COUNT: Final = 12
"""How many there are. It bounds how far a lane may lead the slowest: the only reorder buffer."""


@dataclass(frozen=True)
class SlabsStatistics:
    """How the slabs are."""

    count: int
    free: int
    touched_bytes: int
    """What they take from the machine."""


class Slabs:
    """A pool of slabs; the one freed last is given out first, because it is still in the caches."""

    def __init__(self, count: int = SLAB_COUNT, size: int = SLAB_BYTES) -> None:
        self.shared = [Shared(f"slab-{number}", size) for number in range(count)]
        tables = TextTables()
        self._packers = [Packer(shared.buffer, tables) for shared in self.shared]
        self._free = list(range(count))

    @property
    def free(self) -> int:
        """How many can be taken."""
        return len(self._free)

    def take(self) -> tuple[int, Packer]:
        """A free slab's number, and its packer at the front."""
        number = self._free.pop()
        self._packers[number].rewind()
        return number, self._packers[number]

    def give_back(self, number: int) -> None:
        """The slab's contents are no longer needed by anybody."""
        self._free.append(number)

    def buffer(self, number: int) -> Any:
        return self.shared[number].buffer

    def statistics(self) -> SlabsStatistics:
        """How they are, now."""
        return SlabsStatistics(len(self.shared), len(self._free), self.touched_bytes())

    def touched_bytes(self) -> int:
        """What the slabs take from the machine."""
        return sum(shared.touched_bytes() for shared in self.shared)

    def close(self) -> None:
        self._packers.clear()
        for shared in self.shared:
            shared.close()
