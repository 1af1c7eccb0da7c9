"""Where the slots of sensors go when state moves into another number of lanes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill.errors import InputError

__all__ = ["Places"]


@dataclass(frozen=True)
class Places:
    """From a lane and a slot of the state that was saved to a lane and a slot of now.

    >>> places = Places(2, [np.array([1, 0], np.int16)], [np.array([0, 0], np.int32)], same=False)
    >>> [array.tolist() for array in places.of(0, np.array([1, 0, 1]))]
    [[0, 1, 0], [0, 0, 0]]
    """

    lanes: int
    """How many there are now."""
    lane_of: Sequence[NDArray[np.int16]]
    """Of each saved lane, by slot: the lane in which the sensor is now."""
    slot_of: Sequence[NDArray[np.int32]]
    """The same: its slot there."""
    same: bool
    """Whether every lane and slot is what it was."""

    def of(self, lane: int, slots: NDArray[Any]) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
        """The lanes and slots of now of these slots of a saved lane; raises `InputError` for a slot that no key has."""
        if len(slots) and not 0 <= int(slots.min()) <= int(slots.max()) < len(self.slot_of[lane]):
            raise InputError(f"the saved state of lane {lane} speaks of a sensor that its key table does not have.")
        return self.lane_of[lane][slots], self.slot_of[lane][slots]
