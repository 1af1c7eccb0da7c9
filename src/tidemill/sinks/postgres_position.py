"""The table in which a database keeps how far each pipeline has come, and who may move it on."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from tidemill.errors import InputError, OutsideError
from tidemill.sinks.postgres_values import MOST_BYTES, quoted

if TYPE_CHECKING:
    from tidemill.sinks.postgres_connection import Connection

__all__ = ["POSITIONS", "Position"]

POSITIONS: Final = "tidemill_positions"

_MAKING: Final = 0x71DE_3111
"""The advisory lock of those who make the table."""
_TABLE: Final = """CREATE TABLE IF NOT EXISTS {table} (
    pipeline text, sink text, epoch bigint NOT NULL, position bigint, PRIMARY KEY (pipeline, sink))"""
_TAKE: Final = """INSERT INTO {table} AS ours (pipeline, sink, epoch) VALUES (%s, %s, %s)
    ON CONFLICT (pipeline, sink) DO UPDATE SET epoch = excluded.epoch WHERE ours.epoch < excluded.epoch
    RETURNING position"""
_MOVE: Final = "UPDATE {table} SET position = %s WHERE pipeline = %s AND sink = %s AND epoch = %s"
_BEGUN: Final = """UPDATE {table} SET position = coalesce(position, 0)
    WHERE pipeline = %s AND sink = %s AND epoch = %s"""
_NAME: Final = "SELECT set_config('application_name', %s, false)"
_END_OTHERS: Final = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name = %s AND usename = current_user AND datname = current_database()
    AND pid <> pg_backend_pid()"""


class Position:
    """One sink's row of `POSITIONS`, held by one start of its pipeline (the epoch)."""

    def __init__(self, schema: str, pipeline: str, sink: str, epoch: int, *, place: str) -> None:
        self._table = f"{quoted(schema)}.{quoted(POSITIONS)}"
        self._row = (pipeline, sink)
        self._epoch = epoch
        self._place = place
        self._session = _session(schema, pipeline, sink)

    def take(self, connection: Connection) -> int | None:
        """Make the row this start's, and return the position in it: None when nothing was committed yet.

        Sessions of earlier starts are ended: one on a machine that is gone, or of a process that is stopped, may hold
        locks for hours. It is not that which keeps their rows out, but the epoch. Raises `OutsideError` when a later
        start has the row.
        """
        if connection.execute("SELECT to_regclass(%s)", (self._table,)).fetchone() == (None,):
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKING,))  # two at once would not both be let
            connection.execute(_TABLE.format(table=self._table).encode())
        query = f"SELECT epoch FROM {self._table} WHERE pipeline = %s AND sink = %s"  # noqa: S608 - `quoted` made it
        found = connection.execute(query.encode(), self._row).fetchone()
        if found is not None and found[0] >= self._epoch:
            raise self._taken_over()
        connection.execute(_NAME, (self._session,))
        connection.execute(_END_OTHERS, (self._session,))
        taken = connection.execute(_TAKE.format(table=self._table).encode(), (*self._row, self._epoch)).fetchone()
        if taken is None:
            raise self._taken_over()
        position: int | None = taken[0]
        if position is not None and position < 0:
            raise InputError(
                f"{self._table} of {self._place} has the position {position}, which tidemill never writes."
            )
        return position

    def move(self, connection: Connection, position: int) -> None:
        """Within the transaction of the rows: they reach up to here. Raises `OutsideError` when a later start has the
        row; then nothing of the transaction may be committed."""
        moved = connection.execute(_MOVE.format(table=self._table).encode(), (position, *self._row, self._epoch))
        if moved.rowcount != 1:
            raise self._taken_over()

    def begin(self, connection: Connection) -> None:
        """Within the transaction that makes an empty table: from now on it is this pipeline's."""
        moved = connection.execute(_BEGUN.format(table=self._table).encode(), (*self._row, self._epoch))
        if moved.rowcount != 1:
            raise self._taken_over()

    def _taken_over(self) -> OutsideError:
        return OutsideError(
            f"Another start of this pipeline has taken over its rows in {self._place}; nothing of this start "
            f"({self._epoch}) is written there any more."
        )


def _session(schema: str, pipeline: str, sink: str) -> str:
    """What the server calls the sessions of this sink, and of no other."""
    digest = hashlib.blake2b(repr((schema, pipeline, sink)).encode(), digest_size=8).hexdigest()
    shown = "".join(letter for letter in sink if letter.isascii() and letter.isprintable())
    return f"tidemill {digest} {shown}"[:MOST_BYTES].rstrip()
