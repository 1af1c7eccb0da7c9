"""``tidemill run``: a pipeline in a file, with its own edges and with others."""

from __future__ import annotations

import contextlib
import csv
import json
import sqlite3

import pytest

RECORDS = 940

STATS = """
import tidemill as tm
plan = tm.Plan(tm.Rolling("value", window=50, stats=["mean"]))
"""


def test_a_recording_runs_with_the_files_own_edges(tidemill, examples, tmp_path) -> None:
    """Calibrated, rolled, with a feature, in a database that is in the current folder."""
    told = tidemill("run", examples / "replay.py")
    assert told.returncode == 0, told.stderr
    assert told.stdout == ""
    assert f"{RECORDS} records in, {RECORDS} rows out" in told.stderr
    with contextlib.closing(sqlite3.connect(tmp_path / "features.db")) as database:
        (surprises, rows) = database.execute("SELECT count(surprise), count(*) FROM features").fetchone()
    assert rows == RECORDS
    assert surprises == RECORDS - 8  # one reading has no spread: the first of each sensor


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["ndjson", "ndjson.gz", "csv", "db", "parquet"])
def test_the_suffix_of_output_says_the_format(tidemill, examples, tmp_path, suffix) -> None:
    """Five ways out of one plan; the report counts every row."""
    told = tidemill("run", examples / "replay.py", "--output", f"out.{suffix}", "--report", "r.json", "--lanes", 0)
    assert told.returncode == 0, told.stderr
    assert (tmp_path / f"out.{suffix}").exists()
    assert json.loads((tmp_path / "r.json").read_text())["rows_out"] == RECORDS
    assert not (tmp_path / "features.db").exists()


@pytest.mark.slow
def test_rows_do_not_depend_on_the_number_of_lanes(tidemill, examples, tmp_path) -> None:
    """Byte by byte."""
    made = []
    for lanes in (0, 1, 2, 3):
        told = tidemill("run", examples / "replay.py", "--output", f"{lanes}.ndjson", "--lanes", lanes)
        assert told.returncode == 0, told.stderr
        made.append((tmp_path / f"{lanes}.ndjson").read_bytes())
    assert made[0].count(b"\n") == RECORDS
    assert len(set(made)) == 1


def test_input_replaces_the_source_and_keeps_its_names(tidemill, examples, write, tmp_path, rows_of) -> None:
    """The file's own source says time="timestamp"; so another file of the same shape needs no options."""
    lines = (examples / "data" / "plant.csv").read_text().splitlines(keepends=True)[:11]
    write("ten.csv", "".join(lines))
    told = tidemill("run", examples / "replay.py", "--input", "ten.csv", "--output", "ten.ndjson")
    assert told.returncode == 0, told.stderr
    rows = rows_of(tmp_path / "ten.ndjson")
    assert [row["timestamp"] for row in rows] == [row["timestamp"] for row in csv.DictReader(lines)]


def test_key_time_and_tz_name_other_fields(tidemill, write, tmp_path, rows_of) -> None:
    """A recording with other names and local times."""
    write("plan.py", STATS)
    write("log.csv", "when,device,value\n2026-07-01 12:00:00,a,1\n2026-07-01 12:00:01,b,5\n2026-07-01 12:00:02,a,3\n")
    words = ["--key", "device", "--time", "when", "--tz", "Europe/Vienna", "--output", "out.ndjson"]
    told = tidemill("run", "plan.py", "--input", "log.csv", *words)
    assert told.returncode == 0, told.stderr
    assert [row["value_mean_50"] for row in rows_of(tmp_path / "out.ndjson")] == [1, 5, 2]


def test_stdin_to_stdout_is_a_filter(tidemill, write) -> None:
    """Rows and nothing else on stdout; what is said to people is on stderr."""
    write("plan.py", STATS)
    lines = "".join(json.dumps({"sensor": "a", "time": i, "value": i}) + "\n" for i in range(3))
    told = tidemill("run", "plan.py", "--input", "-", "--output", "-", input=lines)
    assert told.returncode == 0, told.stderr
    rows = [json.loads(line) for line in told.stdout.splitlines()]
    assert [row["value_mean_50"] for row in rows] == [0, 0.5, 1]
    assert "3 records in" in told.stderr


def test_a_plan_alone_asks_for_its_edges(tidemill, write) -> None:
    """Naming the options that are missing."""
    write("plan.py", STATS)
    told = tidemill("run", "plan.py", "--input", "x.csv")
    assert told.returncode == 3
    assert "add --output PATH" in told.stderr


@pytest.mark.parametrize("lanes", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_report_accounts_for_every_record(tidemill, write, tmp_path, balanced, lanes) -> None:
    """Rows, filtered and dead letters add up to what came in."""
    write(
        "plant.py",
        """
import tidemill as tm
def picky(rows):
    for row in rows:
        if row["value"] == 7:
            raise ValueError("seven")
    return rows
plan = tm.Plan(tm.Filter(lambda batch: batch["value"] < 90), tm.MapRows(picky))
pipeline = tm.Pipeline(
    tm.sources.Records([{"sensor": f"s{i % 4}", "time": i, "value": i} for i in range(100)]), plan, tm.sinks.Lines("o.ndjson")
)
""",
    )
    told = tidemill("run", "plant.py", "--report", "r.json", "--dead-letters", "bad.ndjson", "--lanes", lanes)
    assert told.returncode == 0, told.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["records_in"], report["rows_out"], report["filtered"], report["dead_letters"]) == (100, 89, 10, 1)
    assert balanced(report)
    assert report["dead_letters_by_reason"] == {"raised": 1}
    (letter,) = map(json.loads, (tmp_path / "bad.ndjson").read_text().splitlines())
    assert letter["reason_code"] == "raised"
    assert letter["raw"]["value"] == 7
    assert "seven" in letter["reason"]


def test_seconds_ends_an_endless_source(tidemill, write, tmp_path, rows_of) -> None:
    """With everything read also written."""
    write(
        "live.py",
        """
import asyncio, itertools
import tidemill as tm
async def readings():
    for i in itertools.count():
        yield {"sensor": "a", "time": i, "value": i}
        await asyncio.sleep(0.001)
pipeline = tm.Pipeline(tm.sources.Records(readings()), tm.Rolling("value"), tm.sinks.Lines("out.ndjson"))
""",
    )
    told = tidemill("run", "live.py", "--seconds", 0.5, "--report", "r.json")
    assert told.returncode == 0, told.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["rows_out"] == report["records_in"] == len(rows_of(tmp_path / "out.ndjson")) > 0


@pytest.mark.slow
def test_an_existing_output_is_not_overwritten_unasked(tidemill, examples, tmp_path) -> None:
    """Refused with the file's name and the option to type; --if-exists replace or append does as it says."""
    run = ("run", examples / "replay.py", "--output", "out.csv")
    assert tidemill(*run).returncode == 0
    once = (tmp_path / "out.csv").read_bytes()
    refused = tidemill(*run)
    assert refused.returncode in (3, 4, 5)
    assert str(tmp_path / "out.csv") in refused.stderr
    assert "--if-exists append" in refused.stderr
    assert tidemill(*run, "--if-exists", "replace").returncode == 0
    assert (tmp_path / "out.csv").read_bytes() == once


def test_a_script_that_runs_itself_is_run_once(tidemill, examples) -> None:
    """``tm.run`` at the foot of the file does not run it a second time."""
    told = tidemill("run", examples / "classic.py", "--lanes", 2)
    assert told.returncode == 0, told.stderr
    assert len(told.stdout.splitlines()) == RECORDS
