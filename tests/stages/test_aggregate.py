"""`Aggregate` against pandas, and against itself: other orders of arrival, other batches, other lanes."""

import functools
import itertools
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.testing import ListSink

S = 1_000_000_000
STATS = ["count", "sum", "mean", "var", "std", "min", "max", "median", "first", "last"]


def frame(rows):
    return pd.DataFrame(rows, columns=["sensor", "time", "value"]).astype({"value": float})


def at(seconds):
    return pd.to_datetime(np.asarray(seconds, np.int64) * S, utc=True)


records = st.lists(
    st.tuples(
        st.sampled_from(["S1", "S2", "S3"]),
        st.integers(0, 120),
        st.one_of(st.floats(-100, 100), st.just(float("nan"))),
    ),
    min_size=1,
    max_size=60,
)


def applied(plan, rows, **options):
    data = frame(rows)
    data["time"] = at(data["time"])
    return plan.apply(data, time="time", **options)


def run(plan, rows, *, lanes=0, max_records=32_768, **options):
    sink = ListSink()
    dicts = [{"sensor": key, "time": f"{at([t])[0].isoformat()}", "value": value} for key, t, value in rows]
    pipeline = tm.Pipeline(tm.sources.Records(dicts), plan, sink, **options)
    report = tm.run(pipeline, lanes=lanes, limits=tm.Limits(max_records=max_records))
    assert report.in_flight == 0
    gone = report.filtered + report.dead_letters + report.late + report.deduplicated + report.absorbed
    assert report.records_in == report.rows_from_records + gone
    assert report.rows_out == report.emitted + report.rows_from_records == len(sink.rows)
    return sink.rows, report


@given(rows=records, ddof=st.integers(0, 1))
def test_tumbling_windows_are_those_of_pandas(rows, ddof):
    made = applied(tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"value": STATS}, ddof=ddof)), rows)
    data = frame(rows)
    data["window"] = data["time"] // 10 * 10
    data = data.sort_values(["time", "value"], kind="stable")
    groups = data.groupby(["window", "sensor"])["value"]
    own = {"var": lambda g: g.var(ddof=ddof), "std": lambda g: g.std(ddof=ddof)}
    expected = pd.DataFrame({f"value_{s}": own[s](groups) if s in own else getattr(groups, s)() for s in STATS})
    expected = expected.reset_index()
    assert made["sensor"].tolist() == expected["sensor"].tolist()
    assert made["window_start"].tolist() == at(expected["window"]).tolist()
    assert made["window_end"].tolist() == at(expected["window"] + 10).tolist()
    for stat in STATS:
        np.testing.assert_allclose(made[f"value_{stat}"], expected[f"value_{stat}"], rtol=1e-9, atol=1e-6)


@given(rows=records, span=st.integers(1, 4))
def test_a_sliding_window_holds_what_a_filter_by_time_finds(rows, span):
    made = applied(tm.Plan(tm.Aggregate(tm.sliding(f"{10 * span}s", "10s"), {"value": ["count", "mean", "max"]})), rows)
    data = frame(rows)
    expected = []
    for end in range(10, 130 + 10 * span, 10):
        held = data[(data["time"] >= end - 10 * span) & (data["time"] < end)]
        for key, own in held.groupby("sensor"):
            value = own["value"]
            expected.append((key, at([end])[0], float(value.count()), value.mean(), value.max()))
    assert len(made) == len(expected)
    for row, (key, end, count, mean, top) in zip(made.itertuples(index=False), expected, strict=True):
        assert (row.sensor, row.window_end, row.value_count) == (key, end, count)
        np.testing.assert_allclose([row.value_mean, row.value_max], [mean, top], rtol=1e-9, atol=1e-9)


@given(rows=records, gap=st.integers(1, 30))
def test_a_session_ends_where_two_records_are_a_gap_apart(rows, gap):
    made = applied(tm.Plan(tm.Aggregate(tm.session(gap), {"value": ["count", "sum"]})), rows)
    data = frame(rows).sort_values(["sensor", "time"], kind="stable")
    fresh = (data["sensor"] != data["sensor"].shift()) | (data["time"].diff() >= gap)
    groups = data.groupby(fresh.cumsum())
    expected = pd.DataFrame(
        {
            "sensor": groups["sensor"].first(),
            "start": groups["time"].min(),
            "end": groups["time"].max() + gap,
            "count": groups["value"].count(),
            "sum": groups["value"].sum(),
        }
    ).sort_values(["end", "sensor"])
    assert made["sensor"].tolist() == expected["sensor"].tolist()
    assert made["window_start"].tolist() == at(expected["start"]).tolist()
    assert made["window_end"].tolist() == at(expected["end"]).tolist()
    np.testing.assert_allclose(made["value_sum"], expected["sum"], atol=1e-9)


windows = st.sampled_from(
    [tm.tumbling("10s"), tm.sliding("30s", "10s"), tm.session("7s"), tm.tumbling("10s", offset="3s")]
)


@given(rows=records, window=windows, order=st.randoms(use_true_random=False))
def test_rows_do_not_depend_on_the_order_of_arrival_within_the_lateness(rows, window, order):
    plan = tm.Plan(tm.Aggregate(window, {"value": STATS}, allowed_lateness="120s"))
    shuffled = list(rows)
    order.shuffle(shuffled)
    pd.testing.assert_frame_equal(applied(plan, rows, lag=0), applied(plan, shuffled, lag=0))


@settings(max_examples=25)
@given(
    rows=records,
    window=windows,
    cut=st.integers(1, 9),
    lateness=st.integers(0, 20),
    late=st.sampled_from(["drop", "update"]),
)
def test_rows_do_not_depend_on_where_batches_end(rows, window, cut, lateness, late):
    if late == "update" and (isinstance(window, type(tm.session("1s"))) or not lateness):
        late = "drop"
    plan = tm.Plan(tm.Aggregate(window, {"value": STATS}, allowed_lateness=lateness, late=late))
    whole, one = run(plan, rows, lag=0)
    parts, other = run(plan, rows, lag=0, max_records=cut)
    assert repr(parts) == repr(whole)  # NaN is not equal to itself
    assert (one.late, one.absorbed) == (other.late, other.absorbed)


@settings(max_examples=25)
@given(rows=records, lateness=st.integers(0, 15))
def test_a_record_is_late_against_the_watermark_just_before_it(rows, lateness):
    _, report = run(
        tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"value": "sum"}, allowed_lateness=lateness)), rows, lag="2s"
    )
    newest, late = None, 0
    for number, (_, time, _) in enumerate(rows):
        late += (
            number > 1 and time // 10 * 10 + 10 + lateness <= newest - 2
        )  # the first two say together what time it is
        newest = time if newest is None else max(newest, time)
    assert report.late == late


def rows_by_second(times, key="S1"):
    return [(key, t, float(t)) for t in times]


def test_late_records_can_be_dead_letters_that_say_by_how_much(tmp_path):
    plan = tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"value": "sum"}, late="dead_letter"))
    rows, report = run(plan, rows_by_second([1, 25, 2]), lag=0)
    assert [row["value_sum"] for row in rows] == [1.0, 25.0]
    assert report.dead_letters == 1
    assert report.dead_letters_by_reason == {"late": 1}


def test_an_update_gives_the_window_once_more_with_all_that_has_come():
    plan = tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"value": "sum"}, late="update", allowed_lateness="20s"))
    rows, report = run(plan, rows_by_second([1, 12, 2, 3, 31, 4]), lag=0)
    assert [(row["value_sum"], row["revision"]) for row in rows] == [(1, 0), (3, 1), (6, 2), (12, 0), (31, 0)]
    assert report.late == 1  # the last one came 27 s behind


def test_rows_come_out_where_the_watermark_crossed_then_by_end_and_name():
    rows = [("b", 1, 1.0), ("a", 2, 1.0), ("é", 3, 1.0), ("B", 4, 1.0), ("a", 11, 1.0), ("a", 40, 1.0), ("a", 41, 1.0)]
    made, _ = run(tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"value": "count"})), rows, lanes=2, lag=0)
    assert [(row["sensor"], row["window_end"] // S) for row in made] == [
        ("B", 10), ("a", 10), ("b", 10), ("é", 10), ("a", 20), ("a", 50),
    ]  # fmt: skip


@pytest.mark.parametrize("processes", [1, 2])
def test_lanes_give_what_apply_gives(processes):
    rng = np.random.default_rng(4)
    rows = [(f"S{rng.integers(40)}", int(t), float(rng.normal())) for t in np.cumsum(rng.integers(0, 2, 20_000))]
    plan = tm.Plan(
        tm.Rolling("value", window=5, stats=["mean"]),
        tm.Aggregate(tm.sliding("60s", "20s"), {"value": ["mean", "std", tm_p2p], "value_mean_5": "last"}),
        tm.Aggregate(tm.tumbling("5min"), {"value_mean": ["min", "max"]}),
    )
    made, report = run(plan, rows, lanes=processes, max_records=997, lag=0)
    assert made == applied(plan, rows).assign(
        window_start=lambda f: f["window_start"].astype("int64"), window_end=lambda f: f["window_end"].astype("int64")
    ).to_dict("records")
    assert report.absorbed == len(rows)


def tm_p2p(values):
    return values.max() - values.min()


def raises(values):
    if values.sum() > 10:
        raise ValueError("too much")
    return 1.0


@pytest.mark.parametrize(("on_error", "left"), [("dead_letter", [1.0]), ("nan", [1.0, None])])
def test_a_function_that_raises_costs_its_windows_row(on_error, left):
    plan = tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"value": [raises, "count"]}, on_error=on_error))
    rows, report = run(plan, rows_by_second([1, 2, 11, 12]))
    assert [None if np.isnan(row["value_raises"]) else row["value_raises"] for row in rows] == left
    assert report.dead_letters == 0  # no record is one
    assert report.counters.get("dead_rows", 0) == (on_error == "dead_letter")


@pytest.mark.parametrize("behind", [False, True])
def test_the_dead_letter_of_a_windows_row_names_its_sensor(behind, lanes, tmp_path):
    """And no time: a replay would take the row for a record."""
    failing = {"value": raises} if not behind else {"value": "sum"}
    stages = [tm.Aggregate(tm.tumbling("10s"), failing), tm.Map(lambda batch: {"x": 1 / 0})][: 1 + behind]
    rows = [{"sensor": "S1", "time": 1_700_000_000 + n, "value": 6.0} for n in range(2)]
    pipeline = tm.Pipeline(tm.sources.Records(rows), stages, ListSink())
    tm.run(pipeline, lanes=lanes, dead_letters=tmp_path / "dead.ndjson")
    (letter,) = map(json.loads, (tmp_path / "dead.ndjson").read_text().splitlines())
    assert (letter["key"], letter["time"], letter["raw"]["sensor"]) == ("S1", None, "S1")


def test_on_error_stop_ends_the_run_with_what_was_raised():
    plan = tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"value": raises}, on_error="stop"))
    with pytest.raises(tm.StageError, match="too much"):
        run(plan, rows_by_second([11, 12]))


def kills(values):
    if values.sum() > 10:
        import os

        os._exit(3)
    return 1.0


def test_a_function_that_kills_its_lane_costs_its_windows_row_alone(tmp_path):
    plan = tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"value": [kills, "count"]}))
    rows, report = run(plan, [*rows_by_second([1, 2, 11, 12, 21]), ("S2", 3, 1.0)], lanes=2, lag="1min")
    assert [(row["sensor"], row["value_count"]) for row in rows] == [("S1", 2.0), ("S2", 1.0)]
    assert report.counters["dead_rows"] == 2
    assert sum(lane.restarts for lane in report.lanes) >= 2


def test_the_sensors_name_is_of_the_kind_it_has_in_the_records():
    rows = [{"machine": m, "time": f"2024-01-01T00:00:{s:02}Z", "value": s} for s, m in enumerate([7, 7.5, 7, -3])]
    made = tm.Plan(tm.Aggregate(tm.tumbling("1h"), {"value": "sum"})).apply(rows, key="machine", time="time")
    assert [(row["machine"], row["value_sum"]) for row in made] == [(-3, 3), (7, 2), (7.5, 1)]


def test_of_a_column_without_values_only_count_and_sum_are_known():
    rows = [{"sensor": "a", "time": "2024-01-01T00:00:01Z", "value": float("nan")}]
    made = tm.Plan(tm.Aggregate(tm.tumbling("1h"), {"value": [*STATS, "slope", "rate", "range", "rms", "delta"]}))
    row = made.apply(pd.DataFrame(rows), time="time").iloc[0]
    assert row["value_count"] == row["value_sum"] == 0
    assert row.drop(["sensor", "window_start", "window_end", "value_count", "value_sum"]).isna().all()


def test_slope_and_rate_are_those_of_numpy():
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.integers(1, 4, 50))
    values = rng.normal(size=50) + 0.3 * times
    rows = [("S1", int(t), float(v)) for t, v in zip(times, values, strict=True)]
    row = applied(
        tm.Plan(tm.Aggregate(tm.tumbling("1h"), {"value": ["slope", "rate", "rms", tm.quantile(0.9)]})), rows
    ).iloc[0]
    assert row["value_slope"] == pytest.approx(np.polyfit(times - times[0], values, 1)[0], rel=1e-9)
    assert row["value_rate"] == pytest.approx((values[-1] - values[0]) / (times[-1] - times[0]))
    assert row["value_rms"] == pytest.approx(np.sqrt(np.mean(values**2)))
    assert row.iloc[-1] == pytest.approx(np.quantile(values, 0.9))


def test_more_records_than_may_wait_are_dead_letters():
    plan = tm.Plan(tm.Aggregate(tm.tumbling("1h"), {"value": "count"}, max_waiting=3))
    rows, report = run(plan, rows_by_second(range(5)), max_records=2)
    assert rows[0]["value_count"] == 3
    assert report.dead_letters_by_reason == {"too_many_open": 2}


async def later(values):
    return 1.0


@pytest.mark.parametrize("sensor", ["a", "b"])
def test_a_notebook_is_told_of_which_window_a_function_failed(sensor):
    """Also of one that ends with the input: its row would be missing without a word."""

    def raises(values):
        raise ValueError("too much")

    rows = [{"sensor": "a", "time": 1, "value": 1.0}, {"sensor": "b", "time": 11, "value": 1.0}]
    plan = tm.Plan(tm.Filter(f"sensor == '{sensor}'"), tm.Aggregate(tm.tumbling("10s"), {"value": raises}, name="Sums"))
    with pytest.raises(tm.StageError, match=rf"^Sums: ValueError: too much .*in the row .*'{sensor}'.*'window_start'"):
        plan.apply(rows, lag=0)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: tm.Aggregate("10s", {"value": "mean"}), "tumbling"),
        (lambda: tm.Aggregate(tm.tumbling("10s"), {"value": "men"}), "'men' is not a statistic; there are count, sum"),
        (lambda: tm.Aggregate(tm.tumbling("10s"), {"value": later}), "later is async"),
        (lambda: tm.Aggregate(tm.tumbling("10s"), {}), "needs statistics by column"),
        (lambda: tm.Aggregate(tm.tumbling("10s"), {"value": []}), r"value=\[\] names no statistic"),
        (
            lambda: tm.Aggregate(tm.tumbling("10s"), {"value": ["mean", lambda values: 1.0]}),
            "a lambda has no name for its column",
        ),
        (
            lambda: tm.Aggregate(tm.tumbling("10s"), {"value": ["mean", "mean"]}),
            "two columns would be called 'value_mean'",
        ),
        (lambda: tm.Aggregate(tm.tumbling("10s"), {"v": "sum"}, late="keep"), "late='keep' is not one of \"drop\""),
        (lambda: tm.Aggregate(tm.tumbling("10s"), {"v": "sum"}, late="update"), "allowed_lateness="),
        (lambda: tm.Aggregate(tm.session("10s"), {"v": "sum"}, late="update", allowed_lateness=1), "no sessions"),
        (lambda: tm.tumbling("0s"), "tumbling: size"),
        (lambda: tm.sliding("60s", "7s"), "multiple"),
        (lambda: tm.sliding("60d", "1s"), "windows"),
        (lambda: tm.session(-1), "session: gap"),
        (lambda: tm.session("100000d"), "session: gap='100000d' is too long"),
        (lambda: tm.tumbling("100000d"), "tumbling: size='100000d' is too long"),
        (lambda: tm.sliding("100000d", "50000d"), "sliding: size='100000d' is too long"),
    ],
)
def test_what_cannot_be_meant_is_refused(made, told):
    with pytest.raises(tm.PlanError, match=told):
        made()


@pytest.mark.parametrize("key", ["window_start", "window_end", "revision", "value_mean"])
def test_a_key_that_is_called_as_a_column_of_the_rows_is_refused(key):
    """Else the rows would not say their sensor."""
    options = {"late": "update", "allowed_lateness": "5s"} if key == "revision" else {}
    plan = tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"value": "mean"}, **options))
    with pytest.raises(tm.PlanError, match=f"two columns would be called '{key}', that of the key and another"):
        plan.apply([{key: "S1", "time": 1, "value": 1.0}], key=key)


def test_a_key_may_be_called_revision_where_rows_have_none():
    """Without ``late="update"`` no column is called so."""
    plan = tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"value": "mean"}))
    (row,) = plan.apply([{"revision": "S1", "time": 1, "value": 1.0}], key="revision")
    assert row["revision"] == "S1"


def test_a_lambda_may_be_a_statistic_under_a_name_of_its_own():
    """As a function with a name may be."""
    plan = tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"spread": ("value", lambda values: values.max() - values.min())}))
    (row,) = plan.apply([{"sensor": "S1", "time": n, "value": float(n)} for n in (1, 4)])
    assert row["spread"] == 3.0


@pytest.mark.parametrize("window", [tm.tumbling("26000d"), tm.tumbling("10s", offset="100000d"), tm.session("26000d")])
def test_the_longest_windows_have_ends_that_are_times(window):
    """And the longest lateness is one; for records of any time that is taken."""
    plan = tm.Plan(tm.Aggregate(window, {"value": "count"}, allowed_lateness="100000d"))
    rows = [{"sensor": "S1", "time": time, "value": 1.0} for time in ("1823-12-31T00:00:00Z", "2116-01-01T00:00:00Z")]
    made = plan.apply(rows)
    assert [row["value_count"] for row in made] == [1, 1]
    assert all(row["window_start"] < row["window_end"] for row in made)


def test_a_function_gives_its_name_to_its_column():
    """A partial has that of the function it is of, as in `Rolling`."""
    stats = [functools.partial(np.percentile, q=90), functools.partial(np.median), np.ptp]
    stage = tm.Aggregate(tm.tumbling("10s"), {"value": stats})
    assert stage.adds == ("value_percentile", "value_median", "value_ptp")


def test_a_column_that_is_not_there_is_named_with_those_that_are():
    plan = tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"temp": "mean"}))
    with pytest.raises(
        tm.PlanError, match=r"Aggregate\(tumbling\('10s'\)\) needs a column 'temp'; .*sensor, time, value"
    ):
        applied(plan, [("S1", 1, 1.0)])


def test_without_event_times_it_says_how_to_name_them():
    with pytest.raises(tm.PlanError, match="time="):
        tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"v": "mean"})).apply([{"sensor": "a", "v": 1}])


def test_every_pair_of_windows_has_its_own_name():
    names = [repr(window) for window in (tm.tumbling("10s"), tm.sliding("1min", "10s"), tm.session("5min"))]
    assert names == ["tumbling('10s')", "sliding('1min', '10s')", "session('5min')"]
    assert all(a != b for a, b in itertools.combinations(names, 2))


@pytest.mark.parametrize("late", ["drop", "update"])
def test_windows_of_windows_lose_nothing_to_the_allowed_lateness(late):
    """The watermark is held back for the stages behind one whose rows come out later than it."""
    rows = rows_by_second(range(0, 300, 5))
    first = tm.Aggregate(tm.tumbling("10s"), {"value": "sum"}, allowed_lateness="2min", late=late)
    made, _ = run(tm.Plan(first, tm.Aggregate(tm.tumbling("60s"), {"value_sum": "count"})), rows, lag=0)
    assert [row["value_sum_count"] for row in made] == [6.0] * 5


@pytest.mark.parametrize("lanes", [None, 0])
def test_many_more_rows_than_records_of_a_slab_pass_the_stages_behind(lanes):
    """All sensors' windows end with one slab; each row is saved in the undo log of the stage behind."""
    rows = [(f"S{i}", 1, float(i)) for i in range(3_000)]
    plan = tm.Plan(tm.Aggregate(tm.sliding("40s", "10s"), {"value": "mean"}), tm.Rolling("value_mean", 3, ["count"]))
    made = applied(plan, rows) if lanes is None else pd.DataFrame(run(plan, rows, lanes=lanes, max_records=64)[0])
    assert len(made) == 12_000
    assert made["value_mean_count_3"].value_counts().to_dict() == {3.0: 6_000, 1.0: 3_000, 2.0: 3_000}


@pytest.mark.parametrize("window", [tm.tumbling("1us"), tm.sliding("4us", "1us")], ids=repr)
def test_a_time_of_another_century_ends_no_run_of_short_windows(window):
    """However many windows lie between it and the others: it has its own rows, and theirs are what they are without it."""
    rows = [
        {"sensor": f"s{key}", "time": 1_700_000_000 + second, "value": float(key)}
        for second in range(3)
        for key in range(3000)
    ]
    far = {"sensor": "s2999", "time": 4_400_000_000, "value": 9.0}
    plan = tm.Plan(tm.Aggregate(window, {"value": ["mean", "count"]}))
    sink = ListSink()
    report = tm.run(tm.Pipeline(tm.sources.Records([*rows[:6000], far, *rows[6000:]]), plan, sink, lag="1s"), lanes=0)
    assert report.counters == {"time_ahead": 1}
    own = [row for row in sink.rows if row["value_mean"] == 9.0 and row["sensor"] == "s2999"]
    assert len(own) == window.size_ns // window.every_ns
    rest = [row for row in sink.rows if row not in own]
    assert rest == plan.apply(rows)
