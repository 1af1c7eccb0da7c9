"""Which records are told to be of more sensors than they are taken for."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill.formats.edge import Edge
from tidemill.formats.influx_lines import InfluxLines
from tidemill.formats.line_formats import set_up

CONNECTION = {"peer": "10.0.0.7:4242", "peer_host": "10.0.0.7"}


def doubts(rows: list[dict[str, Any]], *, fallback: str = "peer", at_once: int = 7, **options: Any) -> list[str]:
    """What is said of records that come a few at a time, each with what one sender's are known by."""
    edge = Edge(arrival=True, fallback=fallback, **options)
    known = {**CONNECTION, "topic": "plant/hall"}
    parts = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
    said = [edge.doubt(edge.rows(part, known=known)[0]) for part in parts]
    return [doubt for doubt in said if "taken for one" in doubt]


def field(name: str, *values: Any, rows: int = 40) -> list[dict[str, Any]]:
    return [{name: values[n % len(values)], "value": float(n), "seq": n} for n in range(rows)]


@pytest.mark.parametrize(
    "rows",
    [
        field("device", "a", "b", rows=2),
        field("device_id", 7, 8, rows=2),
        field("pump", "P1", "P2"),
        field("name", "P1", "P2"),
        field("pump", *[f"P{n}" for n in range(20)]),
        [{"value": 1.0}, *field("pump", "P1", "P2"), {"pump": None}, {"pump": 3}],
    ],
)
def test_a_field_that_tells_sensors_apart_is_named(rows: list[dict[str, Any]]) -> None:
    """At the second of them if it is called as sensors are, else when its texts come again."""
    (said,) = doubts(rows)
    named = next(name for row in rows for name in row if name not in ("value", "seq"))
    assert f"say key={named!r}; if not, say key='{{peer}}'" in said


@pytest.mark.parametrize(
    "rows",
    [
        field("device", "a"),
        field("value", 1.0, 2.0),
        field("machine_speed", 40, 41),
        field("unit", "C", "bar"),
        field("device_status", "on", "off"),
        field("measured_at", "2024-01-01T00:00:00Z", "2024-01-01T00:00:01Z"),
        field("id", *[f"message {n}" for n in range(40)]),
        field("pump", "P1", "P2", rows=4),
        field("pump", "P" * 201, "Q" * 201),
        field("pump", True, False),
        field("sensor", "S1", "S2"),
    ],
)
def test_records_of_one_sensor_say_nothing_of_others(rows: list[dict[str, Any]]) -> None:
    """A device names itself, has states, units and times, and numbers its messages."""
    assert doubts(rows) == []


def test_beside_a_name_that_the_sender_gave_only_names_of_sensors_count() -> None:
    """A topic names a sensor as it is; texts beside it say what they like."""
    assert doubts(field("mode", "auto", "manual"), fallback="topic") == []
    (said,) = doubts(field("deviceName", "a", "b"), fallback="topic")
    assert "all of one topic are taken for one sensor's, though there are several in their field 'deviceName'" in said


def test_a_key_that_is_given_is_not_doubted() -> None:
    """Also one that makes all records of a connection one sensor's."""
    assert doubts(field("pump", "P1", "P2"), key="{peer}") == doubts(field("pump", "P1", "P2"), key="pump") == []


def test_series_differ_by_their_tags() -> None:
    """A field may tell sensors apart, a tag has done it."""

    def said(lines: bytes) -> str:
        edge, form = Edge(arrival=True, fallback="peer"), InfluxLines()
        set_up(edge, form)
        made = form.decode(lines)
        return edge.doubt(edge.rows(made.rows, known=made.known)[0])

    assert said(b"mill,device=a speed=1 1\nmill,device=b speed=2 2\n") == ""
    assert "all of one series" in said(b'mill device="a",speed=1 1\nmill device="b",speed=2 2\n')


def test_names_from_outside_are_shown_shortened_and_harmless() -> None:
    """A field's name and what is in it are whatever somebody sent."""
    (said,) = doubts(field("device\x1b[2J" + "x" * 1_000, "a\x1b[2J", "b\n", rows=2))
    assert said.isprintable()
    assert len(said) < 700


def test_no_more_than_the_first_records_are_looked_at() -> None:
    """Of a source that goes on for years."""
    assert doubts([*field("device", "a", rows=2_000), *field("device", "a", "b")], at_once=500) == []
