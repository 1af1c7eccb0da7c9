"""What is read out of a message."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.errors import PlanError
from tidemill.formats.edge import Edge
from tidemill.formats.payloads import PayloadReader

LORA = {
    "fCnt": 7,
    "object": {"temp": 21.5},
    "rxInfo": [{"gatewayID": "a", "rssi": -90}, {"gatewayID": "b", "rssi": -71, "loRaSNR": 9}],
}


def read(payload: Any, value: Any = None) -> list[dict[str, Any]]:
    """The readings of a message that has nothing wrong with it."""
    rows, bad = PayloadReader(value).read(payload if isinstance(payload, bytes) else json.dumps(payload).encode())
    assert bad == []
    return rows


@pytest.mark.parametrize(
    ("payload", "value"),
    [(b"51.3", 51.3), (b" 51.3\r\n", 51.3), (b"-2", -2), (b"1e3", 1000.0), (b"+5", 5.0), (b".5", 0.5), (b"007", 7.0),
     (b"5.", 5.0), (b"0", 0)],
)  # fmt: skip
def test_numbers_as_devices_write_them(payload: bytes, value: float) -> None:
    """Also those that JSON does not know."""
    assert read(payload) == [{"value": value}]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"ON", "neither a number nor JSON"),
        (b"nan", "NaN"),
        (b"Infinity", "Infinity"),
        (b"-inf", "holds inf, which is not a number in JSON"),
        (b'{"value": +Inf}', "holds Inf, which is not a number in JSON"),
        (b"information", "neither a number nor JSON"),
        (b"9" * 5_000, "holds a number of more than 64 digits"),
        (b'{"value": -' + b"9" * 5_000 + b"}", "holds a number of more than 64 digits"),
        (b"1e999", "too large"),
        (b"51,3", "neither a number nor JSON"),
        (b"\xff\xfe", "neither a number nor JSON"),
        (b'{"value": "\xff"}', "UTF-8"),
        (b'{"value": 1', "neither a number nor JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "empty list"),
        (b"true", "neither a number nor a JSON object"),
        (b'"20"', "neither a number nor a JSON object"),
        (b"null", "neither a number nor a JSON object"),
        (b"9" * 65 + b".", "neither a number nor JSON"),
    ],
)
def test_what_is_no_reading_is_told(payload: bytes, reason: str) -> None:
    """In one sentence."""
    rows, bad = PayloadReader().read(payload)
    assert rows == []
    assert reason in bad[0].reason


def test_many_readings_in_one_message() -> None:
    """Each item of a list is one, and a bad one harms no other."""
    assert read([1, {"value": 2, "unit": "C"}, 3.5]) == [{"value": 1}, {"value": 2, "unit": "C"}, {"value": 3.5}]
    rows, bad = PayloadReader().read(b'[1, null, {"value": 2}, [3], "x"]')
    assert rows == [{"value": 1}, {"value": 2}]
    assert [each.raw for each in bad] == ["null", "[3]", '"x"']


def test_paths_into_json() -> None:
    """To one value, to several columns, and to each item of a list with what they have in common."""
    assert read(LORA, "object.temp") == [{"value": 21.5}]
    assert read(LORA, "rxInfo[1].loRaSNR") == [{"value": 9}]
    assert read({"a.b": {"c": 1}}, '["a.b"].c') == [{"value": 1}]
    assert read(LORA, "rxInfo[*].rssi") == [{"value": -90}, {"value": -71}]
    assert read([1, 2], "[*]") == [{"value": 1}, {"value": 2}]
    paths = {"gateway": "rxInfo[*].gatewayID", "snr": "rxInfo[*].loRaSNR", "frame": "fCnt"}
    assert read(LORA, paths) == [{"gateway": "a", "frame": 7}, {"gateway": "b", "snr": 9, "frame": 7}]


@pytest.mark.parametrize("payload", [b"51.3", b"{}", b'{"data": {}}', b'{"data": 3}', b'{"data": [1]}', b"[]", b"null"])
def test_a_message_with_nothing_at_the_path_is_no_reading(payload: bytes) -> None:
    """And says where nothing is."""
    rows, bad = PayloadReader("data.temp").read(payload)
    assert rows == []
    assert [(each.reason_code, each.reason) for each in bad] == [
        ("missing_field", "the message has nothing at 'data.temp'")
    ]


def test_of_an_item_with_nothing_at_the_path_the_item_is_told() -> None:
    """And not the whole message once more for each of them: together they are no longer than it."""
    payload = b'{"list":[' + b",".join([b'{"u":1}'] * 1_000) + b"]}"
    rows, bad = PayloadReader({"t": "list[*].t"}).read(payload)
    assert rows == []
    assert [each.raw for each in bad] == ['{"u":1}'] * 1_000
    assert [each.raw for each in PayloadReader("list[*].t").read(b'{"list": 3}')[1]] == ['{"list": 3}']


def test_of_an_item_all_that_is_around_it_is_shown_unless_thousands_would_repeat_it() -> None:
    """What has become a row and is rejected then must be whole; the other items of its list are no part of it."""
    reader = PayloadReader({"rssi": "up.rx[*].rssi", "frame": "fCnt"})
    payload = b'{"fCnt": 7, "up": {"rx": [{"u": 1}, {"rssi": -90, "id": "g"}], "dr": 5}}'
    (_, row), _ = reader.read(payload)
    assert reader.whole(payload, 1, row) == {
        "fCnt": 7, "up": {"rx": [{"rssi": -90, "id": "g"}], "dr": 5}, "rssi": -90, "frame": 7,
    }  # fmt: skip
    bare = PayloadReader("[*].t")
    assert bare.whole(b'[{"u": 1}, {"t": "x"}]', 0, {"value": "x"}) == {"message": [{"t": "x"}], "value": "x"}
    many = b'{"fCnt": 7, "text": "' + b"x" * 100 + b'", "up": {"rx": [' + b",".join([b'{"rssi":1}'] * 1_000) + b"]}}"
    assert reader.whole(many, 999, {"rssi": 1, "frame": 7}) == {"rssi": 1, "frame": 7}


@pytest.mark.parametrize("payload", [b'{"value": 20}', b"20", b" +20.0\r\n", b"[20]"])
def test_a_byte_order_mark_is_no_part_of_a_message(payload: bytes) -> None:
    """One; what begins with more of them is no message, however many there are."""
    assert read(b"\xef\xbb\xbf" + payload) == [{"value": 20}]
    rows, (bad,) = PayloadReader().read(b"\xef\xbb\xbf" * 10_000 + payload)
    assert (rows, bad.reason_code) == ([], "malformed")


SEEN = {
    "a path of another name": ("data.temp", {"reading": {"celsius": 20}, "when": 1}, "value='reading.celsius'"),
    "the name elsewhere": ("t.temp", {"n": 3, "data": {"temp": 20}}, "value='data.temp'"),
    "a list": ({"rssi": "rx[*].rssi"}, LORA, "value={'rssi': 'rxInfo[*].rssi'}"),
    "a column that is missing": ({"t": "object.temp", "rssi": "rssi"}, LORA, "rxInfo[*].rssi"),
    "no number": ("a", {"b": "on"}, "value='b'"),
    "an odd name": ("a", {"b.c": 1}, "value='[\"b.c\"]'"),
}


@pytest.mark.parametrize(("value", "message", "told"), SEEN.values(), ids=SEEN)
def test_paths_that_lead_nowhere_are_answered_by_those_that_are_there(value: Any, message: Any, told: str) -> None:
    """With the one to try; a message that has all of them says nothing."""
    reader = PayloadReader(value)
    assert reader.seen.explained == ""
    reader.read(json.dumps(message).encode())
    assert told in reader.seen.explained
    whole = PayloadReader("fCnt")
    whole.read(json.dumps(LORA).encode())
    assert whole.seen.explained == ""


KEYED = {"dev": ("device", "dev"), "when": ("ts",)}
WRONG_COLUMN = {
    "a name in the place of a reading": (
        {"temp": "object.temp", "dev": "dev_id"},
        {"devId": "d1", "when": 1, "object": {"temp": 20}},
        "value={'temp': 'object.temp', 'dev': 'devId'}.",
    ),
    "a sensor that is inside of something": (
        {"temp": "object.temp"},
        {"info": {"device": "d1", "ts": 1}, "object": {"temp": 20}},
        "value={'temp': 'object.temp', 'dev': 'info.device', 'when': 'info.ts'}.",
    ),
    "a reading that is all there is": ("temp", {"dev": "d1", "when": 1, "data": {"t": 20}}, "value='data.t'."),
    "a sensor that is nowhere": ({"t": "t"}, {"t": 20, "when": 1}, "value={'t': 't', 'dev': 'PATH'}."),
}


@pytest.mark.parametrize(("value", "message", "told"), WRONG_COLUMN.values(), ids=WRONG_COLUMN)
def test_a_path_is_told_for_the_column_that_lacks_one(value: Any, message: Any, told: str) -> None:
    """The others keep theirs; a sensor or a time that no path takes and that is not at the top gets a path."""
    reader = PayloadReader(value, KEYED)
    reader.read(json.dumps(message).encode())
    assert reader.seen.explained.endswith(told)


def said(value: Any, message: Any, times: int = 1, **options: Any) -> list[str]:
    """What is said of so many of a message, after each."""
    reader, roles = PayloadReader(value), Edge(arrival=True, **options).roles
    found = []
    for _ in range(times):
        reader.read(json.dumps(message).encode())
        found.append(reader.seen.look(roles))
    return [each for each in found if each]


def test_a_path_that_leads_nowhere_while_others_do_is_told_once() -> None:
    """After the first twenty messages, with what there is; a column that came in one of them has a path that is right."""
    paths = {"temp": "data.tmp", "frame": "fCnt"}
    message = {"fCnt": 7, "data": {"temp": 20.5}}
    (told,) = said(paths, message, 200)
    assert told == (
        "no record has a 'temp' so far: the messages have nothing at 'data.tmp'. The paths seen are: fCnt, data.temp; say where "
        "each column is, for example value={'temp': 'data.temp', 'frame': 'fCnt'}."
    )
    assert said(paths, message, 19) == []
    assert said({"temp": "data.tmp"}, message, 200) == []
    reader = PayloadReader(paths)
    for number in range(200):
        reader.read(json.dumps(message if number else {"data": {"tmp": 1}, "fCnt": 1}).encode())
    assert reader.seen.look(Edge().roles) == ""


TIMED = {
    "at the top": ("data.t", {"ts": 1_700_000_000, "data": {"t": 20}}, "at 'ts': '1700000000'.*say time='ts'."),
    "inside": (
        "data.t",
        {"data": {"t": 20, "at": "2024-03-01T00:00:00Z"}},
        r"at 'data.at': .*say value={'value': 'data.t', 'at': 'data.at'}, time='at'.",
    ),
    "of each item": (
        {"t": "list[*].t"},
        {"list": [{"t": 20, "time": 1_700_000_000}], "other": [{"time": 1_700_000_000}]},
        r"say value={'t': 'list\[\*\].t', 'time': 'list\[\*\].time'}, time='time'.",
    ),
}


@pytest.mark.parametrize(("value", "message", "told"), TIMED.values(), ids=TIMED)
def test_times_that_no_path_takes_are_told_once(value: Any, message: Any, told: str) -> None:
    """With what to type, so that records have them; who has said where the time is hears nothing."""
    (sentence,) = said(value, message, 200)
    assert re.search(f"{told}$", sentence)
    assert said(value, message, 200, time="ts") == []
    assert said({"ts": "ts", "value": "data.t"}, message) == []
    assert said(value, {**message, "ts": 12, "data": {"t": 20, "at": "soon"}, "list": [{"t": 1}]}) == []


def test_fields_that_name_the_sensor_or_the_time_are_read_at_the_top() -> None:
    """Unless a path takes them; alone they make no record."""
    reader = PayloadReader("data.t", KEYED)
    assert reader.read(b'{"dev": "d", "when": 7, "n": 1, "data": {"t": 20}}')[0] == [
        {"value": 20, "dev": "d", "when": 7}
    ]
    assert reader.read(b'{"dev": "d", "when": 7}')[0] == []
    taken = PayloadReader({"t": "[*].t", "dev": "[*].d"}, KEYED)
    assert taken.read(b'[{"t": 1, "d": "x"}]')[0] == [{"t": 1, "dev": "x"}]


def test_of_huge_messages_few_paths_are_remembered() -> None:
    """Names that nobody would type are none of them."""
    reader = PayloadReader("a")
    for part in range(100):
        reader.read(json.dumps({f"{part}-{n}" + "x" * 9 * n: n for n in range(100)}).encode())
    assert len(reader.seen.explained) < 1_500
    reader.read(b'{"b":' * 900 + b"1" + b"}" * 900)


@pytest.mark.parametrize(
    "value", ["", ".a", "a.", "a..b", "a[", "a[x]", "a[*].b[*].c", {"x": "a[*]", "y": "b[*]"}, {"x": 3}, "a[-1]"]
)
def test_what_is_no_path_is_refused(value: Any) -> None:
    """At once."""
    with pytest.raises(PlanError, match="value="):
        PayloadReader(value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "value"]), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@given(_JSON, st.sampled_from([None, "a", "a.b", "[*]", "a[*].b", {"x": "a[*].b", "y": "b"}]))
def test_every_reading_of_a_message_is_one_or_is_told(message: Any, value: Any) -> None:
    """As many as a plain walk through the message finds; at least one thing comes of every message."""
    rows, bad = PayloadReader(value).read(json.dumps(message).encode())
    each = {"[*]": message, "a[*].b": None}.get(value if isinstance(value, str) else "")
    if value is None:
        items = message if isinstance(message, list) else [message]
    elif value in ("a", "a.b"):
        items = [message]
    else:
        items = each if value == "[*]" else message.get("a") if isinstance(message, dict) else None
        items = items if isinstance(items, list) else [None]
    assert len(rows) + len(bad) == max(len(items), 1)
    assert all(isinstance(row, dict) for row in rows)


@given(
    st.binary(max_size=40) | st.text(st.sampled_from('0123456789.eE+-[]{}",:naNIfity '), max_size=20).map(str.encode)
)
def test_no_payload_breaks_the_reader(payload: bytes) -> None:
    """Whatever the bytes are, something comes of them, and numbers are finite."""
    for value in (None, "a", "[*].a"):
        rows, bad = PayloadReader(value).read(payload)
        assert rows or bad
        assert all(math.isfinite(row["value"]) for row in rows if type(row.get("value")) is float)


def test_of_messages_that_lack_something_no_text_is_held() -> None:
    """A source lives for months, and what is at a path may be as long as a message."""
    reader = PayloadReader("temp")
    reader.read(b'{"said": "' + b"x" * 10_000 + b'", "list": [1, 2], "data": {"t": 20.5}}')
    assert list(reader.seen._seen.values()) == [None, None, 20.5]
    assert "value='data.t'" in reader.seen.explained
