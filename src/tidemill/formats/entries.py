"""Entries of the ingest log ↔ bytes: what came from a source, or was decided outside, in its place in the input.

    start    <form, version, length of the head> (struct), the head (msgpack)
    buffers  columns as they lie in memory, tables of texts, nested values; each at a multiple of 8 bytes

The bytes may hold what the network sent, and may be damaged: nothing in them is run, every length is compared with what
is there before memory is taken, and codes are looked at before anybody counts on them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import ABSENT_TAG, DTYPES, INTEGER_TAG, Column
from tidemill.errors import InputError
from tidemill.formats.stored_letters import decoded_letters, encoded_letters
from tidemill.formats.stored_texts import TextsBothWays, encoded_texts
from tidemill.formats.values import REMEDY, UNREADABLE, Unkept, decode_value, encode_value
from tidemill.letters import WRONG_TYPE, DeadLetter, Reject
from tidemill.orders import Orders
from tidemill.schema import KINDS, Kind

__all__ = ["ControlEntry", "RecordsEntry", "decode_entry", "encode_entry", "find_unkept"]

_START: Final = struct.Struct("<BBxxI")
_RECORDS: Final = 1
_CONTROL: Final = 2
_VERSION: Final = 1
_ALIGN: Final = 8
_NONE: Final = -1
_FEW_TEXTS: Final = 64
"""A table so small is written whole: what of it is used need not be found out."""
_STORED: Final[dict[Kind, np.dtype[Any]]] = {
    kind: dtype.newbyteorder("<") for kind, dtype in DTYPES.items() if kind is not Kind.OBJECT
}
_BYTE: Final = np.dtype(np.uint8)
_INT32: Final = np.dtype("<i4")
_INT64: Final = np.dtype("<i8")


@dataclass(frozen=True)
class RecordsEntry:
    """What one read of a source gave."""

    source: str
    batch: Batch
    letters: tuple[DeadLetter, ...]
    """What it rejected; in input order they come before the batch's records."""
    wall_ns: int
    """When it came, by the wall clock."""
    offset: Any = None
    """Where the source stood behind it, JSON-like; None of one that cannot seek."""


@dataclass(frozen=True)
class ControlEntry:
    """What was decided outside of the records: a tick, a changed table, the end of the input."""

    what: str
    value: Any
    """Anything that `tidemill.formats.values` keeps."""


class _ColumnHead(msgspec.Struct, array_like=True, frozen=True):
    name: bytes
    kind: str
    tagged: bool = False
    data_bytes: int = _NONE
    """Of its table of texts, or of its nested values."""
    exact_bytes: int = _NONE


class _RecordsHead(msgspec.Struct, array_like=True, frozen=True):
    source: bytes
    wall_ns: int
    rows: int
    columns: list[_ColumnHead]
    key: _ColumnHead | bytes | None
    """A column of its own, or the name of one of the columns."""
    time: bool | bytes
    """Whether the times are there, or the name of the column that holds the same."""
    orders: list[list[bytes]] | None
    letters_bytes: int
    offset: bytes = b""


_encode_head: Final = msgspec.msgpack.Encoder().encode
_decode_head: Final = msgspec.msgpack.Decoder(_RecordsHead).decode
_tables: Final = TextsBothWays()


# -- writing -------------------------------------------------------------------------------------------


def encode_entry(entry: RecordsEntry | ControlEntry) -> list[bytes]:
    """The entry as parts to be written one after another; each array is copied once.

    Raises `InputError` naming field and type when a record holds a value that no file can keep. What a dead letter holds of
    that sort is written as the text that the dead-letters file would show. A record's own dict is not kept: its columns
    give it back.

    >>> batch = Batch.from_rows([{"sensor": "S1", "value": 20}])
    >>> entry = decode_entry(b"".join(encode_entry(RecordsEntry("plant", batch, (), 0))))
    >>> entry.source, entry.batch.to_rows()
    ('plant', [{'sensor': 'S1', 'value': 20}])
    """
    if isinstance(entry, ControlEntry):
        try:
            data = encode_value([entry.what, entry.value])
        except Unkept as error:
            raise InputError(f"the control record {entry.what!r} cannot be written to the log: {error}") from None
        return [_START.pack(_CONTROL, _VERSION, len(data)), data]
    return _Writer(entry).parts


class _Writer:
    """Puts the parts of one entry together."""

    def __init__(self, entry: RecordsEntry) -> None:
        self._source = entry.source
        self._buffers: list[bytes] = []
        batch = entry.batch
        columns = [self._column(name, column) for name, column in batch.columns.items()]
        key = self._key(batch)
        time = self._time(batch)
        orders = None
        if batch.orders is not None:
            self._array(batch.orders[0], _INT32)
            orders = [list(map(_bytes_of, order)) for order in batch.orders[1]]
        if not columns and key is None and time is False and orders is None:
            self._buffers.append(bytes(len(batch)))  # records of no field at all: a byte each, to be counted
        letters = encoded_letters(entry.letters)
        self._buffers.append(letters)
        head = _encode_head(
            _RecordsHead(
                _bytes_of(entry.source),
                entry.wall_ns,
                len(batch),
                columns,
                key,
                time,
                orders,
                len(letters),
                _offset_of(entry),
            )
        )
        self.parts = [_START.pack(_RECORDS, _VERSION, len(head)), head, *self._padded(_START.size + len(head))]

    def _padded(self, at: int) -> list[bytes]:
        parts = []
        for buffer in self._buffers:
            if gap := -at % _ALIGN:
                parts.append(bytes(gap))
            parts.append(buffer)
            at += gap + len(buffer)
        return parts

    def _array(self, array: NDArray[Any], dtype: np.dtype[Any]) -> None:
        self._buffers.append(np.asarray(array, dtype).tobytes())

    def _column(self, name: str, column: Column) -> _ColumnHead:
        data = exact = None
        if column.kind is Kind.OBJECT:
            data = self._values(name, column.values.tolist())
        else:
            if column.kind is Kind.TEXT:
                used = _with_used_texts(column)
                assert used.texts is not None
                data = _tables.encoded(used.texts) if used is column else encoded_texts(used.texts.tolist())
                column = used
            self._array(column.values, _STORED[column.kind])
        if column.tags is not None:
            self._array(column.tags, _BYTE)
        if data is not None:
            self._buffers.append(data)
        if column.exact:
            exact = self._values(name, column.exact)
            self._buffers.append(exact)
        return _ColumnHead(_bytes_of(name), column.kind.value, column.tags is not None, _size(data), _size(exact))

    def _values(self, name: str, values: Any) -> bytes:
        try:
            return encode_value(values)
        except Unkept as error:
            where = f"source {self._source}: " if self._source else ""
            raise InputError(
                f"{where}field {name!r} of a record cannot be written to the log: {error.told}; {REMEDY}"
            ) from None

    def _key(self, batch: Batch) -> _ColumnHead | bytes | None:
        key = batch.key_column
        if key is None:
            return None
        for name, column in batch.columns.items():
            same = column.texts is key.texts and column.kind is Kind.TEXT and key.tags is None
            if same and (column.values is key.values or np.array_equal(column.values, key.values)):
                return _bytes_of(name)
        return self._column("", key)

    def _time(self, batch: Batch) -> bool | bytes:
        if batch.time_ns is None:
            return False
        for name, column in batch.columns.items():
            if column.kind is Kind.TIME and np.array_equal(column.values, batch.time_ns):
                return _bytes_of(name)
        self._array(batch.time_ns, _INT64)
        return True


def _offset_of(entry: RecordsEntry) -> bytes:
    return b"" if entry.offset is None else msgspec.json.encode(entry.offset)


def _size(data: bytes | None) -> int:
    return _NONE if data is None else len(data)


def _bytes_of(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _with_used_texts(column: Column) -> Column:
    """The column with the texts it uses only, when these are fewer than half: its table is its source's, and grows."""
    texts = column.texts
    assert texts is not None
    if len(texts) <= _FEW_TEXTS and len(texts) <= 2 * len(column):
        return column
    used = np.zeros(len(texts) + 1, np.bool_)
    used[column.values] = True  # code -1, for no text, marks the last place
    used[-1] = False
    if 2 * int(np.count_nonzero(used)) >= len(texts):
        return column
    kept = np.flatnonzero(used)
    codes = np.full(len(used), -1, np.int32)
    codes[kept] = np.arange(len(kept), dtype=np.int32)
    return Column(column.kind, codes[column.values], tags=column.tags, texts=texts[kept], exact=column.exact)


def find_unkept(batch: Batch) -> list[Reject]:
    """The records that hold a value that no file can keep, with which field and why."""
    rejects: dict[int, Reject] = {}
    for name, column in batch.columns.items():
        if column.kind is not Kind.OBJECT:
            continue
        items = column.values.tolist()
        if _why_unkept(items) is None:
            continue
        for row, item in enumerate(items):
            if (why := _why_unkept(item)) is not None:
                rejects.setdefault(row, Reject(row, WRONG_TYPE, f"field {name!r} cannot be written to the log: {why}"))
    return [rejects[row] for row in sorted(rejects)]


def _why_unkept(value: Any) -> str | None:
    try:
        encode_value(value)
    except Unkept as error:
        return error.told
    return None


# -- reading -------------------------------------------------------------------------------------------


def decode_entry(data: bytes | memoryview) -> RecordsEntry | ControlEntry:
    """The entry that was encoded; the batch's arrays are read-only views of ``data``.

    Its ``arrived_ns`` is 0: a monotonic time means nothing to the next process. Raises `InputError` for bytes that are no
    entry, and for those of a newer tidemill.
    """
    try:
        form, version, size = _START.unpack_from(data)
        if version > _VERSION:
            raise InputError(
                f"a log entry has format version {version}, and this tidemill reads up to {_VERSION}; "
                f"use the tidemill that wrote it, or a newer one."
            )
        end = _START.size + size
        if form == _RECORDS and version and end <= len(data):
            return _Reader(data, end).entry()
        if form == _CONTROL and version and end == len(data):
            what, value = decode_value(memoryview(data)[_START.size :])
            if type(what) is str:
                return ControlEntry(what, value)
    except (*UNREADABLE, struct.error) as error:
        raise InputError(f"a log entry is damaged: {error}.") from error
    raise InputError("a log entry is damaged: it is none that tidemill writes.")


class _Reader:
    """Takes an entry of records apart, from the front."""

    def __init__(self, data: bytes | memoryview, at: int) -> None:
        self._head = _decode_head(memoryview(data)[_START.size : at])
        self._rows = self._head.rows
        if self._rows < 0:
            raise ValueError("it holds less than no records")
        memory = np.frombuffer(data, np.uint8)
        if memory.__array_interface__["data"][0] % _ALIGN:
            memory = memory.copy()  # kernels are compiled for arrays that lie where they should
        self._memory = memory
        self._at = at

    def entry(self) -> RecordsEntry:
        head = self._head
        columns = {_text(column.name): self._column(column) for column in head.columns}
        if len(columns) < len(head.columns):
            raise ValueError("two columns have one name")
        batch = Batch(columns, rows=self._rows)
        batch.key_column = self._key(columns)
        batch.time_ns = self._time(columns)
        batch.orders = self._orders()
        if not columns and batch.key_column is None and batch.time_ns is None and batch.orders is None:
            self._take(self._rows)
        letters = self._letters()
        if self._at != len(self._memory):
            raise ValueError("it goes on behind its end")
        offset = msgspec.json.decode(head.offset) if head.offset else None
        return RecordsEntry(_text(head.source), batch, letters, head.wall_ns, offset)

    def _take(self, size: int) -> NDArray[np.uint8]:
        at = -(-self._at // _ALIGN) * _ALIGN
        self._at = at + size
        if size < 0 or self._at > len(self._memory):
            raise ValueError("it ends early")
        return self._memory[at : self._at]

    def _array(self, dtype: np.dtype[Any], low: int | None = None, high: int = 0) -> NDArray[Any]:
        """A value for each record; where it is a code, from ``low`` to ``high``."""
        array = self._take(self._rows * dtype.itemsize).view(dtype)
        if low is not None and len(array) and not low <= int(array.min()) <= int(array.max()) <= high:
            raise ValueError("a code means nothing")
        return array

    def _column(self, head: _ColumnHead) -> Column:
        kind = KINDS[head.kind]
        values = texts = exact = None
        if kind is Kind.BOOL:
            values = self._array(_BYTE, 0, 1).view(np.bool_)
        elif kind is not Kind.OBJECT:
            values = self._array(_STORED[kind])
        tags = self._array(_BYTE, 0, INTEGER_TAG if kind is Kind.FLOAT else ABSENT_TAG) if head.tagged else None
        if kind is Kind.OBJECT:
            items = decode_value(self._take(head.data_bytes).data)
            if type(items) is not list or len(items) != self._rows:
                raise ValueError("a column has too few values, or too many")
            values = np.fromiter(items, object, len(items))
        elif kind is Kind.TEXT:
            assert values is not None
            texts = _tables.decoded(self._take(head.data_bytes).tobytes())
            if len(values) and not -1 <= int(values.min()) <= int(values.max()) < len(texts):
                raise ValueError("a code of a text means nothing")
        if head.exact_bytes != _NONE:
            exact = self._exact(head.exact_bytes)
        assert values is not None
        return Column(kind, values, tags=tags, texts=texts, exact=exact)

    def _exact(self, size: int) -> dict[int, Any]:
        exact = decode_value(self._take(size).data)
        if type(exact) is not dict or not all(type(row) is int and 0 <= row < self._rows for row in exact):
            raise ValueError("exact values have no place")
        return exact

    def _key(self, columns: dict[str, Column]) -> Column | None:
        head = self._head.key
        if not isinstance(head, bytes):
            key = None if head is None else self._column(head)
        else:
            same = columns[_text(head)]
            key = Column(same.kind, same.values, texts=same.texts)
        if key is not None and key.kind is not Kind.TEXT:
            raise ValueError("the sensors have no names")
        return key

    def _time(self, columns: dict[str, Column]) -> NDArray[np.int64] | None:
        told = self._head.time
        if not isinstance(told, bytes):
            return self._array(_INT64) if told else None
        same = columns[_text(told)]
        if same.kind is not Kind.TIME:
            raise ValueError("the times are none")
        return same.values

    def _orders(self) -> Orders | None:
        orders = self._head.orders
        if orders is None:
            return None
        ids = self._array(_INT32, 0, len(orders) - 1)
        return ids, tuple(tuple(map(_text, order)) for order in orders)

    def _letters(self) -> tuple[DeadLetter, ...]:
        return decoded_letters(self._take(self._head.letters_bytes).data)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
