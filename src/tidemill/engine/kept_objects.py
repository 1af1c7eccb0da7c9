"""What a lane's objects can be made from again: their newest committed states, in the parent's memory.

A log: the states that come with a slab are added at its end, and a replacement is sent it from front to back, so that the
newest state of an object is the one that holds. So a slab costs some array operations, however many objects it has changed,
and a death hardly more. What keeps the log short: while more than half of it is out of date, the parts at its front move
to its end, without what is out of date in them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tidemill.lanes.object_states import received_states, sent_states
from tidemill.lanes.wire import Objects, Restore
from tidemill.stages.object_states import ObjectStates

__all__ = ["KeptObjects", "KeptObjectsStatistics", "ObjectsCopy"]

_ALWAYS_HELD: Final = 1 << 16
"""Bytes below which nothing is moved."""
_PLACE: Final = 8  # bytes of a slot and a size
_MOVED_FOR_EACH: Final = 4
"""Bytes moved at most for each that is added. A round through the log moves what is in use once, and is due after as many
bytes again were added: one for each would do."""


@dataclass(frozen=True)
class KeptObjectsStatistics:
    """How the states of a lane's objects are kept."""

    objects: int
    """Objects that a replacement would have."""
    live_bytes: int
    """Bytes of their states."""
    held_bytes: int
    """Bytes of the log, what is out of date in it included."""


ObjectsCopy = dict[int, list[ObjectStates]]
"""By stage, states from the oldest to the newest: of an object that is in several, the last one holds."""


class KeptObjects:
    """The objects of one lane, by stage and key slot."""

    def __init__(self) -> None:
        self._logs: dict[int, _Log] = {}

    def committed(self, changed: Iterable[Objects]) -> None:
        """A slab is committed that has changed these."""
        for objects in changed:
            self._logs.setdefault(objects.stage, _Log()).add(received_states(objects))

    def messages(self) -> Iterator[Restore]:
        """What a replacement is sent."""
        for stage, log in self._logs.items():
            for _, states in log.parts:
                yield Restore(sent_states(stage, states))

    def copy(self) -> ObjectsCopy:
        """What there is now; what is committed later does not change it."""
        return {stage: [states for _, states in log.parts] for stage, log in self._logs.items()}

    def hold(self, states: ObjectsCopy) -> None:
        """Begin with these."""
        for stage, parts in states.items():
            log = self._logs.setdefault(stage, _Log())
            for part in parts:
                log.add(part)

    def statistics(self) -> KeptObjectsStatistics:
        """How they are, now."""
        logs = self._logs.values()
        return KeptObjectsStatistics(
            sum(log.objects for log in logs), sum(log.live for log in logs), sum(log.held for log in logs)
        )


class _Log:
    """The states of one stage's objects."""

    def __init__(self) -> None:
        self.parts: deque[tuple[int, ObjectStates]] = deque()
        self.held = self.live = 0
        self._last = 0
        self._part_of = np.zeros(1024, np.int64)
        """Per slot, the number of the part that has its newest state."""
        self._size_of = np.full(1024, -1, np.int32)

    @property
    def objects(self) -> int:
        return int((self._size_of >= 0).sum())

    def add(self, states: ObjectStates) -> None:
        self._append(states)
        room = _MOVED_FOR_EACH * _bytes(states)
        while room > 0 and self.held > max(2 * self.live, _ALWAYS_HELD):
            room -= self._move_first()

    def _append(self, states: ObjectStates) -> None:
        slots = states.slots
        if len(slots) and (most := int(slots.max())) >= len(self._part_of):
            more = max(most + 1, 2 * len(self._part_of)) - len(self._part_of)
            self._part_of = np.append(self._part_of, np.zeros(more, np.int64))
            self._size_of = np.append(self._size_of, np.full(more, -1, np.int32))
        self._last += 1
        self.parts.append((self._last, states))
        self.live += _live_bytes(states.sizes) - _live_bytes(self._size_of[slots])
        self.held += _bytes(states)
        self._part_of[slots] = self._last
        self._size_of[slots] = states.sizes

    def _move_first(self) -> int:
        """The part at the front to the end, without what is out of date; how many bytes that moved.

        Word of an object that is no more is needed for as long as an older part has a state of it: at the front none has.
        """
        number, states = self.parts.popleft()
        self.held -= _bytes(states)
        live = (self._part_of[states.slots] == number) & (states.sizes >= 0)
        if not live.any():
            return _PLACE
        self._size_of[states.slots[live]] = -1
        self.live -= _live_bytes(states.sizes[live])
        moved = states.take(live)
        self._append(moved)
        return _bytes(moved)


def _bytes(states: ObjectStates) -> int:
    return len(states.data) + _PLACE * len(states.slots)


def _live_bytes(sizes: NDArray[np.int32]) -> int:
    """Of those that are no more, there are none."""
    there = sizes[sizes >= 0]
    return int(there.sum(dtype=np.int64)) + _PLACE * len(there)
