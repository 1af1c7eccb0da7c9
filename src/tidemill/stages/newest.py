"""The newest reading of each channel of each device, as of a watermark, in state memory.

A slab may end the waiting of more devices than it has records, more than the undo log has room for. So each device has two
versions, and each version the watermark with which it was written: what holds is the later one of those that are not beyond
the watermark before the slab. Writing goes to the other, its watermark last. A slab that was not committed leaves versions
from beyond that watermark: `forget` strikes them out before it is worked on again, since it may then touch other devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tidemill.stages.state import StageState, StateField

__all__ = ["NEVER_READ", "Newest"]

NEVER_READ: Final = -(1 << 63)
"""The time of a reading that there has not been."""
_SIGN: Final = np.int64(NEVER_READ)
"""Times are kept with this bit turned, so that memory that was never written, all zeros, says `NEVER_READ`."""


class Newest:
    """For ``channels`` channels."""

    def __init__(self, channels: int) -> None:
        self._channels = channels

    def fields(self) -> Mapping[str, StateField]:
        """Its arrays, for `Stage.state_fields`."""
        return {
            "newest_mark": StateField("int64", (2,)),
            "newest_time": StateField("int64", (2, self._channels)),
            "newest_value": StateField("float64", (2, self._channels)),
        }

    def read(
        self, state: StageState, slots: NDArray[np.int32], before: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Times and values, of shape ``(devices, channels)``, as of the watermark before the slab."""
        version = self._version(state, slots, before)
        return state["newest_time"][slots, version] ^ _SIGN, state["newest_value"][slots, version]

    def write(
        self,
        state: StageState,
        slots: NDArray[np.int32],
        times: NDArray[np.int64],
        values: NDArray[np.float64],
        *,
        before: int,
        after: int,
    ) -> None:
        """What holds from the watermark ``after`` the slab on, which is beyond the one ``before`` it."""
        other = 1 - self._version(state, slots, before)
        state["newest_value"][slots, other] = values
        state["newest_time"][slots, other] = times ^ _SIGN
        state["newest_mark"][slots, other] = np.int64(after) ^ _SIGN

    def came(self, state: StageState, slots: int) -> NDArray[np.bool_]:
        """Which channels have had a reading, of any of the first ``slots`` devices."""
        return np.asarray(state["newest_time"][:slots].any(axis=(0, 1)), np.bool_)

    def forget(self, state: StageState, before: int) -> None:
        """Strike out what was written by a slab that was not committed: to be called first after a rollback."""
        marks = state["newest_mark"][: len(state.keys)]
        marks[marks ^ _SIGN > before] = 0

    def _version(self, state: StageState, slots: NDArray[np.int32], before: int) -> NDArray[np.intp]:
        marks = state["newest_mark"][slots] ^ _SIGN
        holds = marks <= before
        return np.where(holds[:, 1] & (~holds[:, 0] | (marks[:, 1] > marks[:, 0])), 1, 0)
