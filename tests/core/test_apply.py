"""`Plan.apply` over more records than one chunk holds, against a run over the same records."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import tidemill as tm
from tidemill.core import apply as applied

ROWS = [{"sensor": "S", "time": float(n), "value": float(n)} for n in range(10)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 4 records."""
    monkeypatch.setattr(applied, "_RECORDS_AT_ONCE", 4)


def ran(plan, rows=ROWS):
    """What a run makes of the records."""
    sink = tm.testing.ListSink()
    tm.run(tm.Pipeline(tm.sources.Records(rows), plan, sink), lanes=0)
    return sink.rows


@pytest.mark.parametrize("alive", [4, 6, 0, 10])
def test_a_chunk_of_which_nothing_is_left(alive):
    """Columns that stages after a filter add are there, whichever chunks the filter empties."""
    plan = tm.Plan(tm.Filter(lambda b: b["value"] < alive), tm.Map(lambda b: {"feature": b["value"] * 2}))
    assert plan.apply(ROWS) == [{**row, "feature": row["value"] * 2} for row in ROWS[:alive]]
    later = tm.Plan(tm.Filter(lambda b: b["value"] >= alive), tm.Map(lambda b: {"feature": b["value"] * 2}))
    assert later.apply(ROWS) == [{**row, "feature": row["value"] * 2} for row in ROWS[alive:]]


@pytest.mark.parametrize("late", [0, 5, 9])
def test_a_field_that_few_records_have(late, told):
    """A field that a function gives to records of one chunk alone stays with them."""
    plan = tm.Plan(tm.MapRows(lambda rows: [{**r, "late": 1.0} if r["value"] == late else r for r in rows]))
    expected = [{**row, "late": 1.0} if row["value"] == late else row for row in ROWS]
    assert told(plan.apply(ROWS)) == told(expected) == told(ran(plan))


def test_records_keep_their_own_order_of_fields(told):
    """Across chunks, what is added comes after the record's own fields, in the record's own order."""
    rows = [row if n % 3 else dict(reversed(row.items())) for n, row in enumerate(ROWS)]
    plan = tm.Plan(tm.MapRows(lambda given: [{**row, "x": 1.0} for row in given]))
    assert told(plan.apply(rows)) == told([{**row, "x": 1.0} for row in rows])
    turned = tm.Plan(tm.MapRows(lambda given: [{"x": 1.0, **row} for row in given]))
    assert told(turned.apply(rows)) == told([{"x": 1.0, **row} for row in rows])


@pytest.mark.parametrize("failing", [0, 1, 2, 9])
def test_nan_is_as_in_a_run(failing, told):
    """A record on which an undeclared function fails has its columns null once they are known, here as in a run."""

    def fn(batch):
        if (batch["value"] <= failing).any() and (failing < 9 or (batch["value"] == failing).any()):
            raise ValueError("no")
        return {"f": batch["value"]}

    plan = tm.Plan(tm.Map(fn, on_error="nan"))
    assert told(plan.apply(ROWS)) == told(ran(plan))


def test_of_no_records_nothing_is_made():
    """An empty list says nothing of columns, so none can be missing."""
    plan = tm.Plan(
        tm.Calibrate({"S1": (0, 1)}), tm.Rolling("normalized", 5), tm.Aggregate(tm.tumbling("1s"), {"v": "sum"})
    )
    assert plan.apply([]) == []


def test_a_reason_that_names_its_stage_is_not_told_twice():
    """What a function returned is told with the stage's name already."""
    plan = tm.Plan(tm.Rolling("value", 3, [lambda windows: windows.max()], names=["top"]))
    with pytest.raises(
        tm.StageError, match=r"^record 0: Rolling\('value', 3\) returned one value of 'top' for all windows"
    ):
        plan.apply(ROWS)


def spread(windows):
    return windows.max(axis=1) - windows.min(axis=1)


BEHIND = {
    "count": tm.Rolling("value", window=5, stats=["mean", "slope"]),
    "time": tm.Rolling("value", window="10min", stats=["mean", "count"]),
    "function": tm.Rolling("value", window="10min", stats=["mean", spread]),
    "windows": tm.MapWindows(spread, "value", 5, into="spread"),
    "ewm": tm.Ewm("value", span=5),
    "lag": tm.Lag("value", 7),
    "stuck": tm.Stuck("value", 3),
    "dedup": tm.Dedup(within="2h"),
}
HOURLY = [{"sensor": f"S{n % 2}", "time": 3600.0 * (n // 2), "value": float(n * 7 % 11)} for n in range(20)]


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
def test_rows_that_stages_make_go_through_the_stages_behind_in_parts(behind, told, monkeypatch):
    """However many rows are made of a record, a stage behind is given them as a lane has room, and makes the same of them."""
    plan = tm.Plan(tm.Resample("value", every="1min", max_gap="2h"), behind)
    parts = plan.apply(HOURLY)
    assert len(parts) > 0
    monkeypatch.setattr(applied, "_RECORDS_AT_ONCE", 32_768)
    assert told(parts) == told(plan.apply(HOURLY)) == told(ran(plan, HOURLY))


def test_any_number_of_rows_is_made_of_a_record(monkeypatch):
    """Hours between readings on a grid of minutes: far more rows than a chunk has records, in apply and in a run."""
    monkeypatch.setattr(applied, "_RECORDS_AT_ONCE", 32_768)
    rows = [{"sensor": "S", "time": 3600.0 * n, "value": float(n)} for n in range(700)]
    plan = tm.Plan(tm.Resample("value", every="1min"), tm.Rolling("value", window="10min", stats=["mean"]))
    made = plan.apply(rows)
    assert len(made) == 699 * 60 + 1
    pipeline = tm.Pipeline(tm.sources.Records(rows), plan, tm.sinks.Latest(), max_keys=2)
    assert tm.run(pipeline, lanes=0).rows_out == len(made)


AGAIN = {
    "aggregate": tm.Aggregate(tm.tumbling("1h"), {"value_max": "max"}),
    "align": tm.Align(["value_max"], by=None, channel=None),
    "resample": tm.Resample("value_max", "1h"),
}


@pytest.mark.parametrize("of", [lambda rows: rows, pd.DataFrame], ids=["rows", "pandas"])
@pytest.mark.parametrize("behind", AGAIN.values(), ids=AGAIN)
def test_a_stage_that_makes_rows_may_be_given_none(behind, of):
    """Behind a filter that no row of another such stage passes nothing comes out, as in a run."""
    plan = tm.Plan(tm.Aggregate(tm.tumbling("1h"), {"value": "max"}), tm.Filter("value_max > 1000"), behind)
    assert len(plan.apply(of(HOURLY))) == 0 == len(ran(plan, HOURLY))


@pytest.mark.parametrize("of", [lambda frame: frame, pa.Table.from_pandas, pl.from_pandas])
@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("tz", ["UTC", "Europe/Berlin"])
def test_times_without_a_zone_come_back_without_one(of, few, tz):
    """Functions see the moments that they are in ``tz``; the table's own columns are local times again, all or some of them."""
    times = pd.to_datetime(
        ["2024-03-31 01:30", "2024-07-01 12:00", "2024-10-27 02:30"]
    )  # the last one is twice in Berlin
    frame = pd.DataFrame({"sensor": "S1", "time": times, "seen": times, "value": [1.0, 2.0, 3.0]})
    seen = tm.Map(lambda batch: {"own": batch["seen"]})
    made = tm.Plan([tm.Filter("value > 1"), seen] if few else seen).apply(of(frame), tz=tz)
    made = made if isinstance(made, pd.DataFrame) else made.to_pandas()
    expected = frame[int(few) :].reset_index(drop=True)
    assert made["time"].tolist() == made["seen"].tolist() == expected["time"].tolist()
    moments = expected["seen"].dt.tz_localize(tz, ambiguous=np.array([True] * len(expected)))
    assert made["own"].tolist() == moments.tolist()


def test_a_time_without_a_zone_in_an_hour_that_is_skipped():
    """It is the moment that the offset before the change makes it; where that is told as a local time, clocks had gone on."""
    frame = pd.DataFrame({"sensor": ["S1"], "time": pd.to_datetime(["2024-03-31 02:30"])})
    made = tm.Plan(tm.Map(lambda batch: {"own": batch["time"]})).apply(frame, tz="Europe/Berlin")
    assert made["time"].tolist() == [pd.Timestamp("2024-03-31 03:30")]
    assert made["own"].tolist() == [pd.Timestamp("2024-03-31 01:30", tz="UTC")]
