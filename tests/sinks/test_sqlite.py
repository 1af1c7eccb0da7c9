"""What only SQLite promises."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tidemill as tm
from tidemill import sinks
from tidemill.batch import Batch
from tidemill.column import ABSENT, Column
from tidemill.errors import InputError, OutsideError, PlanError
from tidemill.schema import Field, Kind, Schema
from tidemill.sinks.base import Keeping
from tidemill.sinks.sqlite_values import ColumnNames, bindable, fits

OPEN = Schema(open=True)


def batch_of(**columns: list[Any]) -> Batch:
    names = tuple(columns)
    return Batch.from_rows([dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)])


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def test_another_connection_reads_while_rows_are_written(tmp_path: Path) -> None:
    """It sees whole flushes, without waiting and without stopping the writer."""
    path = tmp_path / "features.db"
    sink = sinks.SQLite(path)
    sink.open(OPEN)
    sink.write(batch_of(value=[1.5, 2.5]))
    sink.flush()
    with closing(sqlite3.connect(path, timeout=0)) as reader:
        assert reader.execute("SELECT count(*) FROM features").fetchone() == (2,)
        cursor = reader.execute("SELECT value FROM features")
        assert cursor.fetchone() == (1.5,)  # a read in progress
        sink.write(batch_of(value=[3.5]))
        assert query(path, "SELECT count(*) FROM features") == [(2,)]  # not flushed yet
        sink.flush()
        assert cursor.fetchall() == [(2.5,)]  # the snapshot it began with
        assert reader.execute("SELECT count(*) FROM features").fetchone() == (3,)
    sink.close()
    assert query(path, "PRAGMA journal_mode") == [("wal",)]


def test_a_full_disk_loses_what_was_not_flushed_only_without_state(tmp_path: Path) -> None:
    """Which is said then, and only then: with state the rows come again."""
    for kept in (False, True):
        folder = tmp_path / str(kept)
        folder.mkdir()
        sink = sinks.SQLite(folder / "features.db")
        if kept:
            sink.resume(OPEN, Keeping(folder, "plant", 1))
        else:
            sink.open(OPEN)
        sink._opened().execute("PRAGMA max_page_count=3")
        with pytest.raises(OutsideError, match="The disk is full") as caught:
            sink.write(batch_of(value=[1.5] * 2_000))
        assert ("are lost" in str(caught.value)) != kept
        sink.close()


def test_types_of_the_table(tmp_path: Path) -> None:
    """Each kind has its declared type; a column of ints keeps them, NaN is NULL, a time is nanoseconds."""
    path = tmp_path / "features.db"
    sink = sinks.SQLite(path)
    sink.open(OPEN)
    time = Column.of_array(np.array(["2024-01-01", "NaT"], "datetime64[ns]"))
    n = Column(Kind.INT, np.array([1, 2]))
    rows = batch_of(value=[1.5, float("nan")], count=[1, 2.5], ok=[True, None], unit=["C", None], at=[{"x": 1}, None])
    sink.write(rows.with_columns({"n": n, "time": time}))
    sink.close()
    declared = {row[1]: row[2] for row in query(path, "PRAGMA table_info(features)")}
    assert declared == {
        "value": "REAL", "count": "", "ok": "INTEGER", "unit": "TEXT", "at": "TEXT", "n": "INTEGER", "time": "INTEGER",
    }  # fmt: skip
    assert repr(query(path, "SELECT * FROM features")) == repr(
        [(1.5, 1, 1, "C", '{"x":1}', 1, 1704067200_000_000_000), (None, 2.5, None, None, None, 2, None)]
    )


@pytest.mark.parametrize(
    "items", [[1.5, 2**53 + 1, 5], [5, 1.5, 2**64], [None, 1.5, 5], [ABSENT, 1.5, 5], [ABSENT, 5, 1.5]]
)
def test_what_is_kept_does_not_depend_on_how_many_rows_come_first(items: list[Any], tmp_path: Path) -> None:
    """After a kill other rows may come together."""
    rows = [{"sensor": "S"} if item is ABSENT else {"sensor": "S", "value": item} for item in items]
    kept = []
    for most in (1, 2, 3):
        sink = sinks.SQLite(tmp_path / f"{most}.db")
        sink.open(OPEN)
        for start in range(0, len(rows), most):
            sink.write(Batch.from_rows(rows[start : start + most]))
        sink.close()
        kept.append(query(tmp_path / f"{most}.db", "SELECT typeof(value), value FROM features"))
    assert kept[0] == kept[1] == kept[2]


def test_integers_beyond_what_floats_and_sqlite_hold() -> None:
    """Up to 64 bits exact; beyond, their digits."""
    items = [2**53 + 1, -(2**63), 2**63, None]
    column = Batch.from_rows([{"n": item} for item in items]).column("n")
    assert bindable(column) == [2**53 + 1, -(2**63), str(2**63), None]


def test_integers_that_are_rounded_are_counted(tmp_path: Path) -> None:
    """By the type of their column: of what comes as it is, and of floats that need no rounding, nothing is said."""
    sink = sinks.SQLite(tmp_path / "rows.db")
    sink.open(Schema([Field("n", Kind.INT)], open=True))
    for value in (0.5, 2**53 + 1, 2**60, 10**400, 7):
        sink.write(Batch.from_rows([{"real": value, "any": 2**53 + 1}]))
    n = Column(Kind.INT, np.array([0, 0]), exact={0: 2**63 - 1, 1: 10**30})
    sink.write(batch_of(real=[1.5, 2.5]).with_columns({"n": n}))
    sink.close()
    assert sink.statistics().left_out == {"real": 2, "n": 1}
    assert query(tmp_path / "rows.db", "SELECT any FROM features WHERE n IS NULL") == [(2**53 + 1,)] * 5


def test_names_that_differ_by_case_only(tmp_path: Path) -> None:
    """SQLite takes them for one name; the second gets a number, and so it does when rows are appended."""
    path = tmp_path / "features.db"
    for if_exists in ("fail", "append"):
        sink = sinks.SQLite(path, if_exists=if_exists)
        sink.open(OPEN)
        sink.write(batch_of(value=[1.5], Value=[2.5], VALUE_2=[3.5]))
        sink.close()
    assert [row[1] for row in query(path, "PRAGMA table_info(features)")][:2] == ["value", "Value_2"]
    assert set(query(path, "SELECT value, Value_2, VALUE_2_2 FROM features")) == {(1.5, 2.5, 3.5)}


def test_column_names_stay_the_same() -> None:
    """A field's column is found again, and no two fields share one."""
    names = ColumnNames()
    assert [names.of(name) for name in ("a", "A", "A_2", "A")] == ["a", "A_2", "A_2_2", "A_2"]


def test_other_tables_are_not_touched(tmp_path: Path) -> None:
    """A file with other tables in it is fine; ``replace`` deletes ours only, when the first row comes."""
    path = tmp_path / "features.db"
    for table, options in (("other", {}), ("features", {}), ("features", {"if_exists": "replace"})):
        sink = sinks.SQLite(path, table, **options)
        sink.check()
        sink.open(OPEN)
        sink.write(batch_of(a=[1.5]))
        sink.close()
    assert query(path, "SELECT (SELECT count(*) FROM other), (SELECT count(*) FROM features)") == [(1, 1)]


def test_a_table_name_is_only_a_name(tmp_path: Path) -> None:
    """Quotes and semicolons in ``table=`` make a strange table and nothing else; names SQLite forbids are refused."""
    path = tmp_path / "features.db"
    sink = sinks.SQLite(path, 'x"; DROP TABLE y; --')
    sink.open(OPEN)
    sink.write(batch_of(a=[1.5]))
    sink.close()
    assert query(path, "SELECT name FROM sqlite_master") == [('x"; DROP TABLE y; --',)]
    for table in ("", "sqlite_x", "a\0b"):
        with pytest.raises(PlanError, match="cannot be a table"):
            sinks.SQLite(path, table)
    with pytest.raises(PlanError, match="give a path"):
        sinks.SQLite(":memory:")


def test_append_checks_the_columns_there_are(tmp_path: Path) -> None:
    """Numbers into a text column are refused by name; new columns are added; columns of the table alone read null."""
    path = tmp_path / "features.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE features (Unit TEXT, value DOUBLE, extra INT)")
    sink = sinks.SQLite(path, if_exists="append")
    sink.open(OPEN)
    sink.write(batch_of(value=[1.5], Unit=["C"], new=[2.5]))
    sink.flush()
    assert query(path, "SELECT * FROM features") == [("C", 1.5, None, 2.5)]
    with pytest.raises(InputError, match=r"'Unit'.*TEXT.*float"):
        sink.write(batch_of(Unit=[1.5]))
    sink.close()
    assert query(path, "SELECT count(*) FROM features") == [(1,)]


@pytest.mark.parametrize(
    ("declared", "kinds"),
    [
        ("", set(Kind)),
        ("BLOB", set(Kind)),
        ("VARCHAR(10)", {Kind.TEXT, Kind.OBJECT}),
        ("BIGINT", {Kind.FLOAT, Kind.INT, Kind.BOOL, Kind.TIME}),
        ("double precision", {Kind.FLOAT, Kind.INT, Kind.BOOL, Kind.TIME}),
        ("NUMERIC", {Kind.FLOAT, Kind.INT, Kind.BOOL, Kind.TIME}),
    ],
)
def test_which_kinds_a_declared_type_takes(declared: str, kinds: set[Kind]) -> None:
    """By SQLite's rules of affinity: what is written is what is read."""
    assert {kind for kind in Kind if fits(declared, kind)} == kinds


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """Refused at start, with its path; the file is not touched."""
    path = tmp_path / "features.db"
    path.write_text("sensor,value\n" * 1000)
    with pytest.raises(InputError, match=rf"{path} is not a SQLite database"):
        sinks.SQLite(path).check()
    with pytest.raises(InputError, match="is not a SQLite database"):
        sinks.SQLite(path, if_exists="replace").open(OPEN)
    assert path.read_text().startswith("sensor")


def test_a_view_of_that_name(tmp_path: Path) -> None:
    """Nothing can be written to a view; another table is asked for."""
    path = tmp_path / "features.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE VIEW features AS SELECT 1")
    with pytest.raises(InputError, match="view"):
        sinks.SQLite(path, if_exists="append").check()


def test_a_locked_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program's open transaction is waited for, then named."""
    monkeypatch.setattr("tidemill.sinks.sqlite.BUSY_TIMEOUT", 0.0)
    path = tmp_path / "features.db"
    sink = sinks.SQLite(path)
    sink.open(OPEN)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutsideError, match="locked by another program"):
            sink.write(batch_of(a=[1.5]))
    sink.close()


def test_rules_of_the_table_itself(tmp_path: Path) -> None:
    """A row that a constraint refuses stops the run in one sentence; rows since the last flush are not committed."""
    path = tmp_path / "features.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE features (a REAL UNIQUE)")
    sink = sinks.SQLite(path, if_exists="append")
    sink.open(OPEN)
    sink.write(batch_of(a=[1.5]))
    with pytest.raises(OutsideError, match="UNIQUE"):
        sink.write(batch_of(a=[1.5]))
    sink.close()
    assert query(path, "SELECT * FROM features") == []


def test_two_runs_that_add_the_same_column(tmp_path: Path) -> None:
    """Both meet a field that the table lacks: the second takes the column of the first, when its values fit there."""
    one, other, third = (sinks.SQLite(tmp_path / "rows.db", if_exists="append") for _ in range(3))
    for sink in (one, other, third):
        sink.open(OPEN)
        sink.write(Batch.from_rows([{"n": 1}]))
        sink.flush()
    for sink in (one, other):
        sink.write(Batch.from_rows([{"n": 2, "unit": "C"}]))
        sink.close()
    with pytest.raises(InputError, match=r"Column 'unit' .* is TEXT"):
        third.write(Batch.from_rows([{"n": 3, "unit": 1.5}]))
    third.close()
    with closing(sqlite3.connect(tmp_path / "rows.db")) as connection:
        assert connection.execute("SELECT * FROM features").fetchall() == [(1, None)] * 3 + [(2, "C")] * 2


def test_two_runs_that_make_the_same_table(tmp_path: Path) -> None:
    """Both have begun before there was one."""
    one, other = (sinks.SQLite(tmp_path / "rows.db", if_exists="append") for _ in range(2))
    for sink in (one, other):
        sink.open(OPEN)
    for sink in (one, other):
        sink.write(Batch.from_rows([{"n": 1}]))
        sink.close()
    with closing(sqlite3.connect(tmp_path / "rows.db")) as connection:
        assert connection.execute("SELECT * FROM features").fetchall() == [(1,)] * 2


def test_two_runs_of_which_each_wants_the_table_for_itself(tmp_path: Path) -> None:
    """The second is told whose table it is, and what it can do."""
    one, other = (sinks.SQLite(tmp_path / "rows.db") for _ in range(2))
    for sink in (one, other):
        sink.open(OPEN)
    one.write(Batch.from_rows([{"n": 1}]))
    one.close()
    with pytest.raises(InputError, match=r"Another run has made table 'features' .* if_exists=\"append\""):
        other.write(Batch.from_rows([{"n": 1}]))
    other.close()
    assert query(tmp_path / "rows.db", "SELECT * FROM features") == [(1,)]


def test_fields_for_which_a_table_has_no_room(tmp_path: Path) -> None:
    """The rows are written without them, they are counted, and room is kept for what the plan makes."""
    path = tmp_path / "features.db"
    sink = sinks.SQLite(path, name="rows")
    sink.open(Schema([Field("mean", Kind.FLOAT)], open=True))
    sink.write(Batch.from_rows([{"value": 1.5}, {"value": 2.5, **dict.fromkeys((f"a{i}" for i in range(1990)), 1.0)}]))
    sink.write(Batch.from_rows([{"value": 3.5, **dict.fromkeys((f"b{i}" for i in range(20, 0, -1)), 2.0)}]))
    sink.write(batch_of(value=[4.5], b1=[3.0], b9=[4.0], mean=[0.5], none=[None]))
    sink.close()
    names = [row[1] for row in query(path, "PRAGMA table_info(features)")]
    assert len(names) == 2000
    assert [name for name in names if name.startswith("b")] == [f"b{i}" for i in (16, 15, 14, 13, 12, 11, 10, 1)]
    assert query(path, "SELECT value, b1, mean FROM features") == [
        (1.5, None, None), (2.5, None, None), (3.5, 2.0, None), (4.5, 3.0, 0.5),
    ]  # fmt: skip
    left_out = sink.statistics().left_out
    assert left_out["b9 (no room)"] == 2
    told = sink.whys_left_out(list(left_out))
    assert len(told) == 1
    assert all(said in "".join(told.values()) for said in (str(path), "columns=[...]", "and others"))
    assert sink.whys_left_out(["c (no room)"]) == {}


def test_a_run_goes_on_when_a_table_has_no_room(tmp_path: Path, lanes: int, caplog: pytest.LogCaptureFixture) -> None:
    """The report counts the fields, one sentence names the first of them, and room is kept for what holds the time."""
    rows = [{"sensor": "S1", "value": 0.5, **{f"{letter}{i}": 1.0 for i in range(1000)}} for letter in "ab"]
    rows.append({"sensor": "S1", "value": 1.5, "time": 1_709_251_200.0})
    pipeline = tm.Pipeline(tm.sources.Records(iter(rows)), tm.Plan(), sinks.SQLite(tmp_path / "f.db"))
    with caplog.at_level(logging.WARNING, "tidemill"):
        report = tm.run(pipeline, lanes=lanes, dead_letters=tmp_path / "dead.ndjson")
    assert report.rows_out == report.sinks["sqlite"] == 3
    assert report.left_out == {"sqlite": {f"b{i} (no room)": 1 for i in (997, 998, 999)}}
    assert [record.getMessage() for record in caplog.records if "no room" in record.getMessage()] == [
        (
            f"sink sqlite: {tmp_path}/f.db, table 'features' has no room for all fields: 'b997', 'b998', 'b999' are left out of "
            "the rows, as are those that come later; the report counts them; name the columns you want with columns=[...]"
        )
    ]
    assert query(tmp_path / "f.db", "SELECT b996, time FROM features") == [
        (None, None),
        (1.0, None),
        (None, 1_709_251_200.0),
    ]


def test_the_fields_that_find_room_depend_on_the_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever batches end, and when rows come again after a crash."""
    monkeypatch.setattr("tidemill.sinks.sqlite_table.MOST_COLUMNS", 5)
    rows: list[dict[str, Any]] = [{"n": 0}, {"n": 1, "c": 1}, {"n": 2, "z": 2, "a": 2, "A": 2}, {"n": 3, "B": 3}]
    for end in range(1, 5):
        folder = tmp_path / str(end)
        folder.mkdir()
        path = folder / "features.db"
        for epoch in (1, 2):  # what the first start has written is never committed
            sink = sinks.SQLite(path)
            sink.roles = ("time",)
            assert sink.resume(OPEN, Keeping(folder, "plant", epoch)) == 0
            for batch in filter(None, (rows[:end], rows[end:])):
                sink.write(Batch.from_rows(batch))
            assert sink.statistics().left_out == {"z (no room)": 1, "B (no room)": 1}
            if epoch == 2:
                sink.commit(4)
            sink.close()
        columns = sorted(row[1] for row in query(path, "PRAGMA table_info(features)"))
        assert columns == ["A_2", "a", "c", "n"]
        assert query(path, "SELECT n, c, a, a_2 FROM features") == [
            (0, None, None, None), (1, 1, None, None), (2, None, 2, 2), (3, None, None, None),
        ]  # fmt: skip


def test_a_plan_of_too_many_columns(tmp_path: Path) -> None:
    """It is known before a row is written, and ends in a sentence that says what to do."""
    columns = [f"c{i}" for i in range(2001)]
    sink = sinks.SQLite(tmp_path / "features.db", columns=columns)
    sink.open(OPEN)
    with pytest.raises(InputError, match=r"2000.*columns=\["):
        sink.write(Batch.from_rows([dict.fromkeys(columns, 1.5)]))
    sink.close()


def test_records_without_fields(tmp_path: Path) -> None:
    """The first must have one; later ones are rows of nulls."""
    path = tmp_path / "features.db"
    sink = sinks.SQLite(path)
    sink.open(OPEN)
    with pytest.raises(InputError, match="no fields"):
        sink.write(Batch.from_rows([{}]))
    sink.close()
    sink.open(OPEN)
    sink.write(batch_of(a=[1.5]))
    sink.write(Batch.from_rows([{}, {}]))
    sink.close()
    assert query(path, "SELECT * FROM features") == [(1.5,), (None,), (None,)]


def test_a_text_that_utf8_cannot_hold_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    """sqlite3 stops there; still every row is written once, in order, the bad half character as ``?``."""
    path = tmp_path / "features.db"
    rows = [{"n": n, "text": "\ud800" if n == 500 else "é"} for n in range(1001)]
    sink = sinks.SQLite(path)
    sink.open(OPEN)
    sink.write(batch_of(n=[-1], text=["first"]))
    sink.write(Batch.from_rows(rows))
    sink.close()
    got = query(path, "SELECT n, text FROM features")
    assert got == [(-1, "first"), *((n, "?" if n == 500 else "é") for n in range(1001))]
