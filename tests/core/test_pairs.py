"""Pairs and their codes, however many there are and wherever they lie."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.pairs import MISSING, PairCodes

numbers = st.integers(0, 2**31 - 1) | st.integers(0, 3)
steps = st.lists(st.lists(st.tuples(numbers, numbers), unique=True, max_size=50), max_size=5)


def columns(pairs):
    return np.array(pairs, np.int32).reshape(-1, 2).T


@given(steps, st.lists(st.tuples(st.integers(-2, 2**31 - 1), st.integers(-2, 3)), max_size=30))
def test_a_pair_has_the_code_that_it_was_given(steps, others):
    """And one that was given none has none, even where a number is below 0."""
    table, expected = PairCodes(), {}
    for pairs in steps:
        new = [pair for pair in pairs if pair not in expected]
        expected.update((pair, len(expected) + place) for place, pair in enumerate(new))
        table.add(*columns(new), np.array([expected[pair] for pair in new], np.int32))
    asked = [*expected, *others]
    told = table.find(*columns(asked))
    assert told.dtype == np.int32
    assert told.tolist() == [expected.get(pair, MISSING) for pair in asked]


def test_hundreds_of_thousands_are_found():
    """In rows and columns, whose bits are much alike."""
    table = PairCodes()
    first, second = (axis.ravel().astype(np.int32) for axis in np.meshgrid(np.arange(600), np.arange(500)))
    for part in np.array_split(np.arange(len(first), dtype=np.int32), 7):
        table.add(first[part], second[part], part)
    assert np.array_equal(table.find(first, second), np.arange(len(first)))
    assert set(table.find(first + 600, second).tolist()) == {MISSING}
