"""Columns that no stage looks into are not copied to the lanes, and come out all the same."""

import pytest

import tidemill as tm

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("lanes", [0, 2])
@pytest.mark.parametrize(
    ("plan", "row"),
    [
        (
            tm.Plan(tm.Rolling("value", window=3, stats=["mean"])),
            {"sensor": "S0", "time": 0.0, "unit": "C", "more": {"n": [1]}, "value": 1, "value_mean_3": 1.0},
        ),
        (tm.Plan(tm.Select("more", unit="sensor")), {"more": {"n": [1]}, "unit": "S0"}),
        (
            tm.Plan(tm.Select("sensor", "time", "unit", "more", "value", place="sensor")),
            {"sensor": "S0", "time": 0.0, "unit": "C", "more": {"n": [1]}, "value": 1, "place": "S0"},
        ),
        (
            tm.Plan(tm.Map(lambda batch: {"y": [1.0 // v for v in batch["value"].tolist()]}, columns=["value"])),
            {"sensor": "S0", "time": 0.0, "unit": "C", "more": {"n": [1]}, "value": 1, "y": 1.0},
        ),
    ],
    ids=["Rolling", "Select", "Select all and one twice", "Map"],
)
def test_what_nobody_reads_comes_out(plan, row, lanes, tmp_path):
    """Every column of the record is in the output, in its place, also beside records on which a function fails."""
    rows = [{"sensor": "S0", "time": float(n), "unit": "C", "more": {"n": [1]}, "value": 1 - n % 2} for n in range(40)]
    sink = tm.testing.ListSink()
    pipeline = tm.Pipeline(tm.sources.Records(rows), plan, sink)
    report = tm.run(pipeline, lanes=lanes, dead_letters=tmp_path / "dead.ndjson")
    assert report.rows_out + report.dead_letters == 40
    assert report.dead_letters == (20 if "Map" in str(plan) else 0)
    assert list(sink.rows[0].items()) == list(row.items())
    assert all(list(out) == list(row) for out in sink.rows)
