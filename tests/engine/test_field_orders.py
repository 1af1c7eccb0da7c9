"""A record's fields come out in one order, however the records were batched and whichever lane had them."""

import pytest

import tidemill as tm
from tidemill.core.batching import Limits

pytestmark = pytest.mark.slow

ROWS = [
    {"sensor": f"S{n % 5}", "time": float(n), "value": float(n), "unit": "C"}
    if n % 3
    else {"unit": "C", "value": float(n), "time": float(n), "sensor": f"S{n % 5}"}
    for n in range(60)
]


def same(rows):
    return rows


def adds(rows):
    return [{**row, "double": row["value"] * 2} for row in rows]


def adds_by_turns(rows):
    return [{**row, "odd" if row["value"] % 2 else "even": 1.0} for row in rows]


def drops(rows):
    return [{name: item for name, item in row.items() if name != "unit" or row["value"] % 4} for row in rows]


def turns(rows):
    return [{"first": 1.0, **row} if row["value"] % 2 else {**row, "first": 1.0} for row in rows]


@pytest.mark.parametrize("function", [same, adds, adds_by_turns, drops, turns])
@pytest.mark.parametrize(("lanes", "cap"), [(0, 1), (0, 7), (0, 1000), (2, 7), (2, 1000)])
def test_rows_come_out_as_the_function_returns_them(function, lanes, cap, told, tmp_path):
    """Names, order and values are those of the function called with all the records at once."""
    sink = tm.testing.ListSink()
    pipeline = tm.Pipeline(tm.sources.Records(ROWS), tm.Plan(tm.MapRows(function)), sink)
    tm.run(pipeline, lanes=lanes, dead_letters=tmp_path / "dead.ndjson", limits=Limits(max_records=cap))
    assert told(sink.rows) == told(function(ROWS)) == told(tm.Plan(tm.MapRows(function)).apply(ROWS))
