"""NDJSON: a bad line touches no other, and what is encoded reads back the same."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.formats.json_lines import decode_json_lines, encode_json_lines
from tidemill.kinds import Kinds
from tidemill.letters import INFINITE, MALFORMED
from tidemill.rows import batch_of_rows
from tidemill.schema import Kind

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
records = st.dictionaries(st.text(max_size=5), values, max_size=5)
bad_lines = st.sampled_from(
    [
        b"{", b"}", b'{"a":', b'"b":2}', b"[1,", b"]", b"{}{}", b'{"a":1} {"b":2}', b"nonsense", b"1", b'"x"', b"null",
        b"[]", b'{"a":NaN}', b'{"a":Infinity}', b'{"a":1e999}', b'{"a":"\xff"}', b'{"a":"\\ud800"}', b'{"a":1}\x00',
        b'{"a":' * 5_000, b'{"a":' + b"9" * 5_000 + b"}", b'{"a":{}', b'{"a":1},', b'{"a":"\t"}',
    ]
)  # fmt: skip


@given(st.lists(st.tuples(st.just(True), records) | st.tuples(st.just(False), bad_lines), max_size=12), st.booleans())
def test_valid_neighbours_are_unaffected(lines: list[tuple[bool, object]], windows: bool) -> None:
    """Between any bad lines, every valid record comes through unchanged, and every bad line is told once."""
    raw = [json.dumps(item).encode() if good else item for good, item in lines]
    rows, bad = decode_json_lines((b"\r\n" if windows else b"\n").join(raw))
    assert rows == [item for good, item in lines if good]
    assert len(bad) == sum(not good for good, _ in lines)


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_rejected(data: bytes) -> None:
    """No input raises."""
    rows, bad = decode_json_lines(data)
    assert all(type(row) is dict for row in rows)
    assert len(rows) + len(bad) <= data.count(b"\n") + 1


@pytest.mark.parametrize(
    ("line", "code", "word"),
    [
        (b'{"a": 1e999}', INFINITE, "too large"),
        (b'{"a": Infinity}', INFINITE, "Infinity"),
        (b'{"a": NaN}', MALFORMED, "NaN"),
        (b"[1, 2]", MALFORMED, "array"),
        (b'{"a": "\xff"}', MALFORMED, "UTF-8"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, MALFORMED, "deeply"),
    ],
)
def test_the_reason_is_named(line: bytes, code: str, word: str) -> None:
    """Each kind of bad line has its code and a sentence."""
    _, (bad,) = decode_json_lines(line)
    assert bad.reason_code == code
    assert word in bad.reason
    assert len(bad.raw) >= len(line), "whole, to be repaired"


def test_two_bad_lines_do_not_make_one_record() -> None:
    """A record cut in two by a line's end is two bad lines, as it would be with other neighbours."""
    rows, bad = decode_json_lines(b'{"a":1,\n"b":2}\n')
    assert (rows, len(bad)) == ([], 2)


@given(st.lists(records, min_size=1, max_size=8))
def test_records_come_back_as_they_were(rows: list[dict[str, object]]) -> None:
    """Names, order, types and values survive columns and encoding; only what JSON cannot tell apart may change."""
    batch, rejects = batch_of_rows(rows, Kinds())
    if rejects:
        rows = [row for place, row in enumerate(rows) if place not in {reject.row for reject in rejects}]
        batch, rejects = batch_of_rows(rows, Kinds())
    if not rows or rejects:
        return
    back = [json.loads(line) for line in encode_json_lines(batch).split(b"\n")[:-1]]
    assert list(map(list, back)) == list(map(list, rows))
    assert [repr(row) for row in back] == [repr(row) for row in rows]


def test_numbers_keep_their_form() -> None:
    """Ints stay ints beside floats, beyond 2**53 and 2**64 too; floats are shortest; NaN and infinities are null."""
    rows = [{"a": 1}, {"a": 1.0}, {"a": 2**53 + 1}, {"a": 2**70}, {"a": 0.1}, {"a": None}, {}]
    batch, _ = batch_of_rows(rows, Kinds())
    assert encode_json_lines(batch) == (
        b'{"a":1}\n{"a":1.0}\n{"a":9007199254740993}\n{"a":1180591620717411303424}\n{"a":0.1}\n{"a":null}\n{}\n'
    )
    computed = Batch({"a": Column(Kind.FLOAT, np.array([math.nan, math.inf, -math.inf]))})
    assert encode_json_lines(computed) == b'{"a":null}\n' * 3


def test_times_are_iso_text_with_the_digits_they_need() -> None:
    """A TIME column is written in UTC; a missing time is null."""
    ns = np.array([0, 1, 1_700_000_000_250_000_000, np.iinfo(np.int64).min])
    lines = encode_json_lines(Batch({"t": Column(Kind.TIME, ns)})).splitlines()
    assert lines == [
        b'{"t":"1970-01-01T00:00:00Z"}',
        b'{"t":"1970-01-01T00:00:00.000000001Z"}',
        b'{"t":"2023-11-14T22:13:20.25Z"}',
        b'{"t":null}',
    ]


def test_what_json_cannot_hold_does_not_stop_its_neighbours() -> None:
    """Lone surrogates, odd keys and unknown objects are written as text; the other rows as ever."""
    loop: list[object] = []
    loop.append(loop)
    rows = [{"a": {1: "x"}}, {"a": ["\ud800"]}, {"a": object}, {"a": loop}, {"a": {"ok": 1}}]
    batch, _ = batch_of_rows(rows, Kinds())
    lines = encode_json_lines(batch).decode().splitlines()
    assert len(lines) == 5
    assert json.loads(lines[4]) == {"a": {"ok": 1}}
    assert json.loads(lines[1]) == {"a": ["\ud800"]}


def test_names_that_json_must_escape() -> None:
    """Any field name can be written."""
    rows = [{'say "hi"\n': 1, "": 2, "é": 3}]
    assert json.loads(encode_json_lines(Batch.from_rows(rows))) == rows[0]


def test_a_name_that_is_no_unicode_beside_a_number_that_is_too_large_is_a_bad_line() -> None:
    """Neither fault hides the other."""
    _, bad = decode_json_lines(b'{"\x8d": 1, "value": 1e999}\n')
    assert [(line.reason_code, line.sound) for line in bad] == [("malformed", False)]
