"""``tidemill demo``, as ``make demo`` starts it."""

from __future__ import annotations

import contextlib
import re
import shlex
import sqlite3
import subprocess

import pytest


def test_the_demo_ends_with_features_and_a_query_that_works(tidemill, tmp_path) -> None:
    """Both sources' sensors are in the database, of the same time; the query that is printed for pasting shows them."""
    told = tidemill("demo", "--seconds", 1.5, "--rate", 2000, "--lanes", 1)
    assert told.returncode == 0, told.stderr
    assert "time behind" not in told.stdout
    lines = told.stdout.splitlines()
    for words in ("records/s", "lanes", "batch p50", "queue", "latency p50", "loop lag p50"):
        assert any(words in line for line in lines[1:-4]), words
    with contextlib.closing(sqlite3.connect(tmp_path / "tidemill-demo.db")) as database:
        sensors = {sensor for (sensor,) in database.execute("SELECT DISTINCT sensor FROM features")}
        (rows,) = database.execute("SELECT count(*) FROM features").fetchone()
    assert {"S000", "S999", "cpu0.load", "memory.used_percent"} <= sensors
    assert re.search(rf"{rows:,} rows out", told.stdout)
    shown = subprocess.run(shlex.split(lines[-1]), cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert len(shown.splitlines()) >= 10


@pytest.mark.slow
def test_the_demo_replaces_its_own_database_and_no_other(tidemill, write) -> None:
    """Run twice, it works twice; pointed at somebody's file, it refuses."""
    run = ("demo", "--seconds", 0.2, "--rate", 1000, "--lanes", 0)
    assert tidemill(*run).returncode == 0
    assert tidemill(*run).returncode == 0
    mine = write("mine.db", "my own words")
    refused = tidemill(*run, "--output", mine)
    assert refused.returncode == 4
    assert str(mine) in refused.stderr
    assert mine.read_text() == "my own words"
