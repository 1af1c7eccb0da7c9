"""How far a pipeline's rows reach, in the database that holds them."""

from __future__ import annotations

import sqlite3
from typing import Final

from tidemill.sinks.base import Keeping
from tidemill.sinks.fence import another_start

__all__ = ["TABLE", "KeptPosition"]

TABLE: Final = "tidemill_positions"
_MAKE: Final = (
    f"CREATE TABLE IF NOT EXISTS {TABLE} (pipeline TEXT NOT NULL, sink TEXT NOT NULL, epoch INTEGER NOT NULL, "
    "position INTEGER NOT NULL, PRIMARY KEY (pipeline, sink))"
)
_FIND: Final = f"SELECT epoch, position FROM {TABLE} WHERE pipeline = ? AND sink = ?"  # noqa: S608 - a name of ours
_BEGIN: Final = f"INSERT OR REPLACE INTO {TABLE} (pipeline, sink, epoch, position) VALUES (?, ?, ?, ?)"  # noqa: S608
_MOVE: Final = f"UPDATE {TABLE} SET position = ? WHERE pipeline = ? AND sink = ? AND epoch = ? AND position = ?"  # noqa: S608


class KeptPosition:
    """One sink's row in the table of positions; every call is part of the transaction that is open."""

    def __init__(self, keeping: Keeping, sink: str) -> None:
        self._key = (keeping.pipeline, sink)
        self._epoch = keeping.epoch
        self.position = 0
        """The last that this start has set."""

    def begin(self, connection: sqlite3.Connection) -> bool:
        """Write this start's epoch; whether a position was known. Raises `OutsideError` when a later start has been here."""
        connection.execute(_MAKE)
        found = connection.execute(_FIND, self._key).fetchone()
        if found is not None:
            epoch, self.position = found
            if epoch > self._epoch:
                raise another_start()
        connection.execute(_BEGIN, (*self._key, self._epoch, self.position))
        return found is not None

    def move(self, connection: sqlite3.Connection, position: int) -> None:
        """Set the position with the rows of this transaction. Raises `OutsideError` when another start, or another
        writer of this one, has set it since: then this transaction must not be committed."""
        moved = connection.execute(_MOVE, (position, *self._key, self._epoch, self.position))
        if moved.rowcount != 1:
            raise another_start()
        self.position = position
