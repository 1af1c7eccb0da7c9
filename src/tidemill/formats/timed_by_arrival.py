"""Whether records that get the time of their arrival have one of their own, under another name. No I/O."""

from __future__ import annotations

from typing import Final

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.formats.field_names import TIMES, words_of
from tidemill.formats.rejects import shown_names
from tidemill.formats.roles import Roles
from tidemill.formats.times import TimeReader, of_this_century
from tidemill.printable import quoted
from tidemill.schema import Kind

__all__ = ["TimedByArrival", "are_times"]

_RECORDS: Final = 100
"""The first ones, which are looked at."""
_READ: Final = (Kind.TEXT, Kind.FLOAT, Kind.INT, Kind.TIME)


class TimedByArrival:
    """Looks at the first records without the field of the time, of a source that was given no ``time=``."""

    def __init__(self) -> None:
        self._left = _RECORDS

    def look(self, batch: Batch, roles: Roles) -> str:
        """The next records. Once a field of theirs is called as times are and holds nothing else, a sentence; else nothing."""
        if not self._left or not roles.arrival or roles.time in batch.columns or not len(batch):
            return ""
        head = batch.slice(0, self._left)
        self._left -= len(head)
        for word in TIMES:
            for name, column in head.columns.items():
                if word in words_of(name) and are_times(column, roles.times):
                    self._left = 0
                    return _told(name, column, roles, batch.names)
        return ""


def are_times(column: Column, reader: TimeReader) -> bool:
    """Whether a column holds nothing but times of this century."""
    if column.kind not in _READ:
        return False
    times, bad = reader.column(column)
    return not bad.any() and bool(of_this_century(times).all())


def _told(name: str, column: Column, roles: Roles, names: tuple[str, ...]) -> str:
    example = column.slice(0, 1).to_list()[0]
    return (
        f"the records have no field {roles.time!r}, so their time is that of their arrival, though there are times in their field "
        f"{quoted(name)}: {quoted(str(example))}. If that is when they were measured, say time={quoted(name)}. The fields seen are: "
        f"{shown_names(names)}."
    )
