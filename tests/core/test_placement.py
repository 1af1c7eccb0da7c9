"""Which device a record is of."""

import numpy as np
import pytest

import tidemill as tm
from tidemill.column import Column
from tidemill.core.placement import devices_of
from tidemill.schema import Kind


def named(items, by="device"):
    batch = tm.Batch.from_rows([{} if item is ... else {"device": item} for item in items])
    column = devices_of(batch, by)
    return [column.texts[code] if code >= 0 else None for code in column.values.tolist()]


@pytest.mark.parametrize(
    ("items", "told"),
    [
        (["A", None, ..., "B", "A"], ["A", None, None, "B", "A"]),
        ([7, 8, 7], ["7", "8", "7"]),
        ([7.0, 7.5, float("nan")], ["7.0", "7.5", None]),
        ([7, 7.0, None, ...], ["7", "7.0", None, None]),
        ([2**60 + 1, 7], [str(2**60 + 1), "7"]),
        ([True, False, None], ["True", "False", None]),
        ([{"a": 1}, None], [None, None]),
        ([None, ...], [None, None]),
        ([..., ...], [None, None]),
    ],
)
def test_a_device_is_what_its_column_says_as_text(items, told):
    """As a sensor's name is; nested values, NaN and nothing name none."""
    assert named(items) == told


def test_a_column_that_is_not_there_names_no_device():
    """Of any record."""
    assert named(["A", "B"], by="machine") == [None, None]


def test_declared_integers_are_read_as_they_are():
    """Whether all have a value or not."""
    for tags, told in ((None, ["5", "0"]), (np.array([0, 1], np.uint8), ["5", None])):
        batch = tm.Batch({"device": Column(Kind.INT, np.array([5, 0]), tags=tags)})
        column = devices_of(batch, "device")
        assert [column.texts[code] if code >= 0 else None for code in column.values.tolist()] == told
