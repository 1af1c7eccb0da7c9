"""`Column`: values, tags, texts and exact values, one way and back."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.column import ABSENT, ABSENT_TAG, DTYPES, INTEGER_TAG, NULL_TAG, Column, object_array
from tidemill.errors import EngineError
from tidemill.kinds import Kinds
from tidemill.schema import Kind

integers = st.integers(-(2**80), 2**80) | st.sampled_from([2**53, 2**53 + 1, 2**63, 2**64, 10**400, -(10**400)])
ITEMS = {
    Kind.FLOAT: st.floats(allow_nan=False) | integers,
    Kind.INT: integers,
    Kind.BOOL: st.booleans(),
    Kind.TEXT: st.text(max_size=3),
    Kind.TIME: st.integers(-(2**63) + 1, 2**63 - 1),
    Kind.OBJECT: st.lists(st.integers()) | st.text() | st.integers(),
}
some_items = st.sampled_from(list(Kind)).flatmap(
    lambda kind: st.tuples(st.just(kind), st.lists(ITEMS[kind] | st.sampled_from([None, ABSENT])))
)


def column_of(kind, items):
    column, rejects = Kinds({"x": kind}).column("x", items)
    assert not rejects
    return column


def same(column, items):
    """The column gives these items back, types and all."""
    got = column.to_list()
    assert got == items
    assert list(map(type, got)) == list(map(type, items))


@given(some_items)
def test_items_come_back(kind_items):
    """Of every kind, each value, None and absence is given back as it was, its type included."""
    kind, items = kind_items
    column = column_of(kind, items)
    same(column, items)
    assert column.values.dtype == DTYPES[column.kind]
    assert len(column) == len(items)


@given(some_items, st.data())
def test_shaping_equals_a_list(kind_items, data):
    """take (with repeats), slice and concat give what they give on the list."""
    kind, items = kind_items
    column = column_of(kind, items)
    if items:
        rows = data.draw(st.lists(st.integers(0, len(items) - 1)))
        same(column.take(np.array(rows, np.intp)), [items[row] for row in rows])
    start = data.draw(st.integers(0, len(items)))
    stop = data.draw(st.integers(start, len(items)))
    same(column.slice(start, stop), items[start:stop])
    if column.kind is kind:
        parts = [column.slice(0, start), column_of(kind, items[start:])]
        if len({part.kind for part in parts}) == 1:
            same(Column.concat(parts), items)


def test_slices_share_memory_and_texts():
    """A slice costs nothing, and texts are never copied."""
    column = Column.of_texts(["a", "b", "a"])
    part = column.slice(1, 3)
    assert np.shares_memory(part.values, column.values)
    assert part.texts is column.texts
    assert Column.concat([part, column]).texts is column.texts


@pytest.mark.parametrize(
    ("array", "kind", "items"),
    [
        (np.array([1.5, np.inf], np.float32), Kind.FLOAT, [1.5, np.inf]),
        (np.array([1, -2], np.int8), Kind.FLOAT, [1, -2]),
        (np.array([2**64 - 1, 3], np.uint64), Kind.FLOAT, [2**64 - 1, 3]),
        (np.array([-(2**63), 2**53 + 1], np.int64), Kind.FLOAT, [-(2**63), 2**53 + 1]),
        (np.array([True, False]), Kind.BOOL, [True, False]),
        (np.array(["a", "b"]), Kind.TEXT, ["a", "b"]),
        (np.array(["a", "b"], object), Kind.TEXT, ["a", "b"]),
        (np.array([None, "b"], object), Kind.OBJECT, [None, "b"]),
        (np.array(["2024-01-01"], "datetime64[D]"), Kind.TIME, [1_704_067_200_000_000_000]),
        (np.array([], np.int64), Kind.FLOAT, []),
    ],
)
def test_arrays_become_columns(array, kind, items):
    """Every number is a float that remembers it was an integer; strings are text, datetimes are times."""
    column = Column.of_array(array)
    assert column.kind is kind
    same(column, items)


def test_a_matrix_is_no_column():
    """Two dimensions are refused with the shape."""
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        Column.of_array(np.zeros((2, 2)))


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize(("tag", "item"), [(NULL_TAG, None), (ABSENT_TAG, ABSENT)])
def test_missing_columns(kind, tag, item):
    """A column without any value reads as null or absent throughout, whatever its kind."""
    column = Column.missing(kind, 3, tag)
    assert column.to_list() == [item] * 3
    assert column.is_missing is (kind is Kind.OBJECT)
    if kind is Kind.FLOAT:
        assert np.isnan(column.array).all()
    if kind is Kind.TEXT:
        assert column.array.tolist() == [None] * 3


def test_joining_kinds_is_our_fault():
    """Columns of two kinds are never joined; the error names both."""
    with pytest.raises(EngineError, match=r"float.*text"):
        Column.concat([Column.of_texts(["a"]), Column(Kind.FLOAT, np.zeros(1))])


def test_absent_is_one():
    """ABSENT stays itself through a pickle: what comes from a lane is compared by identity."""
    assert pickle.loads(pickle.dumps(ABSENT)) is ABSENT
    assert repr(ABSENT) == "ABSENT"


def test_exact_comes_before_the_tag():
    """Where float64 overflows, the value is what the record held and never touches the float."""
    column = Column(Kind.FLOAT, np.array([np.nan, 5.0]), tags=np.array([INTEGER_TAG] * 2, np.uint8), exact={0: 10**400})
    assert column.to_list() == [10**400, 5]


@pytest.mark.parametrize(
    ("column", "other"),
    [
        (Column(Kind.FLOAT, np.array([1.0, np.nan, -0.0])), Column(Kind.FLOAT, np.array([1.0, np.nan, 0.0]))),
        (Column(Kind.INT, np.array([1, 2])), Column(Kind.INT, np.array([1, 3]))),
        (Column(Kind.INT, np.array([1, 2])), Column(Kind.INT, np.array([1, 2]), tags=np.array([0, 1], np.uint8))),
        (Column(Kind.BOOL, np.array([True])), Column(Kind.FLOAT, np.array([1.0]))),
        (Column.of_texts(["a", "b"]), Column.of_texts(["a", "b"])),
        (Column(Kind.OBJECT, np.array([[1], None], object)), Column(Kind.OBJECT, np.array([[1], None], object))),
        (Column(Kind.INT, np.array([0]), exact={0: 2**70}), Column(Kind.INT, np.array([0]), exact={0: 2**71})),
    ],
)
def test_a_copy_is_known_from_what_only_looks_alike(column, other):
    """Taken rows are a copy; the same values by another table, as other objects or with other bits are not."""
    assert column.is_copy_of(column.take(np.arange(len(column))))
    assert not column.is_copy_of(other)
    assert not column.is_copy_of(column.slice(0, len(column) - 1))


def test_of_a_large_table_only_the_texts_in_use_are_joined():
    """A batch of a few records has codes into the texts of a whole run."""
    table = object_array([f"S{n}" for n in range(1_000)])
    few = Column(Kind.TEXT, np.array([7, -1, 900, 7], np.int32), texts=table)
    joined = Column.concat([few, Column.of_texts(["new", "S7"])])
    assert joined.array.tolist() == ["S7", None, "S900", "S7", "new", "S7"]
    assert joined.texts.tolist() == ["S7", "S900", "new"]


@given(st.lists(st.sampled_from([-1, 0, 1, 2, 3, 4, 5, 6, 7]), max_size=5))
def test_a_slice_of_a_large_table_of_texts_reads_as_its_rows(codes):
    """Whether the table is larger than the rows or not, they have the same texts; and so without the unused ones."""
    texts = np.array(list("abcdefgh"), object)
    column = Column(Kind.TEXT, np.array(codes, np.int32), texts=texts)
    expected = [None if code < 0 else "abcdefgh"[code] for code in codes]
    assert column.array.tolist() == expected
    small = column.without_unused_texts()
    assert small.array.tolist() == expected
    assert len(small.texts) == len({code for code in codes if code >= 0})
    assert Column(Kind.TEXT, np.array(codes * 3, np.int32), texts=texts).array.tolist() == expected * 3
