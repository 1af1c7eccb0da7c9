"""Rows of SQLite that are older than they are to be kept."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidemill as tm
from tidemill import sinks
from tidemill.batch import Batch
from tidemill.errors import InputError, PlanError
from tidemill.schema import Schema
from tidemill.sinks import sqlite_ages
from tidemill.sinks.base import Keeping
from tidemill.sinks.sqlite_ages import Ages

OPEN = Schema(open=True)
S = 10**9
KEEP_S = 1000
START_S = 1_709_251_200  # 2024


def rows_of(seconds: list[float], first: int = 0) -> Batch:
    """One row for each time, numbered."""
    batch = Batch.from_rows([{"n": first + place, "s": second} for place, second in enumerate(seconds)])
    batch.time_ns = np.array([(START_S + second) * S for second in seconds], np.int64)
    return batch


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def left(path: Path) -> list[int]:
    """The numbers of the rows that are there, in the table's own order."""
    return [n for (n,) in query(path, "SELECT n FROM features ORDER BY rowid")]


def written(path: Path, *turns: list[float], keep: float = KEEP_S, first: int = 0, **options: Any) -> sinks.SQLite:
    """Each turn is a transaction."""
    sink = sinks.SQLite(path, keep=keep, **options)
    sink.open(OPEN)
    for turn in turns:
        sink.write(rows_of(turn, first))
        sink.flush()
        first += len(turn)
    sink.close()
    return sink


turns = st.lists(st.lists(st.integers(0, 10 * KEEP_S), min_size=1, max_size=8), min_size=1, max_size=30)


@given(turns=turns, sorting=st.booleans())
def test_no_row_is_deleted_too_soon_and_none_out_of_turn(turns: list[list[int]], sorting: bool) -> None:
    """Whatever the disorder of times: what is left is the end of what was written, and holds all that is young; where times
    are in order, nothing is left that is older than it may be."""
    if sorting:
        flat = sorted(second for turn in turns for second in turn)
        turns = [[flat.pop(0) for _ in turn] for turn in turns]
    flat = [second for turn in turns for second in turn]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.db"
        sink = written(path, *turns)
        there = left(path)
    assert there == list(range(len(flat) - len(there), len(flat)))
    gone = flat[: len(flat) - len(there)]
    assert all(second < max(flat) - KEEP_S for second in gone)
    assert (sink.statistics().rows, sink.statistics().deleted) == (len(flat), len(gone))
    if sorting and len(turns[-1]) == 1:
        assert min(flat[len(gone) :]) >= max(flat) - KEEP_S - 2 * KEEP_S / sqlite_ages.PIECES - max_span(turns)


def max_span(turns: list[list[int]]) -> float:
    return max(max(turn) - min(turn) for turn in turns)


def test_a_transaction_deletes_a_bounded_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a pile of old rows does not hold up the flow; it is gone after some."""
    monkeypatch.setattr(sqlite_ages, "STEP_ROWS", 30)
    path = tmp_path / "features.db"
    written(path, [0.0] * 100)
    counts = []
    for turn in range(4):
        written(path, [2 * KEEP_S], first=100 + turn, if_exists="append")
        counts.append(len(left(path)))
    assert counts == [71, 42, 13, 4]


def test_it_catches_up_with_any_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many as come: a table of five times what is to be kept is as long as that soon."""
    monkeypatch.setattr(sqlite_ages, "STEP_ROWS", 1)
    path = tmp_path / "features.db"
    written(path, [float(second) for second in range(5 * KEEP_S)])
    later = [[float(5 * KEEP_S + 100 * turn + second) for second in range(100)] for turn in range(100)]
    written(path, *later, first=5 * KEEP_S, if_exists="append")
    assert KEEP_S <= len(left(path)) <= KEEP_S + 200


def test_the_file_does_not_grow(tmp_path: Path) -> None:
    """Pages of deleted rows are used again: after ten times what is kept it is as large as after three."""
    sizes = []
    path = tmp_path / "features.db"
    sink = sinks.SQLite(path, keep=KEEP_S)
    sink.open(OPEN)
    for turn in range(100):
        sink.write(rows_of([turn * 100 + place / 10 for place in range(1_000)], turn * 1_000))
        sink.flush()
        sizes.append(query(path, "PRAGMA page_count")[0][0])
    sink.close()
    assert max(sizes) < 1.2 * sizes[30]
    assert sink.statistics().deleted > 85_000


def test_fields_may_be_called_as_sqlite_calls_the_number_of_a_row(tmp_path: Path) -> None:
    """They say nothing of how old a row is; only where there is no name left, the table cannot be kept so."""
    names = ("ROWID", "oid", "_rowid_")
    for count in range(1, 4):
        path = tmp_path / f"{count}.db"
        sink = sinks.SQLite(path, keep=KEEP_S)
        sink.open(OPEN)
        batch = Batch.from_rows([dict.fromkeys(names[:count], 7 - n) | {"n": n} for n in range(4)])
        batch.time_ns = np.array([START_S, START_S + 1, START_S + 5 * KEEP_S, START_S + 5 * KEEP_S]) * S
        if count == 3:
            sink.write(batch)
            with pytest.raises(InputError, match="no number by which keep= could delete"):
                sink.flush()
            sink.close()
            continue
        for part in (batch.slice(0, 2), batch.slice(2, 4)):
            sink.write(part)
            sink.flush()
        sink.close()
        assert query(path, "SELECT n FROM features") == [(2,), (3,)]


def test_a_time_far_ahead_deletes_nothing(tmp_path: Path) -> None:
    """A sensor whose clock is in another century must not empty the table; and its row does not stay for ever."""
    path = tmp_path / "features.db"
    written(path, [0, 10], [10 * 365 * 86_400.0], [20])
    assert left(path) == [0, 1, 2, 3]
    written(path, [10 * KEEP_S], first=4, if_exists="append")
    assert left(path) == [4]


def test_rows_without_a_time_count_from_when_they_were_written() -> None:
    """By the clock that is passed in."""
    ages = Ages("t", KEEP_S * S)
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t (n)")
        for now in (0, KEEP_S * S, 3 * KEEP_S * S):
            connection.execute("INSERT INTO t VALUES (?)", (now,))
            ages.wrote(1, None, now)
            ages.settle(connection, now)
        assert connection.execute("SELECT n FROM t").fetchall() == [(3 * KEEP_S * S,)]
    assert ages.deleted == 2


@pytest.mark.parametrize(
    "meddle",
    [
        "VACUUM",
        "INSERT INTO features (n) VALUES (-1)",
        "DELETE FROM features WHERE n > 5",
        "DELETE FROM features; VACUUM",
        "DELETE FROM features WHERE n < 3; VACUUM",
        "DROP TABLE features",
        "DROP TABLE tidemill_ages",
    ],
)
def test_what_others_do_to_the_table_deletes_nothing_young(tmp_path: Path, meddle: str) -> None:
    """VACUUM gives the rows other numbers; whatever it is, what comes afterwards is all there, and the old goes in time."""
    path = tmp_path / "features.db"
    written(path, [0, 1, 2, 3, 4], [1.5 * KEEP_S] * 5, [1.6 * KEEP_S] * 5)
    assert left(path) == list(range(5, 15))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(meddle)
    there = left(path) if "DROP TABLE f" not in meddle else []
    written(path, [1.7 * KEEP_S] * 5, [2.4 * KEEP_S], first=20, if_exists="append")
    assert left(path) == [*there, 20, 21, 22, 23, 24, 25]
    written(path, [5 * KEEP_S], first=30, if_exists="append")
    assert left(path) == [30]


def test_rows_that_were_there_before_go_in_time(tmp_path: Path) -> None:
    """A table that was written without ``keep`` is taken over."""
    path = tmp_path / "features.db"
    sink = sinks.SQLite(path)
    sink.open(OPEN)
    sink.write(rows_of([0, 1, 2]))
    sink.close()
    written(path, [0.5 * KEEP_S], first=3, if_exists="append")
    assert left(path) == [0, 1, 2, 3]
    written(path, [2 * KEEP_S], first=4, if_exists="append")
    assert left(path) == [4]


def test_with_state_rows_positions_and_deletions_are_one_transaction(tmp_path: Path) -> None:
    """Killed before any commit and gone on: the table is what an uninterrupted run leaves, and so are the notes."""

    def run(folder: Path, killed_before: int | None) -> tuple[list[Any], ...]:
        path, state = folder / "features.db", folder / "state"
        state.mkdir(parents=True)
        epoch, position = 1, 0
        sink = sinks.SQLite(path, keep=KEEP_S, name="rows")
        assert sink.resume(OPEN, Keeping(state, "plant", epoch)) == 0
        while position < 12:
            sink.write(rows_of([300.0 * position, 300.0 * position + 1], 2 * position))
            if position == killed_before:
                killed_before = None
                epoch += 1
                sink = sinks.SQLite(path, keep=KEEP_S, name="rows")
                assert sink.resume(OPEN, Keeping(state, "plant", epoch)) == position
                continue
            position += 1
            sink.commit(position)
        sink.close()
        notes = query(path, "SELECT upto, begun, newest FROM tidemill_ages ORDER BY upto")
        return query(path, "SELECT rowid, n FROM features ORDER BY rowid"), notes

    whole = run(tmp_path / "whole", None)
    assert [n for _, n in whole[0]] == list(range(16, 24))
    for place in range(12):
        assert run(tmp_path / f"killed{place}", place) == whole


def test_a_table_with_a_key_of_its_own_is_refused(tmp_path: Path) -> None:
    """Its numbers say nothing of when a row came."""
    path = tmp_path / "features.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE features (n INTEGER PRIMARY KEY, s REAL)")
    with pytest.raises(InputError, match="primary key of its own"):
        sinks.SQLite(path, keep="7d", if_exists="append").check()


@pytest.mark.parametrize("keep", ["7 weeks", 0, -1, "", True])
def test_what_is_no_duration_is_refused(tmp_path: Path, keep: Any) -> None:
    with pytest.raises(PlanError, match="SQLite: keep"):
        sinks.SQLite(tmp_path / "features.db", keep=keep)
    with pytest.raises(PlanError, match="notes how old rows are"):
        sinks.SQLite(tmp_path / "features.db", "Tidemill_Ages")


def test_a_run_tells_how_many_it_has_deleted(tmp_path: Path, lanes: int) -> None:
    """In its report, whose rows written are all of them; the table has the last ones, whatever type its times are of."""
    rows = [{"sensor": "S1", "time": START_S + 10 * place, "value": place} for place in range(5000)]
    sink = sinks.SQLite(tmp_path / "features.db", keep="1h", columns=["value"])
    report = tm.run(
        tm.Pipeline(tm.sources.Records(rows), tm.Plan(tm.Filter("value >= 0")), sink),
        lanes=lanes,
        limits=tm.Limits(max_records=100),
        state=tmp_path / "state",
    )
    there = query(tmp_path / "features.db", "SELECT min(value), max(value), count(*) FROM features")[0]
    assert there[1] == 4999
    assert there[0] <= 4999 - 360
    assert there[2] == 5000 - there[0]
    assert report.sinks == {"sqlite": 5000}
    assert report.deleted == ({"sqlite": there[0]} if there[0] else {})
