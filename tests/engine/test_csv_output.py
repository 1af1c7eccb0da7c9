"""A CSV file has one header: what a run does with fields that are not in it."""

from __future__ import annotations

import logging

import pytest

import tidemill as tm
from tidemill.errors import InputError


def rows_of(count, **odd):
    """Records, the last but one of which has more fields."""
    rows = [{"sensor": "S1", "time": float(n), "value": n + 0.5} for n in range(count)]
    rows[-2].update(odd)
    return rows


def written(source, tmp_path, lanes, **options):
    path = tmp_path / "rows.csv"
    pipeline = tm.Pipeline(source, tm.Plan(), tm.sinks.Lines(path, **options))
    report = tm.run(pipeline, lanes=lanes, dead_letters=tmp_path / "dead.ndjson")
    return path.read_text().splitlines(), report


def test_a_field_that_the_header_lacks_is_left_out_and_counted(tmp_path, lanes, caplog):
    """The record's row is written without it, everything else flows, and one sentence names the field and the file."""
    with caplog.at_level(logging.WARNING, "tidemill"):
        lines, report = written(tm.sources.Records(iter(rows_of(5_000, extra=1, more=None))), tmp_path, lanes)
    assert lines[0] == "sensor,time,value"
    assert [line.split(",")[2] for line in lines[1:]] == [str(n + 0.5) for n in range(5_000)]
    assert report.left_out == {"lines": {"extra": 1, "more": 1}}
    assert report.rows_out == report.records_in == report.sinks["lines"] == 5_000
    told = [record.getMessage() for record in caplog.records if "'extra'" in record.getMessage()]
    assert len(told) == 1
    assert str(tmp_path / "rows.csv") in told[0]


def test_what_is_known_before_the_run_is_in_the_header(tmp_path, lanes):
    """Fields that the source was seen to have are columns, though no record of the first batches has them."""
    lines, report = written(tm.sources.Records(rows_of(900, extra=1)), tmp_path, lanes)
    assert lines[0] == "sensor,time,value,extra"
    assert lines[-2:] == ["S1,898.0,898.5,1", "S1,899.0,899.5,"]
    assert report.left_out == {}


def test_a_file_with_another_header_is_not_added_to(tmp_path, lanes):
    """What the run will bring is known at its start; the columns that would be left out of every row are named."""
    (tmp_path / "rows.csv").write_text("sensor,value\nS1,1.0\n")
    with pytest.raises(InputError, match="'time'"):
        written(tm.sources.Records(rows_of(5)), tmp_path, lanes, if_exists="append")
    assert (tmp_path / "rows.csv").read_text() == "sensor,value\nS1,1.0\n"
