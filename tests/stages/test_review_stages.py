"""Faults that a hostile reading of the stages found, and that must stay found."""

from __future__ import annotations

import datetime as dt
import math
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidemill as tm
from tidemill.column import ABSENT, nanoseconds
from tidemill.formats.edge import Edge
from tidemill.stages.expressions import Expression
from tidemill.testing import check_map

LARGE = 2**53 + 1
"""An integer that float64 does not hold."""


def rows_of(values, **more):
    return [{"sensor": "S1", "time": n, "value": value, **more} for n, value in enumerate(values)]


def out(plan, rows, name="value"):
    return [row.get(name, "absent") for row in tm.Plan(plan).apply(rows)]


# -- of each record alone ------------------------------------------------------------------------------------


def clipped(batch):
    return {"value": np.clip(batch["value"], 0, 100)}


@given(st.lists(st.sampled_from([5, 5.0, None, 250, -3.5, LARGE, math.nan]), min_size=1, max_size=6))
def test_a_value_that_stays_is_what_it_was_whatever_becomes_of_others(values):
    """An int stays an int and a null a null, also where a neighbour in the batch was clipped."""
    together = out(tm.Map(clipped), rows_of([0.5, *values]))[1:]
    assert list(map(repr, together)) == [repr(out(tm.Map(clipped), rows_of([0.5, value]))[1]) for value in values]
    check_map(clipped, batch=rows_of([0.5, *values]), lanes=0)


def test_numbers_in_a_list_are_floats_whether_or_not_a_null_is_among_them():
    def graded(batch):
        return {"grade": [None if value != value else LARGE for value in batch["value"]]}

    assert list(map(repr, out(tm.Map(graded), rows_of([1, None, 3]), "grade"))) == [
        repr(2.0**53),
        "None",
        repr(2.0**53),
    ]
    check_map(graded, lanes=0)


def test_texts_and_declared_integers_keep_what_is_absent_from_what_is_null():
    def upper(batch):
        return {"unit": [None if unit is None else unit.upper() for unit in batch["unit"]]}

    rows = [
        {"sensor": "S", "time": 0, "unit": "C"},
        {"sensor": "S", "time": 1, "unit": None},
        {"sensor": "S", "time": 2},
    ]
    assert out(tm.Map(upper), rows, "unit") == ["C", None, "absent"]
    assert out(tm.Map(upper), [{**rows[0], "unit": "f"}, *rows[1:]], "unit") == ["F", None, "absent"]


@pytest.mark.parametrize("wrong", [math.inf, 1e300, -1e300, 2.0**63, np.uint64(2**63), math.nan])
def test_what_64_bits_do_not_hold_is_no_integer(wrong):
    """It would come out as another number."""
    stage = tm.Map(lambda batch: {"n": np.full(len(batch), wrong)}, adds={"n": int})
    with pytest.raises(tm.StageError, match=r"returned 'n' with .*, which is no whole number of 64 bits"):
        out(stage, rows_of([1.0]))
    most = tm.Map(lambda batch: {"n": np.full(len(batch), np.uint64(2**63 - 1))}, adds={"n": int})
    assert out(most, rows_of([1.0]), "n") == [2**63 - 1]


def test_a_missing_text_in_a_frame_is_missing():
    """pandas' NA is neither equal to itself nor different."""

    def upper(frame):
        return frame.assign(unit=frame["unit"].astype("string").str.upper())

    rows = [{"sensor": "S", "time": n, "unit": unit} for n, unit in enumerate(["c", None, "f"])]
    assert out(tm.MapFrame(upper), rows, "unit") == ["C", None, "F"]


# -- numbers of sensors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sensors", [[LARGE - 1, LARGE], [2**80, -(2**70)], [7, 7.5], [2**63, 3]])
def test_rows_that_windows_make_name_the_sensor_as_its_records_did(sensors):
    """Also by a number that float64 does not hold, such as an EUI-64."""
    rows = [{"sensor": sensor, "time": n, "value": float(n)} for n in range(2) for sensor in sensors]
    made = out(tm.Aggregate(tm.tumbling("10s"), {"value": "mean"}), rows, "sensor")
    assert sorted(map(repr, made)) == sorted(map(repr, sensors))


# -- times ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "time",
    ["9999-12-31", "1772-01-01T00:00:00Z", dt.datetime(2300, 1, 1, tzinfo=dt.UTC), 2**62, "1e18", "5e18"],
)
def test_times_of_other_centuries_are_refused_as_that(time):
    """What is older than the watermark can say would be late, and vanish; so would differences that int64 does not hold."""
    rows = [{"sensor": "S", "time": time, "value": 1.0}]
    if time == "1e18":  # 2001, in nanoseconds
        assert len(out(tm.Rolling("value", 3), rows)) == 1
        return
    with pytest.raises(tm.InputError, match=r"the time .* in field 'time' is beyond the years 1823 to 2116"):
        out(tm.Rolling("value", 3), rows)


def test_a_number_is_no_time_of_a_format_and_finer_times_are_rounded():
    """What is said of a record is true of it."""
    for time, why in ((5, "is not the format"), ("9999-12-31", "is beyond the years")):
        assert why in Edge(time_format="%Y-%m-%d").rows([{"sensor": "S", "time": time}])[1][0].reason
    finer = np.array([7_000_000_123_456_789_012], "datetime64[ps]")
    assert nanoseconds(finer).tolist() == [7_000_000_123_456_789]


def test_every_time_that_is_taken_is_in_a_window():
    """From the first year to the last, none is late in a notebook."""
    times = pd.to_datetime([f"{year}-06-01" for year in range(1824, 2116)]).as_unit("ns")
    frame = pd.DataFrame({"sensor": "S", "time": times, "value": 1.0})
    assert len(tm.Plan(tm.Aggregate(tm.tumbling("1d"), {"value": "mean"})).apply(frame)) == len(frame)
    assert len(tm.Plan(tm.Aggregate(tm.session("365d"), {"value": "count"})).apply(frame)) == len(frame)
    rate = tm.Plan(tm.Rolling("value", 2, stats=["rate", "slope"])).apply(frame.assign(value=np.arange(len(frame))))
    assert (rate[["value_rate_2", "value_slope_2"]].iloc[1:] > 0).all(axis=None)


def test_times_that_nanoseconds_do_not_reach_stay_texts():
    """A day far away means "for ever" in many tables; it is no time of another year."""
    frame = pd.DataFrame(
        {"sensor": ["a", "b"], "time": [0, 1], "value": [1.0, 2.0], "to": pd.to_datetime(["9999-12-31", "2024-01-01"])}
    )
    made = tm.Plan(tm.MapRows(lambda rows: [{"seen": row["to"]} for row in rows])).apply(frame)
    assert [str(item)[:10] for item in made["seen"]] == ["9999-12-31", "2024-01-01"]
    ends = tm.MapFrame(lambda own: own.assign(end=pd.to_datetime(["9999-12-31"] * len(own))))
    with pytest.raises(tm.StageError, match=r"returned 'end' with the time 9999-12-31.* beyond the years 1677 to 2262"):
        tm.Plan(ends).apply(frame)


# -- expressions ---------------------------------------------------------------------------------------------

MISSING = [
    {"sensor": "S", "time": 0, "value": 1.0, "unit": "C", "ok": False},
    {"sensor": "S", "time": 1, "value": math.nan, "unit": None, "ok": None},
    {"sensor": "S", "time": 2},
]


@pytest.mark.parametrize(
    ("text", "passing"),
    [
        ("value != 5", [0]),
        ("value not in (5, 6)", [0]),
        ("not value > 5", [0, 1, 2]),
        ("ok == False", [0]),
        ("ok != True", [0]),
        ("unit != 'K'", [0]),
        ("unit < 'D'", [0]),
        ("unit not in ('K', 'F')", [0]),
        ("value + 1 != 7", [0]),
        ("0 < value < 5 or unit > 'A'", [0]),
        ("value == value", [0]),
        ("value * 2 > 1 and -value < 0", [0]),
        ("unit + '!' == 'C!'", [0]),
        ("not value", [1, 2]),
        ("value and unit", [0]),
        ("ok", []),
        ("not ok", [0, 1, 2]),
    ],
)
def test_a_comparison_with_what_is_missing_is_false(text, passing):
    """Also where a batch ends in between, so that nobody in it has the field."""
    assert out(tm.Filter(text), MISSING, "time") == passing
    alone = [tm.Batch.from_rows([row]) for row in MISSING]
    assert [n for n, batch in enumerate(alone) if tm.Filter(text).opened().step(batch, None).batch] == passing


NUMBERS = st.sampled_from([LARGE, LARGE - 1, LARGE - 1.0, -LARGE, 7, 7.5, None, 2**80, ABSENT])


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=6), st.sampled_from(["<", "<=", "==", "!=", ">", ">="]),
       st.sampled_from([LARGE, LARGE - 1, 7, 7.5, 2**80]))  # fmt: skip
def test_numbers_are_compared_as_python_compares_them(pairs, op, constant):
    """Whatever else is in the batch; also integers that float64 does not hold."""
    rows = [{"sensor": "S", "time": n} | {k: v for k, v in zip("ab", pair, strict=True) if v is not ABSENT}
            for n, pair in enumerate(pairs)]  # fmt: skip
    rows.append({"sensor": "S", "time": len(rows), "a": 0.0, "b": 0.0})
    batch = tm.Batch.from_rows(rows)
    for text in (f"a {op} b", f"a {op} {constant}"):
        right = text.rpartition(" ")[2]
        expected = [
            row.get("a") is not None
            and (other := row.get("b") if right == "b" else constant) is not None
            and eval(f"one {op} other", {"one": row["a"], "other": other})
            for row in rows
        ]
        assert Expression(text)(batch).tolist() == expected, text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"id == {-LARGE}", False),
        (f"id != {-LARGE}", True),
        (f"id == {-LARGE + 1}", True),
        (f"id > {'9' * 400}", False),
        (f"id > -{'9' * 400}", True),
        (f"-id == {LARGE - 1}", True),
    ],
)
def test_constants_with_a_sign_and_of_any_length_are_compared_as_they_are(text, expected):
    batch = tm.Batch.from_rows([{"sensor": "S", "time": 0, "id": -LARGE + 1}])
    assert Expression(text)(batch).tolist() == [expected]


FLAGS = (
    "f + g",
    "f - g",
    "f * g",
    "-f",
    "+f",
    "1 - f",
    "f + f + f",
    "True - f",
    "(value > 1) + f",
    "f / 2",
    "f // 1",
    "f % 2",
)


@pytest.mark.parametrize("holes", [False, True], ids=["flags", "with nulls"])
@pytest.mark.parametrize("text", FLAGS)
def test_flags_are_counted_in_arithmetic_as_python_counts_them(text, holes):
    """True is 1, so that three of them are 3; ``f - g`` has a value, which NumPy refuses."""
    rows = [{"f": f, "g": g, "value": v} for f in (True, False) for g in (True, False) for v in (0.0, 2.0)]
    batch = tm.Batch.from_rows([*rows, {"f": None, "g": None, "value": 1.0}] if holes else rows)
    made = Expression(text)(batch).tolist()[: len(rows)]
    expected = [eval(text, {}, row) for row in rows]
    assert list(map(float, made)) == list(map(float, expected))
    assert Expression(f"{text} > 1")(batch).tolist()[: len(rows)] == [value > 1 for value in expected]


# -- names ---------------------------------------------------------------------------------------------------


def test_a_column_of_the_windows_cannot_have_the_sensors_name():
    with pytest.raises(tm.PlanError, match="two columns would be called 'sensor'"):
        out(tm.Aggregate(tm.tumbling("10s"), {"sensor": ("value", "mean")}), rows_of([1.0]))
    assert out(tm.Aggregate(tm.tumbling("10s"), {"revision": ("value", "mean")}), rows_of([1.0]), "revision") == [1.0]


@pytest.mark.parametrize(
    "stages",
    [
        (tm.Rolling("value", 3, stats=["std"]), tm.Rolling("value", 3, stats=["std"], ddof=0)),
        (tm.Rate("value"), tm.Rate("value")),
        (tm.Dedup(counter="n"), tm.Dedup(counter="n")),
    ],
)
def test_a_column_is_not_replaced_unasked(stages):
    """Neither that of another stage nor the record's own; whoever names it may."""
    rows = rows_of([1.0, 2.0], n=1)
    with pytest.raises(tm.PlanError, match=r"would replace the column '.*', which is there already; give it names="):
        tm.Plan(*stages).apply(rows)
    with pytest.raises(tm.PlanError, match="would replace the column 'value_rate'"):
        out(tm.Rate("value"), rows_of([1.0], value_rate="mine"))
    assert out(tm.Rate("value", names="value"), rows_of([1.0, 3.0]))[1] == 2.0


# -- zeros and infinities ------------------------------------------------------------------------------------


def test_windows_in_time_know_one_zero():
    """Which of the two comes first changes no bit."""
    stats = {"value": ["first", "last", "min", "max"]}
    rows = [{"sensor": "S", "time": 0, "value": value} for value in (0.0, -0.0)]
    made = [tm.Plan(tm.Aggregate(tm.tumbling("10s"), stats)).apply(order) for order in (rows, rows[::-1])]
    assert repr(made[0]) == repr(made[1])


@given(st.lists(st.sampled_from([math.inf, -math.inf, 1.0, 2.0]), min_size=1, max_size=7))
def test_medians_of_infinities_are_those_of_pandas(values):
    plan = tm.Plan(
        tm.Map(lambda batch: {"value": np.array(values)[batch["value"].astype(int)]}),
        tm.Aggregate(tm.tumbling("1h"), {"value": "median"}),
    )
    made = plan.apply(rows_of(range(len(values))))[0]["value_median"]
    with np.errstate(invalid="ignore"):
        np.testing.assert_equal(made, pd.Series(values).median())


# -- of a table as of a run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [list, pd.DataFrame, pa.Table.from_pylist])
@pytest.mark.parametrize(
    "stage",
    [
        tm.Rolling("value", 2, ["mean"]),
        tm.Ewm("value", alpha=0.5),
        tm.Stuck("value", 2),
        tm.Calibrate({"S1": (0, 1)}),
        tm.MapWindows(lambda windows: windows[:, -1], "value", window=2, into="newest"),
        tm.Aggregate(tm.tumbling("10s"), {"value": "count"}),
        tm.Resample("value", "1s"),
        tm.Align(["value"], by=None, channel=None),
    ],
    ids=repr,
)
def test_a_column_without_a_value_is_taken_from_a_table_as_in_a_run(stage, form):
    """It could be of any kind: a channel that happens to be empty in a part of a recording."""
    rows = rows_of([None, None])
    sink = tm.testing.ListSink()
    tm.run(tm.Pipeline(tm.sources.Records(rows), stage, sink), lanes=0)
    applied = tm.Plan(stage).apply(form(rows))
    assert len(applied) == len(sink.rows)
    if form is list:
        assert list(map(repr, applied)) == list(map(repr, sink.rows))


def test_a_column_of_other_things_is_still_refused_in_a_table():
    """It has values, and they are no numbers."""
    with pytest.raises(tm.PlanError, match="needs column 'value' to be float or int or bool; it is object"):
        out(tm.Rolling("value", 2), rows_of([None, [1]]))


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        (tm.Calibrate("absent.csv"), "Calibrate('value')"),
        (tm.Lookup("absent.csv"), "Lookup('absent.csv')"),
        (tm.Model("absent.onnx", inputs=["value"], outputs=["y"]), "Model('absent.onnx')"),
        (tm.Model(__file__, inputs=["value"], outputs=["y"]), "Model('test_review_stages.py')"),
        (tm.Calibrate("absent.csv", name="Scale"), "Scale"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_the_stage_that_needs_it(stage, name):
    """Once, also where the sentence names the stage already."""
    with pytest.raises(tm.InputError, match=rf"^{re.escape(name)}: (?!{re.escape(name)})"):
        tm.Plan(stage).apply(rows_of([1.0]))


# -- of what is given as an option ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: tm.Stuck(5), "Stuck: columns=5 must be the name of a column, or a list of names"),
        (lambda: tm.Lag(None), "Lag: columns=None must be the name of a column"),
        (lambda: tm.Rolling([1], 3), "Rolling: columns=[1] must be the name of a column"),
        (lambda: tm.Resample(5, "1s"), "Resample: columns=5 must be the name of a column"),
        (lambda: tm.MapWindows(len, 5), "MapWindows(len): columns=5 must be the name of a column"),
        (lambda: tm.Map(len, columns=5), "Map(len): columns=5 must be the name of a column"),
        (lambda: tm.Keyed(dict, columns=5), "columns=5"),
        (lambda: tm.Lookup({"S1": {"limit": 1}}, 5), "Lookup: columns=5 must be the name of a column"),
        (lambda: tm.Align(by="device", channels=5), "Align: channels=5 must be a list of names"),
        (lambda: tm.Ewm("v", alpha=0.1, stats=5), "Ewm('v'): stats=5 must be the name of a statistic"),
        (lambda: tm.Lag("v", names=5), "Lag('v'): names=5 must be the name of a column"),
        (lambda: tm.Rolling("v", 5, names=5), "Rolling('v', 5): names=5 must be the name of a column"),
        (lambda: tm.Map(len, adds=["x"]), "Map(len): adds=['x'] must be a dict of columns and their kinds"),
        (lambda: tm.MapRows(len, adds=5), "MapRows(len): adds=5 must be a dict of columns and their kinds"),
        (lambda: tm.Lag("v", 2.0), "Lag('v'): n=2.0 must be a number of records from 1 to 1,000,000"),
        (lambda: tm.Lag("v", np.bool_(True)), "must be a number of records from 1"),
        (
            lambda: tm.Rolling("v", 2.0),
            "Rolling('v', 2.0): window=2.0 must be a number of records from 1 to 1,000,000, or",
        ),
        (lambda: tm.tumbling(np.timedelta64(1, "M")), "tumbling: size=np.timedelta64(1,'M') is not a duration"),
        (lambda: tm.tumbling(np.timedelta64("NaT", "ns")), "is not a duration"),
    ],
)
def test_an_option_of_another_type_is_refused_by_name(made, told):
    """With what it takes, and not by an error from the inside."""
    with pytest.raises(tm.PlanError, match=re.escape(told)):
        made()


@pytest.mark.parametrize(
    "made",
    [
        lambda n: tm.Rolling("v", n(5), min_periods=n(2), ddof=n(0)),
        lambda n: tm.Rolling("v", "5s", max_records=n(50)),
        lambda n: tm.MapWindows(len, "v", window=n(5)),
        lambda n: tm.Lag("v", n(2)),
        lambda n: tm.Stuck("v", n(5), n(1)),
        lambda n: tm.Ewm("v", span=n(5), min_periods=n(1)),
        lambda n: tm.Dedup(max_records=n(300)),
        lambda n: tm.Dedup(counter="c", modulo=n(300), max_gap=n(9), reorder=n(3)),
        lambda n: tm.Aggregate(tm.tumbling(n(10)), {"v": "std"}, ddof=n(0), max_waiting=n(1000)),
        lambda n: tm.Resample("v", n(10), max_waiting=n(1000)),
        lambda n: tm.Align(["v"], by=None, channel=None, max_waiting=n(1000)),
        lambda n: tm.Keyed(dict, max_keys=n(5)),
        lambda n: tm.Map(len, tile=n(64)),
    ],
)
@pytest.mark.parametrize("number", [np.int64, np.uint8])
def test_a_number_is_one_of_whatever_library_it_is(made, number):
    """An option of NumPy's integers makes the stage that Python's make: of the same state, columns and words."""
    own, plain = made(lambda n: number(n) if n < 256 else np.int64(n)), made(int)
    assert (own.name, own.state_fields(), getattr(own, "adds", ())) == (
        plain.name,
        plain.state_fields(),
        getattr(plain, "adds", ()),
    )
    for option in (
        "n",
        "window",
        "min_periods",
        "max_records",
        "ddof",
        "modulo",
        "max_gap",
        "reorder",
        "max_keys",
        "tile",
    ):
        assert type(getattr(own, option, 0)) is type(getattr(plain, option, 0))


@pytest.mark.parametrize("unit", ["ns", "us", "s", "m"])
def test_a_duration_of_numpys_is_one(unit):
    """To the nanosecond."""
    length = {"ns": 1, "us": 1_000, "s": 10**9, "m": 60 * 10**9}[unit]
    assert tm.tumbling(np.timedelta64(7, unit)).size_ns == 7 * length
