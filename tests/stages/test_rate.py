"""Rate against the differences of pandas, and Prometheus' reading of a counter that goes down."""

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

VALUES = st.floats(-1e6, 1e6) | st.just(float("nan"))
ROWS = st.lists(st.tuples(st.sampled_from("abc"), VALUES, st.integers(0, 100)), min_size=1, max_size=60)


def batch_of(values, seconds):
    times = 10**18 + np.array(seconds, np.int64) * 10**9
    return Batch({"v": Column(Kind.FLOAT, np.array(values, np.float64))}, time=times)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.sampled_from(["1s", "1min", 0.5]), st.booleans())
def test_equals_pandas(drive, rows, per, counter):
    """Per sensor, the difference to the reading before it over the time between them, where that is more than 0."""
    keys, values, seconds = zip(*rows, strict=True)
    made = drive(tm.Rate("v", per, counter=counter)).step(batch_of(values, seconds), keys).batch
    readings = pd.DataFrame({"k": keys, "v": values, "t": seconds}).dropna()
    step = readings.groupby("k")["v"].diff()
    if counter:
        step = step.where(~(step < 0), readings["v"])
    passed = readings.groupby("k")["t"].diff() / pd.Timedelta(per, "s" if per == 0.5 else None).total_seconds()
    expected = (step / passed).where(passed > 0).reindex(range(len(rows)))
    np.testing.assert_allclose(made["v_rate"], expected, rtol=1e-14, atol=0)


def test_a_counter_that_goes_down_has_started_again_from_zero(drive):
    """What it shows then is what has come since."""
    made = drive(tm.Rate("v", counter=True)).step(batch_of([5, 9, 2, 2], [0, 2, 4, 5])).batch
    np.testing.assert_array_equal(made["v_rate"], [np.nan, 2, 1, 0])


def test_a_clock_that_steps_back_costs_one_rate(drive):
    """Time that does not advance makes no rate, and the next record is compared with the last that came."""
    made = drive(tm.Rate("v")).step(batch_of([1, 2, 3, 4], [0, 10**9, 1, 2])).batch
    np.testing.assert_array_equal(made["v_rate"], [np.nan, 1e-9, np.nan, 1])


def test_what_is_no_duration_is_refused():
    """Naming the stage and the option."""
    with pytest.raises(PlanError, match=r"Rate\('v'\): per='fast' is not a duration"):
        tm.Rate("v", "fast")
