"""What an apply or a run leaves out of its numbers, and the user hears of: windows of time that hold more records than
``max_records``, records that came late, and sensors that a table does not have."""

import logging
import warnings

import pytest

import tidemill as tm

ROWS = [{"sensor": "S", "time": 1_700_000_000 + n / 100, "value": float(n)} for n in range(20)]
PLAN = tm.Plan(
    tm.Rolling("value", "30s", ["mean"], max_records=5),
    tm.Rolling("value", "20s", ["mean"], max_records=50),
    tm.Rolling("value", "10s", ["max"], max_records=7),
)


def test_apply_warns_once_for_each_stage_with_the_number():
    """In a notebook there is no report to look at."""
    with pytest.warns(RuntimeWarning) as told:
        PLAN.apply(ROWS)
    assert [str(one.message) for one in told] == [
        f"window_overflow: {20 - room} times: Rolling('value', '{window}') takes a window from its sensor's newest {room} records; "
        "where more come within it, say how many with max_records=."
        for window, room in (("30s", 5), ("10s", 7))
    ]
    assert told[0].filename == __file__


def test_apply_does_not_warn_of_windows_that_have_all_their_records():
    """As many as ``max_records`` are no fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tm.Plan(tm.Rolling("value", "30s", ["mean"], max_records=20)).apply(ROWS)


@pytest.mark.parametrize("lanes", [0, 1])
def test_a_run_logs_it_once(lanes, caplog):
    """With the first of them, and counts the others."""
    sink = tm.testing.ListSink()
    with caplog.at_level(logging.WARNING):
        pipeline = tm.Pipeline(tm.sources.Records(ROWS), PLAN, sink)
        report = tm.run(pipeline, lanes=lanes, limits=tm.Limits(max_records=3))
    assert report.counters == {"window_overflow": 28}
    (said,) = [record.getMessage() for record in caplog.records if "window_overflow" in record.getMessage()]
    assert said.startswith("window_overflow, which the report counts: Rolling('value', '30s') takes a window")


@pytest.mark.parametrize(
    ("stage", "lag"),
    [(tm.Aggregate(tm.tumbling("10s"), {"value": "sum"}), "0s"), (tm.Dedup(within="10s", late="drop"), None)],
)
def test_apply_warns_of_records_that_came_late_and_are_left_out(stage, lag):
    """Once, with their number and who left them out."""
    rows = [{"sensor": "S", "time": 1_700_000_000 + after, "value": 1.0} for after in (0, 30, 5, 60, 6)]
    with pytest.warns(RuntimeWarning) as told:
        tm.Plan(stage).apply(rows, lag=lag)
    assert [str(one.message) for one in told] == [
        f"late: 2 left out by {stage.name}: further out of order than {'lag' if lag else 'within'}= allows."
    ]
    assert told[0].filename == __file__


UNKNOWN = [tm.Calibrate({"S": (0.0, 1.0)}), tm.Lookup({"S": {"line": "A"}})]
STRANGERS = [{"sensor": sensor, "value": 1.0} for sensor in "STTS"]


@pytest.mark.parametrize("stage", UNKNOWN)
def test_apply_warns_of_sensors_that_a_table_does_not_have(stage):
    """What it adds is missing there; who asked for dead letters is told by these."""
    with pytest.warns(RuntimeWarning) as told:
        tm.Plan(stage).apply(STRANGERS)
    (said,) = [str(one.message) for one in told]
    assert said == (
        f"unknown_key: 2 times: {stage.name} has no row for their sensor (it has one for 'S'), and leaves them without a value; "
        'on_error="dead_letter" names each.'
    )


@pytest.mark.parametrize("stage", UNKNOWN)
@pytest.mark.parametrize("lanes", [0, 1])
def test_a_run_logs_once_that_a_table_does_not_have_all_sensors(lanes, stage, caplog):
    """While it runs: the summary at its end is months away in a plant."""
    with caplog.at_level(logging.WARNING):
        pipeline = tm.Pipeline(tm.sources.Records(STRANGERS), tm.Plan(stage), tm.testing.ListSink())
        tm.run(pipeline, lanes=lanes, limits=tm.Limits(max_records=1))
    (said,) = [record.getMessage() for record in caplog.records if "unknown_key" in record.getMessage()]
    assert said.startswith(f"unknown_key, which the report counts: {stage.name} has no row")


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        (tm.Dedup(max_records=2), "Dedup remembers 2 times of each sensor"),
        (tm.Dedup(counter="n"), "Dedup('n') finds no whole number in 'n' of some records"),
    ],
)
def test_records_that_cannot_be_known_for_copies_are_told_of(stage, says):
    """They go on, and a copy may be among them: once, with what to do."""
    rows = [{"sensor": "S", "time": 1_700_000_000 + n % 5, "n": 0.5} for n in range(10)]
    with pytest.warns(RuntimeWarning, match="unchecked: ") as told:
        tm.Plan(stage).apply(rows)
    assert [str(one.message).partition(" times: ")[2].startswith(says) for one in told] == [True]
