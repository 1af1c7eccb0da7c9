"""What comes out of the chain, as it is while stages work on it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.core.watermark import BEGIN
from tidemill.orders import Orders as FieldOrders

__all__ = ["Dead", "Outcome"]


@dataclass(frozen=True)
class Dead:
    """A record that ended at a stage."""

    row: int
    """Its position in the batch that entered the chain; beyond its end for a row that a stage had made."""
    stage: int
    reason_code: str
    reason: str
    made: dict[str, Any] | None = None
    """The row itself, when a stage had made it."""
    key: str = ""
    """That row's sensor."""
    place: int = field(default=0, compare=False)
    """That row's place in the slab."""
    end: int = field(default=BEGIN, compare=False)
    """What orders rows of one place, as of those that come out."""


@dataclass
class Outcome:
    """What came out of the chain."""

    batch: Batch
    rows: NDArray[np.intp] | None
    """Positions, in the batch that entered, of the rows that came out; None for all of them. Rows that stages made have
    positions beyond its end, in the order of their making."""
    unchanged: dict[int, tuple[Column, str]]
    """While stages work: by its id, each column that is what entered, of the rows that are left, and the name it entered with."""
    carried: dict[str, str] = field(default_factory=dict)
    """In the end: columns that are still what entered, by their present name, and the name they entered with."""
    orders: FieldOrders | None = None
    """The orders of the records' fields, where they are not what entered with what was added behind it."""
    dead: list[Dead] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """What stages counted, all together."""
    counted: dict[int, dict[str, int]] = field(default_factory=dict)
    """The same of each stage that counted anything."""
    stage_ns: list[int] = field(default_factory=list)
    """Nanoseconds spent in each stage."""
    gone: dict[str, int] = field(default_factory=dict)
    """How many of the records that did not come out, and are not dead, count as what; the rest was filtered."""
    made_came: dict[int, int] = field(default_factory=dict)
    """Of each stage, how many rows that stages had made came to it; its own among them."""
    slots: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """Key slot of each row."""
    places: NDArray[np.int32] | None = None
    """Of each row its place in the slab, which a row that a stage made shares with a record; None when nobody asks."""
    ends: NDArray[np.int64] | None = None
    """What orders rows of one place (`Emitted.ends`), `BEGIN` for a record's own; None when no stage made any."""
    devices: NDArray[np.int32] | None = None
    """Key slot of each row's device; None where every sensor is its own."""

    @property
    def records(self) -> int:
        """Rows that are a record's own."""
        return len(self.slots) if self.ends is None else int(np.count_nonzero(self.ends == BEGIN))

    def count_made(self, stage: int, rows: int) -> None:
        """So many rows that stages had made came to this one."""
        if rows:
            self.made_came[stage] = self.made_came.get(stage, 0) + rows

    def keep(self, kept: NDArray[np.intp]) -> None:
        """Go on with these rows alone; the batch is the caller's to change."""
        self.rows = kept if self.rows is None else self.rows[kept]
        self.slots = self.slots[kept]
        if self.places is not None:
            self.places = self.places[kept]
        if self.ends is not None:
            self.ends = self.ends[kept]
        if self.devices is not None:
            self.devices = self.devices[kept]

    def position(self, place: int) -> int:
        """Which of the rows that entered, or that stages have made since, is at this place of the batch."""
        return place if self.rows is None else int(self.rows[place])

    def died(self, place: int, stage: int, reason_code: str, reason: str, entered: int) -> Dead:
        """The dead letter of the row at this place of the batch; ``entered`` records had entered the chain."""
        row = self.position(place)
        if row < entered:
            return Dead(row, stage, reason_code, reason)
        made = self.batch.slice(place, place + 1)
        assert self.places is not None
        assert self.ends is not None
        where = int(self.places[place]), int(self.ends[place])
        return Dead(row, stage, reason_code, reason, made.to_rows()[0], str(made.keys[made.key[0]]), *where)

    def drop_absent(self, names: Collection[str]) -> None:
        """Leave out those of these columns that no row has."""
        away = {name for name in names if name in self.batch.columns and self.batch.columns[name].is_absent}
        if away:
            self.batch = self.batch.with_columns({})
            self.batch.columns = {name: column for name, column in self.batch.columns.items() if name not in away}

    def follow(self, left: Batch) -> None:
        """The batch goes on as ``left``: the same columns, perhaps of fewer rows."""
        if left is not self.batch:
            self.unchanged = {id(left.columns[name]): (left.columns[name], old) for name, old in self._still().items()}

    def end(self) -> None:
        """All stages have worked."""
        self.carried, self.unchanged = self._still(), {}

    def _still(self) -> dict[str, str]:
        columns = self.batch.columns.items()
        return {name: self.unchanged[id(column)][1] for name, column in columns if id(column) in self.unchanged}
