"""``tidemill check --expect TABLE``: the plan's output on a recording against a table that a notebook has made."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tidemill import files
from tidemill.app.expected_table import alike, is_text_alone, read_expected
from tidemill.batch import Batch
from tidemill.core.differences import first_difference
from tidemill.engine.entrance import run
from tidemill.engine.metrics import Report
from tidemill.engine.pipeline import Pipeline
from tidemill.errors import PlanError
from tidemill.formats.roles import DEFAULT_KEY, DEFAULT_TIME
from tidemill.formats.times import TimeReader
from tidemill.printable import counted
from tidemill.testing.list_sink import ListSink

__all__ = ["Compared", "check_tolerance", "compare"]


@dataclass(frozen=True)
class Compared:
    """How an output stands to a table."""

    rows: int
    """Of the table."""
    columns: tuple[str, ...]
    """Of the table: these were compared."""
    left: tuple[str, ...]
    """Of the output alone: these were not."""
    difference: str
    """The first one: the row, the column and both values; empty when there is none."""


def compare(pipeline: Pipeline, table: str, *, lanes: int | None, tolerance: float) -> Compared:
    """Run the whole recording through the plan, in memory, and find the first row that is not as in the table.

    Only the table's columns count. Where it has that of the sensors, each sensor's rows are compared in their own order,
    so that a table sorted by sensor will do; else row by row. Sensors are compared as the texts that name them: 7 and "7" are one. Raises `InputError` for a table that cannot be read.
    """
    check_tolerance(tolerance)
    source = pipeline.sources[0]
    times = TimeReader(source.tz)
    path = files.absolute(table)
    expected = read_expected(path, times)
    got, report = _output(pipeline, lanes)
    time = source.time or DEFAULT_TIME
    expected, got = (
        alike(expected, got, times, time, cells=is_text_alone(path)),
        alike(got, expected, times, time, cells=False),
    )
    difference = _difference(got, expected, source.key or DEFAULT_KEY, tolerance, report)
    return Compared(
        len(expected), expected.names, tuple(name for name in got.names if name not in expected), difference
    )


def check_tolerance(tolerance: float) -> None:
    """Raises `PlanError` for one below 0, and for NaN."""
    if not tolerance >= 0:
        raise PlanError(f"--tolerance {tolerance!r} must be 0 or more.")


def _output(pipeline: Pipeline, lanes: int | None) -> tuple[Batch, Report]:
    sink = ListSink()
    with tempfile.TemporaryDirectory() as folder:  # a check leaves nothing behind
        report = run(
            pipeline.between(pipeline.sources, sink),
            lanes=lanes,
            dead_letters=Path(folder) / "dead_letters.ndjson",
        )
    return Batch.concat(sink.batches) if sink.batches else Batch({}), report


def _difference(got: Batch, expected: Batch, key: str, tolerance: float, report: Report) -> str:
    absent = next((name for name in expected.names if name not in got), None)
    if absent is not None and len(got):
        return f"the output has no column {absent!r}; its columns are {', '.join(got.names)}"
    order: NDArray[np.intp] = np.arange(len(expected))
    by_sensor = key in got and key in expected
    if by_sensor:
        sensors = [list(map(str, batch.columns[key].to_list())) for batch in (got, expected)]
        counts = [Counter(own) for own in sensors]
        for sensor in dict.fromkeys(sensors[1] + sensors[0]):
            if counts[0][sensor] != counts[1][sensor]:
                rows = f"{counted(counts[0][sensor], 'row')} in the output and {counts[1][sensor]:,} in the table"
                return f"sensor {sensor!r} has {rows}{_gone(report)}"
        number = {sensor: code for code, sensor in enumerate(counts[1])}
        own, order = (np.argsort([number[sensor] for sensor in names], kind="stable") for names in sensors)
        got = got.take(own).take(np.argsort(order))  # each row of the output at the place of the table's
        expected = expected.select(
            {name: name for name in expected.names if name != key}
        )  # they are, as text, the same
    elif len(got) != len(expected):
        return f"the output has {counted(len(got), 'row')} and the table {len(expected):,}{_gone(report)}"
    found = first_difference(got, expected, tolerance=tolerance)
    if found is None:
        return ""
    sensor = f" (sensor {sensors[1][found.row]!r})" if by_sensor else ""
    return f"row {found.row} of the table{sensor}: {found}"


def _gone(report: Report) -> str:
    """Where rows may have gone."""
    gone = {"dead letters": report.dead_letters, "filtered": report.filtered, "late": report.late}
    told = ", ".join(f"{count:,} {what}" for what, count in gone.items() if count)
    return f" ({told})" if told else ""
