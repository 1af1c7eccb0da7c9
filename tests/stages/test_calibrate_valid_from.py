"""Calibrate by validity times: which row a record gets, what its version is called, and how a table is replaced."""

import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import InputError, PlanError, StageError
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.calibrate import Calibrate
from tidemill.testing import ListSink

DAY = 86_400
SECOND = 10**9
START = 1_709_251_200  # 2024-03-01
FIRST, SECOND_ROW = "2024-03-01", "2024-03-02T12:00:00"
ROWS = [
    {"sensor": "S1", "baseline": 0, "scale": 1},
    {"sensor": "S1", "baseline": 10, "scale": 2, "valid_from": FIRST},
    {"sensor": "S1", "baseline": 20, "scale": 4, "valid_from": SECOND_ROW},
    {"sensor": "S2", "baseline": 5, "scale": 1, "valid_from": FIRST},
]


def at(values, seconds):
    """A batch of readings with event times."""
    return Batch(
        {"value": Column(Kind.FLOAT, np.asarray(values, np.float64))},
        time=(np.asarray(seconds, np.int64) * SECOND).reshape(-1),
    )


def normalized(driver, values, seconds, keys):
    return driver.step(at(values, seconds), keys).batch["normalized"]


# -- which row ---------------------------------------------------------------------------------------------

moments = st.integers(0, 12)
tables = st.dictionaries(
    st.tuples(st.sampled_from(["a", "b", "c", "*"]), st.none() | moments),
    st.tuples(st.integers(-50, 50), st.integers(1, 9)),
    min_size=1,
    max_size=14,
)
readings = st.lists(st.tuples(st.sampled_from("abcd"), moments | st.just(-1), st.integers(-99, 99)), max_size=40)


def oracle(table, sensor, time, value):
    """A loop over the sensor's own rows, or those of ``*`` where it has none."""
    own = sensor if any(name == sensor for name, _ in table) else "*"
    best = None
    for (name, start), constants in table.items():
        begins = -np.inf if start is None else start
        if name == own and begins <= time and (best is None or begins > best[0]):
            best = begins, constants
    return np.nan if best is None else (value - best[1][0]) / best[1][1]


@settings(max_examples=200, deadline=None)
@given(tables, readings, st.integers(0, 40), st.randoms())
def test_the_last_row_that_is_valid_at_the_readings_time(drive, table, records, cut, random):
    """As a plain loop finds it: any order of rows, of records, and any split of the batch."""
    rows = [
        {"sensor": name, "baseline": b, "scale": s, "valid_from": "" if start is None else start}
        for (name, start), (b, s) in table.items()
    ]
    random.shuffle(rows)
    driver = drive(Calibrate(rows))
    keys, seconds, values = (list(part) for part in zip(*records, strict=True)) if records else ([], [], [])
    expected = [oracle(table, *record) for record in records]
    parts = [normalized(driver, values[part], seconds[part], keys[part]) for part in (slice(0, cut), slice(cut, None))]
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    whole = drive(Calibrate(rows))
    np.testing.assert_array_equal(normalized(whole, values, seconds, keys), expected)
    assert whole.state.counts.get("unknown_key", 0) == int(np.isnan(expected).sum())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20_000))
def test_equals_pandas_merge_asof(drive, seed, records):
    """Thousands of rows and records, bit for bit."""
    random = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "sensor": random.integers(0, 40, 400).astype(str),
            "valid_from": pd.to_datetime(START + random.integers(0, 1000, 400), unit="s", utc=True),
            "baseline": random.normal(size=400),
            "scale": random.uniform(1, 2, 400),
        }
    ).drop_duplicates(["sensor", "valid_from"])
    times = START + random.integers(-50, 1050, records)
    keys = random.integers(0, 44, records).astype(str)
    values = random.normal(size=records)
    frame = pd.DataFrame(
        {"time": pd.to_datetime(times, unit="s", utc=True), "sensor": keys, "value": values, "n": np.arange(records)}
    )
    joined = pd.merge_asof(
        frame.sort_values("time", kind="stable"),
        table.sort_values("valid_from"),
        left_on="time",
        right_on="valid_from",
        by="sensor",
    ).sort_values("n")
    expected = ((joined["value"] - joined["baseline"]) / joined["scale"]).to_numpy()
    driver = drive(Calibrate(table), max_records=20_000)
    np.testing.assert_array_equal(normalized(driver, values, times, keys.tolist()), expected)


def test_a_reading_gets_the_row_of_its_own_time_however_late(drive):
    """At the moment itself the new row holds; before its first a sensor is unknown, also beside ``*``."""
    driver = drive(Calibrate([*ROWS, {"sensor": "*", "baseline": 100, "scale": 1}]))
    seconds = [START + 2 * DAY, START, START - 1, START - 1, START, START]
    keys = ["S1", "S1", "S1", "S2", "S2", "S3"]
    np.testing.assert_array_equal(normalized(driver, [30] * 6, seconds, keys), [2.5, 10, 30, np.nan, 25, -70])
    assert driver.state.counts == {"unknown_key": 1}


@pytest.mark.parametrize(
    ("given_", "tz"),
    [
        ("2024-03-01T00:00:00Z", "UTC"),
        ("2024-03-01", "UTC"),
        ("2024-03-01 01:00:00", "Europe/Berlin"),
        ("2024-03-01T01:00:00+01:00", "America/New_York"),
        (START, "UTC"),
        (str(START * 1000), "UTC"),
        (float(START), "UTC"),
        (dt.datetime(2024, 3, 1, tzinfo=dt.UTC), "UTC"),
        (dt.datetime(2024, 3, 1, 1), "Europe/Berlin"),  # noqa: DTZ001 - on purpose
        (dt.date(2024, 3, 1), "UTC"),
        (pd.Timestamp("2024-03-01", tz="UTC"), "UTC"),
        (np.datetime64("2024-03-01"), "UTC"),
    ],
)
def test_times_are_read_as_those_of_records(drive, given_, tz):
    """ISO 8601, epochs told by magnitude, datetimes; without a zone in ``tz``."""
    rows = [{"sensor": "S1", "baseline": 0, "scale": 1, "valid_from": given_}]
    driver = drive(Calibrate(rows, tz=tz))
    np.testing.assert_array_equal(normalized(driver, [5, 5], [START - 1, START], ["S1", "S1"]), [np.nan, 5])


@pytest.mark.parametrize(
    "table",
    [
        {
            "sensor": ["S1", "S1"],
            "valid_from": ["", FIRST],
            "baseline": ["0", "10"],
            "scale": ["1", "2"],
        },
        {"S1": [{"baseline": 0, "scale": 1}, {"baseline": 10, "scale": 2, "valid_from": FIRST}]},
        pd.DataFrame(
            {"sensor": "S1", "valid_from": pd.to_datetime([None, FIRST]), "baseline": [0, 10], "scale": [1, 2]}
        ),
        pl.DataFrame(
            {
                "sensor": ["S1", "S1"],
                "valid_from": [None, dt.date(2024, 3, 1)],
                "baseline": [0, 10],
                "scale": [1, 2],
            }
        ),
        {
            "sensor": ["S1", "S1"],
            "valid_from": np.array(["NaT", FIRST], "M8[ns]"),
            "baseline": [0, 10],
            "scale": [1, 2],
        },
    ],
)
def test_every_shape_of_table(drive, table):
    """An empty cell, None, NaT: a row that is valid from always."""
    driver = drive(Calibrate(table))
    assert normalized(driver, [30, 30], [0, START], ["S1", "S1"]).tolist() == [30, 10]


def test_range_two_point_and_column(drive):
    """Every form of the table may say from when on."""
    rows = [
        {"sensor": "S1", "column": "value", "low": 0, "high": 10},
        {"sensor": "S1", "column": "value", "low": 0, "high": 100, "valid_from": FIRST},
        {"sensor": "S1", "column": "pressure", "low": 7, "high": 8, "valid_from": FIRST},
    ]
    assert normalized(drive(Calibrate.range(rows)), [5, 5], [0, START], ["S1"] * 2).tolist() == [0.5, 0.05]
    points = {"measured_low": 0, "measured_high": 10, "true_low": 0}
    rows = [
        {"sensor": "*", **points, "true_high": 10},
        {"sensor": "*", **points, "true_high": 20, "valid_from": FIRST},
    ]
    assert normalized(drive(Calibrate.two_point(rows)), [5, 5], [0, START], ["S1"] * 2).tolist() == [5, 10]


def test_default_is_a_row_from_always(drive):
    """It stands for the sensors without a row, until a row ``*`` begins."""
    rows = [{"sensor": "*", "baseline": 10, "scale": 1, "valid_from": FIRST}]
    driver = drive(Calibrate(rows, default=(0, 1)))
    assert normalized(driver, [30, 30], [0, START], ["S1"] * 2).tolist() == [30, 20]


def test_a_record_without_a_row_goes_to_the_dead_letters_or_stops(drive):
    """When so asked; the sentence says that it is the time."""
    step = drive(Calibrate(ROWS, on_error="dead_letter")).step(at([1, 2], [0, START]), ["S2", "S2"])
    assert step.kept.tolist() == [1]
    assert step.rejects[0].reason.endswith("the table has no row for this sensor that is valid at its time")
    batch = at([1], [0])
    batch.key_column = Column.of_texts(["S2"])
    with pytest.raises(StageError, match="no row for the sensor 'S2' that is valid at its time"):
        drive(Calibrate(ROWS, on_error="stop")).step(batch, ["S2"])


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "culprit"),
    [
        ([{"valid_from": "soon"}], r"row 1 \(sensor S1\): valid_from is 'soon'; a time is needed"),
        ([{"valid_from": True}], "valid_from is True"),
        (
            [{"valid_from": FIRST}, {"valid_from": START}],
            r"row 2 .* twice for valid_from 2024-03-01T00:00:00Z; the first is .*row 1",
        ),
        ([{"valid_from": ""}, {"valid_from": None}], r"row 2 \(sensor S1\) stands there twice; the first"),
        ([{"valid_from": FIRST}, {"valid_from": "2024-03-02", "scale": 0}], r"row 2 \(sensor S1\): scale is 0"),
    ],
)
def test_bad_rows_are_refused(rows, culprit):
    """Naming the row."""
    with pytest.raises(InputError, match=culprit):
        Calibrate([{"sensor": "S1", "baseline": 0, "scale": 1, **row} for row in rows])


def test_bad_options_are_refused():
    """A zone that nobody knows; two columns of one name."""
    with pytest.raises(InputError, match="tz='Mars/Olympus' is not a time zone"):
        Calibrate("table.csv", tz="Mars/Olympus")
    with pytest.raises(PlanError, match="into and version_into are both 'x'"):
        Calibrate("table.csv", into="x", version_into="x")


# -- versions ------------------------------------------------------------------------------------------------


def versions(driver, seconds, keys):
    return driver.step(at([1] * len(keys), seconds), keys).batch["calibration"].tolist()


def test_the_version_names_the_table_and_the_row(drive):
    """The rows' digest and the time from which on the row is valid; null without a row."""
    stage = Calibrate(ROWS, version_into="calibration")
    assert str(stage.bind(Schema([Field("value", Kind.FLOAT)]))) == "value: float, normalized: float, calibration: text"
    keys, seconds = ["S1", "S1", "S1", "S2", "S9"], [0, START, START + 2 * DAY, 0, START]
    told = versions(drive(stage), seconds, keys)
    digest = told[0]
    assert len(digest) == 8
    assert int(digest, 16) >= 0
    assert told == [digest, f"{digest}@2024-03-01T00:00:00Z", f"{digest}@2024-03-02T12:00:00Z", None, None]


def test_the_digest_is_of_the_numbers_alone(drive):
    """Not of their order, their spelling, or where they came from; another number is another version."""
    frame = pd.DataFrame(ROWS[::-1]).assign(baseline=lambda f: f["baseline"].map("{:.3f}".format), note="checked")
    told = [
        versions(drive(Calibrate(table, version_into="calibration")), [0], ["S1"])
        for table in (ROWS, frame, [*ROWS[1:], {**ROWS[0], "baseline": 1e-9}])
    ]
    assert told[0] == told[1] != told[2]


def test_the_table_may_name_its_versions(drive):
    """In a column ``version``; a row without one is named by its digest."""
    rows = [
        {"sensor": "S1", "baseline": 0, "scale": 1, "version": "works"},
        {"sensor": "S2", "baseline": 0, "scale": 1, "version": "works"},
        {"sensor": "S3", "baseline": 0, "scale": 1, "version": " "},
        {"sensor": "S4", "baseline": 0, "scale": 1, "version": 7},
    ]
    driver = drive(Calibrate(rows, version_into="calibration"))
    told = versions(driver, [0] * 5, ["S1", "S2", "S3", "S4", "S5"])
    assert told[:2] == ["works", "works"]
    assert len(told[2]) == 8
    assert told[3:] == ["7", None]


@pytest.mark.filterwarnings("ignore:unknown_key:RuntimeWarning")
def test_lanes_give_what_a_notebook_gives(lanes, told):
    """Rows by time, and versions as text, through processes."""
    rows = [{"sensor": f"S{n % 3}", "time": START + (n * 7919) % (3 * DAY), "value": float(n)} for n in range(3_000)]
    plan = tm.Plan(tm.Calibrate(ROWS, version_into="calibration"))
    sink = ListSink()
    report = tm.run(tm.Pipeline(tm.sources.Records(rows), plan, sink), lanes=lanes)
    assert told(sink.rows) == told(plan.apply(rows))
    assert len({row["calibration"] for row in sink.rows}) == 3
    assert report.counters == {"unknown_key": 1_000}


# -- another table -------------------------------------------------------------------------------------------


def change(driver, stage):
    """As `Chain.change` does: the new stage opened, and told of the sensors so far."""
    driver.stage = stage.opened()
    driver.stage.admit(list(driver.slots), 0)


def test_another_table_is_taken_whole_or_not_at_all(drive):
    """What `with_table` refuses leaves the stage as it was; what it takes is a stage of its own."""
    stage = Calibrate(ROWS)
    bad = {"sensor": ["S1", "S2"], "baseline": ["1", "2"], "scale": ["1", "0"]}
    with pytest.raises(InputError, match=r"Calibrate\('value'\): /plant/new\.csv, row 2 \(sensor S2\): scale is 0"):
        stage.with_table(bad, "/plant/new.csv")
    new = stage.with_table({**bad, "scale": ["1", "1"]}, "/plant/new.csv")
    assert normalized(drive(stage), [30], [START], ["S1"]).tolist() == [10]
    assert normalized(drive(new), [30], [START], ["S1"]).tolist() == [29]


@settings(max_examples=100, deadline=None)
@given(st.lists(tables, min_size=2, max_size=4), st.lists(readings, min_size=2, max_size=4))
def test_another_table_takes_the_place_of_the_first_between_two_batches(drive, several, batches):
    """Between two batches, for the sensors it knows and those to come: as if it had been opened with it."""

    def rows_of(table):
        return [
            {"sensor": name, "baseline": b, "scale": s, "valid_from": "" if start is None else start}
            for (name, start), (b, s) in table.items()
        ]

    stage = Calibrate(rows_of(several[0]))
    driver = drive(stage)
    for number, records in enumerate(batches):
        table = several[number % len(several)]
        if number:
            whole = {
                name: [row[name] for row in rows_of(table)] for name in ("sensor", "baseline", "scale", "valid_from")
            }
            change(driver, stage.with_table(whole, "new.csv"))
        keys, seconds, values = (list(part) for part in zip(*records, strict=True)) if records else ([], [], [])
        expected = [oracle(table, *record) for record in records]
        np.testing.assert_array_equal(normalized(driver, values, seconds, keys), expected)


def test_a_table_with_times_replaces_one_without_and_back(drive):
    """Sensors that were unknown become known, and unknown again; versions follow."""
    plain = Calibrate({"S1": (0, 1)}, version_into="calibration")
    driver = drive(plain)
    seconds, keys = [START, START], ["S1", "S2"]
    first = versions(driver, seconds, keys)
    assert first[1] is None
    dated = {name: [row.get(name) for row in ROWS] for name in ("sensor", "baseline", "scale", "valid_from")}
    change(driver, plain.with_table(dated, "new.csv"))
    assert [text[8:] for text in versions(driver, seconds, keys)] == ["@2024-03-01T00:00:00Z"] * 2
    change(driver, plain)
    assert versions(driver, seconds, keys) == first
