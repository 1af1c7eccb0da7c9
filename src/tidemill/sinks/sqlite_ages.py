"""How old the rows of a table are, by where they lie in it; and the old ones deleted, some with each transaction."""

from __future__ import annotations

import sqlite3
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tidemill.errors import InputError
from tidemill.sinks.sqlite_values import folded, quoted

__all__ = ["TABLE", "Ages"]

TABLE: Final = "tidemill_ages"
AHEAD_NS: Final = 3_600 * 10**9
"""A time that is further ahead of the clock says nothing of how old others are."""
PIECES: Final = 100
"""Into so many pieces what is kept is divided: a row stays for longer by up to such a piece."""
STEP_ROWS: Final = 10_000
"""Rows that a transaction may always delete; else twice as many as it adds, so that it catches up."""

_MAKE: Final = (
    f"CREATE TABLE IF NOT EXISTS {TABLE} (name TEXT NOT NULL, upto INTEGER NOT NULL, begun INTEGER NOT NULL, "
    "newest INTEGER NOT NULL, PRIMARY KEY (name, upto)) WITHOUT ROWID"
)
# Names of ours; that of the user's table is a value here.
_LAST: Final = f"SELECT upto, begun, newest FROM {TABLE} WHERE name = ? ORDER BY upto DESC LIMIT 1"  # noqa: S608
_FORGET: Final = f"DELETE FROM {TABLE} WHERE name = ? AND upto <= ?"  # noqa: S608
_NOTE: Final = f"INSERT INTO {TABLE} (name, upto, begun, newest) VALUES (?, ?, ?, ?)"  # noqa: S608
_NEWEST: Final = f"SELECT max(newest) FROM {TABLE} WHERE name = ?"  # noqa: S608
_FIRST_YOUNG: Final = f"SELECT min(upto) FROM {TABLE} WHERE name = ? AND newest >= ?"  # noqa: S608
_LAST_OLD: Final = f"SELECT max(upto) FROM {TABLE} WHERE name = ? AND upto < ?"  # noqa: S608
_END: Final = 2**63 - 1
_NUMBERS: Final = ("rowid", "_rowid_", "oid")
"""What SQLite calls the number of a row; where a column has one of these names, it means the column."""


class Ages:
    """Of one table whose rows are numbered in the order in which they came (its rowid), for ``keep_ns`` of event time.

    What is noted, in the table `TABLE` of the same file: up to which row the rows are no newer than what. Notes, rows and
    deletions are of one transaction. Guarantees:

    - No row is deleted that is less than ``keep_ns`` older than the newest one, by their event times; a time more than an
      hour ahead of the clock counts for nothing, a row without one for the clock's.
    - Rows are deleted in the order in which they came, each when all before it are old, too.
    - Rows whose age is not known, since they were there before or somebody else has written to the table or packed it
      (VACUUM gives rows other numbers), are taken to be as new as those that come next.
    """

    def __init__(self, table: str, keep_ns: int) -> None:
        self._name = folded(table)
        self._table = quoted(table)
        self._keep_ns = keep_ns
        self._written = 0
        self._newest: int | None = None
        self.deleted = 0
        """Rows, so far."""

    def begin(self) -> None:
        """Nothing is waiting to be noted."""
        self._written, self._newest = 0, None

    def wrote(self, rows: int, times: NDArray[np.int64] | None, now_ns: int) -> None:
        """Rows were added in the transaction that is open."""
        self._written += rows
        known = np.array([now_ns]) if times is None else times[times <= now_ns + AHEAD_NS]
        if len(known):
            newest = int(known.max())
            self._newest = newest if self._newest is None else max(self._newest, newest)

    def settle(self, connection: sqlite3.Connection, now_ns: int) -> None:
        """Before the transaction is committed: note what was added, and delete some of what is too old."""
        if not self._written:
            return
        connection.execute(_MAKE)
        if self._newest is None:
            before = connection.execute(_NEWEST, (self._name,)).fetchone()[0]
            self._newest = now_ns if before is None else before
        number = self._number(connection)
        last = connection.execute(f"SELECT max({number}) FROM {self._table}").fetchone()[0]  # noqa: S608 - quoted
        self._note(connection, last - self._written, last, self._newest)
        self._delete(connection, number, max(STEP_ROWS, 2 * self._written))
        self.begin()

    def _number(self, connection: sqlite3.Connection) -> str:
        """What the number of a row is called in this table."""
        columns = {folded(row[1]) for row in connection.execute(f"PRAGMA table_info({self._table})")}
        for name in _NUMBERS:
            if name not in columns:
                return name
        raise InputError(
            f"The table {self._name!r} has columns named {', '.join(_NUMBERS)}, so that its rows have no number by which keep= "
            "could delete them; name the columns you want with columns=[...]."
        )

    def _note(self, connection: sqlite3.Connection, before: int, last: int, newest: int) -> None:
        piece = connection.execute(_LAST, (self._name,)).fetchone()
        if (piece[0] if piece else 0) != before:
            connection.execute(_FORGET, (self._name, _END))
            piece = None
            if before > 0:
                connection.execute(_NOTE, (self._name, before, newest, newest))
        begun = newest
        if piece is not None and newest - piece[1] < self._keep_ns // PIECES:
            connection.execute(f"DELETE FROM {TABLE} WHERE name = ? AND upto = ?", (self._name, before))  # noqa: S608
            begun, newest = piece[1], max(newest, piece[2])
        connection.execute(_NOTE, (self._name, last, begun, newest))

    def _delete(self, connection: sqlite3.Connection, number: str, most: int) -> None:
        newest = connection.execute(_NEWEST, (self._name,)).fetchone()[0]
        young = connection.execute(_FIRST_YOUNG, (self._name, newest - self._keep_ns)).fetchone()[0]
        old = connection.execute(_LAST_OLD, (self._name, young)).fetchone()[0]
        if old is None:
            return
        first = connection.execute(f"SELECT min({number}) FROM {self._table}").fetchone()[0]  # noqa: S608 - quoted
        upto = min(old, first + most - 1)
        gone = connection.execute(f"DELETE FROM {self._table} WHERE {number} <= ?", (upto,))  # noqa: S608 - quoted
        self.deleted += gone.rowcount
        connection.execute(_FORGET, (self._name, upto))
