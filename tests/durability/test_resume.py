"""A run that was stopped, in any way, and goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.chaos.small_plants import count_in, patient
from tests.durability.endless import Endless

import tidemill as tm
from tidemill.engine.checkpoint_store import CheckpointStore
from tidemill.testing import ListSink


def recording(path: Path, records: int, sensors: int = 7, *, bad_every: int = 97) -> None:
    with path.open("w") as file:
        for n in range(records):
            if n % bad_every == bad_every // 2:
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
tm.run(pipeline, lanes={lanes}, state=tm.State("state", checkpoint_s={checkpoint_s}))
"""


def child(folder: Path, body: str, lanes: int, *, checkpoint_s: float = 0.05) -> subprocess.Popen[bytes]:
    script = CHILD.format(body=textwrap.dedent(body), lanes=lanes, checkpoint_s=checkpoint_s)
    return subprocess.Popen([sys.executable, "-c", script], cwd=folder, start_new_session=True)


PACED = """
plan = tm.Plan(tm.Rolling("value", window=50, stats=["mean", "std"]), tm.Lag("value"))
pipeline = tm.Pipeline(tm.sources.Replay("in.ndjson", pace=60.0), plan, tm.sinks.SQLite("out.db"), name="plant")
"""


def until(running: subprocess.Popen[bytes], so: Callable[[], bool]) -> None:
    """Or until it has ended, whichever comes first."""
    for _ in patient():
        if running.poll() is not None or so():
            return


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed_with_more_than(rows: int, running: subprocess.Popen[bytes], output: Path) -> None:
    """kill -9 of the whole family, as soon as there are more rows than that."""
    until(running, lambda: count_in(output) > rows)
    assert running.poll() is None, "it ended before it was killed"
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path, lanes):
    """Five times kill -9 of the whole family, each as soon as more rows are there than before."""
    recording(tmp_path / "in.ndjson", 6_000)
    tm.run(pipeline(tmp_path, "whole.db"), lanes=0, dead_letters=tmp_path / "dead.ndjson")
    for _ in range(5):
        killed_with_more_than(count_in(tmp_path / "out.db"), child(tmp_path, PACED, lanes), tmp_path / "out.db")
    tm.run(pipeline(tmp_path), lanes=lanes, state=tmp_path / "state")
    assert rows(tmp_path / "out.db") == rows(tmp_path / "whole.db")
    assert (tmp_path / "state" / "dead_letters.ndjson").read_text() == (tmp_path / "dead.ndjson").read_text()


BEFORE_THE_FIRST = """
from tidemill.engine.checkpoint_store import CheckpointStore
CheckpointStore.write = lambda *_: os.kill(os.getpid(), 9)
plan = tm.Plan(tm.Calibrate("calibration.csv"), tm.Rolling("normalized", window=50, stats=["mean"]))
pipeline = tm.Pipeline(tm.sources.Replay("in", pace=1.0), plan, tm.sinks.SQLite("out.db"), name="plant")
"""
"""By its pace, the recording has a million seconds between what is committed and the rest."""


def test_what_a_recording_began_with_is_known_though_it_was_killed_before_its_first_checkpoint(tmp_path, monkeypatch):
    """Rows are committed, no checkpoint is there; then the calibration is another, and a file came beside the recording."""

    def calibrated(output: str) -> tm.Pipeline:
        stages = tm.Calibrate("calibration.csv"), tm.Rolling("normalized", window=50, stats=["mean"])
        return tm.Pipeline(tm.sources.Replay("in"), tm.Plan(*stages), tm.sinks.SQLite(output), name="plant")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    recording(tmp_path / "in" / "a.ndjson", 100)
    with (tmp_path / "in" / "a.ndjson").open("a") as file:
        file.writelines(f'{{"sensor": "S{n % 7}", "time": {1e6 + n}, "value": {n % 13}}}\n' for n in range(100))
    (tmp_path / "calibration.csv").write_text("sensor,baseline,scale\n*,0,1\n")
    tm.run(calibrated("whole.db"), lanes=0, dead_letters=tmp_path / "dead.ndjson")
    assert child(tmp_path, BEFORE_THE_FIRST, 0).wait() == -signal.SIGKILL
    assert 0 < count_in(tmp_path / "out.db") < 200
    assert not list((tmp_path / "state" / "checkpoints").iterdir())
    (tmp_path / "calibration.csv").write_text("sensor,baseline,scale\n*,0,100\n")
    (tmp_path / "in" / "b.ndjson").write_text('{"sensor": "S0", "time": 0.1, "value": 1}\n')
    tm.run(calibrated("out.db"), lanes=0, state=tmp_path / "state")
    assert rows(tmp_path / "out.db") == rows(tmp_path / "whole.db")


@pytest.mark.parametrize("kind", ["list", "file"])
def test_records_without_a_time_have_that_of_the_first_start_before_a_checkpoint_too(tmp_path, monkeypatch, kind):
    """It is when the reading began, and a start that reads them once more must say the same."""
    values = [{"sensor": "S1", "value": n} for n in range(3)]
    (tmp_path / "in.ndjson").write_text("".join(f"{json.dumps(row)}\n" for row in values))
    monkeypatch.setattr(CheckpointStore, "write", lambda *_: 0)  # as if it died before each
    times = []
    for _ in range(2):
        source = tm.sources.Records(values) if kind == "list" else tm.sources.Lines(tmp_path / "in.ndjson")
        sink = ListSink()
        tm.run(tm.Pipeline(source, tm.Plan(), sink, name="plant"), lanes=0, state=tmp_path / "state")
        times.append([ns for batch in sink.batches for ns in batch.time.tolist()])
    assert len(times[0]) == 3
    assert times[0] == times[1]


def test_letters_between_records_stay_on_their_side_of_a_checkpoint(tmp_path, lanes):
    """Every other line is bad, and a checkpoint is taken as often as can be."""
    recording(tmp_path / "in.ndjson", 6_000, bad_every=2)
    tm.run(pipeline(tmp_path, "whole.db"), lanes=0, dead_letters=tmp_path / "dead.ndjson")
    for _ in range(4):
        running = child(tmp_path, PACED, lanes, checkpoint_s=0.001)
        killed_with_more_than(count_in(tmp_path / "out.db") + 300, running, tmp_path / "out.db")
    tm.run(pipeline(tmp_path), lanes=lanes, state=tmp_path / "state")
    assert rows(tmp_path / "out.db") == rows(tmp_path / "whole.db")
    assert (tmp_path / "state" / "dead_letters.ndjson").read_text() == (tmp_path / "dead.ndjson").read_text()


def test_a_history_fills_the_windows_before_the_first_input(tmp_path, lanes):
    """Its rows go nowhere; the run's own are those of both recordings, one behind the other."""
    recording(tmp_path / "in.ndjson", 1_000)
    lines = (tmp_path / "in.ndjson").read_text().splitlines(keepends=True)
    (tmp_path / "history.ndjson").write_text("".join(lines[:500]))
    (tmp_path / "rest.ndjson").write_text("".join(lines[500:]))
    tm.run(pipeline(tmp_path, "whole.db"), lanes=0, dead_letters=tmp_path / "dead.ndjson")
    state = tm.State(tmp_path / "state", warm=tm.sources.Replay(tmp_path / "history.ndjson"))
    own = tm.Pipeline(tm.sources.Replay(tmp_path / "rest.ndjson"), plan(), tm.sinks.SQLite(tmp_path / "out.db"))
    report = tm.run(own, lanes=lanes, state=state)
    whole = rows(tmp_path / "whole.db")
    assert rows(tmp_path / "out.db") == whole[len(whole) - report.rows_out :]
    assert 400 < report.rows_out < 600


def test_another_number_of_lanes_goes_on_with_the_same_state(tmp_path):
    recording(tmp_path / "in.ndjson", 6_000)
    tm.run(pipeline(tmp_path, "whole.db"), lanes=0, dead_letters=tmp_path / "dead.ndjson")
    seen = 0
    for lanes in (2, 1, 3):
        running = child(tmp_path, PACED, lanes)
        until(running, lambda seen=seen: count_in(tmp_path / "out.db") > seen)
        assert running.poll() is None, "it ended before it was stopped"
        os.kill(running.pid, signal.SIGTERM)
        assert running.wait() == 0
        seen = count_in(tmp_path / "out.db")
    tm.run(pipeline(tmp_path), lanes=2, state=tmp_path / "state")
    assert rows(tmp_path / "out.db") == rows(tmp_path / "whole.db")


def test_a_stage_that_is_added_starts_empty_and_the_others_go_on(tmp_path, lanes):
    """What is added has seen nothing of what was before; and state is not lost unless that is said."""
    recording(tmp_path / "in.ndjson", 6_000)
    running = child(tmp_path, PACED, lanes)
    until(running, lambda: count_in(tmp_path / "out.db") >= 1_000)
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait() == 0
    before = count_in(tmp_path / "out.db")
    changed = tm.Plan(tm.Rolling("value", window=50, stats=["mean", "std"]), tm.Diff("value"))
    pipe = tm.Pipeline(
        tm.sources.Replay(tmp_path / "in.ndjson"), changed, tm.sinks.SQLite(tmp_path / "out.db"), name="plant"
    )
    with pytest.raises(tm.PlanError, match="--drop-state"):
        tm.run(pipe, lanes=lanes, state=tmp_path / "state")
    tm.run(pipe, lanes=lanes, state=tm.State(tmp_path / "state", drop_state=("Lag('value')",)))
    tm.run(pipeline(tmp_path, "whole.db"), lanes=0, dead_letters=tmp_path / "dead.ndjson")
    query = "SELECT sensor, time, value, value_mean_50, value_std_50 FROM features ORDER BY rowid"
    with (
        contextlib.closing(sqlite3.connect(tmp_path / "out.db")) as own,
        contextlib.closing(sqlite3.connect(tmp_path / "whole.db")) as whole,
    ):
        assert own.execute(query).fetchall() == whole.execute(query).fetchall()
        (first,) = own.execute("SELECT value_diff_1 FROM features WHERE rowid = ?", (before + 1,)).fetchone()
    assert first is None


async def test_a_plan_of_which_nothing_goes_on_begins_empty_where_the_input_stands(tmp_path, lanes):
    """Once what would be lost is named: no record is worked on again."""
    made: list[dict[str, object]] = []

    async def goes_on(stage: tm.Stage, values: list[float], *dropped: str) -> None:
        there = asyncio.Event()

        def take(rows: list[dict[str, object]]) -> None:
            made.extend(rows)
            if made[-1]["value"] == values[-1]:
                there.set()

        source = Endless([[{"sensor": "S1", "time": value, "value": value} for value in values]])
        pipe = tm.Pipeline(source, stage, tm.sinks.Callback(take, rows=True), name="plant")
        async with tm.serve(pipe, lanes=lanes, state=tm.State(tmp_path / "state", drop_state=dropped)):
            await there.wait()

    await goes_on(tm.Lag("value"), [1.0, 2.0])
    with pytest.raises(tm.PlanError, match=r"--drop-state \"Lag\('value'\)\", or start over with --fresh\."):
        await goes_on(tm.Diff("value"), [3.0, 5.0])
    await goes_on(tm.Diff("value"), [3.0, 5.0], "Lag('value')")
    await goes_on(tm.Diff("value"), [9.0])
    told = [f"{row['value']}: {row.get('value_diff_1')}" for row in made]
    assert told == ["1.0: None", "2.0: None", "3.0: nan", "5.0: 2.0", "9.0: 4.0"]


TWO = """
plan = tm.Plan(tm.Rolling("value", window=50, stats=["mean", "std"]), tm.Lag("value"))
sources = [tm.sources.Replay(name, pace=15.0) for name in ("in.ndjson", "other.ndjson")]
pipeline = tm.Pipeline(sources, plan, tm.sinks.Lines("out.ndjson"), name="plant")
"""


def test_two_recordings_go_through_the_log_and_each_goes_on_where_it_was(tmp_path, lanes):
    """How they were merged is in the log; of each, every record is there once, in its order."""
    recording(tmp_path / "in.ndjson", 3_000)
    recording(tmp_path / "other.ndjson", 3_000, sensors=5)
    out = tmp_path / "out.ndjson"
    seen = 0
    for _ in range(4):
        running = child(tmp_path, TWO, lanes)
        until(running, lambda seen=seen: lines_in(out) > seen)
        assert running.poll() is None, "it ended before it was killed"
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        seen = lines_in(out)
    running = child(tmp_path, TWO.replace(", pace=15.0", ""), lanes)
    assert running.wait() == 0
    made = [json.loads(line) for line in out.read_text().splitlines()]
    merged = [{name: row[name] for name in ("sensor", "time", "value")} for row in made]
    plain = tm.Plan(tm.Rolling("value", window=50, stats=["mean", "std"]), tm.Lag("value")).apply(merged)
    assert [{k: None if v != v else v for k, v in row.items()} for row in plain] == made
    assert len(made) == 6_000
    letters = (tmp_path / "state" / "dead_letters.ndjson").read_text().splitlines()
    assert len(letters) == 62


NUMBERED = """
seen = open("seen", "a")
seen.write("\\n")  # a line that a kill broke off ends here


def note(batch):
    for row, number in zip(batch.to_rows(), batch.sequence.tolist()):
        seen.write(f"{{batch.epoch}} {{number}} {{row['sensor']}} {{row['time']}} {{row['value_mean_50']}} whole\\n")
    seen.flush()


plan = tm.Plan(tm.Rolling("value", window=50, stats=["mean"]))
pipeline = tm.Pipeline(
    tm.sources.Replay("in.ndjson", pace={pace}),
    plan,
    tm.sinks.Callback(note, where="value < 9", columns=["sensor", "time", "value_mean_50"]),
    name="plant",
)
"""


def test_rows_that_a_callback_gets_again_have_the_numbers_that_they_had(tmp_path):
    recording(tmp_path / "in.ndjson", 6_000)
    seen = tmp_path / "seen"
    lines = 0
    for _ in range(3):
        running = child(tmp_path, NUMBERED.format(pace=60.0), 2)
        until(running, lambda lines=lines: lines_in(seen) >= lines + 300)
        assert running.poll() is None, "it ended before it was killed"
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        lines = lines_in(seen)
    assert child(tmp_path, NUMBERED.format(pace="'max'"), 2).wait() == 0
    rows_of: dict[int, set[str]] = {}
    epochs = set()
    for line in seen.read_text().splitlines():
        if not line.endswith(" whole"):
            continue  # broken off by a kill
        epoch, number, row = line.split(" ", 2)
        rows_of.setdefault(int(number), set()).add(row)
        epochs.add(epoch)
    assert epochs == {"1", "2", "3", "4"}
    assert {len(same) for same in rows_of.values()} == {1}, "a number names one row"
    inputs = [n for n in range(6_000) if n % 13 < 9]
    assert sorted(rows_of) == inputs
