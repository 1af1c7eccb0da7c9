"""Ewm against pandas, and where pandas has nothing, against the weights written out in NumPy."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import PlanError
from tidemill.schema import Kind

STATS = ["mean", "var", "std"]
VALUES = st.one_of(st.floats(-1e3, 1e3), st.just(float("nan")), st.sampled_from([0.0, 1.0, 1.0]))
READINGS = st.lists(VALUES, min_size=1, max_size=60)
GAPS = st.one_of(st.integers(0, 10 * 10**9), st.sampled_from([0, 1, 10**9, 10**12]))


def made_of(drive, stage, values, times=None):
    """Each statistic's column, in the order of the stage's."""
    columns = {"v": Column(Kind.FLOAT, np.array(values, np.float64))}
    times = None if times is None else np.asarray(times, np.int64)
    made = drive(stage).step(Batch(columns, time=times)).batch
    return [made[name] for name in stage.adds]


def close(made, expected, values, power=1):
    """Equal but for rounding, which is relative to the values that were added up, down to where float64 rounds absolutely."""
    scale = np.nanmax(np.abs(values), initial=0.0) ** power
    np.testing.assert_allclose(made, expected, rtol=1e-9, atol=1e-11 * scale + np.finfo(np.float64).tiny)


@settings(max_examples=100, deadline=None)
@given(
    READINGS,
    # Not alpha=0.5: pandas 3.1 takes it for a half-life where it is not adjusted, and after NaN has other weights than its
    # documentation.
    st.sampled_from([{"alpha": 0.05}, {"alpha": 0.4}, {"alpha": 1.0}, {"span": 1}, {"span": 3.5}, {"span": 50}]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 1, 3]),
)
def test_equals_pandas(drive, values, decay, adjust, bias, min_periods):
    """Mean, variance and deviation are those of pandas, with NaN anywhere, adjusted or not, biased or not."""
    # Where ten readings in a row are missing, the difference of squares by which pandas corrects has lost its digits.
    assume(not np.isnan(np.lib.stride_tricks.sliding_window_view(np.r_[[0] * 9, values], 10)).all(1).any())
    stage = tm.Ewm("v", **decay, stats=STATS, adjust=adjust, bias=bias, min_periods=min_periods)
    mean, var, std = made_of(drive, stage, values)
    theirs = pd.Series(values).ewm(**decay, adjust=adjust, min_periods=min_periods)
    close(mean, theirs.mean(), values)
    np.testing.assert_allclose(std, np.sqrt(var), rtol=1e-15)
    expected = theirs.var(bias=bias)
    if not bias:  # after a NaN, pandas may find the variance of a single reading to be 0, as its weights were rounded
        expected = expected.where(pd.Series(values).expanding().count() > 1)
    close(var, expected, values, power=2)


@settings(max_examples=100, deadline=None)
@given(READINGS, st.lists(GAPS, min_size=60, max_size=60), st.sampled_from(["500ms", 5, "1h"]), st.booleans())
def test_a_half_life_in_time_equals_pandas(drive, values, gaps, halflife, adjust):
    """Readings at irregular times weigh by their age, as with pandas' ``times=``."""
    times = np.cumsum(gaps[: len(values)])  # from 1970 on: pandas reads times as floats, which today are 128 ns apart
    (mean,) = made_of(drive, tm.Ewm("v", halflife=halflife, adjust=adjust), values, times)
    theirs = pd.Series(values).ewm(
        halflife=pd.Timedelta(halflife, "s") if halflife == 5 else halflife,
        times=pd.to_datetime(times),
        adjust=adjust,
    )
    close(mean, theirs.mean(), values)


def weighted(values, times, halflife_ns):
    """Mean, unbiased and biased variance of readings that weigh by their age at the newest record."""
    weights = 0.5 ** ((np.max(times) - np.asarray(times)) / halflife_ns)
    good = ~np.isnan(values)
    values, weights = np.asarray(values)[good], weights[good]
    if not len(values) or not weights.sum():
        return np.nan, np.nan, np.nan
    mean = np.average(values, weights=weights)
    biased = np.average((values - mean) ** 2, weights=weights)
    pairs = sum(2 * a * b for i, a in enumerate(weights) for b in weights[:i])
    return mean, biased * weights.sum() ** 2 / pairs if pairs else np.nan, biased


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(VALUES, st.integers(0, 60)), min_size=1, max_size=30), st.sampled_from([2, 10, 1000]))
@example([(2.2e-311, 0), (float("nan"), 30)], 2)
@example([(1e-160, 0), (0.0, 1)], 10)
def test_a_half_life_equals_the_weights_written_out(drive, readings, halflife):
    """With records in any order of time each reading has the weight of its age, in the mean and in both variances."""
    values, seconds = zip(*readings, strict=True)
    times = 10**18 + np.array(seconds) * 10**9
    mean, var = made_of(drive, tm.Ewm("v", halflife=halflife, stats=["mean", "var"]), values, times)
    (biased,) = made_of(drive, tm.Ewm("v", halflife=halflife, stats="var", bias=True), values, times)
    first = next((row for row, value in enumerate(values) if value == value), len(values))
    for row in range(first, len(values)):
        expected = weighted(values[first : row + 1], times[first : row + 1], halflife * 10**9)
        close(mean[row], expected[0], values)
        close(var[row], expected[1], values, power=2)
        close(biased[row], expected[2], values, power=2)


def test_after_a_long_silence_the_variance_keeps_its_digits(drive):
    """Two readings 60 half-lives apart: the difference of squares would have lost all of them."""
    times = np.array([0, 60]) * 10**9
    _, var = made_of(drive, tm.Ewm("v", halflife="1s", stats=["mean", "var"]), [1.0, 3.0], times)
    assert var[1] == pytest.approx(2.0, rel=1e-12)


def test_a_silence_beyond_all_weights_starts_anew(drive):
    """After 2,000 half-lives what was before is nothing: the reading is the mean, and no two readings weigh."""
    times = np.array([0, 1, 2001, 2002]) * 10**9
    mean, var, _ = made_of(drive, tm.Ewm("v", halflife="1s", stats=STATS), [1.0, 3.0, 0.1, 0.2], times)
    assert mean[2] == 0.1
    assert np.isnan(var[2])
    assert var[3] == pytest.approx(np.var([0.1, 0.2], ddof=1), rel=1e-12)


@pytest.mark.parametrize("decay", [{"span": 20}, {"halflife": "7s"}])
@pytest.mark.parametrize("adjust", [True, False])
def test_errors_decay_and_do_not_build_up(drive, decay, adjust):
    """A hundred thousand readings after a huge one, the statistics are as accurate as those of the newest alone."""
    random = np.random.default_rng(0)
    values = np.r_[1e12, random.normal(5, 1, 100_000)]
    times = np.arange(len(values)) * 10**9
    stage = tm.Ewm("v", **decay, stats=["mean", "var"], adjust=adjust)
    driver = drive(stage, max_records=len(values))
    batch = Batch({"v": Column(Kind.FLOAT, values)}, time=times)
    made = driver.step(batch).batch
    alpha = 2 / 21 if "span" in decay else 1 - 0.5 ** (1 / 7)
    weights = (1 - alpha) ** np.arange(2_000)
    newest = values[::-1][:2_000]
    mean = np.average(newest, weights=weights)
    variance = np.average((newest - mean) ** 2, weights=weights)
    factor = weights.sum() ** 2 / (weights.sum() ** 2 - (weights**2).sum())
    assert made[stage.adds[0]][-1] == pytest.approx(mean, rel=1e-13)
    assert made[stage.adds[1]][-1] == pytest.approx(variance * factor, rel=1e-12)


def test_a_still_sensor_has_exactly_its_value_and_no_spread(drive):
    """0.1 again and again is 0.1, with a deviation of 0."""
    mean, var, std = made_of(drive, tm.Ewm("v", span=10, stats=STATS), [0.1] * 200)
    assert set(mean) == {0.1}
    assert set(var[1:]) == set(std[1:]) == {0.0}


def test_what_is_infinite_or_beyond_all_squares_leaves_no_trace(drive):
    """It counts as missing, as an infinity does in pandas."""
    stage = tm.Ewm("v", span=3, stats=STATS)
    made = made_of(drive, stage, [1.0, np.inf, -1e300, 2.0])
    expected = made_of(drive, stage, [1.0, np.nan, np.nan, 2.0])
    np.testing.assert_array_equal(made, expected)


def test_a_missing_value_makes_older_readings_weigh_less(drive):
    """As pandas documents ignore_na=False: weights (1 - alpha)^2 and alpha, divided by their sum."""
    (mean,) = made_of(drive, tm.Ewm("v", alpha=0.5, adjust=False), [1.0, np.nan, 0.0])
    assert mean.tolist() == [1.0, 1.0, 0.25 / 0.75]


def test_a_late_reading_without_adjustment_has_no_weight(drive):
    """No time has passed since the newest, so nothing of the mean is given up for it."""
    times = np.array([0, 10, 5, 10]) * 10**9
    (mean,) = made_of(drive, tm.Ewm("v", halflife=10, adjust=False), [0.0, 4.0, 100.0, 100.0], times)
    assert mean.tolist() == [0.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("options", "adds"),
    [
        ({"span": 20}, "v_ewm_mean_span20"),
        ({"alpha": 0.1}, "v_ewm_mean_alpha0.1"),
        ({"halflife": "5s"}, "v_ewm_mean_5s"),
        ({"halflife": 90}, "v_ewm_mean_90s"),
        ({"halflife": "1 min"}, "v_ewm_mean_1min"),
    ],
)
def test_names_say_how_old_readings_fade(options, adds):
    """By span, by alpha, or by the half-life as it was written."""
    assert tm.Ewm("v", **options).adds == (adds,)


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({}, "needs one of alpha=, span= (in records) and halflife= (in time)"),
        ({"span": 3, "alpha": 0.5}, "needs one of alpha="),
        ({"alpha": 0}, "alpha=0 must be more than 0"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"span": 0.5}, "span=0.5 must be a number of records, 1 or more"),
        ({"span": True}, "span=True"),
        ({"halflife": "5 parsecs"}, "halflife='5 parsecs' is not a duration"),
        ({"halflife": 0}, "halflife=0"),
        ({"span": 3, "stats": ["median"]}, "'median' is not one of its statistics, mean, var, std"),
        ({"span": 3, "stats": []}, "needs statistics"),
        ({"span": 3, "stats": ["mean", "mean"]}, "needs statistics, each once"),
        ({"span": 3, "min_periods": -1}, "min_periods=-1"),
    ],
)
def test_refused_at_construction(options, culprit):
    """What cannot run is refused before anything runs, naming the stage, the column and the culprit."""
    with pytest.raises(PlanError, match=r"Ewm\('v'\).*" + re.escape(culprit)):
        tm.Ewm("v", **options)
