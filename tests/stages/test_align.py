"""`Align` against pandas and NumPy, and against itself: other orders of arrival, other batches, other lanes."""

import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.core.apply import with_roles
from tidemill.core.trial import Made, Trial, marks_of
from tidemill.testing import ListSink

S = 1_000_000_000
CHANNELS = ["temp", "flow", "power"]
KEY = "{device}/{channel}"

readings = st.lists(
    st.tuples(
        st.sampled_from(["A", "B", "C"]),
        st.sampled_from(CHANNELS),
        st.integers(0, 60),
        st.one_of(st.floats(-100, 100), st.just(float("nan"))),
    ),
    min_size=1,
    max_size=60,
)
tolerances = st.integers(1, 30)


def dicts(rows):
    """Long records; a missing value is null in every third of them, and NaN in the others."""
    return [
        {"device": device, "channel": channel, "time": float(t), "value": value} for device, channel, t, value in rows
    ]


def applied(plan, rows, **options):
    data = pd.DataFrame(rows, columns=["device", "channel", "time", "value"]).astype({"value": float})
    data["time"] = pd.to_datetime(data["time"].astype("int64") * S, utc=True)
    return plan.apply(data, key=KEY, time="time", **options)


def run(plan, rows, *, lanes=0, max_records=32_768, key=KEY, **options):
    sink = ListSink()
    rows = dicts(rows) if rows and isinstance(rows[0], tuple) else rows
    pipeline = tm.Pipeline(tm.sources.Records(rows, key=key), plan, sink, **options)
    report = tm.run(pipeline, lanes=lanes, limits=tm.Limits(max_records=max_records))
    assert report.in_flight == 0
    gone = report.filtered + report.dead_letters + report.late + report.deduplicated + report.absorbed
    assert report.records_in == report.rows_from_records + gone
    assert report.rows_out == report.emitted + report.rows_from_records == len(sink.rows)
    return sink.rows, report


def distinct(rows):
    """Of the readings of one channel at one time the greatest; those without a value are none."""
    greatest = {}
    for device, channel, time, value in rows:
        if not np.isnan(value):
            name = device, channel, time
            greatest[name] = max(greatest.get(name, value), value)
    made = pd.DataFrame(
        [(*name, value) for name, value in greatest.items()], columns=["device", "channel", "time", "value"]
    )
    return made.astype({"device": object, "time": "int64", "value": float})


def row_times(data, on):
    wanted = data if on is None else data[data["channel"] == on]
    return wanted[["device", "time"]].drop_duplicates().sort_values(["time", "device"]).reset_index(drop=True)


def same(made, expected):
    assert list(made.columns) == ["device", "time", *CHANNELS]
    assert made["device"].tolist() == expected["device"].tolist()
    assert (made["time"].astype("int64") // S).tolist() == expected["time"].tolist()
    for channel in CHANNELS:
        np.testing.assert_allclose(made[channel], expected[channel], rtol=1e-12, atol=1e-9)


@given(rows=readings, tolerance=st.one_of(st.none(), tolerances), on=st.sampled_from([None, *CHANNELS]))
def test_the_last_readings_are_those_of_merge_asof(rows, tolerance, on):
    """Row for row, whatever channel makes the rows."""
    made = applied(tm.Plan(tm.Align(CHANNELS, by="device", tolerance=tolerance, on=on)), rows)
    data = distinct(rows)
    expected = row_times(data, on)
    for channel in CHANNELS:
        own = data[data["channel"] == channel].sort_values("time").rename(columns={"value": channel})
        expected = pd.merge_asof(
            expected,
            own[["device", "time", channel]],
            on="time",
            by="device",
            tolerance=tolerance,
            direction="backward",
        )
    same(made, expected)


@given(rows=readings, tolerance=tolerances, on=st.sampled_from([None, *CHANNELS]))
def test_lines_between_readings_are_those_of_numpy(rows, tolerance, on):
    """Where the readings before and after are both within the tolerance; elsewhere NaN."""
    plan = tm.Plan(tm.Align(CHANNELS, by="device", method="linear", tolerance=tolerance, on=on))
    made = applied(plan, rows).sort_values(["time", "device"], kind="stable").reset_index(drop=True)
    data = distinct(rows)
    expected = row_times(data, on)
    for channel in CHANNELS:
        values = []
        for device, time in zip(expected["device"], expected["time"], strict=True):
            own = data[(data["channel"] == channel) & (data["device"] == device)].sort_values("time")
            old, new = own[own["time"] <= time]["time"].max(), own[own["time"] >= time]["time"].min()
            near = time - old <= tolerance and new - time <= tolerance  # false where there is none
            values.append(np.interp(time, own["time"], own["value"]) if near else np.nan)
        expected[channel] = np.array(values, np.float64)
    same(made, expected)


methods = st.sampled_from(["last", "linear"])
ons = st.sampled_from([None, "temp"])


@given(rows=readings, method=methods, on=ons, tolerance=tolerances, order=st.randoms(use_true_random=False))
def test_rows_do_not_depend_on_the_order_of_arrival_within_the_lateness(rows, method, on, tolerance, order):
    """Nor does their order."""
    plan = tm.Plan(tm.Align(CHANNELS, by="device", method=method, on=on, tolerance=tolerance, allowed_lateness="60s"))
    shuffled = list(rows)
    order.shuffle(shuffled)
    pd.testing.assert_frame_equal(applied(plan, rows, lag=0), applied(plan, shuffled, lag=0))


@settings(max_examples=25)
@given(
    rows=readings,
    method=methods,
    on=ons,
    tolerance=tolerances,
    lateness=st.integers(0, 20),
    cut=st.integers(1, 9),
)
def test_rows_do_not_depend_on_where_batches_end(rows, method, on, tolerance, lateness, cut):
    """Nor do the counts of what was late."""
    plan = tm.Plan(
        tm.Align(CHANNELS, by="device", method=method, on=on, tolerance=tolerance, allowed_lateness=lateness)
    )
    whole, one = run(plan, rows, lag=0)
    parts, other = run(plan, rows, lag=0, max_records=cut)
    assert repr(parts) == repr(whole)  # NaN is not equal to itself
    assert (one.late, one.absorbed) == (other.late, other.absorbed)


@settings(max_examples=25)
@given(rows=readings, lateness=st.integers(0, 15))
def test_a_record_is_late_when_the_watermark_has_passed_its_time(rows, lateness):
    """By more than the allowed lateness, just before the record came; before the third there is none, since one time alone
    might be wrong."""
    _, report = run(tm.Plan(tm.Align(CHANNELS, by="device", allowed_lateness=lateness)), rows, lag="2s")
    newest, late = None, 0
    for number, (_, _, time, _) in enumerate(rows):
        late += number > 1 and time + lateness < newest - 2
        newest = time if newest is None else max(newest, time)
    assert report.late == late


def stream(count, seed=4, devices=40):
    """Readings of three channels at rates of their own, somewhat out of order."""
    rng = np.random.default_rng(seed)
    names = rng.choice(CHANNELS, count, p=[0.8, 0.15, 0.05])
    times = np.arange(count) // 20 + rng.integers(0, 5, count)
    return [
        (f"D{rng.integers(devices)}", str(name), int(time), float(rng.normal()))
        for name, time in zip(names, times, strict=True)
    ]


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("method", ["last", "linear"])
def test_lanes_give_what_apply_gives(lanes, method):
    """Bit for bit and in the same order, with stages of sensors before and of devices behind."""
    rows = stream(12_000)
    plan = tm.Plan(
        tm.Rolling("value", window=3, stats=["mean"]),
        tm.Align(CHANNELS, by="device", value="value_mean_3", method=method, tolerance="20s"),
        tm.Rolling("temp", window=5, stats=["mean", "count"]),
        tm.Aggregate(tm.tumbling("1min"), {"temp_mean_5": "max", "flow": ["mean", "count"]}),
    )
    made, report = run(plan, rows, lanes=lanes, max_records=997)
    expected = applied(plan, rows)
    times = {name: expected[name].astype("int64") for name in ("window_start", "window_end")}
    assert repr(made) == repr(expected.assign(**times).to_dict("records"))  # NaN is not equal to itself
    assert report.absorbed == len(rows)
    assert sum(row["flow_count"] for row in made) > 1_000


def test_a_stage_behind_it_does_not_take_its_rows_for_late():
    """They come out later than the watermark by the tolerance and the lateness, and the watermark there with them."""
    rows = [("A", "temp", time, 1.0) for time in range(0, 100, 5)]
    align = tm.Align(["temp", "flow"], by="device", method="linear", tolerance="30s", allowed_lateness="20s")
    made, _ = run(tm.Plan(align, tm.Aggregate(tm.tumbling("10s"), {"temp": "count"})), rows, lag=0)
    assert [row["temp_count"] for row in made] == [2.0] * 10


def test_a_row_waits_for_the_next_reading_and_no_longer():
    """A line is drawn as soon as its end is known; the tolerance is waited for only by a channel that says nothing."""
    rows = [
        ("A", "temp", 0, 0.0),
        ("A", "flow", 1, 1.0),
        ("A", "temp", 2, 2.0),
        ("B", "temp", 3, 3.0),
        ("B", "temp", 4, 0),
    ]
    made, _ = run(
        tm.Plan(tm.Align(["temp", "flow"], by="device", method="linear", tolerance="30s")), rows, lag=0, max_records=1
    )
    assert [(row["device"], row["time"] // S) for row in made] == [
        ("A", 0), ("A", 1), ("A", 2), ("B", 3), ("B", 4),
    ]  # fmt: skip
    assert made[1]["temp"] == 1.0


def test_rows_come_out_by_what_they_waited_for_then_by_the_devices_name():
    """As bytes, whatever the lanes."""
    rows = [(device, "temp", time, 1.0) for time in (5, 1) for device in ("b", "a", "é", "B")]
    made, _ = run(tm.Plan(tm.Align(["temp"], by="device")), rows, lanes=2)
    assert [(row["device"], row["time"] // S) for row in made] == [
        ("B", 1), ("a", 1), ("b", 1), ("é", 1), ("B", 5), ("a", 5), ("b", 5), ("é", 5),
    ]  # fmt: skip


# -- wide records, devices and keys of other shapes --------------------------------------------------------


@given(rows=readings, method=methods, on=ons, tolerance=tolerances)
def test_wide_records_give_the_rows_of_long_ones(rows, method, on, tolerance):
    """A record with several channels is several readings."""
    options = {"by": "device", "method": method, "on": on, "tolerance": tolerance}
    long = distinct(rows)
    if not len(long):
        return
    wide = long.pivot_table(index=["device", "time"], columns="channel", values="value").reset_index()
    wide = wide.reindex(columns=["device", "time", *CHANNELS])
    wide["time"] = pd.to_datetime(wide["time"].astype("int64") * S, utc=True)
    expected = applied(tm.Plan(tm.Align(CHANNELS, **options)), list(long.itertuples(index=False)))
    for key in ("device", "d-{device}"):
        made = tm.Plan(tm.Align(CHANNELS, channel=None, **options)).apply(wide, key=key, time="time")
        pd.testing.assert_frame_equal(made, expected)


def test_the_key_itself_may_name_the_device():
    """Then nothing is placed otherwise; without ``by`` it is whatever the key is."""
    rows = [{"sensor": "A", "time": 1, "temp": 1.0}, {"sensor": "A", "time": 2, "flow": 2.0}]
    expected = [("A", 1.0, None), ("A", 1.0, 2.0)]
    for by in (None, "sensor"):
        pipeline = tm.Pipeline(tm.sources.Records(rows), tm.Align(["temp", "flow"], by=by, channel=None), ListSink())
        assert pipeline.check().place_by is None
        made, _ = run(pipeline.plan, rows, key="sensor")
        assert [(r["sensor"], r["temp"], None if np.isnan(r["flow"]) else r["flow"]) for r in made] == expected


@pytest.mark.parametrize("lanes", [0, 2])
def test_the_devices_name_is_of_the_kind_it_has_in_the_records(lanes):
    """A number stays a number, and is a float where the record's was."""
    rows = [
        {"pump": pump, "channel": "temp", "sensor": "x", "time": time, "value": 1.0}
        for time, pump in enumerate([7, 7.5, 7, -3])
    ]
    plan = tm.Plan(tm.Align(["temp"], by="pump"))
    made, _ = run(plan, rows, key="sensor", lanes=lanes)
    assert [(row["pump"], type(row["pump"])) for row in made] == [(7, int), (7.5, float), (7, int), (-3, int)]
    assert [row["pump"] for row in plan.apply(rows)] == [7, 7.5, 7, -3]


def test_of_several_readings_at_one_time_the_greatest_counts():
    """Whatever order they came in, to the sign of zero."""
    for values in ([1.0, 3.0, 2.0], [3.0, 2.0, 1.0], [0.0, -0.0], [-0.0, 0.0]):
        made, _ = run(tm.Plan(tm.Align(["temp"], by="device")), [("A", "temp", 1, value) for value in values])
        assert [str(row["temp"]) for row in made] == [str(max(values, key=lambda v: (v, np.copysign(1, v))))]


# -- what does not become a row ----------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [0, 2])
def test_records_without_a_device_or_a_channel_are_dead_letters_that_name_the_column(lanes, tmp_path):
    """Null, absent, or empty; their neighbours flow."""
    good = {"device": "A", "channel": "temp", "time": 1, "value": 1.0}
    rows = [good, {**good, "device": None}, {**good, "channel": None}, {**good, "device": ""}, good | {"time": 2}]
    rows.insert(2, {name: cell for name, cell in good.items() if name != "device"})
    sink = ListSink()
    source = tm.sources.Records([{"sensor": "x", **row} for row in rows])
    letters = tmp_path / "dead.ndjson"
    report = tm.run(tm.Pipeline(source, tm.Align(["temp"], by="device"), sink), lanes=lanes, dead_letters=letters)
    assert [row["time"] // S for row in sink.rows] == [1, 2]
    assert report.dead_letters_by_reason == {"missing_field": 4}
    told = letters.read_text()
    assert told.count("nothing in field 'device', which names its device") == 3
    assert told.count("nothing in field 'channel', which names its channel") == 1


def test_a_notebook_is_told_of_a_record_without_a_device():
    """As of one without a key."""
    rows = [{"sensor": "x", "device": d, "channel": "temp", "time": 1, "value": 1.0} for d in ("A", None)]
    with pytest.raises(tm.InputError, match=r"nothing in field .device., .*1 such records in all"):
        tm.Plan(tm.Align(["temp"], by="device")).apply(rows)


def test_other_channels_are_filtered_and_missing_values_are_no_readings():
    """A row is made of a reading, never of its absence."""
    rows = [("A", "temp", 1, 1.0), ("A", "power", 2, 1.0), ("A", "temp", 3, float("nan"))]
    made, report = run(tm.Plan(tm.Align(["temp", "flow"], by="device")), rows)
    assert [row["time"] // S for row in made] == [1]
    assert (report.filtered, report.absorbed) == (1, 2)


def test_late_records_can_be_dead_letters_that_say_by_how_much():
    """Otherwise they are counted."""
    rows = [("A", "temp", time, 1.0) for time in (1, 25, 2)]
    made, report = run(tm.Plan(tm.Align(["temp"], by="device", late="dead_letter")), rows, lag=0)
    assert len(made) == 2
    assert report.dead_letters_by_reason == {"late": 1}
    assert run(tm.Plan(tm.Align(["temp"], by="device")), rows, lag=0)[1].late == 1


def test_more_readings_than_may_wait_are_dead_letters():
    """Whole records, the first ones being taken."""
    wide = [{"device": "A", "time": time, "temp": 1.0, "flow": 2.0} for time in range(4)]
    plan = tm.Plan(tm.Align(["temp", "flow"], by="device", channel=None, max_waiting=5))
    made, report = run(plan, wide, key="device", max_records=3)
    assert len(made) == 2
    assert report.dead_letters_by_reason == {"too_many_open": 2}


# -- one device, one lane ----------------------------------------------------------------------------------


def where(batch):
    return {"pid": np.full(len(batch), float(os.getpid()))}


def test_all_records_of_a_device_are_in_one_lane():
    """By the plan's own wish, or by that of the pipeline alone; the devices are spread over the lanes."""
    rows = dicts(stream(500))
    align = tm.Align(CHANNELS, by="device", value="pid")
    made, _ = run(tm.Plan(tm.Map(where, adds={"pid": float}), align), rows, lanes=2)
    seen = pd.DataFrame(made)[CHANNELS].stack().reset_index(level=1, drop=True)
    devices = pd.Series([row["device"] for row in made]).loc[seen.index]
    assert set(seen.groupby(devices).nunique()) == {1}
    assert seen.nunique() == 2
    spread, _ = run(tm.Plan(tm.Map(where, adds={"pid": float})), rows, lanes=2, place_by="device")
    assert set(pd.DataFrame(spread).groupby("device")["pid"].nunique()) == {1}
    assert len(spread) == len(rows)


@pytest.mark.parametrize("lanes", [0, 1, 2])
def test_a_sensor_is_told_by_its_device_and_its_name(lanes):
    """Names may repeat from device to device; a sensor that moves begins anew, and goes on where it was when it returns."""
    homes = ["A", "A", "B", "B", "A", "C", "B"]
    rows = [
        {"device": device, "sensor": "s", "channel": "temp", "time": time, "value": 1.0}
        for time, device in enumerate(homes)
    ]
    plan = tm.Plan(tm.Rolling("value", 9, ["count"]), tm.Align(["temp"], by="device", value="value_count_9"))
    made, _ = run(plan, rows, key="sensor", lanes=lanes, max_records=2)
    expected = list(zip(homes, [1.0, 2.0, 1.0, 2.0, 3.0, 1.0, 3.0], strict=True))
    assert [(row["device"], row["temp"]) for row in made] == expected
    assert [(row["device"], row["temp"]) for row in plan.apply(rows)] == expected


def test_place_by_alone_does_the_same_live_and_in_a_notebook():
    """Windows of sensors whose names repeat from device to device."""
    rows = [{"device": d, "sensor": "s", "time": t, "value": 1.0} for t, d in enumerate("ABBA")]
    plan = tm.Plan(tm.Rolling("value", 9, ["count"]))
    made, _ = run(plan, rows, key="sensor", lanes=2, place_by="device")
    assert [row["value_count_9"] for row in made] == [1.0, 1.0, 2.0, 2.0]
    assert made == plan.apply(rows, place_by="device")


def test_devices_count_as_sensors_do():
    """For ``max_keys``: a device's first sensor takes two."""
    rows = [("A", "temp", 1, 1.0), ("A", "flow", 2, 1.0), ("B", "temp", 3, 1.0), ("A", "temp", 4, 1.0)]
    made, report = run(tm.Plan(tm.Align(["temp"], by="device")), rows, max_keys=3)
    assert [row["time"] // S for row in made] == [1, 4]
    assert report.dead_letters_by_reason == {"too_many_keys": 1}


DYING = """
import os
def once(batch):
    for second in (batch["time"].astype("int64") // 10**9).tolist():
        if second in AT:
            try:
                os.close(os.open(f"{FOLDER}/{second}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            os._exit(3)
    return {"seen": batch["temp"]}
"""


@pytest.mark.parametrize("method", ["last", "linear"])
def test_a_lane_that_is_killed_behind_it_changes_nothing(tmp_path, monkeypatch, method):
    """Its state had been written already, and is as before the slab for the process that follows."""
    module = f"dying_{method}"
    (tmp_path / f"{module}.py").write_text(f"AT, FOLDER = {{50, 60, 70}}, {str(tmp_path)!r}\n" + DYING)
    monkeypatch.syspath_prepend(str(tmp_path))
    once = __import__(module).once
    rows = stream(2_000, devices=7)
    align = tm.Align(CHANNELS, by="device", method=method, tolerance="20s")
    plan = tm.Plan(align, tm.Map(once, adds={"seen": float}))
    made, report = run(plan, rows, lanes=2, max_records=100)
    assert sum(lane.restarts for lane in report.lanes) >= 3
    expected, _ = run(tm.Plan(align), rows, lanes=0)
    assert repr([{name: cell for name, cell in row.items() if name != "seen"} for row in made]) == repr(expected)


@pytest.mark.parametrize("method", ["last", "linear"])
def test_a_slab_that_is_worked_on_again_may_have_other_records(method):
    """One that was aligned before its lane died may be set aside the next time; nothing of it stays."""
    rows = [
        {"device": "A", "time": 1, "flow": 1.0},
        {"device": "B", "time": 5, "flow": 2.0},
        {"device": "A", "time": 50, "flow": 9.0},
        {"device": "B", "time": 60, "flow": 2.0},
        {"device": "A", "time": 61, "temp": 3.0},
        {"device": "A", "time": 62, "flow": 5.0},
    ]
    batch = with_roles(rows, "device", None, "UTC")
    stage = tm.Align(["temp", "flow"], by=None, channel=None, method=method, tolerance="100s")
    stage = stage.settled(tm.Schema(batch.schema, key="device"))
    marks = marks_of(batch)
    options = {"records": 6, "marks": marks}
    first = Trial(stage, ["A", "B"], **options)
    made = [first.feed(batch.slice(0, 2))]
    first.feed(batch.slice(2, 4), commit=False)
    second = Trial(stage, ["A", "B"], buffer=first.buffer, fed=2, **options)
    made.append(second._run(batch.slice(3, 4), np.array([3]), 2, marks[2:5], commit=True))  # without A's at 50
    third = Trial(stage, ["A", "B"], buffer=first.buffer, fed=4, **options)
    made += [third.feed(batch.slice(4, 6)), third.finish()]
    rows = sorted(Made.joined(made).batch.to_rows(), key=lambda row: row["time"])
    at_61 = 1.0 if method == "last" else 1 + 4 * (60 / 61)
    assert [(row["time"] // S, row["flow"]) for row in rows] == [(1, 1.0), (5, 2.0), (60, 2.0), (61, at_61), (62, 5.0)]


def deadly(batch):
    if any(value > 2.5 for value in batch["value"]):
        os._exit(3)
    return {"checked": batch["value"]}


def test_a_record_that_kills_its_lane_before_it_costs_that_record_alone():
    """All others are aligned as if it had not been."""
    rows = stream(1_000, devices=7)
    plan = tm.Plan(tm.Map(deadly, adds={"checked": float}), tm.Align(CHANNELS, by="device"))
    made, report = run(plan, rows, lanes=2, max_records=200)
    good = [row for row in rows if not row[3] > 2.5]
    assert report.dead_letters_by_reason == {"killed_lane": len(rows) - len(good)}
    assert 0 < len(rows) - len(good) < 20
    expected = applied(tm.Plan(tm.Align(CHANNELS, by="device")), good)
    assert repr(made) == repr(expected.assign(time=expected["time"].astype("int64")).to_dict("records"))


# -- what cannot be meant ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"channels": "temp"}, "must be a list of names"),
        ({"channels": []}, "is empty"),
        ({"channels": [1]}, "must be a list of names"),
        ({"channels": ["temp", "temp"]}, "'temp' stands twice"),
        ({"on": "pressure"}, "on='pressure' is none of its channels, temp, flow"),
        ({"method": "nearest"}, 'method=\'nearest\' is not one of "last", "linear"'),
        ({"method": "linear"}, "needs tolerance="),
        ({"tolerance": 0}, r"Align\(temp, flow\): tolerance=0 must be"),
        ({"tolerance": "-1s"}, "tolerance='-1s'"),
        ({"tolerance": -1}, "tolerance=-1 must be"),
        ({"late": "update"}, "late='update' is not one of"),
        ({"max_waiting": 0}, "max_waiting=0"),
        ({"by": "temp"}, "two columns would be called 'temp'"),
        ({"time": "flow"}, "two columns would be called 'flow'"),
        ({"time": "device"}, "two columns would be called 'device'"),
        ({"by": 3}, "by=3 must be the name of a column"),
        ({"value": None}, "value=None must be the name of a column"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, told):
    """At construction, in a sentence that says what would do."""
    with pytest.raises(tm.PlanError, match=told):
        tm.Align(**{"channels": ["temp", "flow"], "by": "device", **options})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"by": "machine"}, r"Align\(temp\) needs a column 'machine'; .*device, channel, time, value"),
        ({"channel": "kind"}, r"needs a column 'kind'; .*device, channel"),
        ({"value": "channel"}, "needs column 'channel' to be float or int or bool; it is text"),
        ({"channel": "value"}, "needs column 'value' to be text; it is float"),
        ({"channel": None}, "needs a column 'temp'"),
        ({"by": "when"}, "needs column 'when' to be text or float or int or bool; it is time"),
    ],
)
def test_a_column_that_is_not_there_is_named_with_those_that_are(options, told):
    """And one of the wrong kind with the right ones."""
    data = pd.DataFrame(dicts([("A", "temp", 1, 1.0)])).assign(when=pd.Timestamp(0, tz="UTC"))
    with pytest.raises(tm.PlanError, match=told):
        tm.Plan(tm.Align(**{"channels": ["temp"], "by": "device", **options})).apply(data, key=KEY)


def test_two_stages_that_group_differently_are_refused():
    """A record has one lane."""
    with pytest.raises(tm.PlanError, match=r"Align\(temp\) groups sensors by 'device' and other by 'line'"):
        tm.Plan(tm.Align(["temp"], by="device"), tm.Align(["temp"], by="line", channel=None, name="other"))


def test_place_by_must_be_that_of_the_plan():
    """Or left out."""
    plan, source = tm.Plan(tm.Align(["temp"], by="device")), tm.sources.Records(dicts([("A", "temp", 1, 1.0)]), key=KEY)
    with pytest.raises(tm.PlanError, match="place_by='line', and the plan groups sensors by 'device'"):
        tm.Pipeline(source, plan, ListSink(), place_by="line")
    assert tm.Pipeline(source, plan, ListSink(), place_by="device").check().place_by == "device"
    with pytest.raises(tm.PlanError, match="place_by needs a column 'line'; the columns there are: device, channel"):
        tm.Pipeline(source, tm.Plan(), ListSink(), place_by="line").check()
    with pytest.raises(tm.PlanError, match="place_by='' must be the name of a column"):
        tm.Pipeline(source, tm.Plan(), ListSink(), place_by="")


def test_rows_that_do_not_say_their_device_cannot_be_grouped_by_it():
    """Windows of sensors come behind, or the device is the key."""
    rows = dicts([("A", "temp", 1, 1.0)])
    window = tm.Aggregate(tm.tumbling("10s"), {"value": "mean"})
    plan = tm.Plan(window, tm.Map(lambda batch: {"device": batch["device"]}, adds={"device": str}))
    grouped = tm.Plan(plan, tm.Align(["value_mean"], by="device", channel=None))
    with pytest.raises(tm.PlanError, match=r"the rows of Aggregate\(tumbling\('10s'\)\) do not say their 'device'"):
        tm.Pipeline(tm.sources.Records(rows, key=KEY), grouped, ListSink()).check()
    by_key = tm.Plan(window, tm.Align(["value_mean"], by="device", channel=None))
    assert [row["value_mean"] for row in by_key.apply(rows, key="device")] == [1.0]


def test_a_template_named_like_the_default_is_not_the_column():
    """The key of ``{sensor}/{channel}`` is no device, though its default name is `sensor`."""
    rows = [{"sensor": "A", "channel": c, "time": t, "value": 1.0} for t, c in enumerate(["temp", "flow"])]
    plan = tm.Plan(tm.Align(["temp", "flow"], by="sensor"))
    made, _ = run(plan, rows, key="{sensor}/{channel}", lanes=2)
    assert [(row["sensor"], row["temp"]) for row in made] == [("A", 1.0), ("A", 1.0)]


NAMED = [
    {"sensor": f"d/{channel}", "device": "d", "channel": channel, "time": 1_700_000_000 + n, "value": float(n)}
    for n in range(20)
    for channel in ("Temp", "flow")
]


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize(
    ("channels", "absent"),
    [(["temp"], "'temp'"), (["temp", "flow", "level"], "'temp', 'level'"), (["Temp", "flow"], "")],
)
@pytest.mark.parametrize("method", ["last", "linear"])
def test_channels_that_never_came_are_told_of_at_the_end(method, channels, absent, processes, caplog):
    """A name that is written otherwise than in the records leaves them all out, as any other channel's."""
    stage = tm.Align(channels, by="device", tolerance="3s", method=method)
    told = f"{stage.name}: no reading of {absent} was taken; channels are named letter by letter as the column 'channel' has them"
    tm.run(tm.Pipeline(tm.sources.Records(NAMED), tm.Plan(stage), ListSink()), lanes=processes)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [told] * bool(absent)


def test_readings_that_still_wait_have_come():
    """Of a run that is stopped, too."""
    stage = tm.Align(["Temp", "flow"], by="device")
    batch = with_roles([{**row, "sensor": "d"} for row in NAMED[:2]], "sensor", None, "UTC")
    trial = Trial(stage, ["d"], records=2, marks=marks_of(batch))
    assert "'Temp', 'flow'" in stage.doubt([trial.memory.stages[0]], [1])
    trial.feed(batch)
    assert stage.doubt([trial.memory.stages[0]], [1]) is None


def test_no_records_at_all_are_no_doubt(caplog):
    """Nothing is said of a run without a record."""
    tm.run(tm.Pipeline(tm.sources.Records([]), tm.Plan(tm.Align(["temp"], by="device")), ListSink()), lanes=0)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
