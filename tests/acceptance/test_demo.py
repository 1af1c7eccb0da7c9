"""``tidemill demo``, as ``make demo`` starts it."""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest


def sensors_in(path: Path) -> set[str]:
    """Those of which there are rows; none before there is a table."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            return {sensor for (sensor,) in database.execute("SELECT DISTINCT sensor FROM features")}
    except sqlite3.OperationalError:
        return set()


def test_the_demo_ends_with_features_and_a_query_that_works(tmp_path) -> None:
    """Both sources' sensors are in the database, of the same time; the query that is printed for pasting shows them."""
    output, said, told = (tmp_path / name for name in ("tidemill-demo.db", "said", "told"))
    command = [sys.executable, "-m", "tidemill", "demo", "--rate", "2000", "--lanes", "1"]
    with said.open("w") as stdout, told.open("w") as stderr:
        demo = subprocess.Popen(command, cwd=tmp_path, stdout=stdout, stderr=stderr)
    try:
        while not {"S000", "S999", "cpu0.load", "memory.used_percent"} <= sensors_in(output):
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise AssertionError(f"ended with {demo.wait(0.05)} too early: {told.read_text()}")
        demo.send_signal(signal.SIGINT)
        assert demo.wait(120) == 0, told.read_text()
    finally:
        demo.kill()
        demo.wait()
    assert "time behind" not in said.read_text()
    lines = said.read_text().splitlines()
    for words in ("records/s", "lanes", "batch p50", "queue", "latency p50", "loop lag p50"):
        assert any(words in line for line in lines[1:-4]), words
    with contextlib.closing(sqlite3.connect(output)) as database:
        (rows,) = database.execute("SELECT count(*) FROM features").fetchone()
    assert re.search(rf"{rows:,} rows out", said.read_text())
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
