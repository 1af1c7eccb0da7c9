"""Functions that raise, hang or kill their lane cost the records at fault, and nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest

import tidemill as tm
from tidemill.testing import ListSink

ROWS = [{"sensor": f"S{number % 7}", "time": 1.7e9 + number, "value": float(number)} for number in range(300)]
BAD = {13, 14, 200}


def letters_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(plan, tmp_path, lanes, rows=ROWS, **options):
    sink = ListSink()
    letters = tmp_path / "dead.ndjson"
    report = tm.run(tm.Pipeline(tm.sources.Records(rows), plan, sink), lanes=lanes, dead_letters=letters, **options)
    assert report.in_flight == 0
    gone = report.filtered + report.dead_letters
    assert report.records_in == report.rows_from_records + gone == len(rows)
    assert report.rows_out == len(sink.rows)
    return sink.rows, letters_of(letters), report


def expected_rest(rows=ROWS, bad=BAD):
    return [row["value"] for row in rows if row["value"] not in bad]


def raising(batch):
    if any(value in BAD for value in batch["value"]):
        raise ValueError("no such value")
    return {"twice": batch["value"] * 2}


def test_a_function_that_raises_costs_only_its_records(tmp_path, lanes):
    """Three bad records among 300: three dead letters that name stage, key, place and reason; the rest flows in order."""
    rows, letters, report = run(tm.Map(raising), tmp_path, lanes)
    assert [row["value"] for row in rows] == expected_rest()
    assert [row["twice"] for row in rows] == [2 * value for value in expected_rest()]
    assert {letter["raw"]["value"] for letter in letters} == BAD
    assert {(letter["reason_code"], letter["stage"]) for letter in letters} == {("raised", "Map(raising)")}
    assert [letter["position"] for letter in letters] == sorted(BAD)
    assert all("no such value" in letter["reason"] for letter in letters)
    assert report.dead_letters_by_reason == {"raised": 3}


def stopping_to_look(batch):
    if 7 in batch["value"].tolist():
        breakpoint()  # noqa: T100
    return {}


def test_a_breakpoint_in_a_lane_says_where_it_works(tmp_path):
    """A lane has no terminal; with no lanes the function runs in the process that has."""
    _, (letter,), _ = run(tm.Map(stopping_to_look), tmp_path, lanes=1)
    line = stopping_to_look.__code__.co_firstlineno + 2
    says = "RuntimeError: breakpoint() has no terminal in a lane; with lanes=0 (--lanes 0) it works"
    assert letter["reason"] == f"{says} (stopping_to_look, line {line})"


class Panic(BaseException):
    """As some extensions raise for a fault of theirs."""


def test_what_is_raised_need_not_be_an_exception(tmp_path, lanes):
    """It costs its record, inline and in a lane; it neither hangs the run nor ends the lane."""

    def panics(batch):
        if any(value in BAD for value in batch["value"]):
            raise Panic("deep in Rust")
        return {"twice": batch["value"] * 2}

    rows, letters, report = run(tm.Map(panics), tmp_path, lanes)
    assert [row["value"] for row in rows] == expected_rest()
    assert {letter["reason"].partition(" (")[0] for letter in letters} == {"Panic: deep in Rust"}
    assert report.dead_letters_by_reason == {"raised": 3}
    assert all(lane.restarts == 0 for lane in report.lanes)


def test_an_interrupt_in_a_function_stops_the_program(tmp_path):
    """Inline, a KeyboardInterrupt is whoever raises it to end what runs."""

    def interrupted(batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tm.Map(interrupted), tmp_path, 0)


def test_a_failing_record_stays_in_the_state_of_the_stages_before(tmp_path, lanes):
    """What fails after Rolling has been through Rolling, on every path."""
    rows, _, _ = run(tm.Plan(tm.Rolling("value", 5, ["count", "sum"]), tm.Map(raising)), tmp_path, lanes)
    whole, _, _ = run(tm.Plan(tm.Rolling("value", 5, ["count", "sum"])), tmp_path, lanes)
    kept = [row for row in whole if row["value"] not in BAD]
    assert [row["value_sum_5"] for row in rows] == [row["value_sum_5"] for row in kept]


def test_on_error_nan_keeps_the_record(tmp_path, lanes):
    """A feature never makes raw data vanish, when asked."""
    rows, letters, report = run(tm.Map(raising, on_error="nan", adds={"twice": float}), tmp_path, lanes)
    assert [row["value"] for row in rows] == [row["value"] for row in ROWS]
    assert {row["value"] for row in rows if row["twice"] is None} == BAD
    assert letters == []
    assert report.counters["failed_as_nan"] == 3


def test_on_error_stop_ends_the_run_with_the_reason(tmp_path, lanes):
    """The error names the stage and what was raised."""
    with pytest.raises(tm.StageError, match=r"Map\(raising\).*no such value"):
        run(tm.Map(raising, on_error="stop"), tmp_path, lanes)


@pytest.mark.parametrize("end", ["segfault", "exit"])
def test_a_record_that_kills_its_lane_is_set_aside_alone(tmp_path, end):
    """A segfault or os._exit costs two restarts a record and exactly that record."""

    def deadly(batch):
        if any(value in BAD for value in batch["value"]):
            if end == "segfault":
                ctypes.string_at(0)
            os._exit(3)
        return {"twice": batch["value"] * 2}

    rows, letters, report = run(tm.Plan(tm.Rolling("value", 5, ["sum"]), tm.Map(deadly)), tmp_path, 2)
    assert [row["value"] for row in rows] == expected_rest()
    assert {letter["raw"]["value"] for letter in letters} == BAD
    assert {letter["reason_code"] for letter in letters} == {"killed_lane"}
    assert sum(lane.restarts for lane in report.lanes) <= 2 * len(BAD)
    whole, _, _ = run(tm.Plan(tm.Rolling("value", 5, ["sum"])), tmp_path, 0)
    assert [row["value_sum_5"] for row in rows] == [row["value_sum_5"] for row in whole if row["value"] not in BAD]


NO_FORKS = """
import errno, os
fork, forks = os.fork, []
def refused():
    forks.append(1)
    if len(forks) in {3, 4}:  # those after the first two lanes'
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()
if os.getpid() != APPLICATION:
    os.fork = refused
def work(rows):
    if any(row["value"] == 100 for row in rows):
        try:
            os.close(os.open(MARK, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return rows
        os._exit(3)
    return rows
"""


def test_forks_that_fail_for_a_while_cost_nothing(tmp_path, monkeypatch):
    """A lane dies when the system has no process to give: the others go on, and the run ends with every row."""
    constants = f"APPLICATION, MARK = {os.getpid()}, {str(tmp_path / 'died')!r}\n"
    (tmp_path / "no_forks_for_a_while.py").write_text(constants + NO_FORKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import no_forks_for_a_while

    rows, letters, _ = run(tm.MapRows(no_forks_for_a_while.work), tmp_path, 2)
    assert (tmp_path / "died").exists()
    assert [row["value"] for row in rows] == expected_rest(bad=())
    assert letters == []


def test_a_function_that_hangs_is_stopped_at_its_deadline(tmp_path, hangs):
    """The hanging record goes to the dead letters with its own reason; its neighbours go on."""

    def hanging(batch):
        if any(value == 13.0 for value in batch["value"]):
            hangs()
        return {"twice": batch["value"] * 2}

    rows, letters, _ = run(tm.Map(hanging, deadline_s=60), tmp_path, 2)
    assert [row["value"] for row in rows] == expected_rest(bad={13})
    assert [(letter["reason_code"], letter["raw"]["value"]) for letter in letters] == [("deadline", 13.0)]


def test_a_deadline_that_nothing_enforces_is_told(tmp_path, caplog):
    """Inline nothing can stop a function: one sentence at the start names the stage and what to do."""
    with caplog.at_level("WARNING", "tidemill"):
        run(tm.Map(lambda batch: {"x": batch["value"]}, deadline_s=5, name="slow"), tmp_path, 0)
        run(tm.Map(lambda batch: {"x": batch["value"]}, name="free"), tmp_path, 0)
    (record,) = caplog.records
    assert "deadline_s of slow does nothing; use lanes=1" in record.getMessage()


@pytest.mark.parametrize(
    ("returned", "code"),
    [
        (lambda batch: {"x": np.zeros(len(batch) + 1)}, "wrong_length"),
        (lambda batch: 5, "wrong_type"),
        (lambda batch: {"x": np.zeros((len(batch), 2))}, "wrong_length"),
    ],
)
def test_a_wrong_result_is_told_apart(tmp_path, lanes, returned, code):
    """Wrong lengths and types are dead letters with their own codes, never silent broadcasts."""
    rows, letters, _ = run(tm.Map(returned), tmp_path, lanes, rows=ROWS[:20])
    assert rows == []
    assert {letter["reason_code"] for letter in letters} == {code}
    assert len(letters) == 20


def test_lambdas_closures_and_a_running_loop_work(lanes, tmp_path):
    """Nothing needs a module, a main guard, or the absence of a loop."""
    factor = 3.0
    plan = tm.Plan(tm.Map(lambda batch: {"y": batch["value"] * factor}))
    rows, _, _ = run(plan, tmp_path, lanes)
    assert rows[10]["y"] == 30.0

    async def notebook_cell():
        return run(plan, tmp_path, lanes)[0]

    import asyncio

    assert asyncio.run(notebook_cell()) == rows


def test_a_class_is_built_once_per_lane(tmp_path):
    """Map(Class) makes one object in each lane."""

    class Scorer:
        def __init__(self):
            self.pid = os.getpid()
            self.token = time.monotonic_ns()

        def __call__(self, batch):
            return {"pid": float(self.pid), "token": float(self.token)}

    rows, _, _ = run(tm.Map(Scorer), tmp_path, 2)
    assert len({(row["pid"], row["token"]) for row in rows}) == 2
    assert os.getpid() not in {row["pid"] for row in rows}


def test_rows_come_back_with_their_own_names_types_and_order(tmp_path, lanes):
    """MapRows: int, str, bool, None, nested values, big ints and float times bit for bit."""
    rows = [
        {
            "sensorId": "S3",
            "timestamp": 1700000000.1 + n / 7,
            "value": 51.3 if n % 2 else 51,
            "unit": "C",
            "ok": n % 3 == 0,
            "note": None if n % 5 else "x",
            "big": 2**60 + n,
            "nested": {"a": [1, 2.5, None], "b": n},
        }
        for n in range(100)
    ]

    def enrich(records):
        return [{**record, "normalized": round((record["value"] - 20) / 60, 4)} for record in records]

    sink = ListSink()
    source = tm.sources.Records([dict(row) for row in rows], key="sensorId", time="timestamp")
    tm.run(tm.Pipeline(source, tm.MapRows(enrich), sink), lanes=lanes)
    assert sink.rows == enrich(rows)
    assert [list(map(type, row.values())) for row in sink.rows] == [
        list(map(type, row.values())) for row in enrich(rows)
    ]
    assert [list(row) for row in sink.rows] == [list(row) for row in enrich(rows)]


def test_filters_and_several_sinks_see_the_same_rows(tmp_path, lanes):
    """Every sink gets every row that its where= and columns= ask for, in input order."""
    everything, some = ListSink(), ListSink(where=lambda batch: batch["value"] > 250, columns=["value"])
    table = tm.sinks.SQLite(tmp_path / "out.db", columns=["sensor", "value"])
    plan = tm.Plan(tm.Filter(lambda batch: batch["value"] % 2 == 0))
    report = tm.run(tm.Pipeline(tm.sources.Records(ROWS), plan, [everything, some, table]), lanes=lanes)
    even = [row["value"] for row in ROWS if row["value"] % 2 == 0]
    assert report.filtered == len(ROWS) - len(even)
    assert [row["value"] for row in everything.rows] == even
    assert some.rows == [{"value": value} for value in even if value > 250]
    with contextlib.closing(sqlite3.connect(tmp_path / "out.db")) as connection:
        assert [value for (value,) in connection.execute("SELECT value FROM features ORDER BY rowid")] == even


def test_two_sources_become_one_stream(lanes):
    """Columns are put together by name; a column of another kind is a dead letter, whichever source it comes from."""
    one = tm.sources.Records([{"sensor": "a", "time": 1.0, "value": 1.0}] * 5)
    two = tm.sources.Records([{"sensor": "b", "time": 1.0, "value": 2.0, "unit": "C"}] * 5)
    sink = ListSink()
    report = tm.run(tm.Pipeline([one, two], tm.Plan(tm.Rolling("value", 3, ["sum"])), sink), lanes=lanes)
    assert report.rows_out == 10
    assert sorted({tuple(row) for row in sink.rows}) == [
        ("sensor", "time", "value", "unit", "value_sum_3"),
        ("sensor", "time", "value", "value_sum_3"),
    ]
