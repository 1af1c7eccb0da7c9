"""A stage's arrays as its kernels overwrite them: saved in the undo log first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill.stages.state import StageState
from tidemill.stages.statistics.compiled import Kernels, check_slots

__all__ = ["Saved"]


class Saved:
    """The arrays of one batch's keys, each of which is handed out once it may be overwritten.

    ``ending`` is what the names of the fields end with, for a stage that has the same fields for several columns.
    """

    def __init__(self, kernels: Kernels, state: StageState, ending: str = "") -> None:
        self.kernels = kernels
        self._state = state
        self._ending = ending
        self._held: dict[str, NDArray[Any]] = {}
        self.slots: NDArray[np.int32] = state.slots
        """Key slot of each record, checked to be within the arrays once one of them was asked for."""

    def rows(self, name: str) -> NDArray[Any]:
        """A field of 8-byte cells, whose rows of these keys are saved."""
        name += self._ending
        array = self._state[name]
        self.slots, _ = check_slots(self._state.slots, len(array))
        log_slots, _, held = self._state.reserve(name, len(self.slots))
        self.kernels["hold"](len(self.slots), self.slots, array, array[0].size, log_slots, held)
        self._state.seal()
        self._held[name] = held
        return array

    def ring(self, name: str, heads: str) -> NDArray[Any]:
        """A ring field, of which as many cells behind the head are saved as a key has records in the batch.

        The heads are in the first cells of the rows of ``heads``, which were asked for before.
        """
        name += self._ending
        heads += self._ending
        ring, rows, held = self._state[name], self._state[heads], self._held[heads]
        log = self._state.reserve(name, len(self.slots))
        self.kernels["claim"](
            len(self.slots), self.slots, rows, rows[0].size, held, ring, ring.shape[1], log[0], log[1], log[2]
        )
        self._state.seal()
        return ring
