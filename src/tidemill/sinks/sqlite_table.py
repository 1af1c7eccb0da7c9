"""A table of SQLite: what is there, and the columns that rows need."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import InputError, OutputExists
from tidemill.schema import Kind
from tidemill.sinks.base import IfExists
from tidemill.sinks.room import finding_room
from tidemill.sinks.sqlite_insert import Insert
from tidemill.sinks.sqlite_values import ColumnNames, declared_type, fits, folded, quoted, rounded

__all__ = ["Table"]

MOST_COLUMNS: Final = 2000
"""SQLite's own limit."""


class Table:
    """The table as the open transaction sees it; columns are made when the first row that has them comes.

    ``in_order``  its rows must lie in the order in which they come
    """

    def __init__(self, place: Path, name: str, if_exists: IfExists, *, in_order: bool) -> None:
        self._place, self._name, self._sql = place, name, quoted(name)
        self._if_exists = if_exists
        self._in_order = in_order
        self._replaces = False
        self._declared: dict[str, str] | None = None
        self._names = ColumnNames()
        self._inserts: dict[tuple[tuple[str, Kind], ...], Insert] = {}

    # -- what is there -------------------------------------------------------------------------------

    @property
    def known(self) -> bool:
        """Whether there is a table, as far as was looked."""
        return self._declared is not None

    @property
    def names(self) -> Mapping[str, str]:
        """Fields → their columns."""
        return self._names.known

    def look(
        self, connection: sqlite3.Connection, *, ours: bool = False, names: Mapping[str, str] | None = None
    ) -> None:
        """Rows are added to what is there: to ``ours``, whose columns have these ``names``, in any case. Raises
        `OutputExists` when it is to be left alone, `InputError` for what takes no such rows."""
        self._declared = self._existing(connection, ours=ours)
        self._names = ColumnNames(names)

    def replace(self) -> None:
        """What is there is dropped when the first row comes."""
        self._replaces = True

    def drop(self, connection: sqlite3.Connection) -> None:
        """If it is there."""
        connection.execute(f"DROP TABLE IF EXISTS {self._sql}")

    def drop_empty(self, connection: sqlite3.Connection) -> None:
        """If it is there, and has no rows: it will be made of those that come."""
        if self.known and not connection.execute(f"SELECT 1 FROM {self._sql} LIMIT 1").fetchone():  # noqa: S608
            self.drop(connection)
            self._declared = None
            self._names = ColumnNames()

    def _existing(self, connection: sqlite3.Connection, *, ours: bool) -> dict[str, str] | None:
        """Folded names of the table's columns → declared types; None when it is not there."""
        query = "SELECT type FROM sqlite_master WHERE name = ? COLLATE NOCASE AND type IN ('table', 'view')"
        found = connection.execute(query, (self._name,)).fetchone()
        if found is None:
            return None
        if found[0] != "table":
            raise InputError(f"{self._name!r} in {self._place} is a view; choose another table=.")
        if self._if_exists == "fail" and not ours:
            raise OutputExists(
                f"{self._place} already has a table {self._name!r}; write "
                f'if_exists="append" to add rows to it, or if_exists="replace" to delete it first.'
            )
        rows = connection.execute(f"PRAGMA table_info({self._sql})").fetchall()
        if self._in_order and any(row[5] for row in rows):
            raise InputError(
                f"The table {self._name!r} in {self._place} has a primary key of its own, so that its rows do not lie in the order "
                "in which they came; keep= needs a table that SQLite(...) has made."
            )
        return {folded(row[1]): row[2] for row in rows}

    # -- columns -------------------------------------------------------------------------------------

    def turned_away(
        self, connection: sqlite3.Connection, columns: Mapping[str, Column], first: Sequence[str]
    ) -> dict[str, Column]:
        """Those of the fields for which there is no column, and no room for one; there is for the ``first``."""
        names = self._names
        for name in first:
            names.of(name)  # which keeps its place
        if self._declared is not None and self._if_exists == "append" and len(self._declared) < MOST_COLUMNS:
            self._declared = self._existing(connection, ours=True)  # another run may have made the same
        declared = self._declared or {}
        new = {}
        for name, column in columns.items():
            if name not in names.known:
                if folded(names.next(name)) in declared:
                    names.of(name)
                else:
                    new[name] = column
        taken = {*declared, *map(folded, names.known.values())}
        for name in finding_room(new, MOST_COLUMNS - len(taken)):
            names.of(name)
        return {name: column for name, column in new.items() if name not in names.known}

    def make_room(self, connection: sqlite3.Connection, columns: Mapping[str, Column]) -> bool:
        """Create the table, or the columns of it that are new; check those that are not when they were there before.
        Whether such rows are the first."""
        key = _shape(columns)
        if key in self._inserts:
            return False
        if self._declared is None and not columns:
            raise InputError(f"The first row for table {self._name!r} has no fields at all; SQLite needs one or more.")
        added = {self._names.of(name): column for name, column in columns.items()}
        known = self._declared.keys() if self._declared is not None else set()
        if self._if_exists == "append" and not known >= set(map(folded, added)):
            self._declared = self._existing(connection, ours=True)  # another run may have made the same
        if len({*(self._declared or ()), *map(folded, added)}) > MOST_COLUMNS:
            raise InputError(
                f"The rows for {self._place} have more than {MOST_COLUMNS} columns, the most that SQLite "
                f"takes; name those you want with columns=[...], and choose another table= if this one is full."
            )
        if self._declared is None:
            self._declared = self._created(connection, added)
        self._widen(connection, self._declared, added)
        self._inserts[key] = Insert(self._sql, [quoted(name) for name in added])
        return True

    def _created(self, connection: sqlite3.Connection, added: Mapping[str, Column]) -> dict[str, str]:
        if self._replaces:
            self.drop(connection)
        types = {name: declared_type(column) for name, column in added.items()}
        definition = ", ".join(f"{quoted(name)} {kind}".rstrip() for name, kind in types.items())
        connection.execute(f"CREATE TABLE {self._sql} ({definition})")
        return {folded(name): kind for name, kind in types.items()}

    def _widen(self, connection: sqlite3.Connection, declared: dict[str, str], added: Mapping[str, Column]) -> None:
        for name, column in added.items():
            kind = declared_type(column)
            there = declared.get(folded(name))
            if there is None:
                connection.execute(f"ALTER TABLE {self._sql} ADD COLUMN {quoted(name)} {kind}")
                declared[folded(name)] = kind
            elif kind and not fits(there, column.kind):
                raise InputError(
                    f"Column {name!r} of table {self._name!r} in {self._place} is {there}, and "
                    f'the rows have {column.kind.value} there; choose another table=, or if_exists="replace".'
                )

    # -- rows ----------------------------------------------------------------------------------------

    def insert(self, connection: sqlite3.Connection, batch: Batch) -> None:
        """All rows of the batch or none: some text that UTF-8 cannot hold makes sqlite3 stop in the middle."""
        insert = self._inserts[_shape(batch.columns)]
        connection.execute("SAVEPOINT batch")
        try:
            insert.run(connection, batch, clean=False)
        except UnicodeEncodeError:
            connection.execute("ROLLBACK TO batch")
            insert.run(connection, batch, clean=True)
        connection.execute("RELEASE batch")

    def rounded(self, columns: Mapping[str, Column]) -> Iterator[tuple[str, int]]:
        """Fields of which it rounds ints, and how many."""
        assert self._declared is not None
        for name, column in columns.items():
            if column.exact and (count := rounded(column, self._declared[folded(self._names.of(name))])):
                yield name, count


def _shape(columns: Mapping[str, Column]) -> tuple[tuple[str, Kind], ...]:
    return tuple((name, column.kind) for name, column in columns.items())
