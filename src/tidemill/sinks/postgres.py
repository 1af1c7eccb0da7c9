"""`PostgreSQL`: rows into a table of a server, by binary COPY."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tidemill.batch import Batch
from tidemill.errors import OutsideError, PlanError
from tidemill.schema import Kind, Schema
from tidemill.secret import SecretText
from tidemill.sinks.base import IfExists, Keeping, SinkStatistics, Where
from tidemill.sinks.postgres_connection import connected, named, require_library, shown
from tidemill.sinks.postgres_copy import OpenCopy
from tidemill.sinks.postgres_position import POSITIONS, Position
from tidemill.sinks.postgres_rows import TextPieces, copied
from tidemill.sinks.postgres_table import Table, found_table
from tidemill.sinks.postgres_values import MOST_BYTES
from tidemill.sinks.postgres_width import MOST_BYTES as MOST_ROW_BYTES
from tidemill.sinks.postgres_width import within_row
from tidemill.sinks.room import TableSink
from tidemill.sinks.row_group import kind_of

if TYPE_CHECKING:
    from tidemill.sinks.postgres_connection import Connection

__all__ = ["PostgreSQL"]

BEGIN: Final = "BEGIN; SET LOCAL lock_timeout = '10s'"
BEGIN_KEPT: Final = BEGIN + "; SET LOCAL synchronous_commit = on"
"""With a position: what a checkpoint builds on must outlive a crash of the server."""


class PostgreSQL(TableSink):
    """Rows into a table of PostgreSQL, by binary COPY.

    ``database``  a URL, ``postgresql://user@host/database``, or words, ``"host=... dbname=..."``, as libpq reads them;
                  a password is better kept in ``~/.pgpass`` or PGPASSWORD, or referred to: ``${env:NAME}``,
                  ``${file:PATH}``, looked up at each connection. It is never shown.
    ``table``     the table; made when it is not there
    ``schema``    the schema it is in; by default the first one of the user's search path

    The table gets its columns from the rows: float ``double precision`` (missing and NaN are NULL, since PostgreSQL's NaN
    is greater than every number; an int beyond 2**53 is rounded), int ``bigint``, bool ``boolean``, text ``text``, time
    ``timestamp with time zone`` (nanoseconds are cut to microseconds), nested values ``jsonb``. A field that comes later
    becomes a new column, NULL in the rows before it; one that has held nothing but null has no column yet. A value that
    PostgreSQL cannot hold as it is (NUL in a text, which becomes ``␀``; an int beyond 64 bits, which becomes NULL) is
    counted as left out.

    A table takes 1,600 columns, those that were dropped too, and a row 8 kB: a number needs 8 bytes, a text or JSON, however
    long, up to 24 (8 or 16 if it is short). Room is kept for the key, the time, what the plan makes or a source declares, and
    ``columns=``; of the other fields, those that come when there is no column left are left out of the rows, and of a row that
    is too wide those whose names come last. They are counted.

    Delivery: exactly once with state: each commit (about once a second) is one transaction of the rows and of how far
    they reach, in the table ``tidemill_positions`` of the same schema; a later start takes over from there, and what an
    earlier one still sends is refused. Without state each flush (at least every 0.25 s) is one transaction, at least
    once: a re-run with ``if_exists="append"`` writes all its rows again. Rows become visible at each commit or flush, all
    of them together. They are copied in input order; a table itself has none.

    Raises `MissingExtra` without psycopg. Raises `InputError` for what stays so until somebody changes it: user, password,
    rights, a database or schema that is not there, a table that is there already under ``if_exists="fail"``, columns of
    another type. Raises `OutsideError` for what may pass by itself: a server that does not answer within 10 seconds, is
    shut down, read-only or full, a lock held for more than 10 seconds, and a connection lost during COMMIT: whether those
    rows are there is then not known, and with state the next start reads the position to find out.

    >>> sink = PostgreSQL("postgresql://tidemill:secret@db.plant/history", "features")
    >>> print(sink.place)
    postgresql://db.plant/history, table 'features'
    """

    looked_up_options = frozenset({"table", "schema"})
    secret_options = frozenset({"database"})
    keeps_position = True
    delivery = "at-least-once; rows are committed in order, all rows of a flush or none"
    delivery_with_state = "exactly-once; rows and position in one transaction, on disk and visible at each commit"

    def __init__(
        self,
        database: str,
        table: str = "features",
        *,
        schema: str | None = None,
        where: Where | str | None = None,
        columns: Sequence[str] | None = None,
        if_exists: IfExists = "fail",
        name: str | None = None,
    ) -> None:
        super().__init__(where=where, columns=columns, if_exists=if_exists, name=name)
        if not isinstance(database, str):
            raise PlanError("The database of PostgreSQL(...) must be a text: postgresql://user@host/database.")
        for option, identifier in (("table", table), ("schema", schema)):
            if identifier is None:
                continue
            if not identifier or "\0" in identifier or len(identifier.encode("utf-8", "replace")) > MOST_BYTES:
                raise PlanError(
                    f"{option}={identifier!r} cannot be a name in PostgreSQL: it must have 1 to {MOST_BYTES} bytes."
                )
        if table == POSITIONS:
            raise PlanError(f"table={table!r} is where tidemill keeps positions; choose another name.")
        self._database = SecretText(database, "the database of PostgreSQL")
        self.table = table
        self.schema = schema
        self._connection: Connection | None = None
        self._schema = Schema(open=True)
        self._table: Table | None = None
        self._position: Position | None = None
        self._began = False
        self._copying: OpenCopy | None = None
        self._texts = TextPieces()
        self._rows = 0
        self._bytes = 0

    def __repr__(self) -> str:
        return f"PostgreSQL({self.place})"

    # -- the contract of a sink ----------------------------------------------------------------------

    @property
    def place(self) -> str:
        return f"{shown(self._database)}, table {self._qualified!r}"

    def check(self) -> None:
        """Try to connect, and refuse what is there already or may not be written."""
        self._database.check()
        with contextlib.closing(connected(self._database)) as connection, self._refusals():
            found_table(connection, self._place, self.schema, self.table).require(self.if_exists)

    def open(self, schema: Schema) -> None:
        self._open(schema, None)

    def resume(self, schema: Schema, keeping: Keeping) -> int:
        position = self._open(schema, keeping)
        return position or 0

    def write(self, batch: Batch) -> None:
        if not len(batch):
            return
        with self._refusals():
            connection, table = self._opened()
            self._begin(connection)
            kinds = {name: kind_of(column) or self._declared(name) for name, column in batch.columns.items()}
            wanted = {name: kind for name, kind in kinds.items() if kind is not None}
            self._copy(connection, table, batch, self._with_room(connection, table, batch, wanted))
        self._rows += len(batch)

    def flush(self) -> None:
        """In a run that keeps state rows are committed with their position only: by `commit`."""
        with self._refusals():
            connection, _ = self._opened()
            if self._position is None and self._began:
                self._commit(connection)

    def commit(self, position: int) -> None:
        with self._refusals():
            connection, _ = self._opened()
            if self._position is not None:
                self._begin(connection)
                self._end_copy()
                self._position.move(connection, position)
            if self._began:
                self._commit(connection)

    def close(self) -> None:
        """Without state, flush; with state, what was written since the last `commit` is taken back."""
        if self._connection is None:
            return
        with self._refusals(), contextlib.closing(self._connection) as connection:
            _, table = self._opened()
            if self._position is not None and self._began:
                self._end_copy()
                connection.execute("ROLLBACK")
                table.rolled_back()
                self._began = False
            if not table.known and len(self._schema):  # a run without rows leaves an empty table, not none
                wanted = {name: self._declared(name) for name in self.columns or self._schema.names}
                self._begin(connection)
                table.make_room(connection, {name: kind for name, kind in wanted.items() if kind is not None})
                if self._position is not None:
                    self._position.begin(connection)
            if self._began:
                self._commit(connection)
        self._connection = None

    def statistics(self) -> SinkStatistics:
        """``bytes`` is what was sent by COPY; ``left_out`` the values that could not be stored as they were, or not at
        all, since there is no room for them."""
        return SinkStatistics(self.name, self._rows, self._bytes, self.left_out)

    # -- the session ---------------------------------------------------------------------------------

    def _open(self, schema: Schema, keeping: Keeping | None) -> int | None:
        self.close()
        self._schema = schema
        self._began = False
        self._connection = connected(self._database)
        position = None
        with self._refusals():
            found = found_table(self._connection, self._place, self.schema, self.table)
            self._position = None
            if keeping is not None:
                self._position = Position(found.schema, keeping.pipeline, self.name, keeping.epoch, place=found.place)
                self._connection.execute(BEGIN_KEPT)
                position = self._position.take(self._connection)
                self._commit(self._connection)
                # what the sessions that were just ended had done is seen only now
                found = found_table(self._connection, self._place, self.schema, self.table)
            if_exists = self.if_exists if position is None else "append"
            found.require(if_exists)
            self._table = Table(found, replace=if_exists == "replace", first=self.first_fields(schema))
        return position

    def _begin(self, connection: Connection) -> None:
        if not self._began:
            connection.execute(BEGIN if self._position is None else BEGIN_KEPT)
            self._began = True

    def _commit(self, connection: Connection) -> None:
        import psycopg

        self._end_copy()
        try:
            done = connection.execute("COMMIT").statusmessage
        except psycopg.Error as error:
            if not connection.broken:
                raise
            raise OutsideError(
                f"The connection to {self._place} was lost during COMMIT, so that it is not known whether the last rows "
                f"are there; with state, the next start reads the position in the database and goes on from there."
            ) from error
        if done != "COMMIT":
            raise OutsideError(f"{self._place} rolled back the last rows instead of committing them.")
        self._began = False
        if self._table is not None:
            self._table.committed()

    def _with_room(
        self, connection: Connection, table: Table, batch: Batch, kinds: dict[str, Kind]
    ) -> Mapping[str, Kind]:
        """The kinds of the columns without new fields that have no value here, and those for which the table has no room."""
        new = {name: batch.columns[name] for name in kinds if not table.knows(name)}
        if not new:
            return kinds
        valued = {name: column for name, column in new.items() if column.has_values}
        if valued:
            if not table.full:
                self._end_copy()  # the server is asked
            self.leave_out(table.turned_away(connection, valued))
        return {name: kind for name, kind in kinds.items() if table.knows(name)}

    def _copy(self, connection: Connection, table: Table, batch: Batch, kinds: Mapping[str, Kind]) -> None:
        target = table.known_target(kinds)
        if self._copying is not None and self._copying.target is not target:
            self._end_copy()
        target = target or table.make_room(connection, kinds)
        if not kinds:  # rows without a value
            connection.execute(target.nothing.encode(), (len(batch),))
            return
        self._copying = self._copying or OpenCopy(connection, target)
        columns = {name: batch.columns[name] for name in kinds}
        if target.widest > MOST_ROW_BYTES:
            columns, without_room = within_row(columns, frozenset(self.first_fields(self._schema)))
            self.count_without_room(without_room)
        data, changed = copied([*columns.values()], target.types, len(batch), self._texts)
        self._copying.write(data)
        self._bytes += len(data)
        for name, count in zip(kinds, changed, strict=True):
            if count:
                self.count_left_out(name, count)

    def _end_copy(self) -> None:
        copying, self._copying = self._copying, None
        if copying is not None:
            copying.end()

    def _declared(self, name: str) -> Kind | None:
        return self._schema[name].kind if name in self._schema else None

    @property
    def _qualified(self) -> str:
        return self.table if self.schema is None else f"{self.schema}.{self.table}"

    @property
    def _place(self) -> str:
        return shown(self._database)

    def _opened(self) -> tuple[Connection, Table]:
        if self._connection is None or self._table is None:
            raise PlanError(f"sink {self.name} is not open.")
        return self._connection, self._table

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """Refusals as our own errors. Whatever is raised, the connection is let go, and with it what was not committed."""
        require_library()
        import psycopg

        try:
            yield
        except BaseException as error:
            connection, self._connection = self._connection, None
            copying, self._copying = self._copying, None
            if connection is not None:
                connection.close()
            if copying is not None:
                copying.abandon()
            if isinstance(error, psycopg.Error):
                raise named(error, self._database, f"refused rows for table {self._qualified!r}") from (
                    None if self._database.refers else error  # whose words may hold what is referred to
                )
            raise
