"""Where two batches first differ: nothing that differs passes, nothing that is the same is told."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.batch import Batch
from tidemill.column import ABSENT
from tidemill.core.differences import Difference, first_difference, first_that_is_no_rounding, shown

VALUES = st.one_of(
    st.none(), st.floats(), st.integers(-(2**60), 2**60), st.sampled_from([0.0, -0.0, 5, 5.0, 2**53 + 1, math.inf])
)


def column_of(items):
    return Batch.from_rows([{"sensor": "S", "x": item} for item in items])


def told(item):
    return (type(item).__name__, repr(item))


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=8))
def test_values_are_compared_to_the_last_bit_and_type(pairs):
    """As comparing the representations of all values one by one."""
    got, expected = (column_of(items) for items in zip(*pairs, strict=True))
    found = first_difference(got, expected)
    rows = [row for row, (one, other) in enumerate(pairs) if told(one) != told(other)]
    assert (None if found is None else found.row) == (rows[0] if rows else None)


@given(
    st.lists(st.tuples(st.floats(), st.floats()) | st.floats().map(lambda x: (x, x)), min_size=1, max_size=8),
    st.sampled_from([0.0, 1e-9, 0.5]),
)
def test_within_a_tolerance(pairs, tolerance):
    """Relative, or absolute below 1; NaN is near NaN alone, an infinity near itself."""

    def near(one, other):
        if math.isnan(one) or math.isnan(other):
            return math.isnan(one) and math.isnan(other)
        return one == other or abs(one - other) <= tolerance * max(1.0, abs(other)) < math.inf

    got, expected = (Batch.from_rows([{"x": 1.5, "y": item} for item in items]) for items in zip(*pairs, strict=True))
    found = first_difference(got, expected, tolerance=tolerance)
    rows = [row for row, pair in enumerate(pairs) if not near(*pair)]
    assert (None if found is None else found.row) == (rows[0] if rows else None)


def test_the_first_row_counts_before_the_first_column():
    """Both values come with it, and how far they are apart."""
    got = Batch.from_rows([{"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 5.0}, {"a": 9.0, "b": 1.0}])
    expected = Batch.from_rows([{"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 4.0}, {"a": 3.0, "b": 1.0}])
    found = first_difference(got, expected)
    assert found == Difference(1, "b", 5.0, 4.0)
    assert found.gap == 0.25
    assert str(found) == "column 'b' is 5.0 instead of 4.0"


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ({"x": "C"}, {"x": "F"}, "'C' instead of 'F'"),
        ({"x": "C"}, {"x": None}, "'C' instead of null"),
        ({"x": 1.0}, {"x": 1.0, "y": 2.0}, "not there instead of 2.0"),
        ({"x": 1.0, "y": 2.0}, {"x": 1.0}, "2.0 instead of not there"),
        ({"x": [1, 2.0]}, {"x": [1, 2]}, "[1, 2.0] instead of [1, 2]"),
        ({"x": True}, {"x": 1}, "True instead of 1"),
        ({"x": 0.0}, {"x": -0.0}, "0.0 instead of -0.0"),
        (
            {"x": np.datetime64("2024-03-01T00", "ns")},
            {"x": np.datetime64("2024-03-01T01:00:00.25", "ns")},
            "2024-03-01T00:00:00Z instead of 2024-03-01T01:00:00.25Z",
        ),
    ],
)
def test_all_kinds_and_what_is_missing(one, other, words):
    """Text, nested values, booleans, nulls and fields that are not there; a record is the same as itself."""
    got, expected = Batch.from_rows([one]), Batch.from_rows([other])
    assert words in str(first_difference(got, expected))
    assert first_difference(got, Batch.from_rows([dict(one)])) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"x": 5}, {"x": 5.0}, True),
        ({"x": float("nan")}, {"x": None}, True),
        ({"x": 1.0}, {"x": None}, False),
        ({"x": 1.0}, {"x": 1.0 + 1e-10}, True),
        ({"x": 7_000_000_001}, {"x": 7_000_000_002}, False),
        ({"x": 7_000_000_001}, {"x": 7_000_000_002.0}, True),
        ({"x": 2**60}, {"x": 2**60 + 1}, False),
        ({"x": True}, {"x": 1.0}, True),
        ({"x": "5"}, {"x": 5.0}, False),
        ({"x": "a", "y": 1.0}, {"x": "a"}, True),
        ({"x": "a"}, {"x": "a", "y": 1.0}, False),
        ({"x": "a"}, {"x": "a", "y": None}, True),
        ({"x": [1, 2]}, {"x": [1, 2]}, True),
    ],
)
def test_what_a_tolerance_forgives(one, other, same):
    """The type of a number, the sort of nothing, and columns that were not asked for; text is never near a number."""
    found = first_difference(Batch.from_rows([one]), Batch.from_rows([other]), tolerance=1e-9)
    assert (found is None) == same


@pytest.mark.parametrize(
    ("got", "expected", "row"),
    [
        ([1.0, 1.0 + 1e-12, 3.0], [1.0, 1.0, 4.0], 2),
        ([1e20, 1.0], [1e20 + 1e6, 1.0 + 1e-12], None),
        ([10**15, 1.0], [10**15 + 1, 1.0], 0),
        ([1.0, 5], [1.0 + 1e-12, 5.0], 1),
        ([1e-12, math.nan], [0.0, None], 1),
        ([1e-12, math.nan], [-0.0, math.nan], None),
        ([math.inf, 1.0], [-math.inf, 1.0], 0),
    ],
)
def test_what_rounding_explains(got, expected, row):
    """Small differences of floats alone: not of integers, of kinds, nor of what is missing."""
    found = first_that_is_no_rounding(column_of(got), column_of(expected), gap=1e-9)
    assert (None if found is None else found.row) == row


def test_objects_that_cannot_be_compared_are_told_by_what_they_show():
    """Arrays as values have no plain ==; neither the comparison nor the sentence breaks."""
    one, same, other = (Batch.from_rows([{"x": np.array(items)}]) for items in ([1, 2], [1, 2], [1, 3]))
    assert first_difference(one, same) is None
    found = first_difference(one, other)
    assert found is not None
    assert found.gap == math.inf
    assert shown(ABSENT) == "not there"
