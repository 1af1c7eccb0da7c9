"""A run says what is missing in its output: records, and columns."""

from __future__ import annotations

import logging

import pytest

import tidemill as tm
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


def test_a_good_run_says_nothing(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    """No letter, no line."""
    assert run(tm.Plan(), tmp_path, caplog) == []


def test_a_sinks_misspelled_column_is_told_once_it_can_be_known(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    """Behind a function the columns are known when it has made some; rows are written without the one."""
    sink = tm.sinks.Lines(tmp_path / "out.ndjson", columns=["sensor", "vlue"])
    pipeline = tm.Pipeline(tm.sources.Records(ROWS), tm.Plan(tm.Map(lambda batch: {"x": batch["value"]})), sink)
    with caplog.at_level(logging.WARNING, "tidemill"):
        tm.run(pipeline, lanes=0)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == "sink lines: there is no column 'vlue' so far; the columns are: sensor, time, value, x"
