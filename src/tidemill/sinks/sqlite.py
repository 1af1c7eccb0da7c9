"""`SQLite`: rows into a table that other processes may read meanwhile."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from tidemill import files
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.durations import duration_ns
from tidemill.errors import InputError, OutputExists, OutsideError, PlanError, TidemillError
from tidemill.schema import Kind, Schema
from tidemill.sinks.base import IfExists, Keeping, SinkStatistics, Where
from tidemill.sinks.fence import Fence
from tidemill.sinks.notes import read_note, write_note
from tidemill.sinks.room import TableSink, finding_room
from tidemill.sinks.sqlite_ages import TABLE as AGES
from tidemill.sinks.sqlite_ages import Ages
from tidemill.sinks.sqlite_insert import Insert
from tidemill.sinks.sqlite_positions import TABLE, KeptPosition
from tidemill.sinks.sqlite_values import ColumnNames, declared_type, fits, folded, quoted, rounded

__all__ = ["SQLite"]

BUSY_TIMEOUT: Final = 10.0
"""Seconds to wait for another program that is writing to the same file."""
CHECKPOINT_PAGES: Final = 8000
"""Pages of WAL before SQLite copies them into the main file: 32 MB. Each copy rewrites pages that are still filling,
so the default of 4 MB costs a fifth of the rate."""
MOST_COLUMNS: Final = 2000
"""SQLite's own limit."""


class _Output(msgspec.Struct, frozen=True):
    """What the state folder knows of the table."""

    path: str
    table: str
    names: list[tuple[str, str]] = []
    """Fields and their columns, in the order in which they came: which of ``a`` and ``A`` was first."""
    forecast: bool = False
    """The table was made, without rows, of what was known of them: rows may need other types."""


class SQLite(TableSink):
    """Rows into a table of a SQLite file, readable by other programs while it is written (WAL mode).

    The table gets its columns from the rows: float REAL (NaN and missing are NULL), int and bool INTEGER, text TEXT, time
    INTEGER nanoseconds since 1970-01-01 UTC (``datetime(t / 1e9, 'unixepoch')`` reads one), nested values JSON in TEXT.
    Where ints are among the first floats of a field, its column has no type, and ints stay ints; where there are none, it is
    REAL, and a later ``5`` reads ``5.0``. An int that its column rounds, beyond 2**53 in a REAL one and beyond 64 bits in an
    INTEGER one, is counted as left out. A field that comes later becomes a new column, NULL in the rows before it. SQLite
    does not tell ``a`` from ``A``: the second becomes ``A_2``.

    A table takes 2,000 columns. Room is kept for the key, the time, what the plan makes or a source declares, and
    ``columns=``; of the other fields, those that come when there is no room are left out of the rows, and counted.

    ``keep``  how long rows are kept, by their event time: ``"7d"``. What is that much older than the newest row is deleted,
    in the order in which it came, some with each transaction: no more than 10,000 rows, or twice those that it adds. A row
    is never deleted sooner; it may stay for longer by a hundredth of the time, and until the rows before it are old, too. A
    time more than an hour ahead of the clock counts for nothing. Deleted rows are counted in `SinkStatistics.deleted` and in
    the report. Their pages are used again, so that the file stays as large as it has been at most; it does not shrink. The
    table must be one that this sink has made, and written to by nobody else: rows of others, and all of them after VACUUM,
    are then taken to be as new as what comes next.

    Delivery: each flush (at least every 0.25 s) is one transaction; its rows become visible together, in input order,
    and survive a crash of the program. After a crash, rows since the last flush are not there; a re-run with
    ``if_exists="append"`` writes all its rows again.

    With state, exactly-once: each commit (about once a second) is one transaction of its rows and of the position of
    the last one, in the table ``tidemill_positions`` of the same file, on disk (``synchronous=FULL``) when it is done.
    So rows and position agree after any crash and power cut, and a start goes on after the last row there. Rows are
    visible at the commit. A transaction of an earlier start, of a process that was stopped and wakes up, is rolled back.
    ``if_exists`` is asked only by the first start.

    Raises `InputError` when the folder is missing, the file is not a SQLite database, or the table is there already
    and ``if_exists`` is ``"fail"``, or when the file is not the one that the state knows; `OutsideError` when the disk is
    full, another program holds the file for more than 10 seconds, or another start of the pipeline has taken over. Other tables of the file are never touched.

    >>> import sqlite3, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sink = SQLite(f"{folder}/features.db")
    ...     sink.open(Schema(open=True))
    ...     sink.write(Batch.from_rows([{"sensor": "S1", "value": 20, "unit": None}]))
    ...     sink.close()
    ...     connection = sqlite3.connect(f"{folder}/features.db")
    ...     print(connection.execute("SELECT * FROM features").fetchall())
    ...     connection.close()
    [('S1', 20, None)]
    """

    looked_up_options = frozenset({"path", "table"})
    keeps_position = True
    delivery = "at-least-once; rows are committed in order, all rows of a flush or none"
    delivery_with_state = "exactly-once; rows and position in one transaction, on disk and visible at each commit"

    def __init__(
        self,
        path: str | Path,
        table: str = "features",
        *,
        where: Where | str | None = None,
        columns: Sequence[str] | None = None,
        if_exists: IfExists = "fail",
        keep: str | float | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(where=where, columns=columns, if_exists=if_exists, name=name)
        if not table or "\0" in table or table.lower().startswith("sqlite_"):
            raise PlanError(f"table={table!r} cannot be a table of SQLite: the name is empty, or reserved by SQLite.")
        if folded(table) == TABLE:
            raise PlanError(f"table={table!r} is where SQLite notes the positions of pipelines; choose another name.")
        if folded(table) == AGES:
            raise PlanError(f"table={table!r} is where SQLite notes how old rows are; choose another name.")
        if str(path).startswith(":memory:") or not str(path):
            raise PlanError(f"SQLite({str(path)!r}) has no file: rows are written by another process, so give a path.")
        self.path = files.absolute(path)
        self.table = table
        self._ages = None if keep is None else Ages(table, duration_ns(keep, name="SQLite: keep"))
        self._connection: sqlite3.Connection | None = None
        self._schema = Schema(open=True)
        self._declared: dict[str, str] | None = None
        self._names = ColumnNames()
        self._inserts: dict[tuple[tuple[str, Kind], ...], Insert] = {}
        self._failed = False
        self._fence: Fence | None = None
        self._kept: KeptPosition | None = None
        self._noted = _Output(str(self.path), table)
        self._noted_in = Path()
        self._rows = 0
        self._bytes = 0

    # -- the contract of a sink ----------------------------------------------------------------------

    @property
    def place(self) -> str:
        return f"{self.path.resolve()}, table {folded(self.table)!r}"

    @property
    def writes(self) -> Path:
        return self.path

    def check(self) -> None:
        self._require_folder()
        if self.path.exists():
            with self._refusals(), contextlib.closing(sqlite3.connect(self.path, timeout=BUSY_TIMEOUT)) as connection:
                self._existing(connection)

    def _require_folder(self) -> None:
        place = self.path
        if place.is_dir():
            raise InputError(f"{place} is a folder; SQLite needs the path of a file, such as {place / 'features.db'}.")
        if not place.parent.is_dir():
            raise InputError(f"The folder {place.parent} for the SQLite file {place.name} does not exist; create it.")

    def open(self, schema: Schema) -> None:
        self._fence = self._kept = None
        with self._refusals():
            self._connect(schema, synchronous="NORMAL")
            self._declared = self._existing(self._opened()) if self.if_exists != "replace" else None

    def resume(self, schema: Schema, keeping: Keeping) -> int:
        self._kept = None
        self._require_folder()
        self._fence = Fence.take(keeping, self._let_go)
        try:
            with self._refusals():
                self._know_output(keeping)
                self._connect(schema, synchronous="FULL")  # a checkpoint trusts that what is committed stays so
                return self._resumed(self._opened(), keeping)
        except BaseException:
            self._let_go()
            self._fence.release()
            raise

    def _connect(self, schema: Schema, *, synchronous: str) -> None:
        self._schema = schema
        self._declared = None
        self._names = ColumnNames()
        self._inserts.clear()
        self._failed = False
        if self._ages is not None:
            self._ages.begin()
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={synchronous}")
            connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def write(self, batch: Batch) -> None:
        if not len(batch):
            return
        with self._mine(), self._refusals():
            connection = self._opened()
            if not connection.in_transaction:
                connection.execute("BEGIN IMMEDIATE")
            batch = self._with_room(connection, batch)
            self._make_room(connection, batch.columns)
            self._insert(connection, batch)
            self._count_rounded(batch.columns)
            if self._ages is not None:
                self._ages.wrote(len(batch), batch.time_ns, time.time_ns())
        self._rows += len(batch)

    def flush(self) -> None:
        if self._kept is not None:  # rows become visible with their position, by commits alone
            return
        connection = self._opened()
        with self._refusals():
            if connection.in_transaction:
                self._end(connection)
                self._bytes = self._size()

    def commit(self, position: int) -> None:
        if self._kept is None:
            self.flush()
            return
        with self._mine(), self._refusals():
            connection = self._opened()
            if not connection.in_transaction:
                if position == self._kept.position:
                    return
                connection.execute("BEGIN IMMEDIATE")
            self._kept.move(connection, position)
            self._end(connection)
        self._bytes = self._size()

    def _end(self, connection: sqlite3.Connection) -> None:
        if self._ages is not None:
            self._ages.settle(connection, time.time_ns())
        connection.execute("COMMIT")

    def close(self) -> None:
        if self._kept is not None:
            self._leave()
            return
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with self._refusals(), contextlib.closing(connection):
            if self._failed:
                connection.rollback()
                return
            if self._declared is None and len(self._schema):  # a run without rows leaves an empty table, not none
                connection.execute("BEGIN IMMEDIATE")
                self._make_room(connection, self._foreseen())
            if connection.in_transaction:
                self._end(connection)
        self._bytes = self._size()

    def _foreseen(self) -> dict[str, Column]:
        columns = {field.name: Column.missing(field.kind or Kind.OBJECT, 0) for field in self._schema}
        return {name: columns[name] for name in self.columns or columns}

    def statistics(self) -> SinkStatistics:
        """``bytes`` is the size of the file and its WAL at the last flush; ``left_out`` counts ints that were rounded, and
        values of fields for which there is no room."""
        deleted = 0 if self._ages is None else self._ages.deleted
        return SinkStatistics(self.name, self._rows, self._bytes, self.left_out, deleted)

    # -- with state ----------------------------------------------------------------------------------

    def _know_output(self, keeping: Keeping) -> None:
        """Refuse another file or table than the state knows; what that one holds could not be gone on with here."""
        self._noted_in = keeping.folder / "output.json"
        asked = _Output(str(self.path), self.table)
        self._noted = read_note(self._noted_in, _Output) or asked
        if (self._noted.path, folded(self._noted.table)) != (asked.path, folded(asked.table)):
            raise InputError(
                f"The rows of sink {self.name} up to now are in table {self._noted.table!r} of {self._noted.path}, and "
                f"table {self.table!r} of {self.path} is to take the rest; go back to the first, or start over with "
                f"--fresh."
            )

    def _resumed(self, connection: sqlite3.Connection, keeping: Keeping) -> int:
        kept = KeptPosition(keeping, self.name)
        connection.execute("BEGIN IMMEDIATE")
        known = kept.begin(connection)
        begun = files.stamp(self._noted_in) is not None
        if begun and not known:
            raise InputError(
                f"{self.path} does not know how far the rows of this pipeline reach, and did so once; put it back as it "
                f"was, or start over with --fresh."
            )
        if not known and self.if_exists == "replace":
            connection.execute(f"DROP TABLE IF EXISTS {quoted(self.table)}")
        self._declared = self._existing(connection, ours=known)
        self._names = ColumnNames(dict(self._noted.names))
        if self._noted.forecast:
            self._take_back_forecast(connection)
        connection.execute("COMMIT")
        write_note(self._noted_in, self._noted)
        self._kept = kept
        self._bytes = self._size()
        return kept.position

    def _take_back_forecast(self, connection: sqlite3.Connection) -> None:
        table = quoted(self.table)
        if self._declared is not None and not connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone():  # noqa: S608
            connection.execute(f"DROP TABLE {table}")
            self._declared = None
            self._names = ColumnNames()
        self._noted = msgspec.structs.replace(self._noted, names=list(self._names.known.items()), forecast=False)

    def _note_names(self, *, forecast: bool = False) -> None:
        """Before the columns are committed: a name that is noted and not there does no harm."""
        names = list(self._names.known.items())
        if names != self._noted.names or forecast:
            self._noted = msgspec.structs.replace(self._noted, names=names, forecast=forecast)
            write_note(self._noted_in, self._noted)

    def _leave(self) -> None:
        """Let go at the last commit."""
        assert self._fence is not None
        fence = self._fence
        try:
            if self._connection is not None and not fence.shut:
                with fence.passed():
                    waiting = self._connection.in_transaction
                    self._connection.rollback()
                    if not waiting and self._declared is None and len(self._schema):
                        self._forecast(self._connection)
        finally:
            self._let_go()
            self._fence = self._kept = None
            fence.release()

    def _forecast(self, connection: sqlite3.Connection) -> None:
        """A run without rows leaves an empty table, not none; a later start makes it anew."""
        assert self._kept is not None
        with self._refusals():
            connection.execute("BEGIN IMMEDIATE")
            self._kept.move(connection, self._kept.position)
            self._make_room(connection, self._foreseen())
            self._note_names(forecast=True)
            connection.execute("COMMIT")

    def _mine(self) -> contextlib.AbstractContextManager[None]:
        return self._fence.passed() if self._fence is not None else contextlib.nullcontext()

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()  # which rolls back

    # -- the table -----------------------------------------------------------------------------------

    def _existing(self, connection: sqlite3.Connection, *, ours: bool = False) -> dict[str, str] | None:
        """Folded names of the table's columns → declared types; None when it is not there."""
        query = "SELECT type FROM sqlite_master WHERE name = ? COLLATE NOCASE AND type IN ('table', 'view')"
        found = connection.execute(query, (self.table,)).fetchone()
        if found is None:
            return None
        if found[0] != "table":
            raise InputError(f"{self.table!r} in {self.path} is a view; choose another table=.")
        if self.if_exists == "fail" and not ours:
            raise OutputExists(
                f"{self.path} already has a table {self.table!r}; write "
                f'if_exists="append" to add rows to it, or if_exists="replace" to delete it first.'
            )
        rows = connection.execute(f"PRAGMA table_info({quoted(self.table)})").fetchall()
        if self._ages is not None and any(row[5] for row in rows):
            raise InputError(
                f"The table {self.table!r} in {self.path} has a primary key of its own, so that its rows do not lie in the order "
                "in which they came; keep= needs a table that SQLite(...) has made."
            )
        return {folded(row[1]): row[2] for row in rows}

    def _with_room(self, connection: sqlite3.Connection, batch: Batch) -> Batch:
        """The batch without those new fields for which the table has no room."""
        names = self._names
        if batch.columns.keys() <= names.known.keys():
            return batch
        for name in self.first_fields(self._schema):
            names.of(name)  # which keeps its place
        if self._declared is not None and self.if_exists == "append" and len(self._declared) < MOST_COLUMNS:
            self._declared = self._existing(connection, ours=True)  # another run may have made the same
        declared = self._declared or {}
        new = {}
        for name, column in batch.columns.items():
            if name not in names.known:
                if folded(names.next(name)) in declared:
                    names.of(name)
                else:
                    new[name] = column
        taken = {*declared, *map(folded, names.known.values())}
        found = finding_room(new, MOST_COLUMNS - len(taken))
        for name in found:
            names.of(name)
        if len(found) == len(new):
            return batch
        self.leave_out({name: column for name, column in new.items() if name not in found})
        return batch.select({name: name for name in batch.columns if name in names.known})

    def _make_room(self, connection: sqlite3.Connection, columns: dict[str, Column]) -> None:
        """Create the table, or the columns of it that are new; check those that are not when they were there before."""
        key = _shape(columns)
        if key in self._inserts:
            return
        table = quoted(self.table)
        if self._declared is None and not columns:
            raise InputError(f"The first row for table {self.table!r} has no fields at all; SQLite needs one or more.")
        added = {self._names.of(name): column for name, column in columns.items()}
        known = self._declared.keys() if self._declared is not None else set()
        if self.if_exists == "append" and not known >= set(map(folded, added)):
            self._declared = self._existing(connection, ours=True)  # another run may have made the same
        if len({*(self._declared or ()), *map(folded, added)}) > MOST_COLUMNS:
            raise InputError(
                f"The rows for {self.path} have more than {MOST_COLUMNS} columns, the most that SQLite "
                f"takes; name those you want with columns=[...], and choose another table= if this one is full."
            )
        if self._declared is None:
            types = {name: declared_type(column) for name, column in added.items()}
            definition = ", ".join(f"{quoted(name)} {kind}".rstrip() for name, kind in types.items())
            if self.if_exists == "replace" and self._kept is None:
                connection.execute(f"DROP TABLE IF EXISTS {table}")
            connection.execute(f"CREATE TABLE {table} ({definition})")
            self._declared = {folded(name): kind for name, kind in types.items()}
        for name, column in added.items():
            if folded(name) not in self._declared:
                kind = declared_type(column)
                connection.execute(f"ALTER TABLE {table} ADD COLUMN {quoted(name)} {kind}")
                self._declared[folded(name)] = kind
            elif not self._fits(name, column):
                raise InputError(
                    f"Column {name!r} of table {self.table!r} in {self.path} is {self._declared[folded(name)]}, and "
                    f'the rows have {column.kind.value} there; choose another table=, or if_exists="replace".'
                )
        self._inserts[key] = Insert(table, [quoted(name) for name in added])
        if self._kept is not None:
            self._note_names()

    def _fits(self, name: str, column: Column) -> bool:
        assert self._declared is not None
        return fits(self._declared[folded(name)], column.kind) or declared_type(column) == ""

    def _insert(self, connection: sqlite3.Connection, batch: Batch) -> None:
        """All rows of the batch or none: some text that UTF-8 cannot hold makes sqlite3 stop in the middle."""
        insert = self._inserts[_shape(batch.columns)]
        connection.execute("SAVEPOINT batch")
        try:
            insert.run(connection, batch, clean=False)
        except UnicodeEncodeError:
            connection.execute("ROLLBACK TO batch")
            insert.run(connection, batch, clean=True)
        connection.execute("RELEASE batch")

    def _count_rounded(self, columns: dict[str, Column]) -> None:
        assert self._declared is not None
        for name, column in columns.items():
            if column.exact and (count := rounded(column, self._declared[folded(self._names.of(name))])):
                self.count_left_out(name, count)

    # -- the file ------------------------------------------------------------------------------------

    def _opened(self) -> sqlite3.Connection:
        if self._kept is not None and self._connection is None:
            raise OutsideError(f"Rows for {self.path} met an error before; start again to go on from the last commit.")
        if self._connection is None:
            raise PlanError(f"sink {self.name} is not open.")
        return self._connection

    def _size(self) -> int:
        size = 0
        for place in (self.path, self.path.with_name(self.path.name + "-wal")):
            with contextlib.suppress(OSError):
                size += place.stat().st_size
        return size

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """SQLite's refusals as our own errors; whatever is raised, the open transaction will not be committed, and with
        state nothing more is tried on this connection."""
        try:
            yield
        except BaseException as error:
            self._failed = True
            if self._kept is not None:
                self._let_go()
            if isinstance(error, sqlite3.Error):
                raise _named(error, self.path, self.table) from error
            raise


def _shape(columns: dict[str, Column]) -> tuple[tuple[str, Kind], ...]:
    return tuple((name, column.kind) for name, column in columns.items())


def _named(error: sqlite3.Error, place: Path, table: str) -> TidemillError:
    code = str(getattr(error, "sqlite_errorname", ""))
    if code.startswith("SQLITE_NOTADB"):
        return InputError(f"{place} is not a SQLite database; choose another path, or move that file away.")
    if code.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")):
        return InputError(f"SQLite cannot write to {place}: {error}. Check that the file and its folder are writable.")
    if code.startswith("SQLITE_FULL"):
        return OutsideError(f"The disk is full: SQLite could not write to {place}. Rows since the last flush are lost.")
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return OutsideError(
            f"{place} has been locked by another program for {BUSY_TIMEOUT:.0f} seconds; let that one finish its "
            f"transaction, or write to a file of your own."
        )
    if code.startswith("SQLITE_CONSTRAINT"):
        return OutsideError(f"Table {table!r} of {place} refuses a row by a rule of its own: {error}.")
    return OutsideError(f"SQLite could not write to {place}: {error} ({code or type(error).__name__}).")
