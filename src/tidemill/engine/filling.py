"""Filling a slab: what is written into it before the lanes get it, and what each of them is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import DTYPES
from tidemill.core.blame import Orders
from tidemill.core.keys import KeyTable
from tidemill.core.plan import Plan
from tidemill.engine.assembly import Share
from tidemill.engine.intake import Taken
from tidemill.formats.packed import Packed, Packer
from tidemill.lanes.wire import Quarantined, Slot, Work
from tidemill.schema import Field, Kind, Schema

__all__ = ["Filler", "Slab"]

_IN_PLACE = {Kind.FLOAT, Kind.INT, Kind.BOOL, Kind.TIME}
_INT32 = np.dtype(np.int32)
_INT64 = np.dtype(np.int64)


@dataclass
class Slab:
    """What the engine keeps of a slab until its output is in the sinks."""

    memory: int
    taken: Taken
    packed: Packed
    slots_at: int
    devices_at: int
    results: list[Slot]
    rows: dict[int, tuple[int, NDArray[np.int32]]]
    """Per lane, where its row list lies, and the list itself, in the slab."""
    marks: tuple[int, NDArray[np.int64]] | None
    """Where the watermark's steps lie, and room for them (see `Work.marks_at`)."""
    shares: dict[int, Share] = field(default_factory=dict)

    def work(self, number: int, lane: int, orders: Orders) -> Work:
        """What the lane is told."""
        rows_at, rows = self.rows[lane]
        quarantine = [
            Quarantined(stage, row, code, reason)
            for stage, away in orders.quarantine.items()
            for row, (code, reason) in away.items()
        ]
        return Work(
            number,
            self.memory,
            self.packed,
            rows_at,
            len(rows),
            self.slots_at,
            self.results,
            sorted(orders.isolate),
            quarantine,
            -1 if self.marks is None else self.marks[0],
            self.devices_at,
        )


class Filler:
    """Writes batches into slabs, with room for the result columns of fixed width that are known."""

    def __init__(self, plan: Plan, schema: Schema, keys: KeyTable, lanes: int) -> None:
        self._keys = keys
        self._lanes = lanes
        self._reads = plan.reads()
        self._timed = plan.follows_watermark
        declared = {} if plan.absorbs else _declared(plan, schema)
        self._results = {name: _as_told(kind) for name, kind in declared.items()}

    @property
    def results(self) -> dict[str, str]:
        """The kinds of the columns that get room."""
        return {name: kind for name, (kind, _) in self._results.items()}

    @results.setter
    def results(self, known: Mapping[str, str]) -> None:
        self._results.update({name: _as_told(Kind(kind)) for name, kind in known.items()})

    def fill(self, taken: Taken, memory: int, packer: Packer) -> Slab:
        """Write the batch, the key slots and each lane's row list, and leave room for results; raises `Full`."""
        count = len(taken.batch)
        packed = packer.batch(taken.batch, reads=self._reads)
        slots_at, key_slots = packer.room(_INT32, count)
        self._keys.slots(taken.codes, key_slots)
        devices_at = -1
        if taken.devices is not None:
            devices_at, device_slots = packer.room(_INT32, count)
            self._keys.slots(taken.devices, device_slots)
        results = [Slot(name, kind, packer.reserve(count * size)) for name, (kind, size) in self._results.items()]
        rows = {}
        for lane, positions in self._rows_by_lane(taken).items():
            rows[lane] = packer.room(_INT32, len(positions))
            rows[lane][1][:] = positions
        marks = packer.room(_INT64, max(count, 1) + 1) if self._timed else None
        return Slab(memory, taken, packed, slots_at, devices_at, results, rows, marks)

    def _rows_by_lane(self, taken: Taken) -> dict[int, NDArray[np.intp]]:
        if self._lanes == 1:
            return {0: np.arange(len(taken.codes))}
        owners = self._keys.lanes(taken.codes)
        rows = {lane: (owners == lane).nonzero()[0] for lane in range(self._lanes)}
        if self._timed:
            return rows  # the watermark moves on for lanes without a record too
        return {lane: positions for lane, positions in rows.items() if len(positions)}

    def learn(self, slab: Slab, after: Batch) -> None:
        """Columns of fixed width that lanes made of this slab get room in the next ones."""
        shares = slab.shares.values()
        if all(share.result.framed is None for share in shares):
            return
        made = {output.name for share in shares for output in share.result.outputs if output.how != "carried"}
        for name in made.difference(self._results).intersection(after.columns):
            if after.columns[name].kind in _IN_PLACE:
                self._results[name] = _as_told(after.columns[name].kind)


def _as_told(kind: Kind) -> tuple[str, int]:
    """How a lane is told of it, and the bytes of a value."""
    return kind.value, DTYPES[kind].itemsize


def _declared(plan: Plan, schema: Schema) -> dict[str, Kind]:
    """Result columns of fixed width that are known before anything has run."""
    slots: dict[str, Kind] = {}
    before = schema
    for stage, after in zip(plan.stages, plan.bind(schema), strict=True):
        if stage.changes_columns:
            slots.update({name: f.kind for name, f in _new(before, after).items() if f.kind in _IN_PLACE})
        before = after
    return slots


def _new(before: Schema, after: Schema) -> dict[str, Field]:
    return {f.name: f for f in after if f.name not in before or before[f.name] != f}
