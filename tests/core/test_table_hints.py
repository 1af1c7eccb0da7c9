"""A table of pandas whose sensors or times are not in columns: what is said, and that it helps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

import tidemill as tm

COUNTED = tm.Plan(tm.Rolling("value", 3, ["mean"]))
TIMED = tm.Plan(tm.Rolling("value", "3s", ["mean"]))


def long() -> pd.DataFrame:
    times = pd.date_range("2024-03-01", periods=6, freq="s", tz="UTC").repeat(2)
    values = np.arange(12.0)
    return pd.DataFrame({"sensor": ["a", "b"] * 6, "time": times, "value": values})


def told(plan: tm.Plan, table: Any, **roles: str) -> str:
    with pytest.raises((tm.PlanError, tm.InputError)) as raised:
        plan.apply(table, **roles)
    return str(raised.value)


INDEXED = {
    "of its name": (long().set_index("time"), {"time": "time"}, "The index holds 'time': give data.reset_index()."),
    "not asked for": (long().set_index("time"), {}, "The index holds 'time': give data.reset_index()."),
    "of another name": (
        long().set_index("time").rename_axis("at"),
        {"time": "time"},
        "The index holds times: give data.reset_index() and time='at'.",
    ),
    "of no name": (
        long().set_index("time").rename_axis(None),
        {},
        "The index holds times: give data.reset_index() and time='index'.",
    ),
    "with the sensors": (
        long().set_index(["sensor", "time"]),
        {"time": "time"},
        "The index holds 'sensor' and 'time': give data.reset_index().",
    ),
}


@pytest.mark.parametrize(("table", "roles", "said"), INDEXED.values(), ids=INDEXED)
def test_times_in_the_index(table: pd.DataFrame, roles: dict[str, str], said: str) -> None:
    """The table that is named is the one that works."""
    message = told(TIMED, table, **roles)
    assert message.endswith(f" {said}")
    data = table.reset_index()
    if "time=" in said:
        roles = {"time": said.split("time='")[1].removesuffix("'.")}
    made = TIMED.apply(data, **roles)
    wanted = TIMED.apply(long(), time="time")
    assert made["value_mean_3s"].tolist() == wanted["value_mean_3s"].tolist()


def wide() -> pd.DataFrame:
    return long().pivot_table(index="time", columns="sensor", values="value")


WIDE = {
    "with a column of times": (lambda: wide().reset_index(), "data.melt(id_vars='time', "),
    "with times in the index": (wide, "data.reset_index().melt(id_vars='time', "),
    "with numbers for an index": (lambda: wide().reset_index(drop=True), "data.melt("),
}


@pytest.mark.parametrize(("make", "said"), WIDE.values(), ids=WIDE)
def test_a_column_for_each_sensor(make: Any, said: str) -> None:
    """Or for each channel of one: which it is nobody can see, so both are said, and both work."""
    data = make()
    message = told(COUNTED, data)
    call = f"{said}var_name='sensor', value_name='value')"
    assert message.endswith(
        f" If each column is a sensor: {call}. If all columns are of one: data.assign(sensor='...')."
    )
    made = COUNTED.apply(eval(call, {"data": data})).sort_values(["sensor", "value"])
    wanted = COUNTED.apply(long()).sort_values(["sensor", "value"])
    assert made["value_mean_3"].tolist() == wanted["value_mean_3"].tolist()
    assert len(tm.Plan(tm.Rolling("a", 3, ["mean"])).apply(data.assign(sensor="s"))) == 6


def test_where_nothing_is_sure_nothing_is_added() -> None:
    """A sensor that a field names under another name, one channel alone, another library's table."""
    for table in (
        long().rename(columns={"sensor": "device"}),
        long()[["time", "value"]],
        pl.DataFrame({"a": [1.0], "b": [2.0]}),
        [{"a": 1.0, "b": 2.0}],
    ):
        assert told(COUNTED, table).endswith(" such records in all.")
    assert told(TIMED, long().drop(columns="time")).endswith("the columns are: sensor, value.")
    assert told(TIMED, long().rename(columns={"time": "at"}), time="time").endswith(" such records in all.")
