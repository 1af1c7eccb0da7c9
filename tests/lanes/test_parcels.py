"""Parcels: what comes out is what went in, in every type, name and bit, in memory of the receiver's own."""

from __future__ import annotations

import array
import pickle
import types
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import tidemill as tm
from tidemill.column import Column
from tidemill.errors import CallError
from tidemill.lanes.arena import copy_in
from tidemill.lanes.call_codec import MAX_BYTES, dumps_call
from tidemill.lanes.parcels import LARGE, Parcel, pack, pack_arguments, unpack
from tidemill.schema import Kind


def block_of(parcel: Parcel) -> memoryview:
    """The buffers as they lie in an arena."""
    block = memoryview(bytearray(parcel.room))
    copy_in(parcel.buffers, block)
    return block


def both_ways(parcel: Parcel) -> list[Any]:
    """Through a socket, and through an arena."""
    ways = [unpack(bytearray(parcel.data))]
    if parcel.buffers:
        ways.append(unpack(parcel.head, block_of(parcel)))
    return ways


def same(own: Any, right: Any) -> None:
    assert type(own) is type(right)
    if isinstance(right, np.ndarray):
        assert own.dtype == right.dtype
        assert own.shape == right.shape
        assert own.tobytes() == right.tobytes() or right.dtype.hasobject
        assert own.flags.writeable or not right.flags.writeable
        assert own.flags.aligned
    elif isinstance(right, pa.Table | pa.RecordBatch):
        assert own.equals(right, check_metadata=True)
    elif isinstance(right, dict):
        assert list(own) == list(right)
        for name in right:
            same(own[name], right[name])
    elif isinstance(right, (list, tuple)):
        assert len(own) == len(right)
        for one, other in zip(own, right, strict=True):
            same(one, other)
    else:
        assert own == right


_DTYPES = st.sampled_from(
    ["?", "b", "B", "h", "H", "i", "I", "q", "Q", "e", "f", "d", "F", "D", ">f8", "<M8[ns]", "<U3"]
)


@st.composite
def columns(draw) -> dict[str, np.ndarray]:
    made = {}
    for name in draw(st.lists(st.text(max_size=3) | st.just("\ud800"), max_size=5, unique=True)):
        dtype = np.dtype(draw(_DTYPES))
        array = np.frombuffer(draw(st.binary(min_size=400, max_size=400)), np.uint8)[: 16 * dtype.itemsize]
        array = array.copy().view(dtype) if dtype.kind not in "?U" else np.zeros(16, dtype)
        made[name] = array[: draw(st.integers(0, 16))][:: draw(st.sampled_from([1, 1, 1, 2, -1]))]
    return made


@given(columns())
def test_dicts_of_arrays(value: dict[str, np.ndarray]) -> None:
    """As pickle has them: any names, dtypes and lengths, with gaps too; as a value and as the one argument of a call."""
    right = pickle.loads(pickle.dumps(value, 5))
    for own in both_ways(pack(value)):
        same(own, right)
    for own in both_ways(pack_arguments((value,), {})):
        same(own, ((right,), {}))


@pytest.mark.parametrize("size", [0, 1, LARGE // 8 - 1, LARGE // 8, LARGE // 8 + 1, 100_003])
@pytest.mark.parametrize("kind", ["C", "F", "strided", "object", "readonly", "zero-dimensional", "structured"])
def test_arrays_of_every_layout(size: int, kind: str) -> None:
    """Inside of tuples and dicts too; below and above the size that goes through an arena."""
    array = np.arange(2 * size, dtype=np.float64)
    match kind:
        case "C":
            array = array[:size]
        case "F":
            array = np.asfortranarray(array.reshape(2, size))
        case "strided":
            array = array[::2]
        case "object":
            array = array[:50].astype(object)
        case "readonly":
            array.flags.writeable = False
        case "zero-dimensional":
            array = np.array(1.5)
        case "structured":
            array = np.zeros(size, [("a", "i4"), ("b", "f8")])
    for value in (array, (1, array, "x"), {"k": [array, {"deep": array}]}):
        for own in both_ways(pack(value)):
            np.testing.assert_equal(own, value)
    for own in both_ways(pack_arguments((1, array), {"a": array})):
        np.testing.assert_equal(own, ((1, array), {"a": array}))


def test_bytes_and_arrow_tables_travel_beside_the_pickle() -> None:
    """Large ones are not copied into it, as arguments and as results."""
    table = pa.table({"x": np.arange(100_000.0), "y": np.arange(100_000)})
    data = bytes(range(256)) * 1_000
    for parcel in (pack(table), pack(data), pack_arguments((data,), {}), pack_arguments((7, table), {})):
        assert len(parcel.head) < 2_000 < LARGE < parcel.room
        assert all(part in (table, data) for own in both_ways(parcel) for part in [_first(own)])


FLOATS = np.arange(LARGE, dtype=np.float64)
TIMES = np.arange(LARGE).astype("M8[us]")
RECORDS = np.zeros(LARGE // 4, [("t", "M8[ns]"), ("v", "f4")])
RECORDS["t"] = np.arange(len(RECORDS))
READONLY = TIMES[:20_000].copy()
READONLY.flags.writeable = False
LARGE_VALUES: dict[str, Any] = {
    "times": TIMES,
    "differences": TIMES - TIMES[5],
    "units of ten": TIMES.astype("M8[10ms]"),
    "times that cannot be written to": READONLY,
    "times in columns": np.asfortranarray(TIMES.reshape(4, -1)),
    "times with gaps": TIMES[::2],
    "every second": FLOATS[::2],
    "backwards": FLOATS[:50_000][::-1],
    "a column of many": FLOATS.reshape(-1, 4)[:, 3],
    "the middle": FLOATS.reshape(64, 8, -1)[:, 2:7, 5:],
    "one again and again": np.broadcast_to(np.arange(3.0), (LARGE // 8, 3)),
    "big-endian with gaps": FLOATS.astype(">f8")[::2],
    "structured": RECORDS,
    "structured with gaps": RECORDS[::-2],
    "records": RECORDS.view(np.recarray),
    "records without times": np.rec.fromarrays([FLOATS, FLOATS > 3.0], names="a,b"),
    "masked": np.ma.MaskedArray(FLOATS, FLOATS % 3 == 0, fill_value=-7.0),
    "masked with gaps": np.ma.MaskedArray(FLOATS, FLOATS % 3 == 0).repeat(2)[::2],
    "an array of the standard library": array.array("d", FLOATS[:20_000]),
    "a memoryview": memoryview(FLOATS[:20_000]),
}


@pytest.mark.parametrize("kind", LARGE_VALUES)
def test_what_pickle_would_copy_travels_beside_it(kind: str) -> None:
    """Large arrays of all types, alone and in containers, objects and dicts of columns; they come back as they were."""
    value = right = LARGE_VALUES[kind]
    for parcel, wrap in (
        (pack(value), lambda x: x),
        (pack_arguments(([1, {"a": [value]}], 2), {}), lambda x: (([1, {"a": [x]}], 2), {})),
        (pack(types.SimpleNamespace(a=value)), lambda x: types.SimpleNamespace(a=x)),
        (pack({"n": np.arange(9), "v": value, "w": value}), lambda x: {"n": np.arange(9), "v": x, "w": x}),
        (pack_arguments((value,), {"f": type("Seen", (), {"__module__": "__main__"})}), None),
    ):
        assert len(parcel.head) < 3_000 < LARGE < parcel.room
        for own in both_ways(parcel):
            if wrap is None:
                same(own[0][0], right)
            elif isinstance(own, types.SimpleNamespace):
                same(own.a, right)
            else:
                same(own, wrap(right))


def test_a_masked_array_has_its_mask() -> None:
    """And what fills it."""
    value = LARGE_VALUES["masked"]
    for own in both_ways(pack(value)):
        same(own.mask, value.mask)
        assert own.fill_value == -7.0


def test_arrays_that_are_met_twice_are_one() -> None:
    """Also those that pickle would copy."""
    times = LARGE_VALUES["times"]
    parcel = pack([times, (times,)])
    assert parcel.room == times.nbytes
    for own, (again,) in both_ways(parcel):
        assert own is again


@pytest.mark.parametrize("code", ["?", "b", "<i4", ">i4", "<u8", "f2", "<f8", ">f8", "longdouble", "c8"])
@pytest.mark.parametrize("size", [1, 100, 5_000])
def test_a_small_array_beside_others_arrives_as_it_is(code: str, size: int) -> None:
    """Type, order of bytes, number of dimensions, what is said of the type, and whether it may be written to."""
    whole = np.zeros(2 * size, np.dtype(code))
    fixed = whole.copy()
    fixed.flags.writeable = False
    tagged = np.zeros(size, np.dtype("f8", metadata={"unit": "C"}))
    value = [whole, fixed, tagged, whole.reshape(2, size), whole.reshape(2, size, order="F"), fixed]
    for own in both_ways(pack(value)):
        same(own, value)
        for one, right in zip(own, value, strict=True):
            assert one.flags.writeable is right.flags.writeable
            assert one.flags.f_contiguous is right.flags.f_contiguous or one.ndim == 1
            assert (one.dtype.metadata or {}) == (right.dtype.metadata or {})
        assert own[1] is own[5]


@pytest.mark.parametrize("fixed", ["a", "b"])
def test_columns_that_may_not_be_written_to_arrive_so(fixed: str) -> None:
    """As a lone array does; the others of the dict may be."""
    value = {"a": np.arange(3.0), "b": np.arange(4)}
    value[fixed].flags.writeable = False
    for made in both_ways(pack(value)):
        same(made, value)
        assert {name: column.flags.writeable for name, column in made.items()} == {
            name: name != fixed for name in value
        }


def test_a_column_under_two_names_is_one() -> None:
    """What is written to the one is read of the other, as where the function is called directly."""
    column = np.arange(3.0)
    for made in both_ways(pack({"a": column, "b": column})):
        assert made["a"] is made["b"]


@pytest.mark.parametrize("rows", [0, 1, 20, 20_000])
def test_columns_of_times_have_the_codec_of_columns(rows: int) -> None:
    """Of any unit, with gaps too."""
    value = {
        "t": np.arange(rows).astype("M8[ns]"),
        "v": np.arange(rows) / 3,
        "d": np.arange(2 * rows).astype("m8[D]")[::2],
        "w": np.arange(rows, dtype=np.int32)[::-1],
    }
    assert pack(value).head[0] == 1  # not pickled
    for own in both_ways(pack(value)):
        same(own, value)


@pytest.mark.parametrize(
    "view",
    [
        memoryview(b"abc"),
        memoryview(bytearray(b"")),
        memoryview(np.arange(4.0)),
        memoryview(np.arange(6, dtype=np.int16).reshape(2, 3)),
    ],
)
def test_a_memoryview_arrives_as_one(view: memoryview) -> None:
    """Of the same format and shape."""
    for value in (view, (1, view), [view] * 70):
        for own in both_ways(pack(value)):
            assert own == value
    own = unpack(pack(view).data)
    assert (own.format, own.shape, own.readonly) == (view.format, view.shape, view.readonly)


def test_a_memoryview_that_cannot_be_made_again_is_refused() -> None:
    """It has gaps, or items of the other order of bytes."""
    for view in (memoryview(b"abcd")[::2], memoryview(np.zeros(3, ">f8"))):
        with pytest.raises(CallError, match=r"argument 0, a memoryview, cannot be sent .*memoryview: "):
            dumps_call((view,), {})


def slices() -> dict[str, Any]:
    n = 20_000
    table = pa.table(
        {
            "x": np.arange(n),
            "t": np.arange(n).astype("M8[ns]"),
            "s": pa.array([None if k % 7 == 0 else f"text {k}" for k in range(n)]),
            "d": pa.array([f"S{k % 3}" for k in range(n)]).dictionary_encode(),
            "l": pa.array([[k, None] if k % 5 else None for k in range(n)], pa.list_(pa.int32())),
            "b": pa.array([k % 2 == 0 for k in range(n)]),
        }
    ).replace_schema_metadata({"made by": "a test"})
    twice = pa.concat_tables([table, table])
    return {
        "some rows": table.slice(13, 100),
        "no rows": table.slice(5, 0),
        "over two chunks": twice.slice(n - 50, 100),
        "a batch": table.to_batches(1_000)[7],
        "large": table.slice(1, 7_001),
    }


@pytest.mark.parametrize("kind", slices())
def test_a_slice_of_an_arrow_table_sends_what_it_shows(kind: str) -> None:
    """Not all of the table; nothing of it is lost."""
    value = slices()[kind]
    for parcel in (pack(value), pack_arguments((value,), {})):
        assert parcel.size < 2 * value.nbytes + 10_000
        for own in both_ways(parcel):
            same(own if isinstance(own, pa.Table | pa.RecordBatch) else own[0][0], value)


def test_half_of_a_large_table_is_not_copied() -> None:
    """All of it travels, a bit in each turn of the loop, and nobody waits for a copy."""
    table = pa.table({"x": np.arange(400_000)})
    assert pack(table.slice(0, 190_000)).room >= table.nbytes
    assert pack(table.slice(0, 90_000)).room < table.nbytes // 4


def test_a_batch_without_rows_may_have_a_union() -> None:
    """Arrow ends the process when it is asked for the size of one that came by its own format."""
    types, parts = pa.array([0, 1, 0], pa.int8()), [pa.array([1, 2, 3]), pa.array(["a", "b", "c"])]
    batch = pa.record_batch({"x": pa.UnionArray.from_sparse(types, parts)}).slice(0, 0)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    value = pa.ipc.open_stream(sink.getvalue()).read_next_batch()
    for own in both_ways(pack(value)):
        assert own.schema == value.schema
        assert own.num_rows == 0


def test_a_slice_with_types_of_its_own_is_left_to_pickle() -> None:
    """The other side may not have registered them, and would have what they are made of instead."""
    values = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)] * 10_000, pa.binary(16)))
    value = pa.table({"id": values}).slice(2, 3)
    for own in both_ways(pack(value)):
        same(own, value)
        assert own.schema.types == [pa.uuid()]


LARGE_BYTES = bytes(range(256)) * 1_000
IN_CONTAINERS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "bytearray": ((bytearray(LARGE_BYTES),), {}),
    "keyword": ((), {"image": LARGE_BYTES}),
    "tuple": (((1, LARGE_BYTES, "x"),), {}),
    "list": (([bytearray(LARGE_BYTES), LARGE_BYTES],), {}),
    "dict": ((7, {"image": LARGE_BYTES, "depth": bytearray(LARGE_BYTES)}), {"more": (LARGE_BYTES,)}),
    "with a class of a script": ((type("Seen", (), {"__module__": "__main__"}), [LARGE_BYTES]), {}),
}


@pytest.mark.parametrize("kind", IN_CONTAINERS)
def test_bytes_in_small_containers_travel_beside_the_pickle(kind: str) -> None:
    """Bytes and bytearrays, as what they were, where they were."""
    args, kwargs = IN_CONTAINERS[kind]
    parcel = pack_arguments(args, kwargs)
    assert len(parcel.head) < 3_000 < LARGE < parcel.room
    for own in both_ways(parcel):
        assert own == (args, kwargs)
        same(own[1], kwargs)
        for value, right in zip(own[0], args, strict=True):
            if not isinstance(right, type):
                same(value, right)


def test_bytes_that_are_met_twice_are_one() -> None:
    """They are sent once, and containers that hold themselves or each other do so on the other side."""
    shared: list[Any] = [LARGE_BYTES]
    shared.append(shared)
    parcel = pack_arguments((shared, LARGE_BYTES, {"deep": {"deeper": [shared, LARGE_BYTES]}}), {})
    assert parcel.room == len(LARGE_BYTES)
    for (own, data, deep), _ in both_ways(parcel):
        assert own[0] is data
        assert own[0] is deep["deep"]["deeper"][1]
        assert own[1] is own is deep["deep"]["deeper"][0]


def test_bytes_beyond_the_limit_are_refused_before_they_are_copied() -> None:
    """Whatever they lie in: 1 GiB that nobody has touched, which stays so."""
    value = bytes(MAX_BYTES)
    resident = psutil.Process().memory_info().rss
    for args in ((value,), ([value],)):
        with pytest.raises(CallError, match=r"1,073,74[12],\d+ bytes when packed, more than"):
            dumps_call(args, {})
    assert psutil.Process().memory_info().rss - resident < MAX_BYTES // 16


def _first(own: Any) -> Any:
    return own[0][-1] if isinstance(own, tuple) else own


def test_a_small_one_has_no_buffers() -> None:
    """It is one piece of bytes, whatever it is."""
    for value in ({"x": np.zeros(10)}, b"x" * 100, [np.zeros(10)], "text", None):
        assert not pack(value).buffers


@given(st.lists(st.floats() | st.integers(-(2**70), 2**70) | st.none() | st.just("missing"), min_size=1, max_size=20))
def test_batches(numbers: list[Any]) -> None:
    """Records come back as they were: also those that must be pickled, with integers beyond floats and absent fields."""
    rows = [{"sensor": f"S{n % 3}"} | ({} if x == "missing" else {"x": x}) for n, x in enumerate(numbers)]
    batch = tm.Batch.from_rows(rows)
    batch.origin = None
    for own in both_ways(pack(batch)):
        assert repr(own.to_rows()) == repr(rows)
        assert own.schema == batch.schema


@pytest.mark.parametrize("rows", [0, 1, 20, 20_000])
def test_a_batch_keeps_keys_times_texts_and_tags(rows: int) -> None:
    """Every part of it, without its rows' dicts."""
    texts = np.array(["a", "ü", "\ud800"], object)
    codes = np.arange(rows, dtype=np.int32) % 3
    tags = (np.arange(rows) % 2).astype(np.uint8)
    columns = {
        "v": Column(Kind.FLOAT, np.arange(rows) / 3),
        "n": Column(Kind.INT, np.arange(rows), tags=tags),
        "ok": Column(Kind.BOOL, np.arange(rows) % 2 == 0),
        "t": Column(Kind.TIME, np.arange(rows)),
        "s": Column(Kind.TEXT, codes, texts=texts),
    }
    batch = tm.Batch(columns, rows=rows, key=Column(Kind.TEXT, codes, texts=texts), time=np.arange(rows), arrived_ns=9)
    assert pack(batch).head[0] == 1  # not pickled
    for own in both_ways(pack(batch)):
        assert (len(own), own.arrived_ns, own.schema, own.keys.tolist()) == (rows, 9, batch.schema, texts.tolist())
        same(own.key, batch.key)
        same(own.time, batch.time)
        for name, column in batch.columns.items():
            same(own.columns[name].values, column.values)
            assert (own.columns[name].tags is None) is (column.tags is None)
        same(own.columns["n"].tags, tags)


@given(arrays.arrays(arrays.scalar_dtypes(), arrays.array_shapes(max_dims=3, max_side=4)))
def test_any_array(array: np.ndarray) -> None:
    """Of any scalar dtype and shape, as pickle has it."""
    right = pickle.loads(pickle.dumps(array, 5))
    for own in both_ways(pack(array)):
        np.testing.assert_equal(own, right)
        assert own.dtype == right.dtype


def test_names_that_never_come_again_do_not_pile_up() -> None:
    """The layouts that are remembered are few."""
    from tidemill.lanes import column_codec

    for number in range(1_000):
        unpack(pack({f"x{number}": np.zeros(1)}).data)
    assert len(column_codec._layouts) <= 256
