"""Functions of one's own among Rolling's statistics."""

import re
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import PlanError
from tidemill.schema import Field, Kind, Schema
from tidemill.stages import windows as machinery
from tidemill.stages.rolling import STATISTICS, Rolling
from tidemill.stages.statistics.compiled import interpreted_kernels

VALUES = st.one_of(st.floats(-1e6, 1e6), st.just(float("nan")), st.sampled_from([0.0, 1.0]))
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # windows of nothing but NaN


@pytest.fixture(autouse=True, params=[13, machinery._CELLS_AT_ONCE], ids=["few at once", "many at once"])
def cells_at_once(request, monkeypatch):
    """Everything holds however few windows a call gets."""
    monkeypatch.setattr(machinery, "_CELLS_AT_ONCE", request.param)


@st.composite
def streams(draw, most=80):
    """Records of a few sensors in random order, and where the stream is cut into batches."""
    rows = draw(st.lists(st.tuples(st.sampled_from("abc"), VALUES), min_size=1, max_size=most))
    cuts = sorted(draw(st.sets(st.integers(1, len(rows)), max_size=6)) - {len(rows)})
    return [k for k, _ in rows], np.array([v for _, v in rows]), [0, *cuts, len(rows)]


def run(driver, keys, values, bounds):
    parts = []
    for start, stop in pairwise(bounds):
        own = Column(Kind.FLOAT, values[start:stop])
        columns = {"v": own, "u": Column(Kind.FLOAT, -values[start:stop])}
        parts.append(driver.step(Batch(columns, time=np.arange(start, stop) * 10**9), keys[start:stop]).batch)
    return Batch.concat(parts)


def highest(windows):
    return np.nanmax(windows, axis=1)


def total(windows):
    return np.nansum(windows, axis=1)


BUILT_IN = [*STATISTICS, tm.quantile(0.9)]


@settings(max_examples=50)
@given(streams(), st.sampled_from([1, 2, 7, 40]), st.sampled_from([0, 1, 2]))
def test_functions_and_names_stand_side_by_side(drive, stream, window, min_periods):
    """What the names make is what it is without the functions; the functions make what the names of the same make."""
    keys, values, bounds = stream
    min_periods = min(min_periods, window)
    mixed = Rolling(["v", "u"], window, [highest, *BUILT_IN, total], min_periods=min_periods)
    plain = Rolling(["v", "u"], window, BUILT_IN, min_periods=min_periods)
    made, alone = run(drive(mixed), keys, values, bounds), run(drive(plain), keys, values, bounds)
    assert made.names == ("v", "u", *mixed.adds)
    for name in plain.adds:
        assert made[name].tobytes() == alone[name].tobytes(), name
    for column in ("v", "u"):
        assert made[f"{column}_highest_{window}"].tolist() == pytest.approx(
            made[f"{column}_max_{window}"].tolist(), nan_ok=True
        )
        sums = made[f"{column}_sum_{window}"]
        np.testing.assert_allclose(made[f"{column}_total_{window}"], sums, rtol=1e-9, atol=1e-3)


@settings(max_examples=50)
@given(streams(), st.sampled_from([1, 3, 8]))
def test_batches_do_not_show(drive, stream, window):
    """However the stream is cut into batches, every bit of every value is the same, and so is the state."""
    keys, values, bounds = stream
    stage = Rolling(["v", "u"], window, [total, "mean", highest, "median"])
    drivers = [drive(stage) for _ in range(3)]
    cuts = ([0, len(keys)], bounds, list(range(len(keys) + 1)))
    whole, cut, single = (run(own, keys, values, places) for own, places in zip(drivers, cuts, strict=True))
    for name in stage.adds:
        assert whole[name].tobytes() == cut[name].tobytes() == single[name].tobytes()
    assert drivers[0].snapshot() == drivers[1].snapshot() == drivers[2].snapshot()


@settings(max_examples=50)
@given(streams(), st.sampled_from([1, 3, 8]), st.sampled_from([1, 3]))
def test_equals_pandas(drive, stream, window, min_periods):
    """What ``groupby.rolling(window, min_periods).apply(fn, raw=True)`` gives, by a function that takes NaN as it comes."""
    keys, values, bounds = stream
    min_periods = min(min_periods, window)
    made = run(drive(Rolling("v", window, [total], min_periods=min_periods)), keys, values, bounds)
    frame = pd.DataFrame({"k": keys, "v": values})
    rolled = frame.groupby("k")["v"].rolling(window, min_periods=min_periods)
    expected = rolled.apply(lambda own: total(own[None, :])[0], raw=True).droplevel(0).sort_index().to_numpy()
    np.testing.assert_allclose(made[f"v_total_{window}"], expected, rtol=1e-9, atol=1e-3)


@settings(max_examples=30)
@given(streams())
def test_roll_back_restores_every_bit(drive, stream):
    """After any batch, rolled back, the state is what it was before it; done again, the values are the same."""
    keys, values, bounds = stream
    driver = drive(Rolling(["v", "u"], 3, [total, "slope", "median"]))
    for start, stop in pairwise(bounds):
        own = Column(Kind.FLOAT, values[start:stop])
        batch = Batch({"v": own, "u": own}, time=np.arange(start, stop) * 10**9)
        before = driver.snapshot()
        once = driver.step(batch, keys[start:stop], commit=False).batch
        assert driver.memory.roll_back()
        assert driver.snapshot() == before
        again = driver.step(batch, keys[start:stop]).batch
        assert all(once[name].tobytes() == again[name].tobytes() for name in once.names)


def test_a_silence_empties_the_window_for_functions_too(drive):
    """What came before it is NaN to them."""
    seen = []
    stage = Rolling("v", 3, [lambda w: seen.append(w.copy()) or w[:, -1]], max_gap_s=5, names=["x"])
    batch = Batch({"v": Column(Kind.FLOAT, np.arange(4.0))}, time=np.array([0, 1, 2, 100]) * 10**9)
    drive(stage).step(batch)
    nan = np.nan
    np.testing.assert_equal(np.concatenate(seen), [[nan, nan, 0], [nan, 0, 1], [0, 1, 2], [nan, nan, 3]])


SECOND = 10**9
STEPS = st.sampled_from([0, 1, SECOND, 4 * SECOND, 11 * SECOND, -1, -SECOND, -7 * SECOND, -30 * SECOND])


def in_time(draw_steps):
    """Event times that go on by a step, or are one that is late."""
    times, now = [], 0
    for step in draw_steps:
        now = max(now, now + step)
        times.append(min(now, now + step))
    return np.array(times, np.int64)


def time_windows(keys, values, times, span, room):
    """The windows of time themselves, the slow way: of the last ``room`` of each sensor, those in time, in its order."""
    made = np.full((len(values), room), np.nan)
    for row, key in enumerate(keys):
        held = [i for i in range(row + 1) if keys[i] == key][-room:]
        held = sorted((i for i in held if times[row] - span < times[i] <= times[row]), key=lambda i: (times[i], i))
        made[row, room - len(held) :] = values[held]
    return made


@settings(max_examples=60)
@given(streams(), st.lists(STEPS, min_size=80, max_size=80), st.sampled_from([1, 3, 20]), st.booleans())
def test_functions_see_windows_of_time(drive, stream, steps, room, slow):
    """In order of event time, equal times by arrival, the window's own record at the right; late records in their places."""
    keys, values, bounds = stream
    times = in_time(steps)
    seen, other = [], []
    fns = [lambda w: seen.append(w.copy()) or w[:, -1], lambda w: other.append(w.copy()) or w[:, -1]]
    names = [f"{column}{n}" for column in "vu" for n in range(3)]
    stage = Rolling(["v", "u"], "10s", [fns[0], "count", fns[1]], max_records=room, names=names)
    driver = drive(stage, kernels=interpreted_kernels() if slow else None)
    for start, stop in pairwise(bounds):
        own = Column(Kind.FLOAT, values[start:stop])
        batch = Batch({"v": own, "u": Column(Kind.FLOAT, -values[start:stop])}, time=times[start:stop])
        driver.step(batch, keys[start:stop])
    right = time_windows(keys, values, times, 10 * SECOND, room)
    for made, sign in ((seen[0::2], 1), (seen[1::2], -1), (other[0::2], 1), (other[1::2], -1)):
        np.testing.assert_array_equal(np.concatenate(made), sign * right)


@settings(max_examples=40)
@given(streams(), st.lists(STEPS, min_size=80, max_size=80), st.sampled_from([1, 3, 20]))
def test_windows_of_time_leave_everything_as_it_is_without_functions(drive, stream, steps, room):
    """The statistics by name, the state, and both in other batches: to the bit."""
    keys, values, bounds = stream
    times = in_time(steps)
    mixed = Rolling(["v", "u"], "10s", [total, *BUILT_IN], max_records=room)
    plain = Rolling(["v", "u"], "10s", BUILT_IN, max_records=room)
    drivers, made = [drive(mixed), drive(mixed), drive(plain)], []
    for driver, cuts in zip(drivers, (bounds, list(range(len(keys) + 1)), bounds), strict=True):
        parts = []
        for start, stop in pairwise(cuts):
            own = Column(Kind.FLOAT, values[start:stop])
            batch = Batch({"v": own, "u": Column(Kind.FLOAT, -values[start:stop])}, time=times[start:stop])
            parts.append(driver.step(batch, keys[start:stop]).batch)
        made.append(Batch.concat(parts))
    cut, single, alone = made
    assert drivers[0].snapshot() == drivers[1].snapshot() == drivers[2].snapshot()
    assert all(cut[name].tobytes() == single[name].tobytes() for name in mixed.adds)
    assert all(cut[name].tobytes() == alone[name].tobytes() for name in plain.adds)
    np.testing.assert_allclose(cut["v_total_10s"], cut["v_sum_10s"], rtol=1e-9, atol=1e-3)


ROWS = [{"sensor": f"S{n % 3}", "time": float(n), "v": float(n)} for n in range(60)]


def unlucky(windows):
    """Fails on the records whose newest reading is 13 or 14."""
    if np.isin(windows[:, -1], (13, 14)).any():
        raise ValueError("no such value")
    return np.nansum(windows, axis=1)


def ran(stage, tmp_path, lanes):
    sink = tm.testing.ListSink()
    pipeline = tm.Pipeline(tm.sources.Records(ROWS), stage, sink)
    report = tm.run(pipeline, lanes=lanes, dead_letters=tmp_path / "dead.ndjson")
    return sink.rows, report


def test_a_failure_costs_its_records_alone(tmp_path, lanes):
    """They are dead letters; their readings are in the later windows, and the statistics by name are what they are."""
    rows, report = ran(Rolling("v", 4, ["sum", unlucky]), tmp_path, lanes)
    assert report.dead_letters_by_reason == {"raised": 2}
    whole = tm.Plan(Rolling("v", 4, ["sum"])).apply(ROWS)
    expected = [row["v_sum_4"] for row in whole if row["v"] not in (13, 14)]
    assert [row["v_sum_4"] for row in rows] == expected
    assert [row["v_unlucky_4"] for row in rows] == expected


def test_on_error_nan_keeps_the_record(tmp_path, lanes):
    """Without any of the stage's columns, as of every stage that runs functions of the user's."""
    rows, report = ran(Rolling("v", 4, ["sum", unlucky], on_error="nan"), tmp_path, lanes)
    assert [row["v"] for row in rows] == [row["v"] for row in ROWS]
    assert {row["v"] for row in rows if row["v_unlucky_4"] is None} == {13, 14}
    assert report.counters["failed_as_nan"] == 2


class Scaled:
    """Built once per lane."""

    def __init__(self):
        self.scale = 10.0

    def __call__(self, windows):
        return windows[:, -1] * self.scale


def test_what_functions_are_called(drive, floats):
    """Functions, partials, classes and objects have a name for their column; a lambda is given one."""
    stage = Rolling("v", 2, ["mean", total, partial(highest), Scaled])
    assert stage.adds == ("v_mean_2", "v_total_2", "v_highest_2", "v_Scaled_2")
    assert str(stage.bind(Schema([Field("v", Kind.FLOAT)]))).endswith("v_Scaled_2: float")
    assert drive(stage).step(floats(v=[1, 2])).batch["v_Scaled_2"].tolist() == [10, 20]
    assert Rolling("v", 2, [lambda w: w[:, 0]], names=["first"]).adds == ("first",)
    assert Rolling("v", 2, total).adds == ("v_total_2",)


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (lambda w: w.mean(), "returned one value of 'x' for all windows; a function is to work along axis=1"),
        (lambda w: w[:1, 0], "returned 1 values of 'x' for 2 records"),
        (lambda w: w, "a column has one dimension"),
        (lambda w: np.array(["a"] * len(w)), "returned 'x' as"),
    ],
)
def test_what_does_not_fit_is_told(drive, floats, monkeypatch, result, reason):
    """One number a row; anything else says what came and what is needed."""
    monkeypatch.setattr(machinery, "_CELLS_AT_ONCE", 100)
    with pytest.raises(tm.BadResult, match=re.escape(reason)):
        drive(Rolling("v", 2, [result], names=["x"])).step(floats(v=[1, 2]))


async def later(windows):
    """No plain function."""


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({"stats": [lambda w: w[:, 0]]}, "a lambda has no name for its column"),
        ({"stats": [total, total]}, "is named twice"),
        ({"stats": [later]}, "later is async"),
        ({"stats": ["mean", 5]}, "5 is not a statistic"),
        ({"on_error": "stop"}, "on_error and deadline_s are for functions of your own"),
        ({"deadline_s": 1.0}, "on_error and deadline_s are for functions of your own"),
    ],
)
def test_refused_at_construction(arguments, culprit):
    """What cannot run is refused before anything runs, naming the culprit."""
    with pytest.raises(PlanError, match=re.escape(culprit)):
        Rolling("v", **arguments)


@pytest.mark.parametrize("form", [np.asarray, pd.Series, np.ndarray.tolist])
def test_a_bool_is_a_number(form):
    """1 or 0, as in `Aggregate`: whether something is so in a window is a statistic of it."""

    def high(windows):
        return form(windows[:, -1] > 3)

    rows = [{"sensor": "S1", "time": n, "value": float(n)} for n in range(2, 6)]
    assert [row["value_high_2"] for row in tm.Plan(tm.Rolling("value", 2, [high])).apply(rows)] == [0.0, 0.0, 1.0, 1.0]
