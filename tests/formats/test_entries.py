"""Entries of the ingest log: what was written comes back, and damaged bytes are refused, not believed."""

import dataclasses
import datetime as dt
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.batch import Batch
from tidemill.column import ABSENT, Column
from tidemill.errors import InputError
from tidemill.formats.edge import Edge
from tidemill.formats.entries import ControlEntry, RecordsEntry, decode_entry, encode_entry, find_unkept
from tidemill.kinds import Kinds
from tidemill.letters import MALFORMED, DeadLetter
from tidemill.rows import batch_of_rows
from tidemill.schema import Kind


def batch_of(rows, declared=None):
    batch, _ = batch_of_rows(rows, Kinds(declared))
    batch.key_column = Column.of_texts([f"S{n % 3}" for n in range(len(rows))])
    batch.time_ns = np.arange(len(rows), dtype=np.int64) * 10**9
    return batch


def entry_of(batch, *letters):
    return RecordsEntry("plant", batch, letters, 1_700_000_000_123_456_789)


def there_and_back(entry):
    return decode_entry(b"".join(encode_entry(entry)))


def assert_same_column(made, column):
    assert made.kind is column.kind
    assert (made.tags is None) == (column.tags is None)
    assert made.tags is None or made.tags.tolist() == column.tags.tolist()
    assert list(map(repr, made.to_list())) == list(map(repr, column.to_list()))
    if column.kind is Kind.FLOAT:
        assert made.values.tobytes() == column.values.tobytes()


def assert_same_batch(made, batch, told):
    assert len(made) == len(batch)
    assert made.names == batch.names
    for name, column in batch.columns.items():
        assert_same_column(made.columns[name], column)
    assert told(made.to_rows()) == told(batch.to_rows())
    assert (made.key_column is None) == (batch.key_column is None)
    if batch.key_column is not None:
        assert_same_column(made.key_column, batch.key_column)
    assert (made.time_ns is None) == (batch.time_ns is None)
    assert batch.time_ns is None or made.time_ns.tolist() == batch.time_ns.tolist()
    assert made.arrived_ns == 0


@given(data=st.data(), before=st.integers(0, 9))
def test_records_come_back(data, before, records, told):
    """Kinds, tags, names, order, types and values of all records, of a part of them, and of a choice."""
    rows = data.draw(records())
    batch = batch_of(rows)
    if data.draw(st.booleans()):
        batch.key_column = None
    if data.draw(st.booleans()):
        batch.time_ns = None
    batch.arrived_ns = 17
    start = data.draw(st.integers(0, len(rows)))
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1))) if rows else []
    for one in (batch, batch.slice(start, len(rows)), batch.take(np.array(chosen, np.int32))):
        entry = entry_of(one)
        written = bytes(before) + b"".join(encode_entry(entry))
        back = decode_entry(memoryview(written)[before:])
        assert (back.source, back.wall_ns, back.letters) == (entry.source, entry.wall_ns, ())
        assert_same_batch(back.batch, one, told)
        assert all(column.values.flags.aligned for column in back.batch.columns.values())


@pytest.mark.parametrize(
    ("kind", "items"),
    [
        (Kind.FLOAT, [1.5, 2, None, ABSENT, 2**60, 10**400, float("inf"), -0.0]),
        (Kind.INT, [1, -5, None, 2**70, 2**63 - 1]),
        (Kind.BOOL, [True, False, ABSENT]),
        (Kind.TEXT, ["a", "", None, "ü", "\ud800", "a"]),
        (Kind.TIME, [1_700_000_000_000_000_001, None]),
        (Kind.OBJECT, [[1, 2], {"a": None}, None, ABSENT, "x", (1, {2: 3}), dt.date(2024, 1, 1)]),
    ],
)
def test_every_kind(kind, items, told):
    """Every kind comes back with its items, their types and their absence."""
    assert_same_batch(
        there_and_back(
            entry_of(batch_of([{"x": item} if item is not ABSENT else {} for item in items], {"x": kind}))
        ).batch,
        batch_of([{"x": item} if item is not ABSENT else {} for item in items], {"x": kind}),
        told,
    )


def test_what_a_source_makes_comes_back_small(told):
    """Sensor and key, and time and times, are written once; records with an origin give back equal dicts."""
    rows = [{"sensor": f"S{n % 7}", "time": n, "value": np.float64(n), "unit": "C"} for n in range(1000)]
    batch, _ = Edge().rows(rows)
    assert batch.origin is not None
    parts = encode_entry(entry_of(batch))
    assert sum(map(len, parts)) < 1000 * (4 + 8 + 1 + 8 + 8 + 4) + 500
    back = decode_entry(b"".join(parts)).batch
    assert back.to_rows() == batch.to_rows() == rows
    assert back.key_column.texts is back.columns["sensor"].texts

    made = Batch(
        {"sensor": Column.of_texts(["a", "b"]), "time": Column(Kind.TIME, np.array([5, 6]))},
        key=Column.of_texts(["a", "b"]),
        time=np.array([5, 6]),
    )
    assert_same_batch(there_and_back(entry_of(made)).batch, made, told)


def test_only_texts_in_use_are_written(told):
    """A few records of a source with many sensors do not bring the names of all with them."""
    many = Column.of_texts([f"sensor-{n}" for n in range(5000)])
    batch = Batch({"sensor": many}, key=many, time=np.arange(5000))
    few = batch.slice(1000, 1010)
    parts = encode_entry(entry_of(few))
    assert sum(map(len, parts)) < 500
    assert_same_batch(decode_entry(b"".join(parts)).batch, few, told)
    again = [there_and_back(entry_of(batch)).batch for _ in range(2)]
    assert_same_batch(again[0], batch, told)
    assert again[0].keys is again[1].keys, "who sees the same table again need not look at its texts again"


@given(st.integers(0, 4))
def test_records_without_fields(rows):
    """Records of nothing at all are still so many."""
    assert len(there_and_back(entry_of(Batch({}, rows=rows))).batch) == rows


LETTERS = (
    DeadLetter(MALFORMED, "no good", {"a": [1, 2**80], "\ud800": "\udfff"}, "plant", key="S\ud800", time_ns=5),
    DeadLetter(MALFORMED, "cut", "1,2,", arrival=True, header=("a", "b"), position=7),
    DeadLetter(MALFORMED, "not an object", [1, (2, b"x")], stage="Rolling"),
)


def test_letters_come_back():
    """All that is needed to repair and replay them."""
    back = there_and_back(entry_of(batch_of([{"x": 1.0}]), *LETTERS))
    assert back.letters == LETTERS


def test_a_letter_is_never_in_the_way():
    """A dead letter may hold what made it one; what no file can keep is shown as text."""
    endless: list[object] = []
    endless.append(endless)
    for raw in (object(), {"lock": endless}):
        made = there_and_back(entry_of(Batch({}, rows=0), LETTERS[1], DeadLetter(MALFORMED, "a lock", raw)))
        assert made.letters[0] == LETTERS[1]
        assert isinstance(made.letters[1].raw, str)
        assert made.letters[1].reason == "a lock"


class Point:
    """Of the user's own."""


def test_what_has_no_form_is_refused_by_name():
    """The message names source, field and type, and says what to do; the records can be told apart."""
    batch = batch_of([{"at": [1]}, {"at": [Point()]}, {"at": None}, {"at": {"p": Point}}])
    with pytest.raises(
        InputError, match=r"source plant: field 'at' of a record .*test_entries.Point.*run without state"
    ):
        encode_entry(entry_of(batch))
    assert [(reject.row, "'at'" in reject.reason) for reject in find_unkept(batch)] == [(1, True), (3, True)]
    with pytest.raises(InputError, match=r"control record 'change'.*test_entries.Point"):
        encode_entry(ControlEntry("change", Point()))
    assert not find_unkept(batch_of([{"at": [1], "x": 1.0}]))


@pytest.mark.parametrize(
    "entry",
    [
        ControlEntry("tick", {"mark": 2**62}),
        ControlEntry("change", {"stage": 3, "files": {"calibration.csv": b"\x00\xff" * 1000}}),
        ControlEntry("end", None),
    ],
)
def test_control_records_come_back(entry):
    """What was decided outside."""
    assert there_and_back(entry) == entry


# -- damaged -------------------------------------------------------------------------------------------


def written():
    rows = [{"s": "ab"[n % 2], "x": n if n % 2 else 2**60 + n, "o": [n, {"k": "v"}], "b": True} for n in range(9)]
    rows.append({"b": None, "s": "ü"})
    return b"".join(encode_entry(entry_of(batch_of(rows), *LETTERS)))


def read_or_refused(data):
    """Whatever the bytes: an entry that can be used, or an error of ours. And no more memory than they are worth."""
    try:
        entry = decode_entry(data)
    except InputError as error:
        assert str(error)  # noqa: PT017 - of several outcomes
        return None
    if isinstance(entry, RecordsEntry):
        assert len(entry.batch) <= 8 * len(data)
        with np.errstate(all="ignore"):
            entry.batch.to_rows()
        assert entry.batch.key_column is None or len(entry.batch.key_column.to_list()) == len(entry.batch)
    return entry


def test_every_truncation_is_refused():
    """No part of an entry is one; nor is one with something behind it."""
    for data in (written(), b"".join(encode_entry(ControlEntry("tick", {"mark": 5})))):
        for length in range(len(data)):
            with pytest.raises(InputError, match="damaged"):
                decode_entry(data[:length])
        with pytest.raises(InputError, match="damaged"):
            decode_entry(data + b"\0")


def test_every_flipped_bit_is_survived():
    """The log's checksum finds them before; here they never crash, and what is read can be used."""
    data = written()
    told = 0
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            told += read_or_refused(bytes(flipped)) is None
    assert told > len(data), "half of an entry is lengths, kinds and codes"


@given(st.binary(max_size=200), st.sampled_from([1, 2, 3]))
def test_any_bytes_are_survived(data, form):
    """What follows a good start may be anything."""
    read_or_refused(data)
    read_or_refused(bytes([form, 1, 0, 0]) + len(data).to_bytes(4, "little") + data)


def test_shuffled_bytes_are_survived():
    """Several faults at once, and parts of one entry within another."""
    data = written()
    chance = random.Random(40)
    for _ in range(2000):
        mixed = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            start, other, size = chance.randrange(len(data)), chance.randrange(len(data)), chance.randint(1, 40)
            mixed[start : start + size] = data[other : other + size]
        read_or_refused(bytes(mixed))


def test_memory_is_taken_only_for_what_is_there():
    """Lengths that promise billions, in every place where one stands, are refused before memory is taken."""
    data = written()

    def promise_much() -> None:
        for place in range(8, len(data) - 5):
            for promise in (
                b"\xdd\x7f\xff\xff\xff",
                b"\xdf\x0f\xff\xff\xff",
                b"\xc6\x7f\xff\xff\xff",
                b"\xce\x7f\xff\xff\xff",
            ):
                read_or_refused(data[:place] + promise + data[place + 5 :])

    promise_much()  # what is imported and remembered on the way is not of these
    tracemalloc.start()
    try:
        promise_much()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50 * len(data) + 1_000_000


def test_a_newer_format_says_so():
    """Not "damaged": what to do is something else."""
    data = bytearray(written())
    data[1] = 2
    with pytest.raises(InputError, match=r"format version 2.*newer"):
        decode_entry(bytes(data))


def test_letters_keep_the_order_of_their_fields():
    """Files hold the fields by place: new ones come at the end."""
    names = [field.name for field in dataclasses.fields(DeadLetter)]
    known = ["reason_code", "reason", "raw", "source", "stage", "key", "time_ns", "arrival", "header", "position"]
    assert names[: len(known)] == known
