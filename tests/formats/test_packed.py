"""Batches laid into a buffer and read back: every kind, every row subset, and what happens when there is no room."""

import copy
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.batch import Batch
from tidemill.column import ABSENT, Column
from tidemill.errors import InputError
from tidemill.formats.packed import Full, Packed, Packer, TextTables, Unpacker, packed_bytes
from tidemill.kinds import Kinds
from tidemill.rows import batch_of_rows
from tidemill.schema import Kind


def batch_of(rows, declared=None):
    batch, _ = batch_of_rows(rows, Kinds(declared))
    batch.origin, batch.origin_names = None, frozenset()
    batch.key_column = Column.of_texts([f"S{n % 3}" for n in range(len(rows))])
    batch.time_ns = np.arange(len(rows), dtype=np.int64)
    return batch


@given(data=st.data(), before=st.integers(0, 70))
@settings(deadline=None)
def test_records_come_back(data, before, records, told):
    """Names, order, types and values of all records, and of any of them, come out as they went in."""
    rows = data.draw(records())
    batch = batch_of(rows)
    packer, unpacker = Packer(buffer := bytearray(1 << 18)), Unpacker()
    packer.reserve(before)
    for _ in range(2):  # the second time, texts are remembered on both sides
        packed = packer.batch(batch, key=True)
        whole = unpacker.batch(packed, buffer)
        assert told(whole.to_rows()) == told(rows)
        assert whole.time.tolist() == batch.time.tolist()
        assert whole.keys[whole.key].tolist() == batch.keys[batch.key].tolist()
        wanted = data.draw(st.lists(st.integers(0, len(rows) - 1))) if rows else []
        some = unpacker.batch(packed, buffer, np.array(wanted, np.int32))
        assert len(some) == len(wanted)
        assert told(some.to_rows()) == told([rows[row] for row in wanted])
        assert some.time.tolist() == wanted


@pytest.mark.parametrize(
    ("kind", "items"),
    [
        (Kind.FLOAT, [1.5, 2, None, ABSENT, 2**60, 10**400]),
        (Kind.INT, [1, -5, None, 2**70]),
        (Kind.BOOL, [True, False, ABSENT]),
        (Kind.TEXT, ["a", "", None, "ü", "\ud800", "a"]),
        (Kind.TIME, [1_700_000_000_000_000_001, None]),
        (Kind.OBJECT, [[1, 2], {"a": None}, None, ABSENT, "x"]),
    ],
)
@pytest.mark.parametrize("rows", [None, [0], [1, 0, 1], []])
def test_every_kind(kind, items, rows):
    """Every kind comes back with its kind and all its items, or those that are wanted, in the wanted order."""
    column, rejects = Kinds({"x": kind}).column("x", items)
    assert not rejects
    packer = Packer(buffer := bytearray(1 << 16))
    packed = packer.column("x", column)
    wanted = None if rows is None else np.array(rows, np.int32)
    back = Unpacker().column(packed, buffer, len(items), wanted)
    expected = items if rows is None else [items[row] for row in rows]
    assert back.kind is kind
    assert back.to_list() == expected
    assert list(map(type, back.to_list())) == list(map(type, expected))


def test_columns_are_views():
    """Reading a whole column copies nothing: what is written to the buffer later is seen."""
    packer = Packer(buffer := bytearray(4096))
    packed = packer.batch(Batch({"value": Column(Kind.FLOAT, np.array([1.0, 2.0]))}))
    back = Unpacker().batch(packed, buffer)
    np.frombuffer(buffer, np.float64, 2, packed.columns[0].at)[:] = [3.0, 4.0]
    assert back["value"].tolist() == [3.0, 4.0]
    assert packed.columns[0].at % 64 == 0


@pytest.mark.parametrize("rows", [None, [1, 0]])
def test_what_nobody_reads_keeps_its_place(rows):
    """A column outside ``reads`` is not copied: it takes no room and reads as absent, in its place, with its kind."""
    batch = batch_of([{"sensor": "S1", "n": [1], "value": 1.0, "unit": "C"}] * 2)
    packer = Packer(buffer := bytearray(4096))
    packed = packer.batch(batch, reads={"value", "not there"})
    assert packer.used <= 128
    back = Unpacker().batch(packed, buffer, None if rows is None else np.array(rows))
    assert list(back.columns) == ["sensor", "n", "value", "unit"]
    assert [column.kind for column in back.columns.values()] == [Kind.TEXT, Kind.OBJECT, Kind.FLOAT, Kind.TEXT]
    assert back.to_rows() == [{"value": 1.0}] * 2
    assert len(back.take(np.array([0]))) == len(back.slice(1, 2)) == 1


def test_names_choose():
    """Only the named columns are packed, in the named order; a name that is not there is passed over."""
    packer = Packer(buffer := bytearray(4096))
    packed = packer.batch(batch_of([{"a": 1.0, "b": 2.0, "c": 3.0}]), ["c", "x", "a"])
    assert Unpacker().batch(packed, buffer).to_rows() == [{"c": 3.0, "a": 1.0}]


def test_a_full_buffer_says_so_and_serves_again():
    """What does not fit raises Full, whatever part of it did; after rewind a smaller batch fits."""
    batch = batch_of([{"value": float(n), "text": f"t{n}", "more": [n]} for n in range(100)])
    sizes = set()
    for size in range(0, 4096, 32):
        packer = Packer(buffer := bytearray(size))
        try:
            packer.batch(batch)
        except Full:
            sizes.add(size)
            packer.rewind()
            assert packer.used == 0
            assert packer.array(np.zeros(size // 8)) == 0
    assert 0 in sizes
    assert 4064 not in sizes
    assert max(sizes) - min(sizes) == 32 * (len(sizes) - 1), "it fits from one size on"
    assert Unpacker().batch(packer.batch(batch.slice(0, 0)), buffer).to_rows() == []


@given(data=st.data())
@settings(deadline=None)
def test_the_bound_holds(data, records):
    """A buffer of packed_bytes always has room."""
    batch = batch_of(data.draw(records()))
    Packer(bytearray(packed_bytes(batch.columns))).batch(Batch(batch.columns, rows=len(batch)))


def test_strided_and_foreign_arrays():
    """A column over a strided view or an array of another width is stored as its kind says."""
    columns = {
        "value": Column(Kind.FLOAT, np.arange(6, dtype=np.float32)[::2]),
        "unit": Column(Kind.TEXT, np.array([1, 0, 1], np.int64), texts=np.array(["C", "F"], object)),
    }
    packer = Packer(buffer := bytearray(4096))
    back = Unpacker().batch(packer.batch(Batch(columns)), buffer)
    assert back.to_rows() == [{"value": 0.0, "unit": "F"}, {"value": 2.0, "unit": "C"}, {"value": 4.0, "unit": "F"}]


def test_changed_texts_are_read_again():
    """Texts are remembered by what they are, not by the column's name alone."""
    packer, unpacker = Packer(buffer := bytearray(4096)), Unpacker()
    for texts in (["a", "b"], ["b", "a"], ["b", "a"], ["c"]):
        packed = packer.column("unit", Column.of_texts(texts))
        assert unpacker.column(packed, buffer, len(texts)).to_list() == texts


@pytest.mark.parametrize("size", [2_000, 20_000])
def test_a_slice_takes_its_own_texts(size):
    """One row of a long text column needs room for one text, not for the whole column's table."""
    texts = [f"{n:04d}" + "x" * size for n in range(100)]
    whole, _ = Kinds().column("m", [*texts, None])
    rows = whole.take(np.array([99, 100, 3, 99]))
    packer = Packer(buffer := bytearray(3 * size))
    assert Unpacker().column(packer.column("m", rows), buffer, 4).to_list() == [texts[99], None, texts[3], texts[99]]
    assert packed_bytes({"m": rows}) < 9 * size + 1000


def test_only_small_tables_are_remembered():
    """Tables that come once leave nothing behind but a few small ones; one that comes again is encoded once."""
    tables = TextTables()
    packers = [Packer(bytearray(1 << 20), tables) for _ in range(2)]
    again = Column.of_texts(["C", "F"])
    for number in range(40):
        packer = packers[number % 2]
        packer.rewind()
        packer.column("unit", again)
        packer.column("small", Column.of_texts([f"{number}"]))
        packer.column("large", Column.of_texts([f"{number} {n}" + "x" * 300 for n in range(1000)]))
    assert tables.get(again.texts) is not None
    assert 0 < tables.held < 200


def test_so_many_tables_are_remembered():
    """Those that were used last stay."""
    tables = TextTables()
    made = [Column.of_texts([f"S{number}"]).texts for number in range(2 * TextTables.MOST)]
    for texts in made:
        tables.encode(texts)
    assert [texts for texts in made if tables.get(texts) is not None] == made[-TextTables.MOST :]


def test_what_cannot_be_packed_is_named():
    """A value that no other process can take is an error of the input, with its column."""
    with pytest.raises(InputError, match="column 'o' holds values that cannot be sent to another process"):
        Packer(bytearray(4096)).column("o", Column(Kind.OBJECT, np.array([None, threading.Lock()], object)))


def test_nothing_packs():
    """No rows, no columns: both come back as they are."""
    packer = Packer(buffer := bytearray(256))
    assert Unpacker().batch(packer.batch(Batch({}, rows=3)), buffer).to_rows() == [{}, {}, {}]
    assert isinstance(packer.batch(Batch({})), Packed)


def test_records_of_a_lane_can_go_on_to_other_processes():
    """A function of the user's may hand its batch to a pool of its own, or copy it."""
    batch = batch_of([{"value": float(n), "unit": "C"} for n in range(6)])
    packed = Packer(buffer := bytearray(1 << 12)).batch(batch, key=True)
    some = Unpacker().batch(packed, buffer, np.array([1, 4]))
    for made in (pickle.loads(pickle.dumps(some)), copy.deepcopy(some)):
        assert made.to_rows() == [{"value": 1.0, "unit": "C"}, {"value": 4.0, "unit": "C"}]
