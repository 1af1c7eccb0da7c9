"""What a function adds is learned from the first records that show it, never from how they were batched."""

import copy

import numpy as np
import polars as pl
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


def records_of(seed):
    """Records whose fields come and go; one field holds values of any type, and is not in the first records."""
    random = np.random.default_rng(seed)
    first = int(random.integers(1, 6))
    rows = []
    for n in range(30):
        row = {"sensor": "ABC"[random.integers(3)], "time": float(n), "value": float(random.integers(9))}
        if n == first:
            row["mixed"] = [n]
        elif n > first and random.random() < 0.7:
            row["mixed"] = ([n], {"a": [n]}, "t", 5, 2.5, True, None, 2**60 + 1)[random.integers(8)]
        if random.random() < 0.5:
            row["count"] = (7, None, 1.5)[random.integers(3)]
        if random.random() < 0.3:
            row["unit"] = ("C", None)[random.integers(2)]
        rows.append(row)
    return rows


def rows_passed_on(rows):
    return [{**row, "double": row["value"] * 2} for row in rows]


def rows_in_copies(rows):
    return [{**copy.deepcopy(row), "double": row["value"] * 2} for row in rows]


def frame_passed_on(frame):
    return frame.assign(double=frame["value"] * 2)


def polars_passed_on(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(double=frame["value"] * 2)


def columns_passed_on(batch):
    return {"double": batch["value"] * 2, **{name: batch[name] for name in batch.names}}


@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize(
    "stage",
    [
        tm.MapRows(rows_passed_on),
        tm.MapRows(rows_in_copies),
        tm.MapFrame(frame_passed_on),
        tm.MapFrame(polars_passed_on),
        tm.Map(columns_passed_on),
    ],
    ids=["rows", "copied rows", "pandas", "polars", "columns"],
)
def test_fields_that_a_function_leaves_alone_are_what_they_were(stage, seed):
    """Whatever a field holds and whenever it comes, in any number of lanes, in batches of any size, and applied in memory."""
    rows = records_of(seed)
    expected = [{**row, "double": row["value"] * 2} for row in rows]
    assert shown(tm.Plan(stage).apply(rows)) == shown(expected)
    for lanes, cap in ((0, 1), (0, 7), (1, 1000), (2, 7)):
        sink = tm.testing.ListSink()
        pipeline = tm.Pipeline(tm.sources.Records(rows), tm.Plan(stage), sink)
        assert tm.run(pipeline, lanes=lanes, limits=Limits(max_records=cap)).dead_letters == 0
        assert shown(sink.rows) == shown(expected), f"{lanes} lanes, batches of {cap}"


def shown(rows):
    """Names, types and values, as text: 5 is not 5.0, nor True."""
    return [repr(sorted(row.items())) for row in rows]


def unwrapped(rows):
    return [{**row, "mixed": row["mixed"]["a"]} if isinstance(row.get("mixed"), dict) else row for row in rows]


@pytest.mark.parametrize("cap", [1, 1000])
def test_a_field_of_any_type_may_become_one_of_numbers(cap, lanes):
    """A function that turns what it finds into numbers loses no record, whichever of them a lane sees first."""
    rows = [{"sensor": "AB"[n % 2], "time": float(n), "mixed": ({"a": n}, n)[n % 2]} for n in range(40)]
    del rows[0]["mixed"], rows[1]["mixed"]
    sink = tm.testing.ListSink()
    pipeline = tm.Pipeline(tm.sources.Records(rows), tm.Plan(tm.MapRows(unwrapped)), sink)
    assert tm.run(pipeline, lanes=lanes, limits=Limits(max_records=cap)).dead_letters == 0
    assert [row.get("mixed") for row in sink.rows] == [None, None, *range(2, 40)]
    columns = [batch.columns["mixed"] for batch in sink.batches if "mixed" in batch.columns]
    assert {column.kind.value for column in columns if column.has_values} == {"float"}
