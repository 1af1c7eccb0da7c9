"""`Batch` against a list of rows: whatever is taken, sliced and joined, the records stay what they were."""

import copy
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.batch import Batch
from tidemill.column import ABSENT_TAG, NAT, NULL_TAG, Column
from tidemill.errors import PlanError
from tidemill.kinds import Kinds
from tidemill.rows import batch_of_rows
from tidemill.schema import Kind


def batch_of(rows, kinds, *, first=0, origin=False):
    """The rows as a batch with a key, a time and, unless asked for, without the user's own dicts to fall back on."""
    batch, rejects = batch_of_rows(rows, kinds)
    assert not rejects
    if not origin:
        batch.origin, batch.origin_names = None, frozenset()
    batch.key_column = Column.of_texts([f"S{(first + n) % 3}" for n in range(len(rows))])
    batch.time_ns = np.arange(first, first + len(rows), dtype=np.int64)
    return batch


class Model:
    """What a batch should hold."""

    def __init__(self, rows, numbers):
        self.rows, self.numbers = rows, numbers

    def check(self, batch, told):
        assert len(batch) == len(self.rows)
        assert told(batch.to_rows()) == told(self.rows)
        if not len(batch):
            return
        assert batch.time.tolist() == self.numbers
        assert batch.keys[batch.key].tolist() == [f"S{n % 3}" for n in self.numbers]


@given(data=st.data(), origin=st.booleans())
def test_shaping_equals_a_list_of_rows(data, origin, records, told):
    """Any sequence of take, slice and concat gives what it gives on a plain list, types, nulls and field order included."""
    rows = data.draw(records())
    cuts = sorted({0, len(rows), *data.draw(st.lists(st.integers(0, len(rows)), max_size=3))})
    kinds = Kinds()
    parts = [batch_of(rows[a:b], kinds, first=a, origin=origin) for a, b in itertools.pairwise(cuts)]
    batch = Batch.concat(parts) if parts else batch_of(rows, kinds)
    model = Model(rows, list(range(len(rows))))
    model.check(batch, told)
    for _ in range(data.draw(st.integers(0, 4))):
        match data.draw(st.sampled_from(["take", "slice", "concat"])):
            case "take" if len(batch):
                places = data.draw(st.lists(st.integers(0, len(batch) - 1), max_size=14))
                batch = batch.take(np.array(places, np.intp))
                model = Model([model.rows[p] for p in places], [model.numbers[p] for p in places])
            case "slice":
                start, stop = data.draw(st.integers(0, 16)), data.draw(st.integers(0, 16))
                batch = batch.slice(start, max(start, stop))
                model = Model(model.rows[start : max(start, stop)], model.numbers[start : max(start, stop)])
            case "concat":
                batch = Batch.concat([batch, batch])
                model = Model(model.rows * 2, model.numbers * 2)
        model.check(batch, told)


@given(data=st.data(), origin=st.booleans())
def test_added_columns_follow_the_records_own(data, origin, records, told):
    """A column that a stage adds comes after the record's own fields; one that it replaces keeps its place."""
    rows = data.draw(records())
    batch = batch_of(rows, Kinds(), origin=origin)
    made = Column(Kind.FLOAT, np.arange(len(rows), dtype=np.float64))
    added = batch.with_columns({"feature": made})
    assert told(added.to_rows()) == told([{**row, "feature": float(n)} for n, row in enumerate(rows)])
    if "number" in batch.columns:
        replaced = batch.with_columns({"number": made}).to_rows()
        assert told(replaced) == told([{**row, "number": float(n)} for n, row in enumerate(rows)])
    assert told(batch.to_rows()) == told(rows), "the batch itself is never changed"


def test_a_column_without_values_joins_any_kind():
    """Of parts whose kinds differ, those in which no record has a value decide nothing, and keep what is null and what absent."""
    text = Batch({"x": Column.of_texts(["a"])})
    for kind in Kind:
        for tag, shown in ((ABSENT_TAG, {}), (NULL_TAG, {"x": None})):
            parts = [Batch({"x": Column.missing(kind, 1, tag)}), text]
            assert Batch.concat(parts).to_rows() == [shown, {"x": "a"}]
            assert Batch.concat(parts[::-1]).columns["x"].kind is Kind.TEXT
            assert Batch.concat([parts[0], parts[0]]).columns["x"].kind is kind


def test_slices_are_clipped():
    """A slice beyond the end is empty, never negative, and the whole of a batch is the batch."""
    batch = Batch.from_rows([{"value": 1.0}, {"value": 2.0}])
    assert [len(batch.slice(*bounds)) for bounds in [(0, 9), (1, 9), (2, 9), (5, 9), (1, 1)]] == [2, 1, 0, 0, 0]
    assert batch.slice(0, 2) is batch


def test_columns_are_no_attributes():
    """Who is used to DataFrames is told how a column is had; what is in neither is an AttributeError as anywhere."""
    batch = Batch.from_rows([{"sensor": "S1", "temp": 1.0}])
    with pytest.raises(AttributeError, match=r"no attribute 'temp'; the column is batch\['temp'\]"):
        batch.temp  # noqa: B018
    assert not hasattr(batch, "tmep")
    assert pickle.loads(pickle.dumps(batch)).to_rows() == copy.copy(batch).to_rows() == batch.to_rows()


def test_columns_as_user_code_sees_them():
    """Numbers are float64, text is str or None, times are datetime64[ns]; all read-only, nothing for a missing name."""
    batch = Batch(
        {
            "value": Column(Kind.FLOAT, np.array([1.0, np.nan])),
            "unit": Column(Kind.TEXT, np.array([0, -1], np.int32), texts=np.array(["C"], object)),
            "at": Column(Kind.TIME, np.array([1, NAT])),
        }
    )
    assert batch["value"].dtype == np.float64
    assert batch["unit"].tolist() == ["C", None]
    assert batch["at"].tolist() == [1, None]
    assert batch["at"].dtype == "datetime64[ns]"
    for name in batch.names:
        with pytest.raises(ValueError, match="read-only"):
            batch[name][0] = batch[name][1]
    assert batch.codes("unit").tolist() == [0, -1]
    assert batch.texts("unit").tolist() == ["C"]
    with pytest.raises(PlanError, match="no column 'vlaue' in this batch; the columns there are: value, unit, at"):
        batch["vlaue"]
    with pytest.raises(PlanError, match="'value' is float, not text"):
        batch.codes("value")


@pytest.mark.parametrize(("role", "told"), [("key", "no key"), ("keys", "no key"), ("time", "no time")])
def test_a_batch_without_a_role_says_so(role, told):
    """A batch made by hand has no key and no time until it is given them."""
    with pytest.raises(PlanError, match=told):
        getattr(Batch({}, rows=0), role)


def test_select_renames_and_forgets_the_rest():
    """Only the named columns are left, in the asked order, key and time with them."""
    batch = batch_of([{"a": 1, "b": "x", "c": 2.0}], Kinds(), origin=True)
    chosen = batch.select({"c": "c", "first": "a"})
    assert list(chosen.to_rows()[0].items()) == [("c", 2.0), ("first", 1)]
    assert chosen.key_column is batch.key_column


def test_a_field_of_two_kinds_is_refused():
    """from_rows names the row, the field and both types."""
    with pytest.raises(PlanError, match="row 1: field 'a' is float and this record has str"):
        Batch.from_rows([{"a": 1}, {"a": "x"}])


def test_the_kind_of_a_column_is_decided_once_where_many_parts_are_joined(monkeypatch):
    """However many of them have nothing but null there: thousands would be looked at for each of thousands."""
    decided = []

    def kind_of(columns):
        decided.append(len(columns))
        return Kind.FLOAT

    monkeypatch.setattr("tidemill.batch._kind_of", kind_of)
    joined = Batch.concat([Batch.from_rows([{"value": 1.5 if row % 2 else None}]) for row in range(100)])
    assert decided == [100]
    assert joined.column("value").to_list() == [1.5 if row % 2 else None for row in range(100)]
