"""Which records are told to have a time of their own, though they get that of their arrival."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill.formats.edge import Edge


def doubts(*rows: dict[str, Any], at_once: int = 2, **options: Any) -> list[str]:
    """What is said of records that come a few at a time."""
    edge = Edge(arrival=True, **options)
    batches = [edge.rows(list(rows[start : start + at_once]))[0] for start in range(0, len(rows), at_once)]
    return [said for said in map(edge.doubt, batches) if said]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timestamp", 1_700_000_000),
        ("ts", 1_700_000_000_123),
        ("ts_ms", 1_700_000_000_123.0),
        ("Time", "2024-03-01T00:00:00Z"),
        ("measuredAt", "2024-03-01 00:00:00"),
        ("event_time_ns", 1_700_000_000_000_000_000),
    ],
)
def test_a_field_that_is_called_as_times_are_and_holds_some_is_named_once(name: str, value: Any) -> None:
    """With what it holds, and what to type."""
    (said,) = doubts(*[{"sensor": "S1", "value": 1.5, name: value}] * 5)
    assert said == (
        "the records have no field 'time', so their time is that of their arrival, though there are times in their field "
        f"{name!r}: {str(value)!r}. If that is when they were measured, say time={name!r}. The fields seen are: "
        f"sensor, value, {name}."
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"time": 1_700_000_000, "timestamp": 1_700_000_000},
        {"value": 1_700_000_000},
        {"uptime": 1_700_000_000},
        {"run_time": 12.5},
        {"time_on": True},
        {"boot_ts": 3_600},
        {"timestamp": None},
        {"timestamp": "soon"},
        {"timestamp": {"s": 1_700_000_000}},
        {"time_of_death": "9999-12-31T00:00:00Z"},
    ],
)
def test_other_fields_are_not_doubted(fields: dict[str, Any]) -> None:
    """Of values, durations and what no clock says."""
    assert doubts(*[{"sensor": "S1", **fields}] * 5) == []


def test_whoever_says_which_field_the_time_is_is_not_doubted() -> None:
    """The other one is a reading then."""
    assert doubts({"sensor": "S1", "t": 1, "timestamp": 1_700_000_000}, time="t") == []


def test_it_is_told_although_the_first_records_have_none() -> None:
    """A device that boots may not know the time yet."""
    (said,) = doubts(
        {"sensor": "S1"}, {"sensor": "S1", "timestamp": None}, *[{"sensor": "S1", "timestamp": 1_700_000_000}] * 2
    )
    assert "say time='timestamp'" in said


def test_both_doubts_are_told_of_the_same_records() -> None:
    """Neither waits for the other."""
    edge = Edge(arrival=True, fallback="peer")
    rows = [{"device": f"D{number % 2}", "timestamp": 1_700_000_000} for number in range(20)]
    said = edge.doubt(edge.rows(rows, known={"peer": "10.0.0.7:4242"})[0])
    assert "say key='device'" in said
    assert "say time='timestamp'" in said
