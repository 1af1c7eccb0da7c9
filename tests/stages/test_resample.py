"""`Resample` against pandas, NumPy and its rules told point by point; and against itself: other orders, batches, lanes."""

from __future__ import annotations

import os
import random
import signal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.core.watermark import Watermark
from tidemill.testing import ListSink

S = 1_000_000_000
pytestmark = pytest.mark.filterwarnings("ignore:late:RuntimeWarning")  # that some are left out is what is compared

EVERY = 10
METHODS = ["last", "linear", "mean"]

values = st.one_of(st.floats(-100, 100), st.just(float("nan")))
readings = st.lists(
    st.tuples(st.sampled_from(["S1", "S2", "é"]), st.integers(0, 120) | st.sampled_from([0, 10, 50]), values, values),
    min_size=1,
    max_size=50,
)
methods = st.sampled_from(METHODS)
gaps = st.sampled_from([7, 10, 25, 1000])


def dicts(rows):
    return [{"sensor": key, "time": time, "v": v, "w": w} for key, time, v, w in rows]


def seen(rows):
    return [(row["sensor"], row["time"] // S, row["v"], row["w"]) for row in rows]


def resample(method, gap, **options):
    return tm.Plan(tm.Resample(["v", "w"], EVERY, method, max_gap=gap, **options))


def run(plan, rows, *, lanes=0, max_records=32_768, **options):
    sink = ListSink()
    report = tm.run(
        tm.Pipeline(tm.sources.Records(dicts(rows)), plan, sink, **options),
        lanes=lanes,
        limits=tm.Limits(max_records=max_records),
    )
    assert report.in_flight == 0
    gone = report.filtered + report.dead_letters + report.late + report.deduplicated + report.absorbed
    assert report.records_in == report.rows_from_records + gone
    assert report.rows_out == report.emitted == len(sink.rows)
    return sink.rows, report


# -- the rules, in the most simple-minded way ------------------------------------------------------------------


def merged(own):
    """Per column, the readings by time; of those of one time the greatest."""
    columns = [{}, {}]
    for time, *pair in sorted(own):
        for column, value in zip(columns, pair, strict=True):
            if not np.isnan(value):
                column[time] = max(value, column.get(time, value))
    return columns


def point(column, g, method, gap):
    """What a column says at a point, and the time up to which all must be known for that."""
    before, after = [t for t in column if t <= g], [t for t in column if t >= g]
    if g in column:
        return column[g], g
    if not before or g - max(before) > gap:
        return np.nan, g
    if method == "last":
        return column[max(before)], g
    known_by = max(before) + gap
    if not after or min(after) > known_by:
        return np.nan, known_by
    old, new = max(before), min(after)
    return column[old] + (column[new] - column[old]) * ((g - old) * S / ((new - old) * S)), new


def told_of_one(own, method, gap):
    """The rows of one sensor: (point, v, w, known by)."""
    columns = merged(own)
    times = sorted(set(columns[0]) | set(columns[1]))
    made = []
    if not times:
        return made
    if method == "mean":
        bins = sorted({t // EVERY for t in times})
        for place, b in enumerate(bins):
            pause = place and (b - bins[place - 1]) * EVERY <= gap
            empty = range(bins[place - 1] + 1, b) if pause else ()
            made.extend((e * EVERY, np.nan, np.nan, (b + 1) * EVERY - 1 / S) for e in empty)
            held = [[row[1 + c] for row in sorted(own) if row[0] // EVERY == b] for c in range(2)]
            means = [np.mean([x for x in h if not np.isnan(x)] or [np.nan]) for h in held]
            made.append((b * EVERY, *means, (b + 1) * EVERY - 1 / S))
        return made
    for g in range(times[0] // EVERY * EVERY, times[-1] + 1, EVERY):
        before, after = [t for t in times if t <= g], [t for t in times if t >= g]
        if not before or not after:
            continue
        if g not in times and (g - max(before) > gap if method == "last" else min(after) - max(before) > gap):
            continue
        said = [point(column, g, method, gap) for column in columns]
        made.append((g, said[0][0], said[1][0], max(min(after), *(known for _, known in said))))
    return made


def told(rows, method, gap, lateness=0, lag=0):
    watermark = Watermark(lag_ns=lag * S)
    marks = watermark.advance(np.array([row[1] * S for row in rows]), wall_ns=None)
    watermark.catch_up()
    marks = [*marks.tolist(), watermark.mark]
    taken, late = {}, 0
    for (key, time, *pair), mark in zip(rows, marks, strict=False):
        known_by = time * S + 1 if method != "mean" else (time // EVERY + 1) * EVERY * S
        if known_by + lateness * S <= mark:
            late += 1
        else:
            taken.setdefault(key, []).append((time, *pair))
    made = []
    for key, own in taken.items():
        for g, v, w, known_by in told_of_one(own, method, gap):
            ends = int(known_by) * S + 1 if method != "mean" else round(known_by) * S
            place = next((n for n, mark in enumerate(marks[1:]) if mark >= ends + lateness * S), len(marks))
            made.append((place, ends, key.encode(), g, v, w))
    return [(key.decode(), g, v, w) for *_, key, g, v, w in sorted(made, key=lambda row: row[:4])], late


def same(made, expected):
    assert [row[:2] for row in made] == [row[:2] for row in expected]
    for column in (2, 3):
        np.testing.assert_allclose(
            [row[column] for row in made], [row[column] for row in expected], rtol=1e-12, atol=1e-12
        )


@given(rows=readings, method=methods, gap=gaps, lateness=st.integers(0, 20), lag=st.integers(0, 20))
def test_rows_come_out_as_the_rules_told_point_by_point_say(rows, method, gap, lateness, lag):
    plan = resample(method, gap, allowed_lateness=lateness)
    same(seen(plan.apply(dicts(rows), lag=lag)), told(rows, method, gap, lateness, lag)[0])


@settings(max_examples=25)
@given(
    rows=readings, method=methods, gap=gaps, lateness=st.integers(0, 20), lag=st.integers(0, 5), cut=st.integers(1, 9)
)
def test_rows_do_not_depend_on_where_batches_end(rows, method, gap, lateness, lag, cut):
    plan = resample(method, gap, allowed_lateness=lateness)
    whole = plan.apply(dicts(rows), lag=lag)
    parts, report = run(plan, rows, lag=lag, max_records=cut)
    assert repr(parts) == repr(whole)
    assert report.late == told(rows, method, gap, lateness, lag)[1]


@given(rows=readings, method=methods, gap=gaps, order=st.randoms(use_true_random=False))
def test_rows_do_not_depend_on_the_order_of_arrival_within_the_lateness(rows, method, gap, order):
    plan = resample(method, gap, allowed_lateness="130s")
    shuffled = list(rows)
    order.shuffle(shuffled)
    assert repr(plan.apply(dicts(shuffled), lag=0)) == repr(plan.apply(dicts(rows), lag=0))


@given(rows=readings, gap=gaps)
def test_the_last_values_are_those_of_reindex(rows, gap):
    """pandas carries readings forward to the points between the first and the last."""
    made = tm.Plan(tm.Resample("v", EVERY, max_gap=gap)).apply(dicts(rows))
    for key in {row[0] for row in rows}:
        own = pd.Series(merged([row[1:] for row in rows if row[0] == key])[0], dtype=float).sort_index()
        points = np.arange(-(-own.index.min() // EVERY) * EVERY, own.index.max() + 1, EVERY) if len(own) else []
        expected = own.reindex(points, method="ffill", tolerance=gap).dropna()
        assert {row["time"] // S: row["v"] for row in made if row["sensor"] == key} == expected.to_dict()


@given(rows=readings)
def test_the_lines_are_those_of_numpy(rows):
    made = tm.Plan(tm.Resample("v", EVERY, "linear")).apply(dicts(rows))
    for key in {row[0] for row in rows}:
        own = sorted(merged([row[1:] for row in rows if row[0] == key])[0].items())
        points = [row["time"] // S for row in made if row["sensor"] == key]
        lines = np.interp(points, *zip(*own, strict=True)) if own else []
        assert points == (list(range(-(-own[0][0] // EVERY) * EVERY, own[-1][0] + 1, EVERY)) if own else [])
        np.testing.assert_allclose([row["v"] for row in made if row["sensor"] == key], lines, rtol=1e-9, atol=1e-9)


@given(rows=readings, offset=st.integers(0, 9))
def test_the_means_are_those_of_resample(rows, offset):
    """Of pandas, of the first column, from the first reading of the sensor to the last."""
    made = tm.Plan(tm.Resample("v", EVERY, "mean", offset=offset)).apply(dicts(rows))
    for key in {row[0] for row in rows}:
        own = [row for row in rows if row[0] == key and not np.isnan(row[2])]
        values = pd.Series([row[2] for row in own], pd.to_datetime([row[1] for row in own], unit="s"), dtype=float)
        expected = values.resample(f"{EVERY}s", offset=f"{offset}s", origin="epoch").mean() if own else values
        points = [pd.Timestamp(row["time"]) for row in made if row["sensor"] == key]
        assert points == expected.index.tolist()
        np.testing.assert_allclose([row["v"] for row in made if row["sensor"] == key], expected, atol=1e-9)


# -- lanes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many():
    """Fifty sensors with times that step back, missing values and pauses: 12,000 records."""
    dice = np.random.default_rng(5)
    times = np.cumsum(dice.integers(0, 2, 12_000)) + dice.integers(-3, 3, 12_000) + 1_000
    sensors = dice.choice(50, 12_000, p=np.arange(1, 51) / 1275)
    pairs = np.where(dice.random((12_000, 2)) < 0.3, np.nan, dice.normal(size=(12_000, 2)))
    return [(f"S{n}", int(t), float(v), float(w)) for n, t, (v, w) in zip(sensors, times, pairs, strict=True)]


@pytest.mark.parametrize("method", METHODS)
def test_lanes_give_what_apply_gives(many, lanes, method):
    plan = resample(method, 40, allowed_lateness=2)
    made, report = run(plan, many, lanes=lanes, max_records=997, lag=1)
    assert repr(made) == repr(plan.apply(dicts(many), lag=1))
    assert report.late > 100


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
async def test_killed_lanes_change_nothing(many, method):
    plan, dice, killed = resample(method, 40), random.Random(3), set()

    def kill(batch):
        busy = [lane for lane in run.statistics().lanes if lane.in_flight and lane.pid not in {None, *killed}]
        if busy and len(killed) < 8:
            victim = dice.choice(busy).pid
            os.kill(victim, signal.SIGKILL)
            killed.add(victim)

    sink = ListSink()
    pipeline = tm.Pipeline(tm.sources.Records(dicts(many)), plan, [sink, tm.sinks.Callback(kill)], lag=5)
    async with tm.serve(pipeline, lanes=2, limits=tm.Limits(max_records=256)) as run:
        await run.wait()
    assert sum(lane.restarts for lane in run.report.lanes) == len(killed) == 8
    assert repr(sink.rows) == repr(plan.apply(dicts(many), lag=5))


# -- what stands in the docstring -----------------------------------------------------------------------------


def one(*pairs):
    return [("S1", time, value, float("nan")) for time, value in pairs]


@pytest.mark.parametrize("method", METHODS)
def test_a_silence_of_86_days_makes_no_million_rows(method):
    rows = one((0, 1.0), (86 * 86_400, 2.0), (86 * 86_400 + 10, 3.0))
    made = tm.Plan(tm.Resample("v", EVERY, method)).apply(dicts(rows))
    assert len(made) == {"last": 103, "linear": 3, "mean": 3}[method]
    asked = tm.Plan(tm.Resample("v", EVERY, method, max_gap="87d")).apply(dicts(rows))
    assert len(asked) == 86 * 8_640 + 2


def test_days_may_begin_at_six():
    """Hours of three days; the first and the last day hold a part of theirs."""
    rows = one(*((3_600 * hour, float(hour)) for hour in range(72)))
    made = tm.Plan(tm.Resample("v", "1d", "mean", offset="6h")).apply(dicts(rows))
    assert [(row["time"] // S // 3_600, row["v"]) for row in made] == [(-18, 2.5), (6, 17.5), (30, 41.5), (54, 62.5)]


def test_rows_come_out_with_the_reading_that_they_wait_for():
    """And no later: the last rows that a slow sensor gives are not held back until the end."""
    rows = [("a", 1, 1.0, 1.0), ("b", 12, 2.0, 2.0), ("a", 13, 3.0, 3.0), ("b", 15, 4.0, 4.0), ("b", 31, 5.0, 5.0)]
    plan = tm.Plan(tm.Resample("v", EVERY))
    sink = ListSink()
    tm.run(tm.Pipeline(tm.sources.Records(dicts(rows)), plan, sink, lag=0), lanes=0, limits=tm.Limits(max_records=1))
    assert [
        [(r["sensor"], r["time"] // S, r["v"]) for r in batch.to_rows()] for batch in sink.batches if len(batch)
    ] == [
        [("a", 10, 1.0)],
        [("b", 20, 4.0), ("b", 30, 4.0)],
    ]


def test_the_sensors_name_and_the_time_have_their_own_columns():
    rows = [{"machine": 7, "at": t, "v": t} for t in (0, 20)]
    made = tm.Plan(tm.Resample("v", EVERY, time="point")).apply(rows, key="machine", time="at")
    assert made == [{"machine": 7, "point": t * S, "v": float(t // 20 * 20)} for t in (0, 10, 20)]


def test_rows_are_not_late_for_a_window_behind_them():
    """One sensor speaks every fifteen seconds, the other every second; both are in every window."""
    rows = [("a", t, 1.0, 1.0) for t in range(0, 300, 15)] + [("b", t, 1.0, 1.0) for t in range(300)]
    rows.sort(key=lambda row: row[1])
    plan = tm.Plan(tm.Resample("v", EVERY, max_gap=30), tm.Aggregate(tm.tumbling("1min"), {"v": "count"}))
    made, report = run(plan, rows, lag=0)
    assert report.counters.get("late", 0) == report.late == 0
    assert {row["sensor"]: 0 for row in made} == {"a": 0, "b": 0}
    for key in "ab":
        assert [row["v_count"] for row in made if row["sensor"] == key] == [6, 6, 6, 6, 5 if key == "a" else 6]


def test_late_records_can_be_dead_letters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows, report = run(resample("last", 100, late="dead_letter"), one((0, 1.0), (25, 1.0), (3, 9.0)), lag=0)
    assert [row["v"] for row in rows] == [1.0, 1.0, 1.0]
    assert report.dead_letters_by_reason == {"late": 1}


def test_more_readings_than_may_wait_are_dead_letters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, report = run(resample("last", 100, max_waiting=3), one(*((t, 1.0) for t in range(5))), max_records=2, lag=60)
    assert report.dead_letters_by_reason == {"too_many_open": 2}


@pytest.mark.parametrize("method", METHODS)
def test_what_has_been_used_takes_no_room_from_what_waits(method):
    """A thousand readings come and go where seventy may wait, in slabs of twenty."""
    rows = [(f"S{t % 3}", t, float(t), -float(t)) for t in range(1_000)]
    made, report = run(resample(method, 40, max_waiting=70), rows, max_records=20, lag=5)
    assert report.dead_letters == 0
    assert made == resample(method, 40).apply(dicts(rows), lag=5)


def test_records_without_a_value_are_no_readings():
    nan = float("nan")
    made, report = run(resample("last", 1000), [*one((0, nan), (10, 1.0), (40, nan))], lag=0)
    assert [row["time"] // S for row in made] == [10]
    assert report.absorbed == 3


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: tm.Resample("v", 0), "Resample: every=0 must be at least a nanosecond"),
        (lambda: tm.Resample("v", "10s", "first"), "method='first' is not one of \"last\""),
        (lambda: tm.Resample([]), "must be names of columns"),
        (lambda: tm.Resample(["v", "v"]), "two columns would be called 'v'"),
        (lambda: tm.Resample("time"), "two columns would be called 'time'; time= names"),
        (lambda: tm.Resample("v", "1ms", max_gap="1d"), "86,400,000 rows between two readings, of at most 1,000,000"),
        (lambda: tm.Resample("v", late="keep"), "late='keep' is not one of"),
        (lambda: tm.Resample("v", max_waiting=0), "max_waiting=0"),
        (lambda: resample("last", 1).apply([{"sensor": "a", "time": 1, "v": 1}]), "needs a column 'w'"),
        (lambda: resample("last", 1).apply([{"sensor": "a", "time": 1, "v": 1, "w": "x"}]), "to be float or int"),
        (lambda: tm.Plan(tm.Resample("sensor", time="t")).apply(dicts(one((1, 1.0)))), "sensor"),
    ],
)
def test_what_cannot_be_meant_is_refused(made, said):
    with pytest.raises(tm.PlanError, match=said):
        made()


def test_times_of_other_centuries_make_no_harm():
    frame = pd.DataFrame({"sensor": "a", "time": np.array([-(2**62) + 1, 0, 10**10, 2**62 - 1]), "v": 1.0, "w": 2.0})
    frame["time"] = frame["time"].astype("datetime64[ns]")
    for method in METHODS:
        assert len(resample(method, 1000).apply(frame)) >= 4 - (method != "mean") * 2
