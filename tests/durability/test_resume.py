"""A run that was stopped, in any way, and goes on."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import tidemill as tm

PLANT = """
import sys
import tidemill as tm

plan = tm.Plan(
    tm.Rolling("value", window=50, stats=["mean", "std"]),
    tm.Lag("value"),
    tm.Aggregate(tm.tumbling("20s"), stats=["count"], columns="value"),
)
pipeline = tm.Pipeline(tm.sources.Replay("in.ndjson"), plan, tm.sinks.SQLite("out.db"), name="plant")
"""


def recording(path: Path, records: int, sensors: int = 7) -> None:
    with path.open("w") as file:
        for n in range(records):
            if n % 97 == 5:
                file.write("no json\n")
            file.write(f'{{"sensor": "S{n * n % sensors}", "time": {n / 10}, "value": {n % 13}}}\n')


def rows(path: Path) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT * FROM features ORDER BY rowid").fetchall()
    finally:
        connection.close()


def plan() -> tm.Plan:
    return tm.Plan(tm.Rolling("value", window=50, stats=["mean", "std"]), tm.Lag("value"))


def pipeline(folder: Path, output: str = "out.db") -> tm.Pipeline:
    return tm.Pipeline(tm.sources.Replay(folder / "in.ndjson"), plan(), tm.sinks.SQLite(folder / output), name="plant")


def test_a_finished_run_has_a_checkpoint_and_runs_no_more(tmp_path, lanes):
    recording(tmp_path / "in.ndjson", 3_000)
    whole = tm.run(pipeline(tmp_path, "whole.db"), lanes=lanes, dead_letters=tmp_path / "dead.ndjson")
    kept = tm.run(pipeline(tmp_path), lanes=lanes, state=tmp_path / "state")
    assert rows(tmp_path / "out.db") == rows(tmp_path / "whole.db")
    assert kept.rows_out == whole.rows_out
    assert (tmp_path / "state" / "dead_letters.ndjson").read_text() == (tmp_path / "dead.ndjson").read_text()
    again = tm.run(pipeline(tmp_path), lanes=lanes, state=tmp_path / "state")
    assert (again.rows_out, again.resumed_at) == (0, kept.position)
    assert rows(tmp_path / "out.db") == rows(tmp_path / "whole.db")


CHILD = """
import os, sys
import tidemill as tm
{body}
tm.run(pipeline, lanes={lanes}, state=tm.State("state", checkpoint_s=0.05))
"""


def child(folder: Path, body: str, lanes: int) -> subprocess.Popen[bytes]:
    script = CHILD.format(body=textwrap.dedent(body), lanes=lanes)
    return subprocess.Popen([sys.executable, "-c", script], cwd=folder, start_new_session=True)


PACED = """
plan = tm.Plan(tm.Rolling("value", window=50, stats=["mean", "std"]), tm.Lag("value"))
pipeline = tm.Pipeline(tm.sources.Replay("in.ndjson", pace=300.0), plan, tm.sinks.SQLite("out.db"), name="plant")
"""


def committed(path: Path) -> int:
    if not path.exists():
        return 0
    try:
        return len(rows(path))
    except sqlite3.OperationalError:
        return 0


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path, lanes):
    """Five times kill -9 of the whole family, each as soon as more rows are there than before."""
    recording(tmp_path / "in.ndjson", 6_000)
    tm.run(pipeline(tmp_path, "whole.db"), lanes=0, dead_letters=tmp_path / "dead.ndjson")
    seen = 0
    for _ in range(5):
        running = child(tmp_path, PACED, lanes)
        while running.poll() is None and committed(tmp_path / "out.db") <= seen:
            pass
        assert running.poll() is None, "it ended before it was killed"
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        seen = committed(tmp_path / "out.db")
    tm.run(pipeline(tmp_path), lanes=lanes, state=tmp_path / "state")
    assert rows(tmp_path / "out.db") == rows(tmp_path / "whole.db")
    assert (tmp_path / "state" / "dead_letters.ndjson").read_text() == (tmp_path / "dead.ndjson").read_text()
