"""Fields for which a table has no room: which these are, and how they are counted and told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from tidemill.column import ABSENT_TAG, NULL_TAG, Column
from tidemill.schema import Schema
from tidemill.sinks.base import ProcessSink

__all__ = ["NO_ROOM", "TableSink", "finding_room"]

NO_ROOM: Final = " (no room)"
"""What a field's name ends in where `SinkStatistics.left_out` counts values for which there was no room."""
MOST_TOLD: Final = 100
"""Fields that are counted each by its name; the rest are counted together."""
_MOST_NAMED: Final = 3


class TableSink(ProcessSink):
    """A sink whose table takes a bounded number of columns."""

    _left_out: Mapping[str, int] = {}
    _told = False

    @property
    def left_out(self) -> Mapping[str, int]:
        """For the statistics; never changed once it was read."""
        return self._left_out

    def first_fields(self, schema: Schema) -> tuple[str, ...]:
        """The fields for which room is kept, whenever they come."""
        return self.columns or tuple(dict.fromkeys((*schema.names, *self.roles)))

    def count_left_out(self, name: str, count: int) -> None:
        """So many values could not be written as they are."""
        self._left_out = {**self._left_out, name: self._left_out.get(name, 0) + count}

    def count_without_room(self, counts: Mapping[str, int]) -> None:
        """So many values of these fields are not written at all."""
        left_out = dict(self._left_out)
        known = sum(name.endswith(NO_ROOM) for name in left_out)
        for field, count in counts.items():
            name = field + NO_ROOM
            if name not in left_out and known >= MOST_TOLD:
                name = "..." + NO_ROOM
            known += name not in left_out
            left_out[name] = left_out.get(name, 0) + count
        self._left_out = left_out

    def leave_out(self, columns: Mapping[str, Column]) -> None:
        """Count the values of fields that get no column."""
        counts = {name: _values(column) for name, column in columns.items()}
        self.count_without_room({name: count for name, count in counts.items() if count})

    def whys_left_out(self, names: Sequence[str]) -> Mapping[str, str]:
        """That fields find no room is told once, with the first of them."""
        without = [name for name in names if name.endswith(NO_ROOM)]
        whys = {name: self.why_left_out(name) for name in names if name not in without}
        if without and not self._told:
            self._told = True
            shown = ", ".join(repr(name.removesuffix(NO_ROOM)) for name in without[:_MOST_NAMED])
            more = " and others" if len(without) > _MOST_NAMED else ""
            whys[without[0]] = (
                f"{self.place} has no room for all fields: {shown}{more} are left out of the rows, as are those that "
                "come later; the report counts them; name the columns you want with columns=[...]"
            )
        return whys


def finding_room(new: Mapping[str, Column], room: int, missing: Sequence[int] = (ABSENT_TAG,)) -> list[str]:
    """Those of the new fields that get a column, of which there may be ``room`` more.

    They are taken by the first row that has the field (its tag is none of ``missing``), then by name: where batches end
    makes no difference, so that the same rows, written again after a crash, are left without the same fields.
    """
    rows = {name: row for name, column in new.items() if (row := _first(column, missing)) is not None}
    if len(rows) > room:
        rows = dict(sorted(rows.items(), key=lambda found: (found[1], found[0]))[: max(room, 0)])
    return [name for name in new if name in rows]


def _first(column: Column, missing: Sequence[int]) -> int | None:
    if column.tags is None:
        return 0
    there = ~np.isin(column.tags, missing)
    return int(there.argmax()) if there.any() else None


def _values(column: Column) -> int:
    return len(column) if column.tags is None else int((~np.isin(column.tags, (NULL_TAG, ABSENT_TAG))).sum())
