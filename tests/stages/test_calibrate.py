"""Calibrate and Lookup: the formula, every shape of table, and what is refused."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import InputError, PlanError, TidemillError
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.calibrate import Calibrate
from tidemill.stages.lookup import Lookup
from tidemill.testing import ListSink

TABLE = {"sensor": ["S1", "7"], "baseline": ["20", "1.5"], "scale": ["60", "-2"]}


class loaded:
    """A disk with one table on it, under any name."""

    def __init__(self, table):
        self._table = table

    def table(self, path):
        return f"/plant/{path}", self._table


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.floats(-1e6, 1e6) | st.just(float("nan"))), min_size=1, max_size=50),
    st.dictionaries(
        st.sampled_from("abc"),
        st.tuples(st.floats(-1e3, 1e3), st.floats(0.001, 1e3) | st.floats(-1e3, -0.001)),
        min_size=1,
    ),
)
def test_equals_pandas(drive, floats, records, constants):
    """Over any interleaving and any table, the numbers are pandas' own, bit for bit, and NaN for unknown sensors."""
    keys = [key for key, _ in records]
    values = [value for _, value in records]
    driver = drive(Calibrate(constants))
    made = driver.step(floats(value=values), keys).batch
    frame = pd.DataFrame({"key": keys, "value": values})
    baseline = frame["key"].map({key: c[0] for key, c in constants.items()}).astype(float)
    scale = frame["key"].map({key: c[1] for key, c in constants.items()}).astype(float)
    expected = ((frame["value"] - baseline) / scale).to_numpy()
    np.testing.assert_array_equal(made["normalized"], expected)
    assert driver.state.counts.get("unknown_key", 0) == sum(key not in constants for key in keys)


@pytest.mark.parametrize(
    "table",
    [
        TABLE,
        {"S1": (20, 60), 7: (1.5, -2)},
        {"S1": {"baseline": 20, "scale": 60}, "7": {"baseline": 1.5, "scale": -2.0}},
        [{"sensor": "S1", "baseline": 20, "scale": 60}, {"sensor": 7, "baseline": 1.5, "scale": -2}],
        pd.DataFrame({"sensor": ["S1", 7], "baseline": [20, 1.5], "scale": [60, -2]}),
        pl.DataFrame({"sensor": ["S1", "7"], "baseline": [20.0, 1.5], "scale": [60.0, -2.0]}),
    ],
)
def test_every_shape_of_table(drive, floats, table):
    """CSV columns, dicts by sensor, rows and both kinds of DataFrame say the same; 7 and "7" are one sensor."""
    made = drive(Calibrate(table)).step(floats(value=[50, 5]), ["S1", "7"]).batch
    assert made["normalized"].tolist() == [0.5, -1.75]


def test_a_path_is_loaded_by_prepared(drive, floats):
    """The stage reads no file itself: it is prepared with what was loaded, and refuses to open before."""
    stage = Calibrate("calibration.csv")
    assert stage.bind(Schema([Field("value", Kind.FLOAT)])).names == ("value", "normalized")
    with pytest.raises(PlanError, match="not been loaded"):
        stage.opened()
    made = drive(stage.prepared(loaded(TABLE))).step(floats(value=[50]), ["S1"]).batch
    assert made["normalized"].tolist() == [0.5]


def test_rows_of_other_columns_are_left_out(drive, floats):
    """With the header sensor,column,baseline,scale one table serves several stages."""
    table = {
        "sensor": ["S1", "S1"],
        "column": ["value", "pressure"],
        "baseline": ["0", "100"],
        "scale": ["1", "10"],
    }
    made = drive(Calibrate(table, column="pressure", into="p")).step(floats(pressure=[120]), ["S1"]).batch
    assert made["p"].tolist() == [2]
    with pytest.raises(InputError, match="no row for the column 'level'"):
        Calibrate(table, column="level")


@pytest.mark.parametrize(
    "options", [{"table": {"S1": (0, 1), "*": (10, 1)}}, {"table": {"S1": (0, 1)}, "default": (10, 1)}]
)
def test_a_default_row_serves_the_rest(drive, floats, options):
    """The sensor ``*``, or ``default=``, stands for every sensor without a row of its own."""
    driver = drive(Calibrate(**options))
    assert driver.step(floats(value=[5, 5]), ["S1", "S9"]).batch["normalized"].tolist() == [5, -5]
    assert driver.state.counts == {}


def test_unknown_sensors_go_to_the_dead_letters_when_asked(drive, floats):
    """With ``on_error="dead_letter"`` a record without a row is rejected, and the others go on."""
    driver = drive(Calibrate({"S1": (0, 1)}, on_error="dead_letter"))
    step = driver.step(floats(value=[1, 2, 3]), ["S1", "S2", "S1"])
    assert step.kept.tolist() == [0, 2]
    assert [(reject.row, reject.reason_code) for reject in step.rejects] == [(1, "unknown_key")]
    assert step.batch["normalized"].tolist() == [1, 3]


def test_range_and_two_point(drive, floats):
    """A range maps low to 0 and high to 1; two points map what was measured to what is true."""
    made = drive(Calibrate.range(-20, 60, into="r")).step(floats(value=[-20, 60, 20])).batch
    assert made["r"].tolist() == [0, 1, 0.5]
    made = drive(Calibrate.range({"S1": (0, 10)})).step(floats(value=[5, 5]), ["S1", "S2"]).batch
    np.testing.assert_array_equal(made["normalized"], [0.5, np.nan])
    stage = Calibrate.two_point(low=(0.8, 0.0), high=(99.3, 100.0), into="celsius")
    made = drive(stage).step(floats(value=[0.8, 99.3])).batch
    np.testing.assert_allclose(made["celsius"], [0, 100], rtol=1e-15)
    table = {
        "sensor": ["S1"],
        "measured_low": ["1"],
        "true_low": ["0"],
        "measured_high": ["3"],
        "true_high": ["100"],
    }
    stage = Calibrate.two_point("points.csv").prepared(loaded(table))
    assert drive(stage).step(floats(value=[2]), ["S1"]).batch["normalized"].tolist() == [50]


def test_sensors_admitted_again_and_many(drive, floats):
    """A lane that takes over admits every sensor anew from slot 0; the slots' own memory grows as needed."""
    driver = drive(Calibrate({str(i): (i, 1) for i in range(5000)}), max_keys=8192)
    keys = [str(i) for i in range(5000)]
    first = driver.step(floats(value=np.zeros(5000)), keys).batch["normalized"]
    driver.stage = driver.stage.opened()
    driver.stage.admit(keys, 0)
    assert first.tolist() == driver.step(floats(value=np.zeros(5000)), keys).batch["normalized"].tolist()
    assert first[4999] == -4999


def test_a_column_can_be_calibrated_in_its_place(drive, floats):
    """``into`` may be the column itself; it keeps its place."""
    made = drive(Calibrate({"*": (1, 2)}, into="value")).step(floats(value=[5], other=[1])).batch
    assert made.names == ("value", "other")
    assert made["value"].tolist() == [2]


@pytest.mark.parametrize(
    ("table", "culprit"),
    [
        ({"sensor": ["S1"], "offset": ["1"]}, "Expected header: sensor,baseline,scale; found: sensor,offset"),
        ({"id": ["S1"], "baseline": ["1"], "scale": ["2"]}, "no column 'sensor'"),
        ({"sensor": ["S1", "S2"], "baseline": ["1", "2"], "scale": ["1", "0"]}, r"row 2 \(sensor S2\): scale is 0"),
        ({"sensor": ["S1"], "baseline": ["warm"], "scale": ["1"]}, r"row 1 \(sensor S1\): baseline is 'warm'"),
        ({"sensor": ["S1"], "baseline": ["inf"], "scale": ["1"]}, "baseline is 'inf'; a finite number"),
        ({"sensor": ["S1"], "baseline": [""], "scale": ["1"]}, "baseline is ''"),
        ({"sensor": ["7", 7], "baseline": [1, 2], "scale": [1, 2]}, r"row 2 \(sensor 7\) stands there twice"),
        ({"sensor": [""], "baseline": [1], "scale": [1]}, "row 1: the sensor is empty"),
        ({"S1": (1, 2, 3)}, "row of 'S1' has 3 values; 2 are needed: baseline, scale"),
        ({"sensor": [], "baseline": [], "scale": []}, "has no rows"),
        ({}, "the table is empty"),
        (42, "it was given int"),
    ],
)
def test_bad_tables_are_refused(table, culprit):
    """A bad table is refused when it is read, naming the row or the header that was expected."""
    with pytest.raises(InputError, match=culprit):
        Calibrate(table)


def test_degenerate_points_are_refused():
    """A range or two points of no width would divide by zero."""
    with pytest.raises(InputError, match="low and high are both 5"):
        Calibrate.range(5, 5)
    with pytest.raises(InputError, match="both points were measured as 1"):
        Calibrate.two_point(low=(1, 0), high=(1, 10))
    with pytest.raises(PlanError, match="low and high, or a table"):
        Calibrate.range(1, 2, 3)
    with pytest.raises(PlanError, match="needs a column 'value'"):
        Calibrate({"*": (0, 1)}).bind(Schema([Field("v", Kind.FLOAT)]))


@pytest.mark.parametrize(
    ("make_stage", "told"),
    [
        (lambda: Calibrate({"S1": (0, 1)}, default=5), r"default=5: .* or dict of baseline, scale is needed"),
        (lambda: Calibrate({"S1": (0, 1)}, default="12"), r"default='12': .* or dict of baseline, scale is needed"),
        (lambda: Calibrate({"S1": (0, 1)}, default=(1, 2, 3)), "default= has 3 values; it needs baseline, scale"),
        (lambda: Calibrate({"S1": (0, 1)}, default=(1,)), "default= has 1 value; it needs baseline, scale"),
        (lambda: Lookup({"S1": {"line": "A"}}, default="unknown"), "or dict of line is needed"),
        (lambda: Calibrate.two_point(low=0, high=1), r"two_point: low=0 .*\(measured, true\)"),
        (lambda: Calibrate.two_point(low=(0, 1, 2), high=(1,)), r"low=\(0, 1, 2\) .*\(measured, true\)"),
        (lambda: Calibrate.two_point(low=(0, 1), high="12"), r"high='12' .*\(measured, true\)"),
        (lambda: Calibrate.two_point({"S1": (0, 1, 2, 3)}, low=(0, 1)), "low and high or a table, not both"),
        (lambda: Calibrate.range({"S1": (0, 1)}, low=0, high=100), "low and high, or a table .* not both"),
        (lambda: Calibrate.range(0, high=100), "low and high, or a table .* not both"),
    ],
)
def test_values_that_no_row_is_made_of_are_refused(make_stage, told):
    """Of another number, or not in a row at all; and those that a table given beside them would hide."""
    with pytest.raises(TidemillError, match=told):
        make_stage()


def test_lookup_adds_text_and_numbers(drive, floats):
    """A column of numbers is float, any other text; an empty cell and an unknown sensor are null or NaN."""
    table = {"sensor": ["S1", "S2"], "line": ["A", ""], "limit": ["80", ""], "gain": ["1", "2"]}
    stage = Lookup("sensors.csv", columns=["line", "limit"]).prepared(loaded(table))
    schema = stage.bind(Schema([Field("value", Kind.FLOAT)]))
    assert str(schema) == "value: float, line: text, limit: float"
    driver = drive(stage)
    made = driver.step(floats(value=[1, 2, 3]), ["S1", "S2", "S3"]).batch
    assert made["line"].tolist() == ["A", None, None]
    np.testing.assert_array_equal(made["limit"], [80, np.nan, np.nan])
    assert driver.state.counts == {"unknown_key": 1}
    assert [row["line"] for row in made.to_rows()] == ["A", None, None]


def test_lookup_defaults_and_dead_letters(drive):
    """``default=`` fills in for the sensors that are not there; without it they can be rejected."""
    batch = Batch({"v": Column(Kind.FLOAT, np.zeros(2))})
    made = drive(Lookup({"S1": {"line": "A"}}, default={"line": "?"})).step(batch, ["S1", "S2"]).batch
    assert made["line"].tolist() == ["A", "?"]
    step = drive(Lookup({"S1": {"line": "A"}}, on_error="dead_letter")).step(batch, ["S2", "S1"])
    assert step.kept.tolist() == [1]
    assert step.batch["line"].tolist() == ["A"]
    with pytest.raises(InputError, match=r"no column 'limit'\. Expected header: sensor,limit; found: sensor,line"):
        Lookup({"sensor": ["S1"], "line": ["A"]}, columns=["limit"])


def test_large_batches(drive, floats):
    """A batch of any length gets the same bits as its records alone, unknown sensors among them."""
    random = np.random.default_rng(0)
    keys = [f"S{i}" for i in random.integers(0, 50, 20_000)]
    values = random.normal(size=20_000)
    constants = {f"S{i}": (random.normal(), random.uniform(1, 2)) for i in range(45)}
    driver = drive(Calibrate(constants), max_records=20_000)
    made = driver.step(floats(value=values), keys).batch["normalized"]
    nothing = (np.nan, np.nan)
    baseline, scale = np.array([constants.get(key, nothing) for key in keys]).T
    np.testing.assert_array_equal(made, (values - baseline) / scale)
    assert driver.state.counts["unknown_key"] == int(np.isnan(made).sum()) > 0


LARGE = 2**53 + 1


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["7", "-1.50"], [7.0, -1.5]),
        (["0", ""], [0, None]),
        (["007", "12"], ["007", "12"]),
        (["1234", "-012"], ["1234", "-012"]),
        (["7", str(LARGE)], ["7", str(LARGE)]),
        (["7", "9" * 400], ["7", "9" * 400]),
        (["7", str(2**60)], [7, 2**60]),
        (["inf", "80"], [np.inf, 80]),
        (["7", "n/a"], ["7", "n/a"]),
    ],
)
def test_a_lookup_of_csv_keeps_the_digits_of_identifiers(drive, cells, expected):
    """A column in which a float would lose some is text; others are numbers where all of their cells are."""
    assert looked_up(drive, Lookup("assets.csv").prepared(loaded({"sensor": ["S1", "S2"], "code": cells}))) == expected


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["80", "7"], ["80", "7"]),
        (["007", 8], ["007", "8"]),
        ([LARGE, str(LARGE)], [str(LARGE)] * 2),
        ([LARGE, 7], [LARGE, 7.0]),
        ([7, None], [7.0, None]),
        ([10**400, 7], [str(10**400), "7"]),
    ],
)
@pytest.mark.parametrize(
    "of",
    [
        dict,
        lambda table: pd.DataFrame(table, dtype=object),
        lambda table: {key: {"code": cell} for key, cell in zip(*table.values(), strict=True)},
    ],
)
def test_a_lookup_of_values_leaves_text_as_text(drive, of, cells, expected):
    """What Python or a DataFrame holds as text is meant so, and its integers come back as they are."""
    assert looked_up(drive, Lookup(of({"sensor": ["S1", "S2"], "code": cells}))) == expected


@pytest.mark.parametrize("lanes", [0, 1])
def test_a_large_number_that_was_looked_up_leaves_a_lane_as_it_is(lanes):
    """With one that a float holds, and of a sensor that the table does not have."""
    table = {"S1": {"code": LARGE}, "S2": {"code": 7}}
    rows = [{"sensor": f"S{at}", "time": at, "value": 1.0} for at in (1, 2, 3, 1)] * 50
    sink = ListSink()
    tm.run(tm.Pipeline(tm.sources.Records(rows), tm.Plan(tm.Lookup(table)), sink), lanes=lanes)
    assert [row["code"] for row in sink.rows[:2] + sink.rows[-1:]] == [LARGE, 7.0, LARGE]
    assert [row["code"] for row in sink.rows].count(LARGE) == 100


def looked_up(drive, stage):
    """The column ``code`` of S1 and S2; None for what is missing."""
    made = drive(stage).step(Batch({"v": Column(Kind.FLOAT, np.zeros(2))}), ["S1", "S2"]).batch.to_rows()
    return [None if row["code"] != row["code"] else row["code"] for row in made]


@pytest.mark.parametrize("stage", [Calibrate, Lookup])
def test_fields_that_no_stage_reads_come_out_beside_records_that_are_rejected(stage, tmp_path):
    """They are not copied to the lane, which must not say that it had made them anew."""
    rows = [{"sensor": f"S{n % 2}", "time": float(n), "value": 1.0, "unit": "C"} for n in range(8)]
    table = {"S1": (0, 1)} if stage is Calibrate else {"S1": {"line": "A"}}
    sink = ListSink()
    pipeline = tm.Pipeline(tm.sources.Records(rows), stage(table, on_error="dead_letter"), sink)
    assert tm.run(pipeline, lanes=0, dead_letters=tmp_path / "dead.ndjson").dead_letters == 4
    added = {"normalized": 1.0} if stage is Calibrate else {"line": "A"}
    assert sink.rows == [row | added for row in rows[1::2]]
