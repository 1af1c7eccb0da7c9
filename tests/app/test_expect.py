"""The output of a plan against a notebook's table: by sensor, in every format, and the first difference by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tidemill as tm
from tidemill.app.cli import answer
from tidemill.app.expect import Compared, compare
from tidemill.errors import InputError, PlanError

ROWS = [
    {
        "sensor": f"S{n * 5 % 3}",
        "time": f"2026-03-01 06:{n:02}:00",
        "value": n * 1.25 if n % 7 else None,
        "unit": "C" if n % 4 else None,
        "n": n,
    }
    for n in range(30)
]


def halved(batch: tm.Batch) -> dict[str, Any]:
    return {"half": batch["value"] / 2, "high": batch["value"] > 10, "on": batch.time.view("datetime64[ns]")}


@pytest.fixture
def pipeline(tmp_path: Path) -> tm.Pipeline:
    """A recording in CSV, rolling and a function."""
    pd.DataFrame(ROWS).to_csv(tmp_path / "plant.csv", index=False)
    plan = tm.Plan(tm.Rolling("value", window=3, stats=["mean"]), tm.Map(halved))
    return tm.Pipeline(tm.sources.Replay(tmp_path / "plant.csv"), plan, tm.sinks.Latest())


@pytest.fixture
def notebook() -> pd.DataFrame:
    """The same, as a notebook does it."""
    frame = pd.DataFrame(ROWS)
    means = frame.groupby("sensor")["value"].rolling(3, min_periods=1).mean()
    frame["value_mean_3"] = means.reset_index(level=0, drop=True)
    return frame.assign(half=frame["value"] / 2, high=frame["value"] > 10, on=pd.to_datetime(frame["time"]))


def written(frame: pd.DataFrame, folder: Path, suffix: str) -> str:
    path = folder / f"expected{suffix}"
    if ".parquet" in suffix:
        frame.to_parquet(path)
    elif ".csv" in suffix:
        frame.to_csv(path, index="index" in suffix)
    else:
        frame.to_json(path, orient="records", lines=True, double_precision=15, date_format="iso")
    return str(path)


def compared(pipeline: tm.Pipeline, table: str, *, tolerance: float = 1e-9, lanes: int = 0) -> Compared:
    return compare(pipeline, table, lanes=lanes, tolerance=tolerance)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz", ".index.csv", ".ndjson", ".jsonl.gz"])
@pytest.mark.parametrize("order", ["recorded", "sensor"])
def test_every_format_and_the_order_of_a_notebook(pipeline, notebook, tmp_path, suffix, order) -> None:
    """Numbers, text, truths, times and nulls; sorted by sensor as `groupby` leaves it; pandas' own index aside."""
    if order == "sensor":
        notebook = notebook.sort_values("sensor", kind="stable")
    found = compared(pipeline, written(notebook, tmp_path, suffix))
    assert found.difference == ""
    assert (found.rows, found.columns, found.left) == (30, tuple(notebook.columns), ())


def test_with_processes_too(pipeline, notebook, tmp_path, tmp_path_factory, monkeypatch, lanes) -> None:
    """As the run would be; nothing is left behind, not even dead letters."""
    monkeypatch.chdir(tmp_path_factory.mktemp("current"))  # that other tests run in the checkout's must not matter
    before = set(tmp_path.iterdir()) | {tmp_path / "expected.csv"}
    assert compared(pipeline, written(notebook, tmp_path, ".csv"), lanes=lanes).difference == ""
    assert set(tmp_path.iterdir()) == before
    assert not Path("dead_letters.ndjson").exists()


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".ndjson"])
@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("half", 7.5, "column 'half' is 8.125 instead of 7.5"),
        ("unit", "F", "column 'unit' is 'C' instead of 'F'"),
        ("high", False, "column 'high' is True instead of False"),
        ("value_mean_3", None, "column 'value_mean_3' is 14.375 instead of null"),
        (
            "on",
            pd.Timestamp("2026-03-01 06:13:00.5"),
            "column 'on' is 2026-03-01T06:13:00Z instead of 2026-03-01T06:13:00.5Z",
        ),
    ],
)
def test_the_first_difference_is_named(pipeline, notebook, tmp_path, suffix, column, value, words) -> None:
    """The row of the table, its sensor, the column, both values."""
    notebook.loc[13, column] = value
    notebook.loc[16, "half"] = -1
    found = compared(pipeline, written(notebook.sort_values("sensor", kind="stable"), tmp_path, suffix))
    row = notebook.sort_values("sensor", kind="stable").index.get_loc(13)
    first = f"row {row} of the table (sensor 'S2'): {words}"
    assert first in found.difference


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".ndjson"])
def test_text_is_no_number_but_in_csv(pipeline, notebook, tmp_path, suffix) -> None:
    """A table that keeps kinds says that its column is text, though it reads like the output's numbers."""
    notebook["half"] = [None if value != value else repr(value) for value in notebook["half"]]
    found = compared(pipeline, written(notebook, tmp_path, suffix)).difference
    assert found == (
        "" if suffix == ".csv" else "row 1 of the table (sensor 'S2'): column 'half' is 0.625 instead of '0.625'"
    )


def test_how_far_numbers_may_be_apart(pipeline, notebook, tmp_path) -> None:
    """As far as the tolerance says."""
    notebook["half"] += 1e-6
    table = written(notebook, tmp_path, ".parquet")
    assert compared(pipeline, table, tolerance=1e-5).difference == ""
    assert "column 'half'" in compared(pipeline, table).difference
    with pytest.raises(PlanError, match="tolerance"):
        compared(pipeline, table, tolerance=float("nan"))


def test_only_the_tables_columns_count(pipeline, notebook, tmp_path) -> None:
    """The others are named as not compared; one that the output lacks is a difference."""
    found = compared(pipeline, written(notebook[["sensor", "half"]], tmp_path, ".csv"))
    assert (found.difference, found.left) == ("", ("time", "value", "unit", "n", "value_mean_3", "high", "on"))
    found = compared(pipeline, written(notebook.rename(columns={"half": "halves"}), tmp_path, ".csv"))
    assert "no column 'halves'" in found.difference


def test_another_number_of_rows(pipeline, notebook, tmp_path) -> None:
    """By sensor where there are sensors, else in all, with what became of the others."""
    found = compared(pipeline, written(notebook.drop(index=13), tmp_path, ".csv"))
    assert found.difference == "sensor 'S2' has 10 rows in the output and 9 in the table"
    found = compared(pipeline, written(notebook[["half"]].iloc[1:], tmp_path, ".csv"))
    assert found.difference == "the output has 30 rows and the table 29"
    fewer = tm.Pipeline(list(pipeline.sources), [*pipeline.plan.stages, tm.Filter("value > 20")], tm.sinks.Latest())
    assert compared(fewer, written(notebook[["half"]], tmp_path, ".csv")).difference.endswith("(19 filtered)")


def test_without_sensors_rows_are_compared_as_they_come(pipeline, notebook, tmp_path) -> None:
    """The table must have the recording's order then."""
    assert compared(pipeline, written(notebook[["half"]], tmp_path, ".parquet")).difference == ""
    turned = notebook[["half"]].iloc[::-1]
    assert compared(pipeline, written(turned, tmp_path, ".csv")).difference.startswith("row 0 of the table: column")


def test_times_without_a_zone_are_the_recordings(notebook, tmp_path) -> None:
    """Read in the source's zone on both sides."""
    pd.DataFrame(ROWS).to_csv(tmp_path / "plant.csv", index=False)
    source = tm.sources.Replay(tmp_path / "plant.csv", tz="Europe/Berlin")
    pipeline = tm.Pipeline(source, tm.Plan(), tm.sinks.Latest())
    frame = notebook[["sensor", "time"]].assign(time=pd.to_datetime(notebook["time"]))
    assert compared(pipeline, written(frame, tmp_path, ".parquet")).difference == ""
    wrong = frame.assign(time=frame["time"].dt.tz_localize("UTC"))
    told = "column 'time' is 2026-03-01T05:00:00Z instead of 2026-03-01T06:00:00Z"
    assert told in compared(pipeline, written(wrong, tmp_path, ".parquet")).difference


@pytest.mark.parametrize("recording", [".csv", ".parquet", ".ndjson"])
@pytest.mark.parametrize("table", [".csv", ".parquet", ".ndjson"])
@pytest.mark.parametrize("kind", [int, str])
def test_sensors_are_compared_by_the_text_that_names_them(tmp_path, recording, table, kind) -> None:
    """A number and its text are one sensor, whichever side has which: CSV has texts alone, pandas reads them as numbers."""
    frame = pd.DataFrame(ROWS).assign(sensor=[n % 3 for n in range(30)])
    source = tmp_path / f"plant{recording}"
    match recording:
        case ".csv":
            frame.to_csv(source, index=False)
        case ".parquet":
            frame.to_parquet(source)
        case _:
            frame.to_json(source, orient="records", lines=True)
    plan = tm.Plan(tm.Rolling("value", window=3, stats=["mean"]))
    pipeline = tm.Pipeline(tm.sources.Replay(source), plan, tm.sinks.Latest())
    means = frame.groupby("sensor")["value"].rolling(3, min_periods=1).mean().reset_index(level=0, drop=True)
    expected = frame.assign(value_mean_3=means).astype({"sensor": kind})
    found = compared(pipeline, written(expected, tmp_path, table))
    assert (found.difference, found.columns[0]) == ("", "sensor")
    assert compared(pipeline, written(expected[["sensor"]], tmp_path, table)).difference == ""
    found = compared(pipeline, written(expected.assign(value_mean_3=-1.0), tmp_path, table))
    assert found.difference.startswith("row 0 of the table (sensor '0'): column 'value_mean_3' is nan instead of -1.0")


@pytest.mark.parametrize(
    ("name", "data"), [("t.ndjson", b"{no\n"), ("t.parquet", b"PAR1"), ("t.csv", b""), ("t.txt", b"x")]
)
def test_a_table_that_is_none(pipeline, tmp_path, name, data) -> None:
    """Is refused with its path."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=name):
        compared(pipeline, str(tmp_path / name))


@pytest.fixture
def stopped_before(tmp_path, monkeypatch) -> None:
    """A plan, and a recording which nothing may read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plant.py").write_text("import tidemill as tm\nplan = tm.Plan()\n")
    (tmp_path / "in.csv").write_text("sensor,time,value\na,1,2\n")
    monkeypatch.setattr("tidemill.app.recording.read_first", None)


@pytest.mark.parametrize("name", ["e.json", "e.xlsx", "e"])
def test_a_table_of_another_format_is_refused_before_anything_is_tried(stopped_before, capsys, name) -> None:
    """With what can be read here, and not what a source would be told."""
    Path(name).write_text("{}")
    assert answer(["check", "plant.py", "--input", "in.csv", "--expect", name]) == 4
    told = capsys.readouterr()
    assert f"nothing says what {Path(name).absolute()} is: --expect reads a table whose name ends in " in told.err
    assert ".parquet" in told.err
    assert "format=" not in told.err
    assert "tried on" not in told.out


@pytest.mark.parametrize("tolerance", ["-1", "nan"])
def test_a_tolerance_that_is_none_is_refused_before_anything_is_tried(stopped_before, capsys, tolerance) -> None:
    """Not after all stages."""
    Path("e.csv").write_text("sensor,value\na,2\n")
    code = answer(["check", "plant.py", "--input", "in.csv", "--expect", "e.csv", f"--tolerance={tolerance}"])
    assert (code, "must be 0 or more" in capsys.readouterr().err) == (3, True)


def test_a_table_of_mixed_kinds_is_named(tmp_path, monkeypatch, capsys):
    """It is the table that cannot be used, and not the pipeline."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plant.py").write_text("import tidemill as tm\nplan = tm.Plan()\n")
    (tmp_path / "in.csv").write_text("sensor,time,value\na,1,2\n")
    (tmp_path / "e.ndjson").write_text('{"sensor": "a", "value": 2}\n{"sensor": "a", "value": "4"}\n')
    assert answer(["check", "plant.py", "--input", "in.csv", "--lanes", "0", "--expect", "e.ndjson"]) == 4
    assert "e.ndjson is no table of columns of one kind each: row 1: field 'value'" in capsys.readouterr().err
