"""`Plan.apply` of a DataFrame or an Arrow table: the values of a run, in the types that came where these hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import tidemill as tm

LIBRARIES: dict[str, Callable[[pd.DataFrame], Any]] = {
    "pandas": lambda frame: frame,
    "pandas nullable": lambda frame: frame.convert_dtypes(),
    "pandas of Arrow": lambda frame: frame.convert_dtypes(dtype_backend="pyarrow"),
    "polars": pl.from_pandas,
    "arrow": lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
}
of_every_library = pytest.mark.parametrize("of", LIBRARIES.values(), ids=LIBRARIES)

ROWS = [
    {"sensor": "a", "time": time, "n": n, "on": n % 2 == 0, "kind": f"k{n % 3}"}
    for time, n in [(0, 1), (4, 2), (8, 5), (13, 6), (14, 9)]
]


def items(table: Any, name: str) -> list[Any]:
    """A column as Python values, None where one is missing."""
    if isinstance(table, list):
        return [row.get(name) for row in table]
    if isinstance(table, pd.DataFrame):
        column = table[name].astype(object)
        return column.where(column.notna(), None).tolist()
    return list(table[name].to_pylist() if isinstance(table, pa.Table) else table[name].to_list())


COMPUTED: dict[str, Any] = {
    "map": tm.Map(lambda b: {"n": b["n"] / 2, "on": b["n"] / 3, "kind": b["n"] > 4}),
    "map and filter": [tm.Map(lambda b: {"n": b["n"] / 2, "on": b["n"] / 3, "kind": b["n"]}), tm.Filter("n > 1")],
    "even": tm.Map(lambda b: {"n": b["n"] * 2.0, "on": ~b["on"], "kind": "new"}),
    "means": tm.Resample(["n", "on"], "10s", "mean"),
    "linear": tm.Resample(["n", "on"], "5s", "linear"),
    "aligned": tm.Align(["n", "on"], by=None, channel=None, method="linear", tolerance="10s"),
    "calibrated": tm.Calibrate.range(0, 4, column="n", into="n"),
    "silence": tm.Silence("3s"),
}


@of_every_library
@pytest.mark.parametrize("stages", COMPUTED.values(), ids=COMPUTED)
def test_what_stages_make_is_not_cast_to_the_type_that_came(stages: Any, of: Any) -> None:
    """A half is no integer, a third no bool, and what is missing is not False: the numbers are those of a run."""
    plan = tm.Plan(stages)
    made, expected = plan.apply(of(pd.DataFrame(ROWS))), plan.apply(ROWS)
    for name in ("n", "on", "kind"):
        if name in expected[0]:
            got, wanted = items(made, name), items(expected, name)
            assert got == wanted
            if None not in wanted:
                assert [isinstance(item, bool) for item in got] == [isinstance(item, bool) for item in wanted]


@of_every_library
def test_fewer_rows_keep_types_and_values(of: Any) -> None:
    """An integer stays one to its last digit, behind a filter too."""
    frame = pd.DataFrame([{**row, "n": 2**60 + row["n"], "small": row["n"]} for row in ROWS]).astype({"small": "int8"})
    given = of(frame)
    made = tm.Plan(tm.Filter("small > 1")).apply(given)
    types = (lambda table: table.schema) if isinstance(given, pl.DataFrame | pa.Table) else (lambda table: table.dtypes)
    assert list(types(made)) == list(types(given))
    assert items(made, "n") == [2**60 + row["n"] for row in ROWS[1:]]


@pytest.mark.parametrize("library", ["pandas nullable", "pandas of Arrow", "polars", "arrow"])
def test_a_value_in_place_of_a_null_stays(library: str) -> None:
    """A function that fills nulls with what stands for them in memory changes a record all the same."""
    frame = pd.DataFrame({"sensor": "a", "time": [0, 1], "on": pd.array([None, True], "boolean")})
    given = LIBRARIES[library](frame)
    plan = tm.Plan(tm.Map(lambda b: {"on": b["on"]}))
    assert items(plan.apply(given), "on") == [None, True]
    filled = tm.Plan(tm.MapRows(lambda rows: [{**row, "on": bool(row["on"])} for row in rows]))
    assert items(filled.apply(given), "on") == [False, True]


@of_every_library
@pytest.mark.parametrize("stage", [tm.Resample("n", "2s"), tm.EventTime()], ids=["made rows", "event time"])
@pytest.mark.parametrize("given", ["texts", "seconds"])
def test_event_times_are_timestamps(of: Any, stage: Any, given: str) -> None:
    """Nanoseconds do not stand in a column of seconds, nor texts of another form, without a zone, in one of texts."""
    start = 1_700_000_000
    times = [start + at for at in range(5)]
    texts = pd.Series(pd.to_datetime(times, unit="s")).dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    frame = pd.DataFrame({"sensor": "a", "time": texts if given == "texts" else times, "n": 1.0})
    made = items(tm.Plan(stage).apply(of(frame)), "time")
    expected = pd.to_datetime(times[:: 1 if isinstance(stage, tm.EventTime) else 2], unit="s", utc=True)
    assert [pd.Timestamp(time) for time in made] == expected.tolist()


@pytest.mark.parametrize("of", [lambda frame: frame, pl.from_pandas, pa.Table.from_pandas])
def test_a_time_that_its_type_cannot_hold_is_finer(of: Any) -> None:
    """Half a second in a column of whole ones: nanoseconds, and still without a zone."""
    frame = pd.DataFrame(
        {"sensor": "a", "time": pd.to_datetime([0, 3], unit="s").astype("datetime64[s]"), "n": [0.0, 3]}
    )
    made = tm.Plan(tm.Resample("n", "1500ms")).apply(of(frame))
    expected = [pd.Timestamp("1970-01-01"), pd.Timestamp("1970-01-01 00:00:01.5"), pd.Timestamp("1970-01-01 00:00:03")]
    assert [pd.Timestamp(time) for time in items(made, "time")] == expected


def test_texts_that_are_no_category_or_enum_are_texts() -> None:
    """What a function makes need not be among the values that came."""
    relabelled = tm.Plan(tm.Map(lambda b: {"kind": "new"}))
    frame = pd.DataFrame(ROWS).astype({"kind": "category"})
    assert items(relabelled.apply(frame), "kind") == ["new"] * len(ROWS)
    enum = pl.DataFrame(ROWS).with_columns(pl.col("kind").cast(pl.Enum(["k0", "k1", "k2"])))
    made = relabelled.apply(enum)
    assert (made["kind"].dtype, made["kind"].to_list()) == (pl.String, ["new"] * len(ROWS))
    assert tm.Plan(tm.Filter("n > 1")).apply(enum).schema == enum.schema


def test_nested_values_of_fewer_rows_keep_their_type() -> None:
    """Lists of Arrow are lists, and no JSON, behind a filter."""
    table = pa.table({"sensor": ["a", "b"], "time": [0, 1], "n": [1, 2], "path": [[1, 2], [3]]})
    assert tm.Plan(tm.Filter("n > 1")).apply(table).equals(table.slice(1))
