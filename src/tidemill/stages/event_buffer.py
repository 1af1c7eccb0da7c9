"""Records of a lane that wait for the watermark, in state memory.

Two regions, of which one is in use. What comes is written behind what the region holds; when records go, those that stay
are copied to the other region. So nothing that a lane had before a slab is overwritten within it, and a rollback needs
only the head: which region, and how much of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.stages.places import Places
from tidemill.stages.state import StageState, StateField

__all__ = ["NEVER", "EventBuffer", "Waiting"]

_REGION, _COUNT, _DUE = range(3)
_HEAD: Final = np.zeros(1, np.int32)
NEVER: Final = 1 << 62
"""A watermark that is not reached before the end of the input."""


@dataclass(frozen=True)
class Waiting:
    """Records, in the order in which they came."""

    slots: NDArray[np.int32]
    times: NDArray[np.int64]
    """Event times, nanoseconds."""
    values: tuple[NDArray[Any], ...]
    """One array per column."""

    def __len__(self) -> int:
        return len(self.slots)

    def take(self, rows: NDArray[Any] | slice) -> Waiting:
        """The records at these positions, or where a mask is true."""
        return Waiting(self.slots[rows], self.times[rows], tuple(column[rows] for column in self.values))

    def and_then(self, later: Waiting) -> Waiting:
        """These, and behind them others."""
        if not len(self):
            return later
        return Waiting(
            np.concatenate([self.slots, later.slots]),
            np.concatenate([self.times, later.times]),
            tuple(np.concatenate(pair) for pair in zip(self.values, later.values, strict=True)),
        )

    def in_event_order(self) -> Waiting:
        """By sensor, then event time, then values: whatever order they came in."""
        made = self.take(np.lexsort((self.times, self.slots)))
        same = (made.slots[1:] == made.slots[:-1]) & (made.times[1:] == made.times[:-1])
        if not same.any():
            return made
        return self.take(np.lexsort((*reversed(self.values), self.times, self.slots)))


class EventBuffer:
    """At most ``most`` records per lane, with values of these ``dtypes``.

    ``due`` is the least watermark at which any of them can go: a number that the user of the buffer keeps, so that most
    slabs need not look at the records at all.
    """

    def __init__(self, dtypes: Sequence[str], most: int) -> None:
        self._dtypes = tuple(dtypes)
        self.most = most

    def fields(self) -> Mapping[str, StateField]:
        """Its arrays, for `Stage.state_fields`."""
        fields = {"head": StateField("int64", (1, 3), per_lane=True)}
        for region in (0, 1):
            own = ("head", region)
            fields[f"slots{region}"] = StateField("int32", (self.most,), per_lane=True, region=own)
            fields[f"times{region}"] = StateField("int64", (self.most,), per_lane=True, region=own)
            for column, dtype in enumerate(self._dtypes):
                fields[f"values{column}_{region}"] = StateField(dtype, (self.most,), per_lane=True, region=own)
        return fields

    def moved(self, old: Sequence[Mapping[str, NDArray[Any]]], places: Places) -> list[dict[str, NDArray[Any]]]:
        """For `Stage.moved`: each record goes with its sensor.

        Those of one sensor keep their order, since they come from one lane; those of different sensors have none that
        matters. A lane's least ``due`` is so for any part of its records.
        """
        columns = range(len(self._dtypes))
        names = ["slots", "times", *(f"values{column}_" for column in columns)]
        parts: list[list[list[NDArray[Any]]]] = [[] for _ in range(places.lanes)]
        dues = [NEVER] * places.lanes
        for lane, arrays in enumerate(old):
            region, _, due = arrays["head"][0].tolist()
            slots, *rest = (arrays[f"{name}{region}"] for name in names)
            lanes, slots = places.of(lane, slots)
            for new in np.unique(lanes).tolist():
                own = lanes == new
                parts[new].append([column[own] for column in (slots, *rest)])
                dues[new] = min(dues[new], due)
        moved = []
        for own_parts, due in zip(parts, dues, strict=True):
            made = [np.concatenate(pieces) for pieces in zip(*own_parts, strict=True)]
            held = dict(zip([f"{name}0" for name in names], made, strict=True)) if made else {}
            count = len(made[0]) if made else 0
            moved.append({"head": np.array([[0, count, due]]), **held})
        return moved

    def held(self, state: StageState) -> tuple[Waiting, int]:
        """What waits, as views that hold until the next change; and when it is due."""
        region, count, due = state["head"][0].tolist()
        return self._read(state, region, count), due if count else NEVER

    def add(self, state: StageState, more: Waiting, due: int) -> None:
        """Let further records wait; there must be room for them."""
        region, count, _ = state["head"][0].tolist()
        self._write(state, region, count, more)
        self._set(state, region, count + len(more), due)

    def replace(self, state: StageState, left: Waiting, due: int) -> None:
        """Let these wait, and no others; at most once in a slab."""
        region = 1 - int(state["head"][0, _REGION])
        self._write(state, region, 0, left)
        self._set(state, region, len(left), due)

    def _set(self, state: StageState, region: int, count: int, due: int) -> None:
        state.save("head", _HEAD)
        state.seal()
        state["head"][0] = region, count, due

    def _arrays(self, state: StageState, region: int) -> Sequence[NDArray[Any]]:
        return (
            state[f"slots{region}"],
            state[f"times{region}"],
            *(state[f"values{column}_{region}"] for column in range(len(self._dtypes))),
        )

    def _read(self, state: StageState, region: int, count: int) -> Waiting:
        slots, times, *values = self._arrays(state, region)
        return Waiting(slots[:count], times[:count], tuple(column[:count] for column in values))

    def _write(self, state: StageState, region: int, at: int, records: Waiting) -> None:
        parts = (records.slots, records.times, *records.values)
        for array, part in zip(self._arrays(state, region), parts, strict=True):
            array[at : at + len(records)] = part
