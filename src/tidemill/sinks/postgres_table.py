"""A table of PostgreSQL: what is there, and the columns that rows need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tidemill.column import ABSENT_TAG, NULL_TAG, Column
from tidemill.errors import InputError, OutputExists
from tidemill.schema import Kind
from tidemill.sinks.base import IfExists
from tidemill.sinks.postgres_values import DECLARED, STORED, ColumnNames, note_of, noted, quoted
from tidemill.sinks.postgres_width import widest
from tidemill.sinks.room import finding_room

if TYPE_CHECKING:
    from tidemill.sinks.postgres_connection import Connection

__all__ = ["FoundTable", "Table", "Target", "found_table"]

_SCHEMA: Final = """SELECT n.nspname, has_schema_privilege(n.oid, 'USAGE'), has_schema_privilege(n.oid, 'CREATE')
    FROM pg_namespace n WHERE n.nspname = coalesce(%s, current_schema())"""
_TABLE: Final = """SELECT c.oid, c.relkind, c.relnatts, has_table_privilege(c.oid, 'INSERT')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s"""
_COLUMNS: Final = """SELECT a.attname, t.typname, format_type(a.atttypid, a.atttypmod),
        col_description(a.attrelid, a.attnum)
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped"""

MOST_COLUMNS: Final = 1600
"""PostgreSQL's own limit."""
_TABLES: Final = ("r", "p")
"""Kinds of relations that take rows: tables, and tables in partitions."""


@dataclass(frozen=True)
class FoundTable:
    """What is in the database under a table's name."""

    place: str
    """For messages: the database and the table."""
    schema: str
    table: str
    types: Mapping[str, tuple[str, str]] | None
    """Column → PostgreSQL's short name of its type, and how a user writes it; None when there is no table."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Fields whose columns bear other names → these."""
    made: int = 0
    """Columns that it has had, those that were dropped too: PostgreSQL counts them all."""

    def require(self, if_exists: IfExists) -> None:
        """Raise `OutputExists` when the table is to be left alone."""
        if self.types is not None and if_exists == "fail":
            raise OutputExists(
                f'{self.place} is there already; write if_exists="append" to add rows to it, or if_exists="replace" to '
                f"delete it first."
            )


def found_table(connection: Connection, place: str, schema: str | None, table: str) -> FoundTable:
    """Look. Raises `InputError` for a schema that is not there, a view in the table's place, and missing rights."""
    found = connection.execute(_SCHEMA, (schema,)).fetchone()
    if found is None:
        wanted = f"no schema {schema!r}" if schema else "none of the schemas in the user's search path"
        raise InputError(f"{place} has {wanted}; create one, or name another one with schema=.")
    schema, usage, create = found
    whole = f"Table {schema}.{table} of {place}"
    there = connection.execute(_TABLE, (schema, table)).fetchone()
    if there is None:
        if not usage or not create:
            raise InputError(
                f"The user may not create tables in schema {schema!r} of {place}; GRANT USAGE, CREATE to it."
            )
        return FoundTable(whole, schema, table, None)
    oid, kind, made, insert = there
    if kind not in _TABLES:
        raise InputError(f"{schema}.{table} of {place} is a view or another thing than a table; choose another table=.")
    if not usage or not insert:
        raise InputError(f"{whole} is there, and the user may not write to it; GRANT INSERT on it.")
    columns = connection.execute(_COLUMNS, (oid,)).fetchall()
    types = {name: (stored, written) for name, stored, written, _ in columns}
    fields = {told: name for name, _, _, note in columns if (told := noted(note)) is not None}
    return FoundTable(whole, schema, table, types, fields, made)


@dataclass(frozen=True)
class Target:
    """The statements that add rows of one shape."""

    copy: str
    types: Sequence[str]
    nothing: str
    """Adds %s rows without a value."""
    widest: int
    """Bytes within the table that a row of these columns may need."""


class Table:
    """The table as the open transaction sees it; columns are made when the first row that has them comes."""

    def __init__(self, found: FoundTable, *, replace: bool, first: Sequence[str] = ()) -> None:
        self._found = found
        self._sql = f"{quoted(found.schema)}.{quoted(found.table)}"
        self._replace = replace and found.types is not None
        self._types = None if self._replace or found.types is None else dict(found.types)
        self._names = ColumnNames({} if self._types is None else found.fields)
        for name in first:  # room is kept for these
            self._names.of(name)
        self._targets: dict[tuple[tuple[str, Kind], ...], Target] = {}
        self._committed = (self._types, self._replace)
        self.full = False
        """Whether no field gets a column any more but one that `knows` its own."""

    @property
    def known(self) -> bool:
        """Whether there is a table, here or since the open transaction began."""
        return self._types is not None

    def committed(self) -> None:
        self._committed = (None if self._types is None else dict(self._types), self._replace)

    def rolled_back(self) -> None:
        self._types, self._replace = self._committed
        self._targets.clear()

    def known_target(self, kinds: Mapping[str, Kind]) -> Target | None:
        """How rows of these columns are added; None when `make_room` has not been asked for them yet."""
        return self._targets.get(tuple(kinds.items()))

    def knows(self, name: str) -> bool:
        """Whether the field has its column, or will have it whenever it comes."""
        return name in self._names.known

    def turned_away(self, connection: Connection, new: Mapping[str, Column]) -> dict[str, Column]:
        """Those of the new fields for which there is no column, and no room for one."""
        there: Mapping[str, tuple[str, str]] = self._types or {}
        made = 0
        if self._types is not None and not self.full:  # another run may have added columns
            now = found_table(connection, self._found.place, self._found.schema, self._found.table)
            there, made = now.types or {}, now.made
        unknown = {}
        for name, column in new.items():
            if not self.knows(name) and self._names.next(name) in there:
                self._names.of(name)
            elif not self.knows(name):
                unknown[name] = column
        kept = sum(column not in there for column in self._names.known.values())
        room = 0 if self.full else MOST_COLUMNS - made - kept
        found = finding_room(unknown, room, (NULL_TAG, ABSENT_TAG))
        for name in found:
            self._names.of(name)
        self.full = len(found) >= room
        return {name: column for name, column in unknown.items() if not self.knows(name)}

    def make_room(self, connection: Connection, kinds: Mapping[str, Kind]) -> Target:
        """Create the table, or the columns of it that are new; refuse those there of types that do not fit."""
        key = tuple(kinds.items())
        if key not in self._targets:
            named = {self._names.of(name): (name, kind) for name, kind in kinds.items()}
            if self._types is None:
                self._create(connection, named)
            else:
                self._widen(connection, self._types, named)
            assert self._types is not None
            columns = ", ".join(map(quoted, named))
            self._targets[key] = Target(
                f"COPY {self._sql} ({columns}) FROM STDIN (FORMAT BINARY)",
                [self._types[column][0] for column in named],
                f"INSERT INTO {self._sql} SELECT FROM generate_series(1, %s)",
                widest(kinds.values()),
            )
        return self._targets[key]

    def _create(self, connection: Connection, named: Mapping[str, tuple[str, Kind]]) -> None:
        if self._replace:
            connection.execute(f"DROP TABLE {self._sql}".encode())
            self._replace = False
        columns = ", ".join(f"{quoted(column)} {DECLARED[kind]}" for column, (_, kind) in named.items())
        connection.execute(f"CREATE TABLE {self._sql} ({columns})".encode())
        self._types = {column: (STORED[kind][0], DECLARED[kind]) for column, (_, kind) in named.items()}
        self._note(connection, named)

    def _widen(
        self, connection: Connection, types: dict[str, tuple[str, str]], named: Mapping[str, tuple[str, Kind]]
    ) -> None:
        new = {column: (name, kind) for column, (name, kind) in named.items() if column not in types}
        if new:
            added = ", ".join(
                f"ADD COLUMN IF NOT EXISTS {quoted(column)} {DECLARED[kind]}" for column, (_, kind) in new.items()
            )
            connection.execute(f"ALTER TABLE {self._sql} {added}".encode())
            there = found_table(connection, self._found.place, self._found.schema, self._found.table).types or {}
            types.update({column: there[column] for column in new})  # another run may have added it, of its own type
            self._note(connection, new)
        for column, (_, kind) in named.items():
            stored, written = types[column]
            if stored not in STORED[kind]:
                raise InputError(
                    f"Column {column!r} of {self._found.place} is {written}, and the rows have {kind.value} there, "
                    f"which needs {DECLARED[kind]}; alter the column, choose another table=, or "
                    f'if_exists="replace".'
                )

    def _note(self, connection: Connection, named: Mapping[str, tuple[str, Kind]]) -> None:
        """Later runs must find the columns of fields that could not have their own names."""
        from psycopg import sql

        for column, (name, _) in named.items():
            note = note_of(name, column)
            if note is not None:
                text = sql.Literal(note).as_string(connection)
                connection.execute(f"COMMENT ON COLUMN {self._sql}.{quoted(column)} IS {text}".encode())
