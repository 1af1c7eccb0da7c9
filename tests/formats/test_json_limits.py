"""What JSON from outside may be at most."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.formats.json_limits import DEPTH, DIGITS, KEYS, excess, may_exceed, some_may_exceed
from tidemill.formats.json_lines import decode_json_lines
from tidemill.formats.line_formats import line_format
from tidemill.formats.payloads import PayloadReader


def nested(depth: int) -> bytes:
    """An object with arrays in it, so deep."""
    return b'{"a": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def named(count: int) -> bytes:
    """As many fields, in an object within another."""
    inner = {f"b{n}": n for n in range(count)}
    return json.dumps({"a": 1, "c": 2, "inner": inner}).encode()


def digits(count: int) -> bytes:
    return b'{"value": 0.%b}' % (b"7" * (count - 2))


AT = [nested(DEPTH), named(KEYS), digits(DIGITS), b'{"text": "%b"}' % (b"1" * 500), b'{"a": [%b0]}' % (b"{}," * 500)]
BEYOND = [nested(DEPTH + 1), named(KEYS + 1), digits(DIGITS + 1), b'{"value": %b}' % (b"1" * (DIGITS + 1))]


@pytest.mark.parametrize("data", AT)
def test_what_reaches_a_limit_is_taken(data: bytes) -> None:
    """On a line among others, and as a message; long texts of digits and long lists are within all limits."""
    rows, bad = decode_json_lines(b'{"n": 1}\n' + data + b'\n{"n": 2}\n')
    assert (rows, bad) == ([{"n": 1}, json.loads(data), {"n": 2}], [])
    assert PayloadReader().read(data) == ([json.loads(data)], [])


@pytest.mark.parametrize("data", BEYOND)
def test_what_exceeds_a_limit_is_a_dead_letter_and_its_neighbours_flow(data: bytes) -> None:
    """The reason says which."""
    for neighbour in (b'{"n": 1}', b'{"data": {"n": [1, 2]}}'):
        rows, bad = decode_json_lines(b"\n".join([neighbour] * 50 + [data] + [neighbour] * 50))
        assert rows == [json.loads(neighbour)] * 100
        assert [one.reason for one in bad] == [f"the line {excess(json.loads(data), data)}"]
    rows, letters = PayloadReader().read(data)
    assert rows == []
    assert letters[0].reason.startswith(("the message has", "the message holds", "the message is nested"))


_values = st.recursive(
    st.integers(-(10**70), 10**70) | st.text("0123456789.[{:}]", max_size=90) | st.none(),
    lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text("a:1", max_size=3), inner, max_size=8),
    max_leaves=60,
)


def exceeds(value: Any, depth: int = 1) -> bool:
    """The oracle, for depth and digits."""
    if isinstance(value, int):
        return len(str(abs(value))) > DIGITS
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (isinstance(value, list | dict) and depth > DEPTH) or any(exceeds(each, depth + 1) for each in inner)


@given(st.lists(st.tuples(_values, st.integers(0, 40)), min_size=1, max_size=4))
def test_the_glance_never_passes_over_what_exceeds_a_limit(parts: list[tuple[Any, int]]) -> None:
    """Of any value alone, and of any of several lines, wherever in the block it begins."""
    values = []
    for value, depth in parts:
        for _ in range(depth):
            value = [value]  # noqa: PLW2901
        values.append(value)
    lines = [json.dumps(value).encode() for value in values]
    found = [bool(excess(value, line)) for value, line in zip(values, lines, strict=True)]
    assert found == [exceeds(value) for value in values]
    assert all(may_exceed(line) for line, much in zip(lines, found, strict=True) if much)
    assert some_may_exceed(b"\n".join(lines)) or not any(found)


@given(st.integers(KEYS, KEYS + 2), st.integers(0, 6_000), st.booleans())
def test_too_many_names_are_seen_wherever_the_line_begins(count: int, before: int, ended: bool) -> None:
    """The shortest line that has them, behind and before others."""
    line = b"{" + b",".join([b'"%d":0' % n for n in range(count)]) + b"}"
    tiny = b"{" + b",".join([b'"":0'] * count) + b"}"
    for each in (line, tiny):
        block = b'{"pad":"%b"}\n' % (b"x" * before) + each + (b"\n{}\n" if ended else b"")
        assert some_may_exceed(block) or count <= KEYS


def test_a_batch_of_a_thousand_metrics_is_no_message_with_too_many_names() -> None:
    """The limit is each object's own: Telegraf sends as many metrics in one line as it likes."""
    metric = {"name": "cpu", "tags": {"host": "a"}, "fields": {"a": 1.0, "b": 2.0}, "timestamp": 1_700_000_000}
    decoded = line_format("telegraf-json").decode(json.dumps({"metrics": [metric] * 1_000}).encode())
    assert (len(decoded.rows), decoded.bad) == (1_000, [])
