"""MapRows and the row codec: exact in names, order, types and values."""

import copy
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.batch import Batch
from tidemill.column import ABSENT
from tidemill.errors import BadResult
from tidemill.kinds import Kinds
from tidemill.rows import batch_of_rows, rows_of_batch
from tidemill.schema import Kind
from tidemill.stages.map_rows import MapRows

PER_FIELD = {
    "sensor": st.text(max_size=3),
    "time": st.floats(allow_nan=True) | st.none(),
    "value": st.floats() | st.integers(-(2**70), 2**70) | st.none(),
    "n": st.integers(),
    "on": st.booleans() | st.none(),
    "nested": st.none() | st.lists(st.integers(), max_size=2) | st.dictionaries(st.text(max_size=1), st.floats(0, 1)),
    "unit": st.none() | st.sampled_from(["C", "F", ""]),
}


@st.composite
def records(draw, optional=True):
    """Records whose fields come and go, in any order."""
    rows = []
    for _ in range(draw(st.integers(1, 12))):
        names = draw(st.permutations(list(PER_FIELD)))
        if optional:
            names = names[: draw(st.integers(0, len(names)))]
        rows.append({name: draw(PER_FIELD[name]) for name in names})
    return rows


def bits(value):
    """What must survive: type, and for floats every bit."""
    if type(value) is float:
        return ("float", struct.pack("d", value))
    if isinstance(value, dict):
        return ("dict", [(key, bits(item)) for key, item in value.items()])
    if isinstance(value, list):
        return ("list", [bits(item) for item in value])
    return (type(value).__name__, value)


def lane_batch(rows):
    """The rows as a lane sees them: columns alone."""
    batch, rejects = batch_of_rows(rows, Kinds())
    assert rejects == []
    batch.origin = None
    return batch


def step(fn, rows, **options):
    return MapRows(fn, **options).opened().step(lane_batch(rows), None)


@settings(max_examples=150, deadline=None)
@given(records() | records(optional=False))
def test_rows_survive(rows):
    """Names, order, types and values come back bit for bit, whichever fields each record has."""
    assert bits(rows_of_batch(lane_batch(rows))) == bits(rows)
    seen = []

    def look(given_rows):
        seen.extend(copy.deepcopy(given_rows))
        return given_rows

    made = step(look, rows).batch
    assert bits(seen) == bits(rows)
    assert bits(made.to_rows()) == bits(rows)


@settings(max_examples=100, deadline=None)
@given(records(), st.integers(0, 3))
def test_any_edit_survives(rows, which):
    """Whatever fields the function adds, changes or drops, the records come out as it returned them."""

    def edit(given_rows):
        made = []
        for i, row in enumerate(given_rows):
            if which == 0:
                made.append({"index": i, **row})
            elif which == 1:
                made.append({**row, "value": 0.5} if i % 2 else {k: v for k, v in row.items() if k != "value"})
            elif which == 2:
                row["flag"] = i % 2 == 0
                row.pop("n", None)
                made.append(row)
            else:
                made.append(dict(reversed(row.items())))
        return made

    expected = edit(copy.deepcopy(rows))
    assert bits(step(edit, rows).batch.to_rows()) == bits(expected)


ROWS = [
    {"sensorId": "S3", "timestamp": 1700000000.25, "value": 51.3, "unit": "C"},
    {"sensorId": "S4", "timestamp": 1700000001.1, "value": 48.0, "unit": "C"},
]


def test_untouched_fields_stay_columns():
    """A field the function leaves alone is carried as the very column it was; only new ones are made."""
    batch = lane_batch(ROWS)

    def fn(rows):
        return [{**row, "normalized": round((row["value"] - 20) / 60, 4)} for row in rows]

    made = MapRows(fn).opened().step(batch, None).batch
    assert made.names == ("sensorId", "timestamp", "value", "unit", "normalized")
    assert all(made.columns[name] is batch.columns[name] for name in batch.names)
    assert made["normalized"].tolist() == [0.5217, 0.4667]


def test_equal_is_not_untouched():
    """A value replaced by an equal one of another type comes back as that type."""
    made = step(lambda rows: [{"value": int(row["value"])} for row in rows], [{"value": 48.0}]).batch
    assert bits(made.to_rows()) == bits([{"value": 48}])


def test_numpy_scalars_are_values():
    """NumPy scalars in rows are read as the Python values they equal."""
    extra = {"f": np.float64(0.1), "s": np.float32(0.5), "i": np.int64(3), "b": np.bool_(True), "t": np.str_("x")}
    made = step(lambda rows: [{**row, **extra} for row in rows], ROWS).batch
    assert bits(made.to_rows()[0]) == bits({**ROWS[0], "f": 0.1, "s": 0.5, "i": 3, "b": True, "t": "x"})


def test_one_bad_row_is_rejected_alone():
    """A record whose field breaks its kind, or that is no dict, goes to the dead letters; the others go on."""
    rows = [{"value": float(i)} for i in range(4)]

    def fn(given_rows):
        made = [{**row, "feature": row["value"]} for row in given_rows]
        made[1]["feature"] = "high"
        made[2] = None
        return made

    made = step(fn, rows)
    assert made.kept.tolist() == [0, 3]
    assert made.batch.to_rows() == [{"value": 0.0, "feature": 0.0}, {"value": 3.0, "feature": 3.0}]
    assert [(reject.row, reject.reason_code) for reject in made.rejects] == [(1, "wrong_type"), (2, "wrong_type")]
    assert "'feature' is float and this record has str" in made.rejects[0].reason
    assert made.rejects[1].reason == "MapRows(fn): its function returned None in place of a dict"
    with pytest.raises(BadResult, match="'feature' is float"):
        step(fn, rows, on_error="stop")


def test_a_field_keeps_its_kind():
    """The kind of an added field is learned from its first value and holds for every later batch."""
    stage = MapRows(lambda rows: [{"x": row["value"]} for row in rows]).opened()
    stage.step(lane_batch([{"value": 1.5}]), None)
    assert stage.step(lane_batch([{"value": "text"}]), None).rejects[0].reason_code == "wrong_type"
    declared = MapRows(lambda rows: [{**row, "n": 3} for row in rows], adds={"n": int}).opened()
    assert declared.step(lane_batch([{"value": 1.5}]), None).batch.columns["n"].kind is Kind.INT


def test_nested_values_are_the_functions_own():
    """Changing a nested value in place changes the result, not the record that another call may see."""
    batch = lane_batch([{"tags": [1]}])

    def fn(rows):
        rows[0]["tags"].append(2)
        return rows

    stage = MapRows(fn).opened()
    for _ in range(2):
        assert stage.step(batch, None).batch.to_rows() == [{"tags": [1, 2]}]
    assert batch.to_rows() == [{"tags": [1]}]


@pytest.mark.parametrize(
    ("fn", "code", "told"),
    [
        (lambda rows: rows[:1], "wrong_length", "1 rows for 2 records"),
        (lambda rows: None, "wrong_type", "returned None; a list of dicts"),
        (lambda rows: {"a": 1}, "wrong_type", "returned dict; a list of dicts"),
        (lambda rows: [{1: 2}, {1: 2}], "wrong_type", "names must be text"),
    ],
)
def test_bad_results(fn, code, told):
    """Another number of rows, or something else than rows, is refused by name."""
    with pytest.raises(BadResult, match=told) as caught:
        step(fn, ROWS)
    assert caught.value.reason_code == code


def test_rows_with_hostile_names():
    """Field names are data, whatever is in them."""
    row = {"a'": 1.0, 'b"\n\\': 2.0, "{x}": 3.0, "__class__": 4.0, "": 5.0, "\ud800": 6.0}
    assert rows_of_batch(lane_batch([row, row])) == [row, row]


def test_empty_rows():
    """Records without fields are records."""
    assert step(lambda rows: [{} for _ in rows], ROWS).batch.to_rows() == [{}, {}]
    assert isinstance(step(lambda rows: rows, [{}, {}]).batch, Batch)


@given(records(), st.sampled_from([None, 0.5]))
def test_dropped_fields_stay_dropped(rows, value):
    """A field that the function takes from some records does not come back from the user's own dicts."""
    batch, _ = batch_of_rows(copy.deepcopy(rows), Kinds())
    made = [
        {**row, "value": value} if n % 2 else {k: v for k, v in row.items() if k != "value"}
        for n, row in enumerate(rows)
    ]
    column, _ = Kinds({"value": Kind.FLOAT}).column("value", [row.get("value", ABSENT) for row in made])
    assert bits(batch.with_columns({"value": column}).to_rows()) == bits(made)
    assert bits([dict(row) for row in batch.origin]) == bits(rows), "the user's dicts are as they were"


def test_columns_come_in_the_batchs_order():
    """Rows whose fields come in several orders leave the columns where they are, and their orders as they were known."""
    batch = lane_batch([{"a": 1.0, "b": 2.0}, {"b": 1.0, "a": 2.0}])
    made = MapRows(lambda rows: [{**row, "x": 1.0} for row in rows]).opened().step(batch.slice(1, 2), None).batch
    assert made.names == ("a", "b", "x")
    assert made.orders[1] is batch.orders[1]
    turned = MapRows(lambda rows: [dict(reversed(row.items())) for row in rows]).opened().step(batch, None).batch
    assert turned.names == ("a", "b")
    assert [list(row) for row in turned.to_rows()] == [["b", "a"], ["a", "b"]]


def test_a_column_that_no_record_has_goes_on_at_its_place():
    """Which columns there are does not follow from the records of the batch."""
    batch = lane_batch([{"a": 1.0, "few": 2.0, "b": 3.0, "last": 4.0}, {"a": 5.0, "b": 6.0}]).slice(1, 2)
    stage = MapRows(lambda rows: [{**row, "x": 1.0} for row in rows]).opened()
    step = stage.step(batch, None)
    assert step.batch.names == ("a", "few", "b", "last", "x")
    assert step.batch.columns["few"] is batch.columns["few"]
    assert step.unshown == {"few", "last"}
    stage.know({"few": Kind.TEXT})
    step = stage.step(batch, None)
    assert step.batch.columns["few"].kind is Kind.TEXT
    assert step.unshown == {"last"}
    assert step.batch.to_rows() == [{"a": 5.0, "b": 6.0, "x": 1.0}]


def test_a_function_that_leaves_fields_out_may_leave_out_more():
    """A column that no record has goes on only if it is known to."""
    batch = lane_batch([{"a": 1.0, "few": 2.0, "b": 3.0}, {"a": 5.0, "b": 6.0}]).slice(1, 2)
    stage = MapRows(lambda rows: [{"a": row["a"]} for row in rows]).opened()
    assert stage.step(batch, None).batch.names == ("a",)
    stage.know({"few": Kind.FLOAT})
    assert stage.step(batch, None).batch.names == ("a", "few")


def test_a_rejected_record_decides_nothing():
    """A field that only a rejected record has counts as one that none has."""
    batch = lane_batch([{"a": 1.0, "few": 2.0}, {"a": 5.0}])
    step = MapRows(lambda rows: [None if "few" in row else row for row in rows]).opened().step(batch, None)
    assert [reject.row for reject in step.rejects] == [0]
    assert step.batch.names == ("a", "few")
    assert step.batch.to_rows() == [{"a": 5.0}]


@pytest.mark.parametrize("nested", [[1], {"a": [1]}, ([1],), bytearray(b"a")])
def test_values_of_any_type_are_the_functions_own(nested):
    """Whatever a function does to what a record holds, the batch that it was given keeps it as it was."""
    batch = lane_batch([{"nested": copy.deepcopy(nested)}])

    def fn(rows):
        inner = rows[0]["nested"]
        (inner[0] if isinstance(inner, tuple) else inner["a"] if isinstance(inner, dict) else inner).append(2)
        return rows

    assert MapRows(fn).opened().step(batch, None).batch.to_rows() != [{"nested": nested}]
    assert batch.to_rows() == [{"nested": nested}]
