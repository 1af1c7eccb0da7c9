"""A run that is fed from stored entries writes what a run that is fed from the source itself writes."""

from __future__ import annotations

import pytest

import tidemill as tm
from tidemill.formats.edge import Edge
from tidemill.formats.entries import RecordsEntry, decode_entry, encode_entry

ROWS = [
    {
        "sensor": f"S{n * 7 % 11}",
        "time": 1_700_000_000 + n,
        "value": n / 7 if n % 5 else n,
        "count": 2**60 + n if n % 9 == 0 else n,
        "unit": ("C", "F", None)[n % 3],
        "raw": {"n": n, "more": [n, (1, "x"), None]} if n % 4 else None,
        **({"flag": bool(n % 2)} if n % 6 else {}),
    }
    for n in range(1500)
]
ROWS[700:750] = [dict(reversed(row.items())) for row in ROWS[700:750]]


def features(rows):
    return [{**row, "kind": type(row.get("count")).__name__, "deep": repr(row.get("raw"))} for row in rows]


def plan():
    return tm.Plan(tm.Rolling("value", window=20), tm.MapRows(features), tm.Filter("value > 3"))


def batches(size):
    edge = Edge()
    for start in range(0, len(ROWS), size):
        batch, letters = edge.rows(ROWS[start : start + size])
        assert not letters
        yield batch


def stored(batch):
    return decode_entry(b"".join(encode_entry(RecordsEntry("plant", batch, (), 0)))).batch


@pytest.mark.parametrize("size", [1, 64, 1000])
def test_the_rows_are_the_same(lanes, size, told, tmp_path):
    """Values, types, order of fields and of rows, however large the entries are."""
    written = []
    for source in (ROWS, [stored(batch) for batch in batches(size)]):
        sink = tm.testing.ListSink()
        tm.run(
            tm.Pipeline(tm.sources.Records(source), plan(), sink), lanes=lanes, dead_letters=tmp_path / "dead.ndjson"
        )
        written.append(told(sink.rows))
    assert len(written[0]) > 1000
    assert written[0] == written[1]
    assert not (tmp_path / "dead.ndjson").exists()
