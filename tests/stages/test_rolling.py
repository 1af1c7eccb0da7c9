"""Rolling against pandas, and against itself in other batches."""

import os
import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import PlanError
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.rolling import STATISTICS, Rolling, quantile
from tidemill.stages.statistics.compiled import interpreted_kernels, load_kernels

ALL = [*STATISTICS, quantile(0.05), quantile(0.9)]
PANDAS = ["count", "sum", "mean", "std", "var", "min", "max", "median", quantile(0.05), quantile(0.9)]
SQUARED = st.floats(-1e6, 1e6).filter(lambda x: not 0 < abs(x) < 1e-140)  # nearer to 0, squares lack digits
VALUES = st.one_of(SQUARED, st.just(float("nan")), st.sampled_from([0.0, -0.0, 1.0, 1e-300]))
WILD = st.one_of(VALUES, st.floats())
KEYS = st.sampled_from(["a", "b", "c", "late"])


STEPS = st.sampled_from([0, 1, 7_000_000, 10**9, 3 * 10**9, -(10**9)])


@st.composite
def streams(draw, values=VALUES, most=120):
    """Records of a few sensors in random order, some late, and where the stream is cut into batches."""
    rows = draw(st.lists(st.tuples(KEYS, values, STEPS), min_size=1, max_size=most))
    cuts = sorted(draw(st.sets(st.integers(1, len(rows)), max_size=8)) - {len(rows)})
    times = 1_700_000_000 * 10**9 + np.cumsum([step for _, _, step in rows])
    return [k for k, _, _ in rows], np.array([v for _, v, _ in rows]), times, [0, *cuts, len(rows)]


def run(driver, keys, values, times, bounds, column="v"):
    parts = []
    for start, stop in pairwise(bounds):
        batch = Batch({column: Column(Kind.FLOAT, values[start:stop])}, time=times[start:stop])
        parts.append(driver.step(batch, keys[start:stop]).batch)
    return Batch.concat(parts)


def pandas_says(keys, values, window, stat, *, ddof=1, min_periods=1):
    frame = pd.DataFrame({"k": keys, "v": values})
    rolled = frame.groupby("k")["v"].rolling(window, min_periods=min_periods)
    if isinstance(stat, str):
        made = getattr(rolled, stat)(**({"ddof": ddof} if stat in ("std", "var") else {}))
    else:
        made = rolled.quantile(stat.q)
    return made.droplevel(0).sort_index().to_numpy()


def name_of(stat, window):
    return f"v_{stat if isinstance(stat, str) else stat.name}_{window}"


@settings(max_examples=60, deadline=None)
@given(streams(), st.sampled_from([1, 2, 7, 8, 9, 50]), st.sampled_from([0, 1, 2]), st.sampled_from([1, 2, 5]))
def test_equals_pandas(drive, stream, window, ddof, min_periods):
    """Every statistic is what pandas computes, over any interleaving, with NaN, late keys and batches of every size."""
    keys, values, times, bounds = stream
    min_periods = min(min_periods, window)
    stage = Rolling("v", window, ALL, ddof=ddof, min_periods=min_periods)
    made = run(drive(stage), keys, values, times, bounds)
    assert made.names == ("v", *(name_of(stat, window) for stat in ALL))
    scale = np.nanmax(np.abs(values), initial=0.0)
    for stat in PANDAS:
        expected = pandas_says(keys, values, window, stat, ddof=ddof, min_periods=min_periods)
        if stat in ("std", "var"):  # pandas carries a running sum, whose error grows with what has been in the window
            tolerance = scale**2 * 1e-9 if stat == "var" else scale * 1e-4
        else:
            tolerance = scale * 1e-9
        np.testing.assert_allclose(made[name_of(stat, window)], expected, rtol=1e-9, atol=tolerance, err_msg=str(stat))


@settings(max_examples=60, deadline=None)
@given(streams(), st.sampled_from([1, 3, 8, 50]), st.sampled_from([0, 1, 2]), st.sampled_from([0, 1, 3]))
def test_equals_numpy_on_each_window(drive, expected, stream, window, ddof, min_periods):
    """Every statistic is NumPy's and scipy's of the window alone, whatever came before it."""
    keys, values, times, bounds = stream
    min_periods = min(min_periods, window)
    made = run(drive(Rolling("v", window, ALL, ddof=ddof, min_periods=min_periods)), keys, values, times, bounds)
    scale = np.nanmax(np.abs(values), initial=0.0)
    for row, key in enumerate(keys):
        own = [i for i in range(row + 1) if keys[i] == key][-window:]
        for stat in ALL:
            right = expected(stat, values[own], times[own], values[row], ddof=ddof, min_periods=min_periods)
            got = made[name_of(stat, window)][row]
            # Spreads of nearly equal values are all rounding, and per second so are differences within a nanosecond.
            per_s = max(1e-9, 1e-15 / min((gap for gap in np.diff(np.unique(times[own])) / 1e9), default=1.0))
            tolerance = {"zscore": 1e-6, "var": scale**2 * 1e-12, "slope": scale * per_s, "rate": scale * per_s}
            atol = tolerance.get(stat, scale * 1e-12) + 1e-290  # where floats have fewer bits
            np.testing.assert_allclose(got, right, rtol=1e-9, atol=atol, err_msg=str(stat))


@settings(max_examples=60, deadline=None)
@given(streams(WILD), st.sampled_from([1, 3, 8, 17]))
def test_batches_do_not_show(drive, stream, window):
    """However the stream is cut into batches, every bit of every value is the same."""
    keys, values, times, bounds = stream
    stage = Rolling("v", window, ALL)
    whole = run(drive(stage), keys, values, times, [0, len(keys)])
    cut = run(drive(stage), keys, values, times, bounds)
    single = run(drive(stage), keys, values, times, list(range(len(keys) + 1)))
    for name in stage.adds:
        assert whole[name].tobytes() == cut[name].tobytes() == single[name].tobytes()


@settings(max_examples=60, deadline=None)
@given(streams(WILD), st.sampled_from([1, 3, 8, 17]), st.sampled_from([0, 1]))
def test_compiled_equals_interpreted(drive, stream, window, min_periods):
    """Machine code and plain Python give the same bits, for every float there is."""
    keys, values, times, bounds = stream
    stage = Rolling("v", window, ALL, min_periods=min_periods)
    fast = run(drive(stage, kernels=load_kernels()), keys, values, times, bounds)
    slow = run(drive(stage, kernels=interpreted_kernels()), keys, values, times, bounds)
    for name in stage.adds:
        assert fast[name].tobytes() == slow[name].tobytes(), name


@settings(max_examples=60, deadline=None)
@given(streams(WILD), st.sampled_from([1, 3, 8]))
def test_roll_back_restores_every_bit(drive, stream, window):
    """After any batch, rolled back, the state is what it was before it; done again, the values are the same."""
    keys, values, times, bounds = stream
    driver = drive(Rolling(["v", "w"], window, ALL))
    for start, stop in pairwise(bounds):
        column = Column(Kind.FLOAT, values[start:stop])
        batch = Batch({"v": column, "w": Column(Kind.FLOAT, -values[start:stop])}, time=times[start:stop])
        before = driver.snapshot()
        once = driver.step(batch, keys[start:stop], commit=False).batch
        assert driver.memory.roll_back()
        assert driver.snapshot() == before
        assert driver.memory.roll_back(), "doing it twice does no harm"
        assert driver.snapshot() == before
        again = driver.step(batch, keys[start:stop]).batch
        assert not driver.memory.roll_back()
        for name in once.names:
            assert once[name].tobytes() == again[name].tobytes()


@settings(max_examples=30, deadline=None)
@given(streams(WILD, most=40))
def test_a_slab_in_several_steps_rolls_back_whole(drive, stream):
    """A slab worked on in several calls goes back to what stood before the first of them."""
    keys, values, times, bounds = stream
    driver = drive(Rolling("v", 3, ["mean"]), max_records=4096)
    run(driver, keys, values, times, [0, len(keys)])
    before = driver.snapshot()
    driver.begin(keys)
    slots = driver.state.slots
    for start, stop in pairwise(bounds):
        driver.state.slots = slots[start:stop]
        driver.stage.step(Batch({"v": Column(Kind.FLOAT, values[start:stop])}), driver.state)
    driver.memory.roll_back()
    assert driver.snapshot() == before


def test_several_columns_share_the_window(drive, floats):
    """Columns and statistics come in the order columns x stats, each from its own ring."""
    made = drive(Rolling(["a", "b"], 2, ["sum", "max"])).step(floats(a=[1, 2, 3], b=[10, 20, 30])).batch
    assert made.names == ("a", "b", "a_sum_2", "a_max_2", "b_sum_2", "b_max_2")
    assert made["a_sum_2"].tolist() == [1, 3, 5]
    assert made["b_max_2"].tolist() == [10, 20, 30]


def test_integers_booleans_and_missing_values(drive):
    """Ints and bools read as numbers; null, absent and a missing column read as NaN."""
    tags = np.array([0, 1, 2, 0], np.uint8)
    batch = Batch({
        "n": Column(Kind.INT, np.array([1, 0, 0, 5]), tags=tags),
        "on": Column(Kind.BOOL, np.array([True, False, True, True])),
    })  # fmt: skip
    made = drive(Rolling(["n", "on", "gone"], 4, ["mean", "count"])).step(batch).batch
    assert made["n_mean_4"].tolist() == [1, 1, 1, 3]
    assert made["n_count_4"].tolist() == [1, 1, 1, 2]
    assert made["on_mean_4"].tolist() == [1, 0.5, 2 / 3, 0.75]
    assert made["gone_count_4"].tolist() == [0, 0, 0, 0]
    assert np.isnan(made["gone_mean_4"]).all()


def test_a_still_sensor_has_no_spread(drive, floats):
    """Equal values have exactly their value as mean and exactly 0 as spread, which 0.1 summed 50 times would miss."""
    made = drive(Rolling("v", 50, ["mean", "std", "var"])).step(floats(v=[0.1] * 60)).batch
    assert set(made["v_mean_50"].tolist()) == {0.1}
    assert set(made["v_std_50"][1:].tolist()) == {0.0}


def test_infinity_leaves_with_its_window(drive, floats):
    """An infinity is a value while it is in the window, and leaves no trace after it."""
    made = drive(Rolling("v", 2, ["mean", "std", "max", "median"])).step(floats(v=[1, np.inf, 3, 5, 7])).batch
    assert made["v_mean_2"].tolist() == [1, np.inf, np.inf, 4, 6]
    assert made["v_max_2"].tolist() == [1, np.inf, np.inf, 5, 7]
    assert np.isnan(made["v_std_2"][1:3]).all()
    assert made["v_std_2"][4] == np.sqrt(2)


def test_error_does_not_grow(drive, floats):
    """A huge value that has left the window has left the sums: what a running sum would never forget."""
    values = np.r_[1e16, np.full(2000, 0.1), 0.3]
    made = drive(Rolling("v", 8, ["mean", "std"])).step(floats(v=values)).batch
    assert made["v_mean_8"][-2] == 0.1
    np.testing.assert_allclose(made["v_std_8"][-1], np.std([0.1] * 7 + [0.3], ddof=1), rtol=1e-12)


def test_own_names_and_schema():
    """``names`` replace the default names, and the schema gains float columns after its own."""
    stage = Rolling("v", 5, ["mean", "std"], names=["m", "s"])
    schema = stage.bind(Schema([Field("v", Kind.FLOAT), Field("unit", Kind.TEXT)]))
    assert str(schema) == "v: float, unit: text, m: float, s: float"


def test_memory_is_small():
    """State and what a lane keeps of it are 9 bytes a record of the window and 512 more for each sensor and column; 20 where
    values are kept in order, or event times."""
    for window in (1, 17, 50, 65, 1000, 5000):
        for stats, each in ((["mean", "std", "min", "max", "rms"], 9), (["median", quantile(0.9)], 20), (["rate"], 20)):
            stage = Rolling("v", window, stats)
            state = sum(field.bytes_per_key for field in stage.state_fields().values())
            assert state + stage.kept_bytes_per_key <= each * window + 512, (window, stats)


def test_an_empty_batch(drive, floats):
    """A batch without records gives the columns without records."""
    made = drive(Rolling("v", 5, ["mean"])).step(floats(v=[])).batch
    assert made.names == ("v", "v_mean_5")
    assert len(made) == 0


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({"columns": "v", "window": 0}, "window=0"),
        ({"columns": 3}, "Rolling: columns=3 must be the name of a column, or a list of names."),
        ({"columns": "v", "window": "0s"}, "Rolling('v', '0s'): window='0s' must be at least a nanosecond"),
        ({"columns": "v", "window": "30x"}, "Rolling('v', '30x'): window='30x' is not a duration"),
        ({"columns": "v", "window": "50"}, '"1h" or "1d", or a whole number, such as 50, of records.'),
        (
            {"columns": "v", "window": 30.0},
            "window=30.0 must be a number of records from 1 to 1,000,000, or a duration",
        ),
        ({"columns": "v", "window": "30s", "max_records": 0}, "max_records=0 must be a number of records"),
        ({"columns": "v", "window": "30s", "max_records": 5, "min_periods": 6}, "from 0 to max_records, 5"),
        ({"columns": "v", "max_records": 5}, "max_records bounds windows of time; this one is of 50 records"),
        ({"columns": "v", "max_gap_s": -1}, "max_gap_s=-1 must be at least a nanosecond"),
        ({"columns": "v", "stats": ["mode"]}, "'mode' is not a statistic; there are count"),
        ({"columns": "v", "stats": []}, "at least one"),
        ({"columns": ["v", "v"]}, "column 'v' is named twice"),
        ({"columns": "v", "min_periods": 51}, "min_periods=51"),
        ({"columns": "v", "ddof": -1}, "ddof=-1"),
        ({"columns": "v", "stats": ["mean"], "names": ["a", "b"]}, "1 different names"),
    ],
)
def test_refused_at_construction(arguments, culprit):
    """What cannot run is refused before anything runs, naming the culprit."""
    with pytest.raises(PlanError, match=re.escape(culprit)):
        Rolling(**arguments)


def test_a_window_may_be_an_integer_of_numpy():
    """As they come out of arrays and configurations."""
    assert Rolling("v", np.int64(5), "mean").adds == ("v_mean_5",)


def test_unknown_and_unusable_columns_are_refused():
    """A column that is not there, or is text, is refused by the schema."""
    with pytest.raises(PlanError, match=r"Rolling.*needs a column 'v'; the columns there are: unit"):
        Rolling("v").bind(Schema([Field("unit", Kind.TEXT)]))
    with pytest.raises(PlanError, match="'unit' to be float or int or bool; it is text"):
        Rolling("unit").bind(Schema([Field("unit", Kind.TEXT)]))


def test_interpreted_on_request(monkeypatch):
    """NUMBA_DISABLE_JIT=1 gives the interpreted kernels, and they say why."""
    monkeypatch.setitem(os.environ, "NUMBA_DISABLE_JIT", "1")
    kernels = load_kernels()
    assert kernels.kind == "interpreted"
    assert "NUMBA_DISABLE_JIT" in kernels.reason
