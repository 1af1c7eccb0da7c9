"""Batch ↔ shared memory: columns laid one after another in a buffer, and a small description of what lies where.

What crosses a process boundary is the description (a few hundred bytes on a socket); the columns are written once
into memory that both sides map, and read there as views. Only OBJECT columns and exact integers are pickled, by us
and for us: the bytes never leave our own processes. Values of a script's own classes go by value (`tidemill.by_value`), and
one that cannot be read where it arrives is told of, and is None.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache, partial
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.by_value import dumps
from tidemill.column import DTYPES, Column, exact_at
from tidemill.errors import InputError
from tidemill.formats.unread import loads_items
from tidemill.schema import KINDS, Kind

__all__ = [
    "Full",
    "Packed",
    "PackedColumn",
    "Packer",
    "Pick",
    "TextTables",
    "Unpacker",
    "compact_texts",
    "decoded_texts",
    "packed_bytes",
]

_ALIGN = 64  # bytes; a cache line, so that two lanes never write to one line of two columns
_NONE = -1
_LARGE_TEXTS: Final = 32_768
_LARGE_BYTES: Final = 128 << 10
"""Beyond either, a table of texts is large: it is not remembered, and a small part of it is packed as a part."""


Pick = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
"""``column[rows]``, copied."""


class Full(Exception):
    """The buffer has no room for this; pack fewer rows."""


class PackedColumn(msgspec.Struct, array_like=True, frozen=True):
    """Where one column lies; offsets in bytes, -1 for "not there".

    A column of which nothing is there was left out: it keeps its place among the others and reads as absent.
    """

    name: str
    kind: str
    at: int = _NONE
    tags_at: int = _NONE
    texts_at: int = _NONE
    texts_bytes: int = 0
    exact_at: int = _NONE
    exact_bytes: int = 0


class Packed(msgspec.Struct, array_like=True, frozen=True):
    """Where a batch lies."""

    rows: int
    columns: list[PackedColumn]
    key: PackedColumn | None = None
    time_at: int = _NONE
    orders_at: int = _NONE
    orders: list[list[str]] | None = None


class TextTables:
    """The bytes of the small tables of texts that come again with every batch of a source; packers may share one."""

    MOST: Final = 64

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, bytes]] = {}

    @property
    def held(self) -> int:
        """Bytes that are held; at most 64 tables of 128 kB, whatever came."""
        return sum(len(data) for _, data in self._known.values())

    def get(self, texts: Any) -> bytes | None:
        """The table's bytes, if they are remembered."""
        known = self._known.pop(id(texts), None)
        if known is None:
            return None
        self._known[id(texts)] = known  # used last, forgotten last
        return known[1]

    def encode(self, texts: Any) -> bytes:
        """The table's bytes; remembered when they are few."""
        data = _encoded(texts.tolist())
        if len(data) <= _LARGE_BYTES:
            if len(self._known) >= self.MOST:
                del self._known[next(iter(self._known))]
            self._known[id(texts)] = (texts, data)
        return data


class Packer:
    """Writes batches into one buffer, from the front."""

    def __init__(self, buffer: Any, tables: TextTables | None = None) -> None:
        self._buffer = buffer
        self._size = len(buffer)
        self._at = 0
        self._tables = tables if tables is not None else TextTables()

    @property
    def used(self) -> int:
        """Bytes written since `rewind`."""
        return self._at

    def rewind(self) -> None:
        """Start again at the front."""
        self._at = 0

    def reserve(self, size: int) -> int:
        """Room for ``size`` bytes, aligned; returns its offset. Raises `Full`."""
        at = -(-self._at // _ALIGN) * _ALIGN
        if at + size > self._size:
            raise Full
        self._at = at + size
        return at

    def room(self, dtype: np.dtype[Any], count: int) -> tuple[int, NDArray[Any]]:
        """Room for an array to be filled: its offset, and the array."""
        at = self.reserve(dtype.itemsize * count)
        return at, np.frombuffer(self._buffer, dtype, count, at)

    def array(self, array: NDArray[Any]) -> int:
        """Copy a 1-D array in; returns its offset."""
        at, room = self.room(array.dtype, len(array))
        room[:] = array
        return at

    def blob(self, data: bytes) -> int:
        """Copy bytes in; returns their offset."""
        at = self.reserve(len(data))
        self._buffer[at : at + len(data)] = data
        return at

    def batch(
        self,
        batch: Batch,
        names: Iterable[str] | None = None,
        *,
        key: bool = False,
        reads: Collection[str] | None = None,
    ) -> Packed:
        """Copy a batch in (these columns, or all), with its time, and with its key when asked.

        ``reads`` are the columns that anybody will look into: the others keep their places and are not copied.
        """
        chosen = batch.columns if names is None else {n: batch.columns[n] for n in names if n in batch.columns}
        columns = [
            self.column(name, column) if reads is None or name in reads else PackedColumn(name, column.kind.value)
            for name, column in chosen.items()
        ]
        key_column = self.column("", batch.key_column) if key and batch.key_column is not None else None
        time_at = _NONE if batch.time_ns is None else self.array(batch.time_ns)
        if batch.orders is None:
            return Packed(len(batch), columns, key_column, time_at)
        ids, orders = batch.orders
        return Packed(len(batch), columns, key_column, time_at, self.array(ids), [list(order) for order in orders])

    def column(self, name: str, column: Column) -> PackedColumn:
        """Copy one column in."""
        if column.kind is Kind.OBJECT:
            data = _pickled(name, column)
            tags_at = _NONE if column.tags is None else self.array(column.tags)
            return PackedColumn(name, "object", _NONE, tags_at, self.blob(data), len(data))
        texts = exact = b""
        if column.kind is Kind.TEXT:
            known = self._tables.get(column.texts)
            if known is None:
                column = compact_texts(column)
                known = self._tables.encode(column.texts)
            texts = known
        at = self.array(np.asarray(column.values, DTYPES[column.kind]))
        tags_at = _NONE if column.tags is None else self.array(column.tags)
        if column.exact:
            exact = dumps(column.exact)
        return PackedColumn(
            name,
            column.kind.value,
            at,
            tags_at,
            self.blob(texts) if column.kind is Kind.TEXT else _NONE,
            len(texts),
            self.blob(exact) if exact else _NONE,
            len(exact),
        )


class _Chosen(Column):
    """Some rows of a column, copied only when somebody looks: most functions look at few columns."""

    __slots__ = ("_copied", "_pick", "_rows", "_whole")

    def __init__(
        self, kind: Kind, whole: NDArray[Any], rows: NDArray[Any], texts: NDArray[np.object_] | None, pick: Pick
    ) -> None:
        self.kind, self.texts, self.tags, self.exact = kind, texts, None, None
        self._whole, self._rows, self._pick = whole, rows, pick
        self._copied: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def values(self) -> NDArray[Any]:  # type: ignore[override] # made at the first look
        if self._copied is None:
            self._copied = self._pick(self._whole, self._rows)
        return self._copied

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Column, texts=self.texts), (self.kind, self.values)


class Unpacker:
    """Reads batches from one buffer; keeps decoded texts, which mostly repeat from slab to slab.

    ``pick`` copies the rows that are wanted out of a column, when somebody looks at it.
    """

    def __init__(self, pick: Pick = np.ndarray.take) -> None:
        self._pick = pick
        self._texts: dict[str, tuple[bytes, NDArray[np.object_]]] = {}
        self._unread: dict[int, str] = {}

    def taken_unread(self) -> dict[int, str]:
        """The packed rows with a value that could not be read since this was last asked, and the reason of each."""
        unread, self._unread = self._unread, {}
        return unread

    def batch(self, packed: Packed, buffer: Any, rows: NDArray[Any] | None = None) -> Batch:
        """The batch, as views into ``buffer``, or copied when only ``rows`` of it are wanted."""
        count = packed.rows if rows is None else len(rows)
        columns = {column.name: self.column(column, buffer, packed.rows, rows) for column in packed.columns}
        key = None if packed.key is None else self.column(packed.key, buffer, packed.rows, rows)
        time = None
        if packed.time_at != _NONE:
            time = _view(buffer, np.dtype(np.int64), packed.rows, packed.time_at, rows)
        batch = Batch(columns, rows=count, key=key, time=time)
        if packed.orders is not None:
            ids = _view(buffer, np.dtype(np.int32), packed.rows, packed.orders_at, rows)
            batch.orders = (ids, tuple(tuple(order) for order in packed.orders))
        return batch

    def column(self, packed: PackedColumn, buffer: Any, count: int, rows: NDArray[Any] | None = None) -> Column:
        """One column of ``count`` packed rows, or those of them that are wanted."""
        kind = KINDS[packed.kind]
        if packed.at == _NONE and packed.texts_at == _NONE:
            return _left_out(kind, count if rows is None else len(rows))
        tags = None
        if packed.tags_at != _NONE:
            tags = _view(buffer, np.dtype(np.uint8), count, packed.tags_at, rows)
        if kind is Kind.OBJECT:
            items, unread = loads_items(buffer[packed.texts_at : packed.texts_at + packed.texts_bytes], count)
            for row, why in unread.items():
                self._unread[row] = f"field {packed.name!r} holds a value that another process cannot read: {why}"
            values = np.fromiter(items, object, count)
            return Column(kind, values if rows is None else values[rows], tags=tags)
        texts = self._unpacked_texts(packed, buffer)
        if rows is not None and tags is None and packed.exact_at == _NONE:
            return _Chosen(kind, _view(buffer, DTYPES[kind], count, packed.at, None), rows, texts, self._pick)
        values = _view(buffer, DTYPES[kind], count, packed.at, rows)
        return Column(kind, values, tags=tags, texts=texts, exact=self._exact(packed, buffer, rows))

    def _exact(self, packed: PackedColumn, buffer: Any, rows: NDArray[Any] | None) -> dict[int, Any] | None:
        if packed.exact_at == _NONE:
            return None
        data = buffer[packed.exact_at : packed.exact_at + packed.exact_bytes]
        exact: dict[int, Any] = pickle.loads(data)  # noqa: S301 - our own bytes
        return exact if rows is None else exact_at(exact, rows)

    def _unpacked_texts(self, packed: PackedColumn, buffer: Any) -> NDArray[np.object_] | None:
        if packed.texts_at == _NONE:
            return None
        data = bytes(buffer[packed.texts_at : packed.texts_at + packed.texts_bytes])
        known = self._texts.get(packed.name)
        if known is not None and known[0] == data:
            return known[1]
        texts = decoded_texts(data)
        table = np.fromiter(texts, object, len(texts))
        self._texts[packed.name] = (data, table)
        return table


def _pickled(name: str, column: Column) -> bytes:
    try:
        return dumps(column.values.tolist())
    except Exception as error:
        raise InputError(
            f"column {name!r} holds values that cannot be sent to another process: {type(error).__name__}: {error}"
        ) from error


def compact_texts(column: Column) -> Column:
    """The column with only the texts it uses, when they are few of many: a slice shares the table of the whole."""
    texts = column.texts
    assert texts is not None
    if len(texts) <= 2 * len(column) or not _is_large(texts):
        return column
    used = np.zeros(len(texts) + 1, np.bool_)
    used[column.values] = True  # code -1, for no text, marks the last place
    used[-1] = False
    kept = np.flatnonzero(used)
    codes = np.full(len(used), -1, np.int32)
    codes[kept] = np.arange(len(kept), dtype=np.int32)
    return Column(column.kind, codes[column.values], tags=column.tags, texts=texts[kept], exact=column.exact)


def _is_large(texts: NDArray[np.object_]) -> bool:
    if len(texts) > _LARGE_TEXTS:
        return True
    total = 0
    for start in range(0, len(texts), 256):
        total += sum(map(len, texts[start : start + 256]))
        if total > _LARGE_BYTES:
            return True
    return False


def _encoded(texts: list[str]) -> bytes:
    try:
        return msgspec.msgpack.encode(texts)
    except UnicodeEncodeError:  # half of a surrogate pair, which Python's text may hold and UTF-8 may not
        return pickle.dumps(texts, pickle.HIGHEST_PROTOCOL)


def decoded_texts(data: bytes) -> list[str]:
    if data.startswith(pickle.PROTO):  # as msgpack, an empty map
        texts: list[str] = pickle.loads(data)  # noqa: S301 - our own bytes
        return texts
    return msgspec.msgpack.decode(data, type=list[str])


def _left_out(kind: Kind, rows: int) -> Column:
    """A column in which every row is absent, in the memory of one row."""
    alike = _absent(kind, rows)
    return Column(kind, alike.values, tags=alike.tags, texts=alike.texts)


@lru_cache(maxsize=16)
def _absent(kind: Kind, rows: int) -> Column:
    """One for all such columns of a batch, of which there may be thousands: nobody can write to its arrays."""
    one = Column.missing(kind, 1)
    assert one.tags is not None
    return Column(kind, np.broadcast_to(one.values, rows), tags=np.broadcast_to(one.tags, rows), texts=one.texts)


def _view(buffer: Any, dtype: np.dtype[Any], count: int, at: int, rows: NDArray[Any] | None) -> NDArray[Any]:
    whole = np.frombuffer(buffer, dtype, count, at)
    return whole if rows is None else whole.take(rows)


def packed_bytes(columns: Mapping[str, Column]) -> int:
    """An upper bound of the bytes that packing these columns takes."""
    total = 0
    for column in columns.values():
        total += len(column) * (DTYPES[column.kind].itemsize + 1) + 4 * _ALIGN
        if column.kind is Kind.TEXT and column.texts is not None:
            texts = compact_texts(column).texts
            assert texts is not None
            total += sum(4 * len(text) + 8 for text in texts.tolist())
        elif column.kind is Kind.OBJECT:
            total += len(dumps(column.values.tolist()))
        if column.exact:
            total += len(dumps(column.exact))
    return total
