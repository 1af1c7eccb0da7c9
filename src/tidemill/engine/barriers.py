"""Barriers: places between two slabs at which every lane copies its state, whatever becomes of its process meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tidemill.core.controls import Controls
from tidemill.core.keys import KeyTable
from tidemill.engine.kept_objects import ObjectsCopy
from tidemill.engine.lane import Lane
from tidemill.lanes.wire import CopyState

__all__ = ["Barriers"]


class Barriers:
    """The barrier of one mill; one at a time.

    ``copied`` is called when a lane has copied, ``passed`` when all slabs before the barrier have been emitted, and none
    behind it.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        keys: KeyTable,
        controls: Controls,
        *,
        copied: Callable[[int], None],
        passed: Callable[[], None],
    ) -> None:
        self._lanes, self._keys, self._controls = lanes, keys, controls
        self._tell_copied, self._tell_passed = copied, passed
        self._number = 0
        self._after = 0
        self._waiting: set[int] = set()
        self._passes_with = 0
        self._emitted = 0
        self.objects: dict[int, ObjectsCopy] = {}
        """Per lane, what its process held in objects at the last barrier."""

    def raise_behind(self, slab: int, number: int) -> None:
        """Behind the last slab that was handed out, for checkpoint ``number``."""
        self._number, self._after = number, slab
        self._waiting = {lane.number for lane in self._lanes}
        self._controls.add_barrier(slab, number)
        for lane in self._lanes:
            self.send(lane)
        self._passes_with = slab if slab > self._emitted else 0
        if not self._passes_with:
            self._tell_passed()

    def send(self, lane: Lane) -> None:
        """Tell the lane's process, which may be a new one, in its place among the slabs."""
        if lane.number in self._waiting:
            lane.send(CopyState(self._number, self._keys.count(lane.number)))

    def emitted(self, slab: int) -> None:
        """A slab's rows are with the sinks."""
        self._emitted = slab
        if slab == self._passes_with:
            self._passes_with = 0
            self._tell_passed()

    def copied(self, lane: Lane, number: int) -> None:
        """Its objects here are those of the barrier: what it commits behind it has not been read yet."""
        if number != self._number or lane.number not in self._waiting:
            return
        self._waiting.discard(lane.number)
        self.objects[lane.number] = lane.objects.copy()
        if not self._waiting:
            self._controls.drop_barrier()
        self._tell_copied(lane.number)

    def recall(self, lane: Lane, slab: int) -> None:
        """The lane has died. It had copied before it went on to this slab, perhaps, and the word of it was lost too."""
        if self._after < slab and lane.copied == self._number:
            self.copied(lane, self._number)
