"""Rows as statements of SQLite."""

from __future__ import annotations

import sqlite3
from itertools import chain, islice
from typing import Final

from tidemill.batch import Batch
from tidemill.sinks.sqlite_values import bindable

__all__ = ["Insert"]

STATEMENT_ROWS: Final = 32
"""Rows that one INSERT takes, where there are as many: 1.4 times the rate of one row at a time."""
STATEMENT_VALUES: Final = 900
"""Values that one INSERT takes at most, unless a single row has more: within the limit of every SQLite in use."""


class Insert:
    """The statements that add rows of one shape."""

    def __init__(self, table: str, names: list[str]) -> None:
        self._width = len(names)
        self._at_once = max(1, min(STATEMENT_ROWS, STATEMENT_VALUES // max(1, self._width)))
        row = f"({', '.join('?' * self._width)})"
        # Names cannot be bound; `quoted` made them identifiers whatever they hold.
        head = f"INSERT INTO {table} " + (f"({', '.join(names)}) VALUES " if names else "DEFAULT VALUES")  # noqa: S608
        self._one = head + row if names else head
        self._many = head + ", ".join([row] * self._at_once) if names else head

    def run(self, connection: sqlite3.Connection, batch: Batch, *, clean: bool) -> None:
        if not self._width:
            connection.executemany(self._one, [()] * len(batch))
            return
        rows = zip(*(bindable(column, clean=clean) for column in batch.columns.values()), strict=True)
        if self._at_once > 1 and len(batch) >= self._at_once:
            values, size = chain.from_iterable(rows), self._at_once * self._width
            whole = (tuple(islice(values, size)) for _ in range(len(batch) // self._at_once))
            connection.executemany(self._many, whole)
        connection.executemany(self._one, rows)  # what is left
