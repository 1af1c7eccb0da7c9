"""Dicts of 1-D arrays, and batches, as a short head and their arrays: a tenth of the time that pickle takes for them.

    head    <form, counts, length of the layout> (struct), the layout (msgpack), counts: the items of each array (int64)
    buffers the arrays, as they lie in memory

The layout, names and kinds, comes again with every call; both sides look it up by its bytes or its parts. What is not
exactly of these types, or of other dtypes than plain numbers and times, is for pickle.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.formats.packed import TextTables, decoded_texts
from tidemill.lanes.memory import aligned
from tidemill.schema import Kind

__all__ = ["NUMBERS", "ColumnReader", "Columns", "columns_of"]

_HEAD: Final = struct.Struct("<BHI")
_DICT: Final = 0
_BATCH: Final = 1
_MOST_LAYOUTS: Final = 256
"""Remembered; then all are forgotten: names that never come again must not pile up."""
NUMBERS: Final = {np.dtype(code): code for code in ("?", *"bBhHiIqQlLefdFD")}  # of two names of a type, the last
"""The types of plain numbers, in this machine's order of bytes, and the letters that NumPy knows them by."""
_BYTE: Final = np.dtype(np.uint8)
_INT64: Final = np.dtype(np.int64)
_counts: Final = [struct.Struct(f"<{number}q") for number in range(65)]

Buffer = NDArray[Any] | bytes
Columns = tuple[bytes, list[Buffer]]
"""A head, and its buffers."""

_Known = tuple[bytes, Callable[..., bytes], list[int]]
"""How a head begins, what packs the counts that end it, and which of the arrays are of times, which are no buffers."""

_layouts: dict[tuple[Any, ...], _Known] = {}
"""By names, dtypes and which arrays are fixed; of a batch, by what is said of its columns."""
_tables = TextTables()


def columns_of(value: Any) -> Columns | None:
    """The head and the buffers of a dict of arrays or a `Batch`; None for anything else."""
    if type(value) is dict:
        return _of_dict(value)
    if type(value) is Batch:
        return _of_batch(value)
    return None


def _of_dict(columns: dict[Any, Any]) -> Columns | None:
    arrays = list(columns.values())
    dtypes = []
    fixed = 0  # a bit for each that may not be written to
    for number, array in enumerate(arrays):
        if type(array) is not np.ndarray or array.ndim != 1:
            return None
        dtypes.append(array.dtype)
        if not array.flags.writeable:
            fixed |= 1 << number
    if not arrays or len(set(map(id, arrays))) < len(arrays):  # what is written to one is to be read of the other
        return None
    names = tuple(columns)
    key = (fixed, names, *dtypes)
    known = _layouts.get(key) or _of_arrays(key, names, dtypes, fixed)
    if known is None:
        return None
    begin, counts, times = known
    for number in times:
        arrays[number] = arrays[number].view(_INT64)
    return begin + counts(*map(len, arrays)), arrays


def _of_arrays(key: Any, names: tuple[Any, ...], dtypes: Sequence[np.dtype[Any]], fixed: int) -> _Known | None:
    codes = [_code(dtype) for dtype in dtypes]
    if None in codes or not all(type(name) is str for name in names):
        return None
    times = [number for number, dtype in enumerate(dtypes) if dtype.kind in "mM"]
    return _remembered(key, _DICT, [names, codes, fixed], len(codes), times)


def _remembered(key: Any, form: int, layout: Any, number: int, times: list[int]) -> _Known | None:
    """None for more than there are structs for, and for a name with half of a surrogate pair."""
    if number >= len(_counts):
        return None
    try:
        described = msgspec.msgpack.encode(layout)
    except UnicodeEncodeError:
        return None
    if len(_layouts) >= _MOST_LAYOUTS:
        _layouts.clear()
    known = _layouts[key] = _HEAD.pack(form, number, len(described)) + described, _counts[number].pack, times
    return known


def _code(dtype: np.dtype[Any]) -> str | None:
    return dtype.str if dtype.kind in "mM" and dtype.isnative else NUMBERS.get(dtype)


def _of_batch(batch: Batch) -> Columns | None:
    """Nothing but columns of plain kinds, with or without tags; a batch that remembers more is for pickle."""
    if batch.orders is not None or batch.origin is not None:
        return None
    buffers: list[Buffer] = []
    described: list[Any] = []
    columns: Iterable[tuple[str | None, Column]] = batch.columns.items()
    if batch.key_column is not None:
        columns = [*columns, (None, batch.key_column)]
    for name, column in columns:
        kind, values, tags = column.kind, column.values, column.tags
        if kind is Kind.OBJECT or column.exact is not None or values.dtype not in NUMBERS:
            return None
        buffers.append(values)
        if tags is not None:
            buffers.append(tags)
        if kind is Kind.TEXT:
            buffers.append(_tables.get(column.texts) or _tables.encode(column.texts))
        described.append((name, kind, values.dtype.char, tags is not None))
    if batch.time_ns is not None:
        buffers.append(batch.time_ns)
        described.append(None)
    key = tuple(described)
    known = _layouts.get(key) or _remembered(key, _BATCH, described, len(buffers) + 2, [])
    if known is None:
        return None
    begin, counts, _ = known
    return begin + counts(len(batch), batch.arrived_ns, *map(len, buffers)), buffers


class ColumnReader:
    """The way back; remembers layouts and tables of texts.

    >>> head, buffers = columns_of({"x": np.arange(3.0)})
    >>> ColumnReader().read(head, 0, bytes(buffers[0]), 0)
    {'x': array([0., 1., 2.])}
    """

    def __init__(self) -> None:
        self._layouts: dict[bytes, Any] = {}
        self._texts: dict[bytes, NDArray[np.object_]] = {}

    def read(self, head: Any, start: int, memory: Any, at: int) -> Any:
        """The value whose head starts at ``start``, and whose buffers lie from ``at`` on in ``memory``, one behind the
        other at multiples of `ALIGN` from there; its arrays are views of them.
        """
        form, number, size = _HEAD.unpack_from(head, start)
        start += _HEAD.size
        layout = bytes(head[start : start + size])
        counts = _counts[number].unpack_from(head, start + size)
        known = self._layouts.get(layout)
        if known is None:
            known = self._remember(form, layout)
        if form == _BATCH:
            return self._batch(known, counts, memory, at)
        arrays = {}
        for (name, dtype, itemsize, fixed), count in zip(known, counts, strict=True):
            array = arrays[name] = np.frombuffer(memory, dtype, count, at) if count else np.empty(0, dtype)
            if fixed:
                array.flags.writeable = False
            at += aligned(count * itemsize)
        return arrays

    def _remember(self, form: int, layout: bytes) -> Any:
        decoded = msgspec.msgpack.decode(layout)
        if form == _DICT:
            names, codes, fixed = decoded
            dtypes = map(np.dtype, codes)
            known: Any = [
                (name, dtype, dtype.itemsize, bool(fixed >> number & 1))
                for number, (name, dtype) in enumerate(zip(names, dtypes, strict=True))
            ]
        else:
            known = [
                one if one is None else (one[0], Kind(one[1]), np.dtype(one[2]), one[3], one[1] == Kind.TEXT.value)
                for one in decoded
            ]
        if len(self._layouts) >= _MOST_LAYOUTS:
            self._layouts.clear()
        self._layouts[layout] = known
        return known

    def _batch(self, layout: Any, counts: Sequence[int], memory: Any, at: int) -> Batch:
        rows, arrived_ns, *items = counts
        sizes = iter(items)

        def array(dtype: np.dtype[Any]) -> NDArray[Any]:
            nonlocal at
            count, start = next(sizes), at
            at += aligned(count * dtype.itemsize)
            return np.frombuffer(memory, dtype, count, start) if count else np.empty(0, dtype)

        columns: dict[str, Column] = {}
        key = time = None
        for one in layout:
            if one is None:
                time = array(_INT64)
                continue
            name, kind, dtype, tagged, textual = one
            values = array(dtype)
            tags = array(_BYTE) if tagged else None
            texts = self._table(array(_BYTE).tobytes()) if textual else None
            column = Column(kind, values, tags=tags, texts=texts)
            if name is None:
                key = column
            else:
                columns[name] = column
        return Batch(columns, rows=rows, key=key, time=time, arrived_ns=arrived_ns)

    def _table(self, data: bytes) -> NDArray[np.object_]:
        known = self._texts.get(data)
        if known is None:
            texts = decoded_texts(data)
            known = np.fromiter(texts, object, len(texts))
            if len(self._texts) >= _tables.MOST:
                self._texts.clear()
            self._texts[data] = known
        return known
