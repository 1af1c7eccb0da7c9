"""Stuck against the range of each sensor's last readings."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import PlanError
from tidemill.schema import Kind

VALUES = st.one_of(
    st.integers(0, 4).map(float), st.sampled_from([1.0, 1.0, 1.0, 1.1, -0.0, 0.0, np.inf, -np.inf, np.nan]), st.floats()
)
ROWS = st.lists(st.tuples(st.sampled_from("ab"), VALUES), min_size=1, max_size=100)


@settings(max_examples=200, deadline=None)
@given(ROWS, st.sampled_from([2, 3, 5, 10]), st.sampled_from([0.0, 0.1, 1.0, 2, 1e300]))
def test_equals_the_range_of_the_last_readings(drive, rows, n, tolerance):
    """True where the sensor has n readings and the last n lie within the tolerance; records without one are no readings."""
    keys, values = zip(*rows, strict=True)
    made = drive(tm.Stuck("v", n, tolerance)).step(Batch({"v": Column(Kind.FLOAT, np.array(values))}), keys).batch
    readings = {"a": [], "b": []}
    expected = []
    for key, value in rows:
        own = readings[key]
        if value == value:
            own.append(value)
        low, high = min(own[-n:], default=0.0), max(own[-n:], default=0.0)
        expected.append(len(own) >= n and (low == high or high - low <= tolerance))
    assert made.columns["v_stuck"].kind is Kind.BOOL
    assert made["v_stuck"].tolist() == expected


def test_a_slow_drift_is_not_stuck(drive):
    """Each reading is within the tolerance of the one before, but the n of them are not of each other."""
    values = np.arange(20) * 0.5
    made = drive(tm.Stuck("v", 4, tolerance=1.0)).step(Batch({"v": Column(Kind.FLOAT, values)})).batch
    assert not made["v_stuck"].any()


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"n": 1}, "n=1 must be a number of readings from 2"),
        ({"n": 2.0}, "n=2.0"),
        ({"tolerance": -1}, "tolerance=-1 must be 0 or more"),
        ({"tolerance": float("nan")}, "tolerance=nan"),
        ({"tolerance": float("inf")}, "tolerance=inf"),
        ({"tolerance": "1"}, "tolerance='1'"),
    ],
)
def test_refused_at_construction(options, culprit):
    """Naming the stage and the value."""
    with pytest.raises(PlanError, match=r"Stuck\('v'\): " + re.escape(culprit)):
        tm.Stuck("v", **options)
