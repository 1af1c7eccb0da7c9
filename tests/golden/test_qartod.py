"""Quality flags of a tide gauge, against those of ioos_qc 3.0.0."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidemill as tm
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.schema import Kind

LEVEL = "sea_surface_height_above_sea_level"
TESTS = ["gross_range_test", "flat_line_test", "rate_of_change_test", "spike_test"]
HOUR_NS = 3_600 * 10**9


@pytest.mark.slow
def test_every_flag_is_that_of_the_reference(recordings, example, rows_of):
    """7,241 readings and 4 tests each, through `Rolling`, `Keyed` and `Map` in the lanes: equal, flag by flag."""
    golden = pd.read_csv(recordings / "ioos_qartod/golden_water_level_flags.csv.gz")
    source = tm.sources.Replay(recordings / "ioos_qartod/water_level_example.csv", key="{stem}", time="time")
    ours = pd.DataFrame(rows_of(source, example("water_level").plan))
    assert ours[LEVEL].tolist() == golden[LEVEL].tolist()
    # A spike is one beside both neighbours, so its flag is on the row after it; nothing comes after the last reading.
    unknown = example("water_level").UNKNOWN
    ours["spike_test"] = ours["spike_test_before"].shift(-1, fill_value=unknown).astype(int)
    for test in TESTS:
        assert ours[test].tolist() == golden[test].tolist(), test
        print(f"{test}: {golden[test].value_counts().sort_index().to_dict()}, all equal")
    assert golden["flat_line_test"].eq(4).sum() == 4_207  # the sensor that is stuck for five months is in there


def flags_of(example, levels, hours=None):
    """Rows of the plan over one gauge, inline."""
    hours = range(len(levels)) if hours is None else hours
    rows = [{"sensor": "A", "time": hour * 3_600, LEVEL: level} for hour, level in zip(hours, levels, strict=True)]
    return example("water_level").plan.apply(rows)


def test_a_spike_is_told_with_the_next_reading(example):
    """Of 0, 5, 0 the middle one is 5 m off: the row after it says so."""
    rows = flags_of(example, [0.0, 0.1, 5.0, 0.2, 0.3])
    assert [row["spike_test_before"] for row in rows] == [9, 2, 3, 4, 3]


def test_a_missing_level_is_flagged_as_missing_by_every_test(example):
    """9 for itself; its neighbours cannot be tested for spikes."""
    rows = flags_of(example, [0.0, 0.1, None, 0.2, 0.3, 0.4])
    assert [rows[2][test] for test in TESTS[:3]] == [9, 9, 9]
    assert [row["spike_test_before"] for row in rows[1:]] == [2, 2, 9, 2, 1]


def test_two_levels_at_one_time_are_too_fast(example):
    """A rate without end is above every threshold."""
    rows = flags_of(example, [0.0, 0.1, 0.2], hours=[0, 1, 1])
    assert [row["rate_of_change_test"] for row in rows] == [1, 1, 3]


@given(st.lists(st.floats(-5, 5) | st.just(float("nan")), min_size=1, max_size=30), st.data())
def test_neighbours_are_the_same_in_batches_of_any_size(example, levels, data):
    """Split anywhere, the columns have the same bits."""
    cut = data.draw(st.integers(0, len(levels)))
    time = np.arange(len(levels)) * HOUR_NS
    batch = Batch({LEVEL: Column(Kind.FLOAT, np.array(levels))}, time=time)
    whole = example("water_level").Neighbours().update_many(batch)
    split = example("water_level").Neighbours()
    parts = [split.update_many(part) for part in (batch.slice(0, cut), batch.slice(cut, len(batch))) if len(part)]
    for name, expected in whole.items():
        assert np.array_equal(np.concatenate([part[name] for part in parts]), expected, equal_nan=True)
