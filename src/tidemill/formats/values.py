"""Python values ↔ bytes, exact in types: what records hold beside plain columns, for files that outlive the process.

The bytes are msgpack. What msgpack has no form for, or would give back as another type, is an extension of ours; what
has none at all is refused. Reading makes nothing but values: no code is named in the bytes, and none runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemill.errors import InputError

__all__ = ["UNREADABLE", "Unkept", "decode_value", "encode_value"]

Ext = msgspec.msgpack.Ext

UNREADABLE: Final = (ValueError, TypeError, OverflowError, ArithmeticError, LookupError, RecursionError, OSError)
"""What reading damaged bytes may raise; `msgspec.DecodeError` is a ValueError."""

_DEEPEST: Final = 400
"""Levels of lists and dicts in one another; a reader deep in calls of its own must still reach the last."""
_EXTENSION_LEVELS: Final = 5
"""An extension within an extension takes as much of the reader's stack as so many lists."""

_INTEGER, _TEXT, _BYTEARRAY, _TUPLE, _SET, _FROZENSET, _PAIRS = range(1, 8)
_DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID, _COMPLEX = range(8, 15)
_SCALAR, _ARRAY, _SCALAR_TEXT, _SCALAR_BYTES = range(15, 19)
# Numbers in files: add, never renumber.

_DTYPE: Final = re.compile(
    r"[<>|](?:b1|[iu][1248]|f(?:2|4|8)|c(?:8|16)|[US][1-9]\d{0,6}|[mM]8(?:\[\d{0,6}[a-zA-Z]{1,2}\])?)"
)
"""The NumPy types that are nothing but their bytes, whatever the machine."""

_LAST_CHARACTER: Final = 0x10FFFF


class Unkept(InputError):
    """A value has no form in a file; ``told`` says what it is, without saying where it was found."""

    def __init__(self, told: str) -> None:
        super().__init__(f"{told}; {REMEDY}")
        self.told = told


REMEDY: Final = "keep such values as numbers, text, bytes, times, lists or dicts before they reach the pipeline, or run without state."


def encode_value(value: Any) -> bytes:
    """The value as bytes. Raises `Unkept`, an `InputError` that names the type, for one that has no form.

    Kept with their types: None, bool, int of any size, float (NaN and infinities to the bit), str (half surrogate pairs
    too), bytes, bytearray, list, tuple, dict with any keys, set, frozenset, datetime, date, time, timedelta, Decimal,
    UUID, complex, and NumPy's scalars and arrays of plain types.

    >>> decode_value(encode_value([2**70, (1, b"x"), {"at": date(2024, 5, 1)}]))
    [1180591620717411303424, (1, b'x'), {'at': datetime.date(2024, 5, 1)}]
    """
    try:
        return _encode(_kept(value, 0))
    except RecursionError:  # the writer is deep in calls itself
        raise Unkept("it is nested too deeply") from None


def decode_value(data: bytes | memoryview) -> Any:
    """The value that was encoded. Raises `InputError` when the bytes are not what `encode_value` makes."""
    try:
        return _decode(data)
    except UNREADABLE as error:
        raise InputError(f"a stored value is damaged: {error}.") from error


_encode: Final = msgspec.msgpack.Encoder().encode


def _decode(data: bytes | memoryview) -> Any:
    return msgspec.msgpack.decode(data, ext_hook=_from_extension)


# -- writing -------------------------------------------------------------------------------------------


def _kept(value: Any, deep: int) -> Any:
    """The value as msgpack can write it; the very object when it is plain already."""
    kind = type(value)
    if kind is float or kind is bool or value is None or kind is bytes:
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**63 else Ext(_INTEGER, _of_integer(value))
    if kind is str:
        return value if value.isascii() else _kept_text(value)
    if deep > _DEEPEST:
        raise Unkept(f"it is nested more than {_DEEPEST} levels deep")
    if kind is list:
        made = []
        for item in value:
            made.append(_kept(item, deep + 1))  # noqa: PERF401 - a comprehension is a level more of the stack
        return made
    if kind is dict:
        return _kept_dict(value, deep)
    writer = _WRITERS.get(kind)
    if writer is None and isinstance(value, np.generic):
        writer = _of_scalar
    if writer is None:
        raise Unkept(f"a value of type {kind.__module__}.{kind.__qualname__} cannot be kept in a file")
    return writer(value, deep + _EXTENSION_LEVELS)


def _kept_text(text: str) -> Any:
    try:
        text.encode()
    except UnicodeEncodeError:
        return Ext(_TEXT, text.encode("utf-8", "surrogatepass"))
    return text


def _kept_dict(value: dict[Any, Any], deep: int) -> Any:
    if not all(type(name) is str and type(_kept_text(name)) is str for name in value):
        flat = [part for pair in value.items() for part in pair]
        return _list_extension(_PAIRS, flat, deep + _EXTENSION_LEVELS)
    made = {}
    for name, item in value.items():
        made[name] = _kept(item, deep + 1)
    return made


def _list_extension(code: int, items: list[Any], deep: int) -> Any:
    return Ext(code, _encode(_kept(items, deep)))


def _of_integer(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)


def _of_zone(zone: tzinfo | None) -> Any:
    if zone is None:
        return None
    if type(zone) is ZoneInfo and zone.key is not None:
        return zone.key
    if type(zone) is timezone:
        offset = zone.utcoffset(None)
        return offset // timedelta(microseconds=1)
    raise Unkept(f"a time in a zone of type {type(zone).__module__}.{type(zone).__qualname__} cannot be kept in a file")


def _of_datetime(value: datetime, deep: int) -> Any:
    parts = [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, _of_zone(value.tzinfo)]
    return _list_extension(_DATETIME, parts, deep)


def _of_time(value: time, deep: int) -> Any:
    return _list_extension(
        _TIME, [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, _of_zone(value.tzinfo)], deep
    )


def _of_scalar(value: Any, deep: int) -> Any:
    if isinstance(value, np.str_):
        return Ext(_SCALAR_TEXT, str.encode(value, "utf-8", "surrogatepass"))
    if isinstance(value, np.bytes_):
        return Ext(_SCALAR_BYTES, bytes(value))
    return _list_extension(_SCALAR, [_dtype_name(value.dtype), value.tobytes()], deep)


def _of_array(value: Any, deep: int) -> Any:
    return _list_extension(_ARRAY, [_dtype_name(value.dtype), list(value.shape), value.tobytes()], deep)


def _dtype_name(dtype: np.dtype[Any]) -> str:
    if _DTYPE.fullmatch(dtype.str) is None or dtype.names is not None:
        raise Unkept(f"a NumPy value of type {dtype} cannot be kept in a file")
    return dtype.str


_WRITERS: Final[dict[type, Callable[[Any, int], Any]]] = {
    bytearray: lambda value, _: Ext(_BYTEARRAY, bytes(value)),
    tuple: lambda value, deep: _list_extension(_TUPLE, list(value), deep),
    set: lambda value, deep: _list_extension(_SET, list(value), deep),
    frozenset: lambda value, deep: _list_extension(_FROZENSET, list(value), deep),
    datetime: _of_datetime,
    date: lambda value, _: Ext(_DATE, value.isoformat().encode()),
    time: _of_time,
    timedelta: lambda value, deep: _list_extension(_TIMEDELTA, [value.days, value.seconds, value.microseconds], deep),
    Decimal: lambda value, _: Ext(_DECIMAL, str(value).encode()),
    UUID: lambda value, _: Ext(_UUID, value.bytes),
    complex: lambda value, deep: _list_extension(_COMPLEX, [value.real, value.imag], deep),
    np.ndarray: _of_array,
}


# -- reading -------------------------------------------------------------------------------------------


def _from_extension(code: int, data: memoryview) -> Any:
    reader = _READERS.get(code)
    if reader is None:
        raise ValueError(f"a value of kind {code} is not known here; a newer tidemill may have written it")
    return reader(bytes(data))


def _list_of(data: bytes) -> list[Any]:
    items = _decode(data)
    if type(items) is not list:
        raise ValueError("a list was expected")
    return items


def _pairs(data: bytes) -> dict[Any, Any]:
    items = _list_of(data)
    return dict(zip(items[::2], items[1::2], strict=True))


def _zone(told: Any) -> tzinfo | None:
    if told is None:
        return None
    return ZoneInfo(told) if isinstance(told, str) else timezone(timedelta(microseconds=told))


def _datetime(data: bytes) -> datetime:
    text, fold, zone = _list_of(data)
    return datetime.fromisoformat(text).replace(tzinfo=_zone(zone), fold=fold)


def _time(data: bytes) -> time:
    text, fold, zone = _list_of(data)
    return time.fromisoformat(text).replace(tzinfo=_zone(zone), fold=fold)


def _scalar(data: bytes) -> Any:
    name, content = _list_of(data)
    return _items(name, content)[:1][0]


def _array(data: bytes) -> Any:
    name, shape, content = _list_of(data)
    if len(shape) > 32 or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("an array's shape is damaged")
    return _items(name, content).reshape(shape).copy()


def _items(name: Any, content: bytes) -> NDArray[Any]:
    """What an array holds, if its bytes can be that."""
    dtype = _dtype(name)
    if not content:
        return np.empty(0, dtype)
    items = np.frombuffer(content, dtype)
    if dtype.kind == "b" and items.view(np.uint8).max() > 1:
        raise ValueError("an array of truth values holds something else")
    if dtype.kind == "U" and items.view(np.dtype(np.uint32).newbyteorder(dtype.byteorder)).max() > _LAST_CHARACTER:
        raise ValueError("an array of texts holds something else")
    return items


def _dtype(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str) or _DTYPE.fullmatch(name) is None:
        raise ValueError("a NumPy type is damaged")
    return np.dtype(name)


_READERS: Final[dict[int, Callable[[bytes], Any]]] = {
    _INTEGER: lambda data: int.from_bytes(data, "little", signed=True),
    _TEXT: lambda data: data.decode("utf-8", "surrogatepass"),
    _BYTEARRAY: bytearray,
    _TUPLE: lambda data: tuple(_list_of(data)),
    _SET: lambda data: set(_list_of(data)),
    _FROZENSET: lambda data: frozenset(_list_of(data)),
    _PAIRS: _pairs,
    _DATETIME: _datetime,
    _DATE: lambda data: date.fromisoformat(data.decode()),
    _TIME: _time,
    _TIMEDELTA: lambda data: timedelta(*_list_of(data)),
    _DECIMAL: lambda data: Decimal(data.decode()),
    _UUID: lambda data: UUID(bytes=data),
    _COMPLEX: lambda data: complex(*_list_of(data)),
    _SCALAR: _scalar,
    _ARRAY: _array,
    _SCALAR_TEXT: lambda data: np.str_(data.decode("utf-8", "surrogatepass")),
    _SCALAR_BYTES: np.bytes_,
}
