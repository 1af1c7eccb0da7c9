"""Rows that stages make, of which two lanes make a column of two kinds at the same time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tidemill as tm
from tidemill.testing import ListSink

READINGS = [{"sensor": f"S{number % 4}", "time": number, "value": float(number % 4 * 3)} for number in range(400)]


def mixed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A number of two sensors' rows, and a text of those of the two others."""
    return [{**row, "high": row["value_max"] if row["value_max"] > 5 else "low"} for row in rows]


def late(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same, and nothing at first."""
    return [row if row["window_start"] < 200 * 10**9 else mixed([row])[0] for row in rows]


def ran(function: Any, lanes: int, folder: Path) -> tuple[list[dict[str, Any]], tm.Report]:
    plan = tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"value": "max"}), tm.MapRows(function))
    sink = ListSink()
    pipeline = tm.Pipeline(tm.sources.Records(READINGS), plan, sink)
    letters = folder / f"letters{lanes}.ndjson"
    report = tm.run(pipeline, lanes=lanes, limits=tm.Limits(max_records=50), dead_letters=letters)
    return sink.rows, report


@pytest.mark.parametrize("function", [mixed, late])
def test_the_first_row_with_a_value_decides_whatever_the_lanes(function: Any, tmp_path: Path) -> None:
    """Rows of the other kind are dead letters, and the run goes on; as with one lane, which cannot be of two minds."""
    expected, told = ran(function, 1, tmp_path)
    assert 0 < len(expected) < 160
    assert told.dead_letters_by_reason == {"wrong_type": 160 - len(expected)}
    for lanes in (0, 2, 3):
        rows, report = ran(function, lanes, tmp_path)
        assert rows == expected
        assert report.dead_letters_by_reason == told.dead_letters_by_reason
        assert report.emitted == len(rows)


def test_the_letter_of_such_a_row_has_the_row_and_its_sensor(tmp_path: Path) -> None:
    """In the order in which the rows would have come out."""
    told = []
    for lanes in (1, 2, 3):
        ran(mixed, lanes, tmp_path)
        letters = map(json.loads, (tmp_path / f"letters{lanes}.ndjson").read_text().splitlines())
        told.append([(letter["key"], letter["stage"], {**letter["raw"], "high": None}) for letter in letters])
    assert told[0] == told[1] == told[2]
