"""Line protocol as it is written: what another parser and our own reader make of it, and what is counted."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from line_protocol_parser import parse_line

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import PlanError
from tidemill.formats.edge import Edge
from tidemill.formats.influx_encode import NO_FIELD, NO_MEASUREMENT, InfluxEncoder
from tidemill.formats.influx_lines import InfluxLines
from tidemill.formats.line_formats import line_format, set_up
from tidemill.schema import Field, Kind, Schema

NS = 1_700_000_000_123_456_789
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from(' ,="\\#'), max_size=8)
NAME = TEXT.filter(lambda text: text and not text.endswith("\\") and text not in ("measurement", "time"))
VALUES = [
    st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**64 - 1), st.none()),
    st.one_of(st.booleans(), st.none()),
    st.one_of(TEXT, st.none()),
]
"""Of one column."""


def lines_of(rows: list[dict[str, Any]], **options: Any) -> list[str]:
    text = InfluxEncoder(**options).encode(Batch.from_rows(rows)).decode()
    assert text == "" or text.endswith("\n")
    return text.split("\n")[:-1]


def typed(row: dict[str, Any]) -> dict[str, tuple[type, str]]:
    return {name: (type(item), repr(item)) for name, item in row.items()}


@st.composite
def records(draw: st.DrawFn) -> tuple[list[str], list[dict[str, Any]]]:
    names = draw(st.lists(NAME, min_size=1, max_size=5, unique=True))
    tags = draw(st.lists(st.sampled_from(names), max_size=2, unique=True))
    kinds = {name: draw(st.sampled_from(VALUES)) for name in names}
    measurement = NAME.filter(lambda text: not text.startswith("#"))
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        row: dict[str, Any] = {"measurement": draw(measurement)}
        for name in names:
            if draw(st.booleans()):
                tag = st.one_of(TEXT.filter(lambda text: not text.endswith("\\")), st.none())
                row[name] = draw(tag if name in tags else kinds[name])
        row["time"] = draw(st.integers(-(2**62) + 1, 2**62 - 1))
        rows.append(row)
    return tags, rows


def batch_of(rows: list[dict[str, Any]]) -> Batch:
    """As a source makes it, with the time as nanoseconds."""
    edge = Edge(key="measurement")
    edge.kinds.learn_nanoseconds("time")
    batch, letters = edge.rows(rows)
    assert letters == []
    return batch


def expected(tags: list[str], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    made = []
    for row in rows:
        kept = {name: item for name, item in row.items() if item is not None and not (name in tags and item == "")}
        if kept.keys() - {"measurement", "time", *tags}:
            made.append(kept)
    return made


@given(records())
@example((["t"], [{"measurement": "a\\ b", "t": "C:\\,x", "f=g": '\\"', "time": 5}]))
def test_what_is_written_is_read_again(made: tuple[list[str], list[dict[str, Any]]]) -> None:
    """By our own reader: each name, type and value, and the time to the nanosecond."""
    tags, rows = made
    encoder = InfluxEncoder(tags=tags)
    decoded = InfluxLines().decode(encoder.encode(batch_of(rows)))
    assert decoded.bad == []
    assert list(map(typed, decoded.rows)) == [
        {name: wanted[name] for name in row}
        for row, wanted in zip(decoded.rows, map(typed, expected(tags, rows)), strict=True)
    ]
    assert [set(row) for row in decoded.rows] == [set(row) for row in expected(tags, rows)]
    assert encoder.rows == len(decoded.rows)
    lost = len(rows) - len(decoded.rows)
    assert encoder.left_out == ({NO_FIELD: lost} if lost else {})


@given(records())
def test_lines_with_all_texts_as_tags_are_of_the_same_sensors(made: tuple[list[str], list[dict[str, Any]]]) -> None:
    """Read, written without a word on tags, and read again: where texts are tags, nothing has changed."""
    tags, rows = made
    rows = [
        {name: item for name, item in row.items() if name in (*tags, "measurement") or type(item) is not str}
        for row in rows
    ]
    read = InfluxLines().decode(InfluxEncoder(tags=tags).encode(batch_of(rows)))
    again = InfluxLines().decode(InfluxEncoder(tags="text").encode(batch_of(list(read.rows))))
    assert [known["series"] for known in again.known or ()] == [known["series"] for known in read.known or ()]
    assert list(map(typed, again.rows)) == [
        {name: wanted[name] for name in row} for row, wanted in zip(again.rows, map(typed, read.rows), strict=True)
    ]


@given(records())
def test_another_parser_reads_the_same(made: tuple[list[str], list[dict[str, Any]]]) -> None:
    """Each line for itself. (It refuses subnormal floats, and the outermost integers that 64 bits hold.)"""
    tags, rows = made
    lines = InfluxEncoder(tags=tags).encode(batch_of(rows)).decode().split("\n")[:-1]
    for line, row in zip(lines, expected(tags, rows), strict=True):
        assume(all(abs(item) < 2**63 - 1 for item in row.values() if type(item) is int))
        assume(not any(0 < abs(item) < sys.float_info.min for item in row.values() if type(item) is float))
        parsed = parse_line(line)
        assert parsed["measurement"] == row.pop("measurement")
        assert parsed["time"] == row.pop("time")
        assert parsed["tags"] == {name: item for name, item in row.items() if name in tags}
        assert typed(parsed["fields"]) == typed({name: item for name, item in row.items() if name not in tags})


@pytest.mark.parametrize(
    "line",
    [
        b"cpu,cpu=cpu0,host=loaner usage_guest=1.5,usage_nice=0.0,usage_idle=82.38 1568760922000000000",
        b"disk,host=a,path=/\\ x free=398407520256i,used_percent=20.258799180125635 1453832006274169688",
        b'system,host=tyrion load1=3.72,n_users=3i,uptime_format="14 days, 11:07" 1483964144000000000',
        b"mem,host=a total=18446744073709551615u,available=-9223372036854775808i,on=true 1",
        b"mem,host=a total=5i",
    ],
)
def test_a_line_comes_back_as_it_was(line: bytes) -> None:
    """Read, and written with its tags named."""
    edge = Edge(arrival=True)
    form = line_format("influx")
    set_up(edge, form)
    decoded = form.decode(line)
    batch, _ = edge.rows(decoded.rows, known=decoded.known, parsed=True)
    if b" 1" not in line[-22:]:
        batch.time_ns = None  # else the arrival stands for it
    assert InfluxEncoder(tags=["cpu", "host", "path"]).encode(batch) == line + b"\n"


def test_the_measurement_is_a_column_a_name_or_a_template() -> None:
    """Whatever it is made of is no field; a column of that name is replaced by what is given."""
    row = {"measurement": "mill", "site": "a b", "n": 2, "value": 1.5}
    assert lines_of([row], tags=[]) == ['mill site="a b",n=2i,value=1.5']
    assert lines_of([row], tags=["n"], measurement="my,mill") == ['my\\,mill,n=2 site="a b",value=1.5']
    assert lines_of([row], measurement="{site}_{n}") == ["a\\ b_2 value=1.5"]


def test_the_sensor_is_a_tag_and_tags_are_sorted() -> None:
    """Of any kind that a text can be made of; without a value, the tag is not there."""
    rows: list[dict[str, Any]] = [{"sensor": "S1", "value": 1.5}, {"sensor": None, "value": 2.5}]
    assert lines_of(rows, measurement="m") == ["m,sensor=S1 value=1.5", "m value=2.5"]
    odd = [{"z": True, "b": 2.5, "a": [1], "n": 7, "c": "", "value": 1.5}, {"b": math.nan, "value": 2.5}]
    assert lines_of(odd, measurement="m", tags=list("zbanc")) == ["m,a=[1],b=2.5,n=7,z=true value=1.5", "m value=2.5"]


def test_all_texts_can_be_tags() -> None:
    """Those that come later too; numbers, and the measurement, are none."""
    encoder = InfluxEncoder(tags="text")
    rows = [
        {"measurement": "cpu", "host": "a", "idle": 1.5},
        {"measurement": "disk", "path": "/", "host": "a", "free": 7},
    ]
    assert encoder.encode(Batch.from_rows(rows[:1])) == b"cpu,host=a idle=1.5\n"
    assert encoder.encode(Batch.from_rows(rows)) == b"cpu,host=a idle=1.5\ndisk,host=a,path=/ free=7i\n"
    assert encoder.encode(Batch.from_rows([{"measurement": "cpu", "a\n": "b", "idle": 1.5}])) == b"cpu idle=1.5\n"
    assert encoder.left_out == {"a\n": 1}


def test_with_all_texts_a_sensor_is_a_tag_too() -> None:
    """Also one that is a number: it is whose record this is. A row of texts alone has no field, and it is said what to do."""
    encoder = InfluxEncoder(tags="text")
    rows = [{"measurement": "mill", "sensor": 7, "value": 1.5}, {"measurement": "log", "line": "started"}]
    assert encoder.encode(Batch.from_rows(rows)) == b"mill,sensor=7 value=1.5\n"
    assert encoder.left_out == {NO_FIELD: 1}
    assert encoder.why_left_out(NO_FIELD).endswith("name those that are with tags=[...]")


def test_the_time_is_the_records_own() -> None:
    """Also when the field is a text or a number; ``time`` names another column, ``precision`` what it counts."""
    rows = [{"time": "2024-03-01T00:00:00.123456789Z", "at": 1709251200.25, "value": 1.5}]
    assert lines_of(rows, measurement="m") == ["m at=1709251200.25,value=1.5 1709251200123456789"]
    assert lines_of(rows, measurement="m", precision="ms") == ["m at=1709251200.25,value=1.5 1709251200123"]
    batch = Batch({"value": Column.of_array([1.5, 2.5])}, time=np.array([NS, np.iinfo(np.int64).min]))
    assert (
        InfluxEncoder(measurement="m", precision="us").encode(batch) == b"m value=1.5 1700000000123456\nm value=2.5\n"
    )
    encoder = InfluxEncoder(measurement="m", time="at", precision="s")
    assert encoder.encode(Batch.from_rows(rows)) == b"m value=1.5 1709251200\n"
    assert encoder.left_out == {"time": 1}  # InfluxDB knows no field of that name


def test_values_have_the_types_of_line_protocol() -> None:
    """Integers are told from floats, unless InfluxDB is to have one type for a field."""
    row = {"f": 5.0, "i": 5, "big": 2**53 + 1, "b": False, "o": {"a": [1, None]}}
    assert lines_of([row], measurement="m") == ['m f=5.0,i=5i,big=9007199254740993i,b=false,o="{\\"a\\":[1,null]}"']
    assert lines_of([{"i": 5, "j": 2**53 + 1}], measurement="m", integers=False) == ["m i=5.0,j=9007199254740992.0"]
    declared = Batch({"i": Column(Kind.INT, np.array([5]))})
    assert InfluxEncoder(measurement="m", integers=False).encode(declared) == b"m i=5i\n"
    at = Batch({"at": Column(Kind.TIME, np.array([NS]))})
    assert InfluxEncoder(measurement="m").encode(at) == b'm at="2023-11-14T22:13:20.123456789Z"\n'
    mixed = Batch({"o": Column(Kind.OBJECT, np.array([1, 2.5, "x", True, None, math.nan], object))})
    assert InfluxEncoder(measurement="m").encode(mixed) == b'm o=1i\nm o=2.5\nm o="x"\nm o=true\n'


def test_what_has_no_value_is_left_out() -> None:
    """Null, absent and NaN; a row with nothing else has no line and is counted, as is one without a measurement."""
    rows: list[dict[str, Any]] = [
        {"measurement": "m", "a": 1.5, "b": None},
        {"measurement": "m", "a": math.nan, "b": "x"},
        {"measurement": "m", "a": None, "b": None},
        {"a": 4.5, "b": "y"},
        {"measurement": "#m", "a": 4.5},
        {"measurement": "m", "b": "z"},
    ]
    encoder = InfluxEncoder()
    assert encoder.encode(Batch.from_rows(rows)) == b'm a=1.5\nm b="x"\nm b="z"\n'
    assert (encoder.rows, encoder.left_out) == (3, {NO_MEASUREMENT: 2, NO_FIELD: 1})
    assert "measurement=" in encoder.why_left_out(NO_MEASUREMENT)


def test_what_cannot_be_written_as_it_is_is_counted() -> None:
    """By its column: infinities, integers beyond 64 bits, line breaks, backslashes at an end, names that cannot be."""
    rows = [
        {
            "measurement": "m",
            "t": "C:\\",
            "a": math.inf,
            "b": 2**64,
            "c": "two\nlines",
            "d\n": 1,
            "": 2,
            "e": "x" * 300,
        },
        {"measurement": "m\\", "t": "a\tb", "a": 1.5, "b": 1.5, "c": "\r" + "x" * 300, "d\n": 1, "": 2},
    ]
    encoder = InfluxEncoder(tags=["t"])
    text = encoder.encode(Batch.from_rows(rows)).decode()
    assert text == f'm,t=C: c="two\\\\nlines",e="{"x" * 300}"\nm,t=a\\tb a=1.5,b=1.5,c="\\\\r{"x" * 300}"\n'
    assert encoder.left_out == {"measurement": 1, "t": 2, "a": 1, "b": 1, "c": 2, "d\n": 2, "": 2}
    assert [list(row) for row in InfluxLines().decode(text.encode()).rows] == [
        ["measurement", "t", "c", "e"],
        ["measurement", "t", "a", "b", "c"],
    ]


def test_columns_that_cannot_be_written_are_refused_at_start() -> None:
    """Each with what to do; what a later record brings is counted instead."""
    known = Schema([Field("measurement", Kind.TEXT), Field("value", Kind.FLOAT)])
    InfluxEncoder().check(known)
    InfluxEncoder().check(Schema(open=True))
    with pytest.raises(PlanError, match='measurement="a name"'):
        InfluxEncoder().check(Schema([Field("value", Kind.FLOAT)]))
    with pytest.raises(PlanError, match="'site'"):
        InfluxEncoder(tags=["site"]).check(known)
    with pytest.raises(PlanError, match="'at'"):
        InfluxEncoder(time="at").check(known)
    with pytest.raises(PlanError, match=r"'a\\\\'.*columns="):
        InfluxEncoder().check(Schema([*known, Field("a\\", Kind.FLOAT)]))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"precision": "h"}, "'h'"),
        ({"tags": "site"}, "tags='site'"),
        ({"tags": ["a", "a"]}, "twice"),
        ({"tags": ["time"]}, "'time'"),
        ({"tags": ["at"], "time": "at"}, "'at'"),
        ({"tags": ["a\n"]}, r"'a\\n'"),
        ({"measurement": ""}, "measurement=''"),
        ({"measurement": "#m"}, "measurement='#m'"),
        ({"measurement": "m\\"}, "measurement="),
        ({"measurement": "{a"}, "measurement="),
        ({"measurement": 5}, "measurement=5"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], named: str) -> None:
    """When the sink is made, with the culprit's name."""
    with pytest.raises(PlanError, match=named):
        InfluxEncoder(**options)


def test_columns_left_out_are_told_up_to_a_bound() -> None:
    """Beyond a hundred they are counted together."""
    encoder = InfluxEncoder(measurement="m")
    encoder.encode(Batch.from_rows([{f"{n}\n": 1.5 for n in range(150)}]))
    assert len(encoder.left_out) == 101
    assert sum(encoder.left_out.values()) == 151  # and one row without a field
