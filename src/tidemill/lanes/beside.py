"""Reducers for what pickle would copy into its own bytes, or send more of than there is: by exact type.

NumPy and pyarrow hand pickle most of their memory as buffers, which travel beside it. These do so for the rest: arrays of
times, arrays with gaps between their items, records, masked arrays, `array.array`. Of an Arrow table that is a slice of
another they send what it shows, where its own pickle has all that the other has. A memoryview arrives as one.
"""

from __future__ import annotations

import array
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.lanes.column_codec import NUMBERS

__all__ = ["LARGE", "Buffer", "StandIn", "bytes_of", "has_gaps", "reducers"]

LARGE: Final = 131_072
"""Bytes from which a buffer, or the buffers of a value together, are worth a place in shared memory."""
_SMALL: Final = 16_384
"""Bytes up to which an array of plain numbers is copied once more, so that it is pickled in a third of the time."""
_SLICED: Final = 4096
"""Bytes that a table must have beyond twice those that it shows, to be taken for a slice."""
_LONG_SLICE: Final = 1 << 20
_PART_OF_LONG: Final = 8
"""Of a slice of more bytes the memory must be so many times as large: the copy is made in one piece, what travels is not."""

Buffer = Any
"""Contiguous memory, as ``bytes.join`` and ``memoryview`` take it, or a large array with gaps between its items."""
Reduced = tuple[Callable[..., Any], tuple[Any, ...]]


class StandIn(bytearray):
    """What pickle is given as a buffer in the place of ``buffer``, which it would refuse."""

    __slots__ = ("buffer",)
    buffer: Buffer


def reducers() -> dict[type, Callable[[Any], Any]]:
    """All that are of use: libraries that were not imported have made no values."""
    if not sys.modules.keys().isdisjoint(_LATER):
        for name, kinds in list(_LATER.items()):
            made = {getattr(sys.modules.get(name), kind, None): reducer for kind, reducer in kinds.items()}
            if None not in made:  # nor is it just being imported
                _reducers.update(made)  # type: ignore[arg-type] # they are types
                _LATER.pop(name, None)
    return _reducers


# -- arrays ----------------------------------------------------------------------------------------------


def has_gaps(buffer: Buffer) -> bool:
    """Whether it is an array that must be copied item by item."""
    return type(buffer) is np.ndarray and not buffer.flags.c_contiguous


def bytes_of(buffer: Buffer) -> Buffer:
    """The same as contiguous memory: with gaps, a copy."""
    if type(buffer) is not np.ndarray:
        return buffer
    return memoryview(np.ascontiguousarray(buffer).reshape(-1).view(np.uint8))  # type: ignore[arg-type] # it is a buffer


def _array(values: NDArray[Any]) -> Any:
    if values.nbytes <= _SMALL:
        return _small(values)
    if _goes_by_itself(values) or values.dtype.hasobject:
        return values.__reduce_ex__(5)
    fortran = values.flags.fnc
    rows = values.T if fortran else values
    stand_in = StandIn()
    stand_in.buffer = bytes_of(rows) if rows.flags.c_contiguous else rows
    return _array_of, (pickle.PickleBuffer(stand_in), values.dtype, rows.shape, fortran)


def _goes_by_itself(values: NDArray[Any]) -> bool:
    """Whether pickle makes no copy of an array, or one that does not matter."""
    return values.nbytes < LARGE or (values.flags.forc and values.dtype.kind not in "mMV")


def _array_of(memory: Any, dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool) -> NDArray[Any]:
    values = np.frombuffer(memory, dtype).reshape(shape)
    return values.T if fortran else values


def _small(values: NDArray[Any]) -> Any:
    dtype, flags = values.dtype, values.flags
    letter = NUMBERS.get(dtype)
    if letter is None or dtype.metadata or values.ndim != 1 or not values.nbytes or not flags.c_contiguous:
        return values.__reduce_ex__(5)
    data = values.tobytes()
    return _small_of, (bytearray(data) if flags.writeable else data, letter)


def _small_of(data: bytes | bytearray, letter: str) -> NDArray[Any]:
    return np.frombuffer(data, letter)


def _records(values: Any) -> Any:
    if values.nbytes < LARGE or values.dtype.hasobject:
        return values.__reduce_ex__(5)
    return _records_of, (values.view(np.ndarray),)


def _records_of(values: NDArray[Any]) -> Any:
    return values.view(np.recarray)


def _masked(values: Any) -> Any:
    if values.nbytes < LARGE or values.dtype.hasobject or values.baseclass is not np.ndarray:
        return values.__reduce_ex__(5)
    return _masked_of, (values.data, np.ma.getmaskarray(values), values.fill_value)


def _masked_of(data: NDArray[Any], mask: NDArray[Any], fill_value: Any) -> Any:
    return np.ma.MaskedArray(data, mask, fill_value=fill_value)


def _numbers(values: array.array[Any]) -> Any:
    if len(values) * values.itemsize < LARGE:
        return values.__reduce_ex__(5)
    return _numbers_of, (
        values.typecode,
        pickle.PickleBuffer(values.tobytes()),
    )  # a copy: it can grow before it is sent


def _numbers_of(typecode: str, memory: Any) -> Any:
    values: Any = array.array(typecode)
    values.frombytes(memory)
    return values


# -- others ----------------------------------------------------------------------------------------------


def _view(view: memoryview) -> Reduced:
    """Raises `TypeError` or `ValueError` for one that cannot be made of its bytes."""
    memory, made_of = view.cast("B"), (view.format, None if view.ndim == 1 else view.shape)
    _view_of(memory, *made_of)
    return _view_of, (pickle.PickleBuffer(memory), *made_of)


def _view_of(memory: Any, format_: Any, shape: Any) -> memoryview:
    view = memoryview(memory)
    return view.cast(format_) if shape is None else view.cast(format_, shape)


def _table(table: Any) -> Any:
    stream = _shown(table)
    return table.__reduce_ex__(5) if stream is None else (_table_of, (pickle.PickleBuffer(stream), False))


def _batch(batch: Any) -> Any:
    stream = _shown(batch)
    return batch.__reduce_ex__(5) if stream is None else (_table_of, (pickle.PickleBuffer(stream), True))


def _shown(table: Any) -> Any:
    """What a slice shows as an Arrow stream; None for what is no slice, or of types that Arrow alone cannot bring back."""
    import pyarrow as pa

    kinds = [each for kind in table.schema.types for each in _kinds(kind)]
    if any(isinstance(kind, pa.BaseExtensionType) for kind in kinds):  # the other side may not have registered them
        return None
    if not table.num_rows and any(map(pa.types.is_union, kinds)):  # whose size Arrow cannot tell: it ends the process
        return None
    shown = table.nbytes
    if table.get_total_buffer_size() <= (2 if shown <= _LONG_SLICE else _PART_OF_LONG) * shown + _SLICED:
        return None
    sink = pa.BufferOutputStream()
    try:
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write(table)
    except pa.ArrowException:
        return None
    return sink.getvalue()


def _kinds(kind: Any) -> Iterator[Any]:
    """An Arrow type, and those that it is made of."""
    yield kind
    for number in range(kind.num_fields):
        yield from _kinds(kind.field(number).type)
    if hasattr(kind, "index_type"):  # a dictionary's
        yield from _kinds(kind.value_type)


def _table_of(memory: Any, is_batch: bool) -> Any:
    import pyarrow as pa

    stream = pa.ipc.open_stream(pa.py_buffer(memory))
    return stream.read_next_batch() if is_batch else stream.read_all()


_reducers: Final[dict[type, Callable[[Any], Any]]] = {
    np.ndarray: _array,
    np.recarray: _records,
    array.array: _numbers,
    memoryview: _view,
}
_LATER: Final[dict[str, dict[str, Callable[[Any], Any]]]] = {
    "numpy.ma": {"MaskedArray": _masked},
    "pyarrow": {"Table": _table, "RecordBatch": _batch},
}
