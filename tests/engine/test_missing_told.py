"""A run says what is missing in its output: records, and columns."""

from __future__ import annotations

import json
import logging
import os
import threading

import pytest

import tidemill as tm
from tidemill.engine.missing_told import tell_of_late
from tidemill.testing import ListSink

ROWS = [{"sensor": "S1", "time": float(n), "value": float(n)} for n in range(5)]


def run(plan: tm.Plan, tmp_path, caplog: pytest.LogCaptureFixture) -> list[str]:
    pipeline = tm.Pipeline(tm.sources.Records(ROWS), plan, ListSink())
    with caplog.at_level(logging.WARNING, "tidemill"):
        tm.run(pipeline, lanes=0, dead_letters=tmp_path / "dead.ndjson")
    return [record.getMessage() for record in caplog.records]


def test_a_misspelled_column_is_told(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    """How many records, where they are, and the first reason with its stage."""
    (told,) = run(tm.Plan(tm.Map(lambda batch: {"x": batch["valeu"]})), tmp_path, caplog)
    assert told.startswith(
        f"5 of 5 records are dead letters, in {tmp_path / 'dead.ndjson'}; the first of them, at Map("
    )
    assert "there is no column 'valeu'" in told


def test_rows_that_stages_made_are_no_records(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    """A function that fails on windows costs their rows."""
    plan = tm.Plan(tm.Aggregate(tm.tumbling("2s"), {"failing": ("value", lambda values: 1 / 0)}))
    (told,) = run(plan, tmp_path, caplog)
    assert told.startswith(f"3 rows that stages made are dead letters, in {tmp_path / 'dead.ndjson'}")


def test_a_good_run_says_nothing(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    """No letter, no line."""
    assert run(tm.Plan(), tmp_path, caplog) == []


@pytest.mark.parametrize(("max_ahead", "told"), [(None, ["9 of 13 records came late and are left out"]), ("1h", [])])
def test_where_most_records_are_late_it_is_told(
    caplog: pytest.LogCaptureFixture, max_ahead: str | None, told: list[str]
) -> None:
    """One clock that is ahead, by less than a recording may have holes, takes all records after it along."""
    rows = [{"sensor": "a", "time": 1_700_000_000 + 3 * n, "value": 1.0} for n in range(12)]
    rows.insert(3, {"sensor": "b", "time": 1_700_000_000 + 20 * 86_400, "value": 9.0})
    plan = tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"value": "sum"}))
    with caplog.at_level(logging.WARNING, "tidemill"):
        tm.run(tm.Pipeline(tm.sources.Records(rows), plan, ListSink(), lag=0, max_ahead=max_ahead), lanes=0)
    heard = [record.getMessage() for record in caplog.records]
    assert [line[: len(start)] for line, start in zip(heard, told, strict=True)] == told
    assert all("max_ahead=" in line for line in heard)


@pytest.mark.parametrize(("names", "late", "told"), [(("a", "b"), 1, True), (("a", "b"), 0, False), (("a",), 1, False)])
def test_recordings_that_are_read_side_by_side_are_told_of(
    caplog: pytest.LogCaptureFixture, names: tuple[str, ...], late: int, told: bool
) -> None:
    """Which of their records are late is chance, however few they are, and one Replay would have none."""
    sources = [tm.sources.Replay(f"{name}.csv", name=name) for name in names]
    report, plan = tm.Report(records_in=100, late=late), tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"value": "sum"}))
    with caplog.at_level(logging.WARNING, "tidemill"):
        tell_of_late(report, plan, sources)
    heard = [record.getMessage() for record in caplog.records]
    assert len(heard) == told
    assert all(line.startswith("1 of 100 records came late and are left out: a and b are sources") for line in heard)
    assert all(
        'one Replay, which merges them by time and whose path may be a pattern (Replay("part-*.csv"))' in line
        for line in heard
    )


def test_where_eight_records_made_the_others_late_no_option_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """A shorter max_ahead= would not pass them over."""
    rows = [{"sensor": "a", "time": 1_700_000_000 + n, "value": 1.0} for n in range(60)]
    rows[20:20] = [{"sensor": "g", "time": 1_700_000_000 + 936 * 86_400 + n, "value": 9.0} for n in range(8)]
    plan = tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"value": "sum"}))
    with caplog.at_level(logging.WARNING, "tidemill"):
        tm.run(tm.Pipeline(tm.sources.Records(rows), plan, ListSink(), max_ahead="1h"), lanes=0)
    (told,) = [record.getMessage() for record in caplog.records]
    assert "eight records in a row" in told
    assert "max_ahead" not in told


def test_what_dedup_drops_as_late_is_no_matter_of_the_watermark(caplog: pytest.LogCaptureFixture) -> None:
    """Its own options are named, and those of the pipeline only where a stage follows the watermark, too."""
    rows = [{"sensor": "a", "time": 1_700_000_000 + n, "value": 1.0} for n in range(60)]
    rows.insert(5, {"sensor": "a", "time": 1_700_000_000 + 936 * 86_400, "value": 1.0})
    sums = tm.Aggregate(tm.tumbling("10s"), {"value": "sum"})
    for stages in ([], [sums], [tm.Silence("1h")]):
        plan = tm.Plan(tm.Dedup(late="drop"), *stages)
        with caplog.at_level(logging.WARNING, "tidemill"):
            tm.run(tm.Pipeline(tm.sources.Records(rows), plan, ListSink()), lanes=0)
    alone, summed, silent = [record.getMessage() for record in caplog.records]
    assert alone == silent
    assert alone.startswith('55 of 61 records came late and are left out: Dedup with late="drop" has forgotten')
    assert "within=" in alone
    assert "lag=" not in alone
    assert "max_ahead=" not in alone
    assert summed.startswith(alone)
    assert "max_ahead=" in summed


def test_a_sinks_misspelled_column_is_told_once_it_can_be_known(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    """Behind a function the columns are known when it has made some; rows are written without the one."""
    sink = tm.sinks.Lines(tmp_path / "out.ndjson", columns=["sensor", "vlue"])
    pipeline = tm.Pipeline(tm.sources.Records(ROWS), tm.Plan(tm.Map(lambda batch: {"x": batch["value"]})), sink)
    with caplog.at_level(logging.WARNING, "tidemill"):
        tm.run(pipeline, lanes=0)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == "sink lines: there is no column 'vlue' so far; the columns are: sensor, time, value, x"


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({}, ["measurement"]),
        ({"measurement": "{site}/{sensor}"}, ["site"]),
        ({"measurement": "m", "tags": ["sensor", "site"], "time": "when"}, ["site", "when"]),
        ({"measurement": "m", "columns": ["vlue", "x"]}, ["vlue"]),
        ({"measurement": "m", "tags": "text"}, []),
        ({"measurement": "{sensor}"}, []),
    ],
)
def test_columns_that_lines_are_to_be_made_of_are_told(
    tmp_path, caplog: pytest.LogCaptureFixture, options: dict, missing: list[str]
) -> None:
    """Of line protocol: those of the measurement, without which there is no line, the tags and the time."""
    sink = tm.sinks.Lines(tmp_path / "out.influx", **options)
    pipeline = tm.Pipeline(tm.sources.Records(ROWS), tm.Plan(tm.Map(lambda batch: {"x": batch["value"]})), sink)
    with caplog.at_level(logging.WARNING, "tidemill"):
        tm.run(pipeline, lanes=0)
    told = [record.getMessage() for record in caplog.records if "no column" in record.getMessage()]
    assert told == [
        f"sink lines: there is no column {name!r} so far; the columns are: sensor, time, value, x" for name in missing
    ]


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ([tm.Rolling("valeu", window=2)], ["Rolling('valeu', 2) reads column 'valeu'"]),
        ([tm.Calibrate({"S1": (0.0, 1.0)}, "valeu"), tm.Rolling("normalized", window=2)], ["Calibrate('valeu')"]),
        ([tm.Rolling("value", window=2)], []),
        ([tm.Rolling("value", window=2), tm.Select("value_mean_2")], []),
        ([tm.Aggregate(tm.tumbling("2s"), {"value": "mean"})], []),
        ([tm.Map(lambda batch: {"y": batch["value"]}), tm.Rolling("y", window=2)], []),
        ([tm.Rolling("value", window=2), tm.MapRows(lambda rows: [{"z": 1.0} for _ in rows])], []),
    ],
)
def test_a_stage_whose_column_does_not_come_is_told(
    tmp_path, caplog: pytest.LogCaptureFixture, stages: list, told: list[str]
) -> None:
    """Of lines, whose columns only the first records show; with the columns that there are. What stages drop is not missed."""
    path = tmp_path / "in.pipe"
    os.mkfifo(path)
    lines = b"".join(json.dumps({**row, "time": row["time"]}).encode() + b"\n" for row in ROWS)
    pipeline = tm.Pipeline(tm.sources.Lines(path), tm.Plan(*stages), ListSink())
    writing = threading.Thread(target=path.write_bytes, args=(lines,))
    writing.start()
    with caplog.at_level(logging.WARNING, "tidemill"):
        tm.run(pipeline, lanes=0, state=None)
    writing.join()
    heard = [record.getMessage() for record in caplog.records]
    assert len(heard) == len(told)
    assert all(
        words in line and "their columns are: sensor, time, value" in line
        for words, line in zip(told, heard, strict=True)
    )
