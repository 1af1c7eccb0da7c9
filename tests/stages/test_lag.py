"""Lag and Diff against pandas."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import PlanError
from tidemill.schema import Kind

ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.floats() | st.just(float("nan"))), min_size=1, max_size=80)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.sampled_from([1, 2, 3, 10, 100]))
def test_equal_pandas(drive, rows, n):
    """Per sensor, the value n records ago and the difference to it, whatever the values: bit for bit, NaN as NaN."""
    keys, values = zip(*rows, strict=True)
    batch = Batch({"v": Column(Kind.FLOAT, np.array(values))})
    grouped = pd.DataFrame({"k": keys, "v": values}).groupby("k")["v"]
    lag = drive(tm.Lag("v", n)).step(batch, keys).batch
    diff = drive(tm.Diff("v", n)).step(batch, keys).batch
    assert (lag.names, diff.names) == (("v", f"v_lag_{n}"), ("v", f"v_diff_{n}"))
    np.testing.assert_array_equal(lag[f"v_lag_{n}"], grouped.shift(n))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(diff[f"v_diff_{n}"], batch["v"] - grouped.shift(n).to_numpy())


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "1", 1_000_001])
@pytest.mark.parametrize("stage", [tm.Lag, tm.Diff])
def test_what_is_no_number_of_records_is_refused(stage, n):
    """Naming the stage and the value."""
    with pytest.raises(PlanError, match=stage.__name__ + r"\('v'\): " + re.escape(f"n={n!r} must be a number")):
        stage("v", n)
