"""What a function adds is learned from the first records that show it, never from how they were batched."""

import pytest

import tidemill as tm
from tidemill.core.batching import Limits

pytestmark = pytest.mark.slow

ROWS = [{"sensor": f"S{n % 7}", "time": float(n), "value": float(n)} for n in range(120)]


def outcome(function, tmp_path, *, lanes, cap, **options):
    """Rows and number of dead letters of a run."""
    sink = tm.testing.ListSink()
    pipeline = tm.Pipeline(tm.sources.Records(ROWS), tm.Plan(tm.Map(function, **options)), sink)
    report = tm.run(pipeline, lanes=lanes, dead_letters=tmp_path / "dead.ndjson", limits=Limits(max_records=cap))
    return [list(row.items()) for row in sink.rows], report.dead_letters


def late(batch):
    """Fails on the first 20 records."""
    if (batch["value"] < 20).any():
        raise ValueError("too early")
    return {"x": batch["value"] * 2}


def silent(batch):
    """Says nothing of the first record, then returns numbers and texts by turns."""
    return {"x": [None if v == 0 else 1.0 if v % 2 else "a" for v in batch["value"].tolist()]}


@pytest.mark.parametrize(("lanes", "cap"), [(0, 7), (0, 1000), (2, 1000)])
@pytest.mark.parametrize(
    ("function", "options", "dead"),
    [
        (late, {}, 20),
        (late, {"on_error": "nan"}, 0),
        (late, {"on_error": "nan", "adds": {"x": float}}, 0),
        (silent, {}, 59),
    ],
    ids=["dead letters", "nan", "nan, declared", "two kinds"],
)
def test_batches_teach_nothing(function, options, dead, cap, lanes, tmp_path):
    """Whichever records a function fails on first, the rows and the dead letters are those of batches of one."""
    rows, letters = outcome(function, tmp_path, lanes=lanes, cap=cap, **options)
    assert letters == dead
    assert rows == outcome(function, tmp_path, lanes=0, cap=1, **options)[0]
    assert len(rows) == 120 - dead


def test_a_declared_column_is_null_from_the_first_record(tmp_path):
    """With its columns declared, a stage that fails on the very first record leaves a null there, not a gap."""
    rows, _ = outcome(late, tmp_path, lanes=0, cap=1000, on_error="nan", adds={"x": float})
    assert rows[0][-1] == ("x", None)
    assert rows[20][-1] == ("x", 40.0)
