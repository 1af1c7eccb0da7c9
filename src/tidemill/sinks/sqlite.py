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
from tidemill.sinks.in_place import InPlace
from tidemill.sinks.notes import read_note, write_note
from tidemill.sinks.room import TableSink
from tidemill.sinks.sqlite_ages import TABLE as AGES
from tidemill.sinks.sqlite_ages import Ages
from tidemill.sinks.sqlite_positions import TABLE, KeptPosition
from tidemill.sinks.sqlite_table import Table
from tidemill.sinks.sqlite_values import folded

__all__ = ["SQLite"]

_NOTE: Final = "output.json"
BUSY_TIMEOUT: Final = 10.0
"""Seconds to wait for another program that is writing to the same file."""
CHECKPOINT_PAGES: Final = 8000
"""Pages of WAL before SQLite copies them into the main file: 32 MB. Each copy rewrites pages that are still filling,
so the default of 4 MB costs a fifth of the rate."""


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
    INTEGER nanoseconds since 1970-01-01 UTC (``datetime(t / 1e9, 'unixepoch')`` reads one), nested values JSON in TEXT, other
    values (a UUID, a Decimal) as TEXT.
    Where the first row with a field holds an int or null there, its column has no type, and ints stay ints; where it holds a float, it
    is REAL, and a later ``5`` reads ``5.0``. An int that its column rounds, beyond 2**53 in a REAL one and beyond 64 bits in an
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
        self._table = self._unseen()
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
                self._unseen().look(connection)

    def _require_folder(self) -> None:
        place = self.path
        if place.is_dir():
            raise InputError(f"{place} is a folder; SQLite needs the path of a file, such as {place / 'features.db'}.")
        if not place.parent.is_dir():
            raise InputError(f"The folder {place.parent} for the SQLite file {place.name} does not exist; create it.")

    def open(self, schema: Schema) -> None:
        self._fence = self._kept = None
        try:
            with self._refusals():
                self._connect(schema, synchronous="NORMAL")
                if self.if_exists == "replace":
                    self._table.replace()
                else:
                    self._table.look(self._opened())
        except BaseException:
            self._let_go()
            raise

    def resume(self, schema: Schema, keeping: Keeping) -> int:
        self._kept = None
        self._require_folder()
        self._fence = Fence.take(keeping, self._let_go)
        try:
            with self._refusals():
                self._noted_in = keeping.folder / _NOTE
                self._noted = self._known_output(self._noted_in)
                self._connect(schema, synchronous="FULL")  # a checkpoint trusts that what is committed stays so
                return self._resumed(self._opened(), keeping)
        except BaseException:
            self._let_go()
            self._fence.release()
            raise

    def _connect(self, schema: Schema, *, synchronous: str) -> None:
        self._schema = schema
        self._table = self._unseen()
        self._failed = False
        if self._ages is not None:
            self._ages.begin()
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={synchronous}")
            connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
            self._in_place = InPlace(self.path)
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
            self._table.insert(connection, batch)
            for name, count in self._table.rounded(batch.columns):
                self.count_left_out(name, count)
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
        self._in_place.require(kept=self._kept is not None)
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
            if not self._table.known and len(self._schema):  # a run without rows leaves an empty table, not none
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

    def require_same_output(self, folder: Path) -> None:
        self._known_output(folder / _NOTE)

    def _known_output(self, noted_in: Path) -> _Output:
        """Refuses another file or table than the state knows; what that one holds could not be gone on with here."""
        asked = _Output(str(self.path), self.table)
        noted = read_note(noted_in, _Output) or asked
        if (noted.path, folded(noted.table)) != (asked.path, folded(asked.table)):
            raise InputError(
                f"The rows of sink {self.name} up to now are in table {noted.table!r} of {noted.path}, and table {self.table!r} of "
                f"{self.path} is to take the rest; go back to the first, or start over with --fresh."
            )
        return noted

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
            self._table.drop(connection)
        self._table.look(connection, ours=known, names=dict(self._noted.names))
        if self._noted.forecast:
            self._table.drop_empty(connection)
            self._noted = msgspec.structs.replace(self._noted, names=list(self._table.names.items()), forecast=False)
        connection.execute("COMMIT")
        write_note(self._noted_in, self._noted)
        self._kept = kept
        self._bytes = self._size()
        return kept.position

    def _note_names(self, *, forecast: bool = False) -> None:
        """Before the columns are committed: a name that is noted and not there does no harm."""
        names = list(self._table.names.items())
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
                    if not waiting and not self._table.known and len(self._schema):
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

    def _unseen(self) -> Table:
        return Table(self.path, self.table, self.if_exists, in_order=self._ages is not None)

    def _with_room(self, connection: sqlite3.Connection, batch: Batch) -> Batch:
        """The batch without those new fields for which the table has no room."""
        if batch.columns.keys() <= self._table.names.keys():
            return batch
        away = self._table.turned_away(connection, batch.columns, self.first_fields(self._schema))
        if not away:
            return batch
        self.leave_out(away)
        return batch.select({name: name for name in batch.columns if name not in away})

    def _make_room(self, connection: sqlite3.Connection, columns: dict[str, Column]) -> None:
        if self._table.make_room(connection, columns) and self._kept is not None:
            self._note_names()

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
                raise _named(error, self.path, self.table, kept=self._fence is not None) from error
            raise


def _named(error: sqlite3.Error, place: Path, table: str, *, kept: bool) -> TidemillError:
    code = str(getattr(error, "sqlite_errorname", ""))
    if code.startswith("SQLITE_NOTADB"):
        return InputError(f"{place} is not a SQLite database; choose another path, or move that file away.")
    if code.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")):
        return InputError(f"SQLite cannot write to {place}: {error}. Check that the file and its folder are writable.")
    if code.startswith("SQLITE_FULL"):
        lost = "" if kept else " Rows since the last flush are lost."
        return OutsideError(f"The disk is full: SQLite could not write to {place}.{lost}")
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return OutsideError(
            f"{place} has been locked by another program for {BUSY_TIMEOUT:.0f} seconds; let that one finish its "
            f"transaction, or write to a file of your own."
        )
    if code.startswith("SQLITE_CONSTRAINT"):
        return OutsideError(f"Table {table!r} of {place} refuses a row by a rule of its own: {error}.")
    if str(error).endswith("already exists"):
        return OutputExists(
            f"Another run has made table {table!r} in {place} since this one began; give each a table= or a file of its own, or "
            f'write if_exists="append".'
        )
    return OutsideError(f"SQLite could not write to {place}: {error} ({code or type(error).__name__}).")
