"""The demo's parts."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import tidemill as tm
from tidemill.app import demo
from tidemill.engine.metrics import Statistics


def made_by_a_demo(path: Path) -> None:
    rows = tm.Plan(*demo.demo_pipeline(path, 1.0).plan.stages).apply([{"sensor": "a", "time": 0, "value": 1.0}])
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"CREATE TABLE features ({', '.join(rows[0])})")


def test_surprise_is_the_distance_in_standard_deviations() -> None:
    """And 0 where there is no spread yet, or no reading."""
    rows = [
        {"normalized": 3.0, "normalized_mean_50": 1.0, "normalized_std_50": 0.25},
        {"normalized": 3.0, "normalized_mean_50": 3.0, "normalized_std_50": None},
        {"normalized": math.nan, "normalized_mean_50": 1.0, "normalized_std_50": 0.5},
    ]
    assert [(row["surprise"], row["alarm"]) for row in demo.surprise(rows)] == [(8.0, True), (0.0, False), (0.0, False)]


def test_an_earlier_demos_database_is_replaced(tmp_path: Path) -> None:
    """With what belongs to it."""
    path = tmp_path / "d.db"
    made_by_a_demo(path)
    (tmp_path / "d.db-wal").touch()
    demo.remove_own(path)
    assert list(tmp_path.iterdir()) == []


def made_and_stopped_at_once(path: Path) -> None:
    """As the sink makes it before there is a reading."""
    pipeline = demo.demo_pipeline(path, 1.0)
    sink = pipeline.sinks[0]
    assert isinstance(sink, tm.sinks.SQLite)
    sink.open(pipeline.check().schemas[-1])
    sink.close()


def test_what_a_demo_left_that_was_stopped_at_once_is_replaced(tmp_path: Path) -> None:
    """Its table has not got the columns yet that its function adds; one with rows and without these is somebody else's."""
    path = tmp_path / "d.db"
    made_and_stopped_at_once(path)
    demo.remove_own(path)
    assert list(tmp_path.iterdir()) == []
    made_and_stopped_at_once(path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("INSERT INTO features (sensor) VALUES ('mine')")
    with pytest.raises(tm.InputError, match="no demo made it"):
        demo.remove_own(path)


@pytest.mark.parametrize("options", [{"lanes": -3}, {"seconds": -1.0}, {"rate": 0.0}])
def test_a_demo_that_is_refused_leaves_the_last_ones_database(tmp_path: Path, options: dict[str, Any]) -> None:
    """What cannot be run has replaced nothing."""
    path = tmp_path / "d.db"
    made_by_a_demo(path)
    before = path.read_bytes()
    with pytest.raises(tm.TidemillError):
        demo.demo(**{"seconds": None, "rate": 1.0, "lanes": 0, "output": path, **options})
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"not a database at all, but long enough to be read as one" * 20])
def test_a_file_that_no_demo_made_is_kept(tmp_path: Path, content: bytes) -> None:
    """Refused with its absolute path and what to type."""
    path = tmp_path / "mine.db"
    path.write_bytes(content)
    with pytest.raises(tm.InputError, match=f"{path} is there and no demo made it; .*--output"):
        demo.remove_own(path)
    assert path.read_bytes() == content


def test_a_database_with_other_tables_is_kept(tmp_path: Path) -> None:
    """Even when one of them looks like a demo's."""
    path = tmp_path / "mine.db"
    made_by_a_demo(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE mine (x)")
    with pytest.raises(tm.InputError):
        demo.remove_own(path)


def test_a_full_database_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, as Ctrl-C would: a second signal would leave at once."""
    raised: list[int] = []
    monkeypatch.setattr(demo.signal, "raise_signal", raised.append)
    monkeypatch.setattr(demo, "MOST_BYTES", 100)
    seen: list[Statistics] = []
    see = demo._until_full(tmp_path / "d.db", seen.append)
    statistics = object.__new__(Statistics)
    see(statistics)
    assert raised == []
    (tmp_path / "d.db").write_bytes(b"x" * 60)
    (tmp_path / "d.db-wal").write_bytes(b"x" * 60)
    see(statistics)
    see(statistics)
    assert raised == [demo.signal.SIGINT]
    assert len(seen) == 3
