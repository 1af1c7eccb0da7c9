"""Windows of time and silences, against pandas where readings come in order, and plain Python where they do not."""

from datetime import timedelta
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.schema import Kind
from tidemill.stages.rolling import STATISTICS, Rolling, quantile
from tidemill.stages.statistics.compiled import interpreted_kernels

ALL = [*STATISTICS, quantile(0.05), quantile(0.9)]
PANDAS = ["count", "sum", "mean", "std", "var", "min", "max", "median", quantile(0.05), quantile(0.9)]
SECOND = 10**9
SQUARED = st.floats(-1e6, 1e6).filter(lambda x: not 0 < abs(x) < 1e-140)  # nearer to 0, squares lack digits
VALUES = st.one_of(SQUARED, st.just(float("nan")), st.sampled_from([0.0, -0.0, 1.0]))
STEPS = [0, 1, SECOND // 2, SECOND, 7 * SECOND, 40 * SECOND]


@st.composite
def streams(draw, late=(), values=VALUES, most=80):
    """Records of a few sensors: their times go on by a step, or are one that is late; and where batches are cut."""
    steps = st.sampled_from([*STEPS, *late])
    rows = draw(st.lists(st.tuples(st.sampled_from("abc"), values, steps), min_size=1, max_size=most))
    cuts = sorted(draw(st.sets(st.integers(1, len(rows)), max_size=6)) - {len(rows)})
    times, now = [], draw(st.sampled_from([0, 1_700_000_000 * SECOND]))
    for _, _, step in rows:
        now = max(now, now + step)
        times.append(min(now, now + step))
    return [key for key, _, _ in rows], np.array([v for _, v, _ in rows]), np.array(times), [0, *cuts, len(rows)]


LATE = (-1, -SECOND, -9 * SECOND, -60 * SECOND)


def run(driver, stream):
    keys, values, times, bounds = stream
    parts = []
    for start, stop in pairwise(bounds):
        batch = Batch({"v": Column(Kind.FLOAT, values[start:stop])}, time=times[start:stop])
        parts.append(driver.step(batch, keys[start:stop]).batch)
    return Batch.concat(parts)


def one_by_one(stream):
    keys, values, times, _ = stream
    return keys, values, times, list(range(len(keys) + 1))


@settings(max_examples=60, deadline=None)
@given(streams(), st.sampled_from(["1ns", "500ms", "10s", "2min"]), st.sampled_from([0, 1]), st.sampled_from([1, 3]))
def test_in_order_it_equals_pandas(drive, stream, window, ddof, min_periods):
    """Every statistic is that of pandas' ``rolling("10s")`` of each sensor, equal times seen as far as they have arrived."""
    keys, values, times, _ = stream
    stage = Rolling("v", window, PANDAS, ddof=ddof, min_periods=min_periods)
    made = run(drive(stage), stream)
    frame = pd.DataFrame({"v": values}, index=pd.to_datetime(times))
    scale = np.nanmax(np.abs(values), initial=0.0)
    for stat, name in zip(PANDAS, stage.adds, strict=True):
        right = np.full(len(keys), np.nan)
        for key in set(keys):
            own = np.flatnonzero([k == key for k in keys])
            rolled = frame.iloc[own]["v"].rolling(window, min_periods=min_periods)
            if isinstance(stat, str):
                right[own] = getattr(rolled, stat)(**({"ddof": ddof} if stat in ("std", "var") else {}))
            else:
                right[own] = rolled.quantile(stat.q)
        if stat in ("std", "var"):  # pandas carries a running sum, whose error grows with what has been in the window
            tolerance = scale**2 * 1e-9 if stat == "var" else scale * 1e-4
        else:
            tolerance = scale * 1e-9
        np.testing.assert_allclose(made[name], right, rtol=1e-9, atol=tolerance, err_msg=str(stat))


def gathered(keys, times, row, span, room, gap=None):
    """Positions of the records in a window, by event time, equal ones by arrival: the definition in plain Python."""
    held, newest = [], None
    for i in range(row + 1):
        if keys[i] == keys[row]:
            if gap is not None and newest is not None and times[i] - newest > gap:
                held = []
            newest = times[i] if newest is None or not held else max(newest, times[i])
            held = [*held, i][-room:]
    inside = [i for i in held if times[row] - span < times[i] <= times[row]]
    return sorted(inside, key=lambda i: times[i])


@settings(max_examples=80, deadline=None)
@given(
    streams(LATE),
    st.sampled_from([1, SECOND // 2, 10 * SECOND, 100 * SECOND]),
    st.sampled_from([1, 2, 7, 1024]),
    st.sampled_from([None, 20 * SECOND]),
    st.sampled_from([0, 1, 3]),
)
def test_late_records_see_what_has_arrived(drive, expected, stream, span, room, gap, min_periods):
    """Every statistic is NumPy's and scipy's of the records that are held of the sensor and lie in the window."""
    keys, values, times, _ = stream
    options = {"max_records": room, "max_gap_s": gap and gap / SECOND, "min_periods": min(min_periods, room)}
    stage = Rolling("v", timedelta(microseconds=span / 1000) if span > 1 else "1ns", ALL, **options)
    made = run(drive(stage), stream)
    scale = np.nanmax(np.abs(values), initial=0.0)
    tolerances = {"zscore": 1e-6, "var": scale**2 * 1e-12, "slope": scale * 1e-2, "rate": scale * 1e-2}
    for row in range(len(keys)):
        own = gathered(keys, times, row, span, room, gap)
        for stat, name in zip(ALL, stage.adds, strict=True):
            right = expected(stat, values[own], times[own], values[row], min_periods=options["min_periods"])
            if stat in ("slope", "rate") and np.ptp(times[own]) < 1000:
                continue  # seconds as floats cannot tell such times apart, which the oracle works in
            atol = tolerances.get(stat, scale * 1e-12)
            np.testing.assert_allclose(made[name][row], right, rtol=1e-9, atol=atol, err_msg=f"{stat} {row}")


WILD = st.one_of(VALUES, st.floats())


@settings(max_examples=50, deadline=None)
@given(streams(LATE, WILD), st.sampled_from([1, 5, 1024]), st.sampled_from([None, 20]))
def test_batches_restarts_and_compilation_do_not_show(drive, stream, room, gap):
    """However the stream is cut, in a lane that is always new, and interpreted: every bit of every value is the same."""
    stage = Rolling("v", "10s", ALL, max_records=room, max_gap_s=gap)
    whole = run(drive(stage), (*stream[:3], [0, len(stream[0])]))
    ways = {
        "cut": run(drive(stage), stream),
        "single": run(drive(stage), one_by_one(stream)),
        "interpreted": run(drive(stage, kernels=interpreted_kernels()), stream),
    }
    for way, made in ways.items():
        for name in stage.adds:
            assert whole[name].tobytes() == made[name].tobytes(), (way, name)


@settings(max_examples=40, deadline=None)
@given(streams(LATE, WILD), st.sampled_from([1, 3, 1024]), st.sampled_from(["10s", 3]))
def test_roll_back_restores_every_bit(drive, stream, room, window):
    """After any batch, rolled back, the state is what it was before it; done again, values and counts are the same."""
    keys, values, times, bounds = stream
    options = {} if window == 3 else {"max_records": room}
    driver = drive(Rolling("v", window, ALL, max_gap_s=20, **options))
    for start, stop in pairwise(bounds):
        batch = Batch({"v": Column(Kind.FLOAT, values[start:stop])}, time=times[start:stop])
        before = driver.snapshot()
        once, counts = driver.step(batch, keys[start:stop], commit=False).batch, driver.state.counts
        assert driver.memory.roll_back()
        assert driver.snapshot() == before
        driver.state.counts = {}
        again = driver.step(batch, keys[start:stop]).batch
        assert driver.state.counts == counts
        driver.state.counts = {}
        for name in once.names:
            assert once[name].tobytes() == again[name].tobytes()


@settings(max_examples=60, deadline=None)
@given(streams(LATE), st.sampled_from([1, 2, 5]), st.sampled_from([None, 20 * SECOND]))
def test_windows_that_lack_a_record_are_counted(drive, stream, room, gap):
    """A record that has lost its place to a newer arrival is missed by each window that reaches back to it."""
    keys, _, times, _ = stream
    span = 10 * SECOND
    driver = drive(Rolling("v", "10s", ["mean"], max_records=room, max_gap_s=gap and gap / SECOND))
    run(driver, stream)
    lacking = 0
    for row, key in enumerate(keys):
        held, newest, lost = [], None, None
        for i in range(row + 1):
            if keys[i] != key:
                continue
            if gap is not None and newest is not None and times[i] - newest > gap:
                held, lost = [], None
            newest = times[i] if newest is None or not held else max(newest, times[i])
            held.append(times[i])
            if len(held) > room:
                gone = held.pop(0)
                lost = gone if lost is None else max(lost, gone)
        lacking += lost is not None and lost > times[row] - span
    assert driver.state.counts.get("window_overflow", 0) == lacking


@pytest.mark.parametrize("cuts", [(), (1,), (2,), (3,), (4,), (5,), (6,), (2, 4), (3, 6), (1, 2, 3, 4, 5, 6)])
def test_windows_that_lack_a_record_are_counted_wherever_batches_end(drive, cuts):
    """What was lost before a silence is lacked by the windows before it, and by none after it."""
    times = np.array([0, 1, 2, 3, 6, 7, 8]) * SECOND
    driver = drive(Rolling("v", "10s", ["count"], max_records=2, max_gap_s=2))
    made = [
        driver.step(Batch({"v": Column(Kind.FLOAT, np.ones(stop - start))}, time=times[start:stop])).batch[
            "v_count_10s"
        ]
        for start, stop in pairwise([0, *cuts, len(times)])
    ]
    assert np.concatenate(made).tolist() == [1, 2, 2, 2, 1, 2, 2]
    assert driver.state.counts == {"window_overflow": 3}


@settings(max_examples=60, deadline=None)
@given(streams(LATE), st.sampled_from([1, 3, 8, 20]))
def test_a_silence_empties_a_window_of_records(drive, expected, stream, window):
    """A count window begins anew with the record that ends a silence; a late record ends none."""
    keys, values, times, _ = stream
    gap = 20 * SECOND
    stage = Rolling("v", window, ALL, max_gap_s="20s")
    made = run(drive(stage), stream)
    scale = np.nanmax(np.abs(values), initial=0.0)
    for row in range(len(keys)):
        held, newest = [], None
        for i in range(row + 1):
            if keys[i] == keys[row]:
                if newest is not None and times[i] - newest > gap:
                    held, newest = [], None
                newest = times[i] if newest is None else max(newest, times[i])
                held = [*held, i][-window:]
        for stat, name in zip(ALL, stage.adds, strict=True):
            if stat in ("slope", "rate") and np.ptp(times[held]) < 1000:
                continue
            right = expected(stat, values[held], times[held], values[row])
            atol = {"zscore": 1e-6, "var": scale**2 * 1e-12, "slope": scale * 1e-2, "rate": scale * 1e-2}
            np.testing.assert_allclose(
                made[name][row], right, rtol=1e-9, atol=atol.get(stat, scale * 1e-12), err_msg=str(stat)
            )


def test_a_window_begins_after_its_duration_and_ends_with_the_record(drive):
    """``(t - window, t]``: what is exactly a window old is out, what has the same time and has arrived is in."""
    values, times = [1.0, 2.0, 4.0, 8.0], [0, 5, 10, 10]
    batch = Batch({"v": Column(Kind.FLOAT, np.array(values))}, time=np.array(times) * SECOND)
    made = drive(Rolling("v", "10s", ["sum", "first", "last"])).step(batch).batch
    assert made["v_sum_10s"].tolist() == [1, 3, 6, 14]
    assert made["v_first_10s"].tolist() == [1, 1, 2, 2]
    assert made["v_last_10s"].tolist() == [1, 2, 4, 8]


def test_the_units_of_slope_and_rate_are_per_second(drive):
    """2 in value for each half second is 4 per second, at any distance from 1970, with a value missing."""
    times = 1_700_000_000 * SECOND + np.arange(5) * SECOND // 2
    batch = Batch({"v": Column(Kind.FLOAT, np.array([3.0, 5.0, np.nan, 9.0, 11.0]))}, time=times)
    for window in (5, "1min"):
        made = drive(Rolling("v", window, ["slope", "rate"])).step(batch).batch
        assert np.isnan(made[f"v_slope_{window}"][0])
        assert made[f"v_slope_{window}"][1:].tolist() == [4, 4, 4, 4]
        assert made[f"v_rate_{window}"][1:].tolist() == [4, 4, 4, 4]


def test_a_still_sensor_has_no_slope_and_no_spread(drive):
    """Exactly 0, which sums of 0.1 would miss."""
    batch = Batch({"v": Column(Kind.FLOAT, np.full(60, 0.1))}, time=np.arange(60) * SECOND)
    for window in (50, "50s"):
        made = drive(Rolling("v", window, ["slope", "std", "mean", "rms"])).step(batch).batch
        assert set(made[f"v_slope_{window}"][1:].tolist()) == {0.0}
        assert set(made[f"v_std_{window}"][1:].tolist()) == {0.0}
        assert set(made[f"v_mean_{window}"].tolist()) == set(made[f"v_rms_{window}"].tolist()) == {0.1}


def test_several_columns_share_a_window_of_time(drive):
    """Each column's values with the one set of times."""
    columns = {name: Column(Kind.FLOAT, np.arange(4.0) * sign) for name, sign in (("a", 1), ("b", -1))}
    made = drive(Rolling(["a", "b"], "2s", ["sum"])).step(Batch(columns, time=np.arange(4) * SECOND)).batch
    assert made["a_sum_2s"].tolist() == [0, 1, 3, 5]
    assert made["b_sum_2s"].tolist() == [0, -1, -3, -5]


def test_the_ends_of_time_are_times_too(drive):
    """The earliest and latest times that 64 bits hold do not wrap round."""
    times = np.array([-(2**63) + 1, -(2**63) + 2, 2**63 - 1], np.int64)
    batch = Batch({"v": Column(Kind.FLOAT, np.array([1.0, 2.0, 4.0]))}, time=times)
    for kernels in (None, interpreted_kernels()):
        made = drive(Rolling("v", "1h", ["sum"], max_gap_s="2h"), kernels=kernels).step(batch).batch
        assert made["v_sum_1h"].tolist() == [1, 3, 4]
        made = drive(Rolling("v", 5, ["sum"], max_gap_s="2h"), kernels=kernels).step(batch).batch
        assert made["v_sum_5"].tolist() == [1, 3, 4]


@pytest.mark.parametrize(
    ("window", "suffix"),
    [("30s", "30s"), ("60 s", "60s"), (timedelta(minutes=1), "1min"), ("500ms", "500ms"), (50, "50")],
)
def test_columns_are_named_after_the_window(window, suffix):
    """As it was written; a timedelta in the largest unit that fits."""
    assert Rolling("v", window, ["mean", quantile(0.95)]).adds == (f"v_mean_{suffix}", f"v_q95_{suffix}")
