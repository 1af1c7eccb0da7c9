"""Values in files: every type that is kept comes back as that type, and every other is refused by name."""

import datetime as dt
import enum
import re
import tracemalloc
from decimal import Decimal
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.errors import InputError
from tidemill.formats.values import Unkept, decode_value, encode_value

_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**80), 2**80)
    | st.floats()
    | st.text()
    | st.text(st.characters(categories=["Cs", "L"]))
    | st.binary()
    | st.binary().map(bytearray)
    | st.datetimes(timezones=st.none() | st.just(dt.UTC) | st.timezones())
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals()
    | st.uuids()
    | st.complex_numbers()
)
_keys = st.integers() | st.text(max_size=3) | st.tuples(st.booleans(), st.text(max_size=1))
_values = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(_keys, inner, max_size=3)
        | st.sets(_keys, max_size=3)
        | st.frozensets(_keys, max_size=3)
    ),
    max_leaves=8,
)


def told(value):
    """Types and values all the way down."""
    kind = type(value).__name__
    if isinstance(value, (list, tuple)):
        return kind, [told(item) for item in value]
    if isinstance(value, dict):
        return kind, [(told(name), told(item)) for name, item in value.items()]
    if isinstance(value, (set, frozenset)):
        return kind, sorted(repr(told(item)) for item in value)
    if isinstance(value, (dt.datetime, dt.time)):
        return kind, value.isoformat(), value.fold, str(value.tzinfo)
    return kind, repr(value)


@given(_values)
def test_values_come_back(value):
    """With their types, to the bit."""
    assert told(decode_value(encode_value(value))) == told(value)


@pytest.mark.parametrize(
    "value",
    [
        np.float32(0.1),
        np.float16(1),
        np.int8(-5),
        np.uint64(2**64 - 1),
        np.bool_(True),
        np.complex64(1 + 2j),
        np.datetime64("2024-05-01T00:00:00.000000001"),
        np.timedelta64(5, "h"),
        np.datetime64("NaT", "ns"),
        np.str_(""),
        np.str_("ü"),
        np.bytes_(b"x\0"),
        np.arange(6).reshape(2, 3),
        np.zeros((0, 3), np.float32),
        np.array(5.0),
        np.array(["a", "bcd"]),
        np.array([b"a", b""]),
        np.array([True, False])[::-1],
        np.arange(4, dtype=">i2"),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        float("nan"),
        float("-inf"),
        10**400,
        -(2**63),
        -(2**63) - 1,
        2**64,
        dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
        dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30))),
        Decimal("1.10"),
        UUID(int=5),
    ],
    ids=repr,
)
def test_numpy_and_the_edges_of_types(value):
    """Scalars and arrays keep their types and shapes."""
    made = decode_value(encode_value([value]))[0]
    assert type(made) is type(value)
    assert repr(made) == repr(value)
    assert getattr(made, "dtype", None) == getattr(value, "dtype", None)
    assert getattr(made, "shape", None) == getattr(value, "shape", None)


class Colour(enum.IntEnum):
    """Looks like an int, and is none."""

    RED = 1


class Name(str):
    """Looks like a text, and is none."""

    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Colour.RED, "test_values.Colour"),
        ({"a": [Name("x")]}, "test_values.Name"),
        ({Name("x"): 1}, "test_values.Name"),
        (object(), "builtins.object"),
        (print, "builtin_function"),
        (np.array([object()]), "NumPy value of type object"),
        (np.zeros(2, [("a", int)]), "NumPy value of type"),
        (np.longdouble(1), "NumPy value of type"),
        (np.ma.masked_array([1]), "MaskedArray"),
    ],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", repr(value)),
)
def test_other_types_are_refused_by_name(value, words):
    """What would come back as something else is not kept at all."""
    with pytest.raises(Unkept, match=words):
        encode_value([value])


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"a": v}, lambda v: (v,), lambda v: {1: v}])
def test_deep_values_are_read_or_refused_at_once(wrap):
    """What can be written can be read, also by one who is deep in calls; the rest is refused, and in no more time."""
    value = None
    deepest = 0
    for level in range(1, 1200):
        value = wrap(value)
        try:
            data = encode_value(value)
        except Unkept:
            break
        deepest = level
    assert 60 < deepest < 450

    def deep_in_calls(levels):
        return decode_value(data) if not levels else deep_in_calls(levels - 1)

    made = deep_in_calls(150)
    for _ in range(deepest):
        made = next(iter(made.values())) if isinstance(made, dict) else made[0]
    assert made is None


@given(st.binary(max_size=80))
def test_any_bytes_are_survived(data):
    """A value, or an error of ours."""
    for start in (b"", *(bytes([0xC7, len(data), code]) for code in range(1, 20))):
        try:
            decode_value(start + data)
        except InputError:
            continue


def test_reading_takes_no_more_memory_than_is_there():
    """An array that promises more than its bytes is refused."""
    good = encode_value(np.arange(4))
    assert good.count(b"\x91\x04") == 1
    for shape in (b"\x91\x7f", b"\x91\x00", b"\x91\xff"):
        with pytest.raises(InputError, match="damaged"):
            decode_value(good.replace(b"\x91\x04", shape))
    tracemalloc.start()
    try:
        for promise in (
            b"\xdd\x00\xff\xff\xff",
            b"\xdf\x00\xff\xff\xff",
            b"\xc6\x00\xff\xff\xff",
            b"\xc9\x00\xff\xff\xff\x04",
        ):
            for data in (promise, promise + bytes(10), b"\x91" * 50 + promise, b"\xc7\x06\x04" + promise):
                with pytest.raises(InputError, match="damaged"):
                    decode_value(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("value", "there", "instead"),
    [
        (np.array([True]), b"\xc4\x01\x01", b"\xc4\x01\x02"),
        (np.bool_(True), b"\xc4\x01\x01", b"\xc4\x01\x02"),
        (np.array(["a"]), b"a\0\0\0", b"a\0\0\1"),
        (np.array(["a"]), b"<U1", b">U1"),
        (np.array([1]), b"<i8", b"|O8"),
        (np.array([1]), b"<i8", b"|V8"),
        (dt.date(2024, 1, 1), b"2024", b"2\xff24"),
        (dt.datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")), b"Europe/Berlin", b"../../etc/hos"),
        (dt.datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")), b"Europe/Berlin", b"Europe/Merlin"),
        (Decimal("1.5"), b"1.5", b"1.x"),
        ({1: 2}, b"\x92\x01\x02", b"\x92\x90\x02"),
        ({(1,)}, b"\x91\x01", b"\x91\x80"),
    ],
    ids=repr,
)
def test_what_is_no_such_value_is_refused(value, there, instead):
    """Also where the lengths are right."""
    good = encode_value(value)
    assert good.count(there) == 1
    with pytest.raises(InputError, match="damaged"):
        decode_value(good.replace(there, instead))
