"""A value on its way between processes: its bytes, and beside them the large buffers that need not be copied twice.

    small   pickle (first byte 0x80), or a head with its arrays behind it, each at a multiple of 16 bytes
    large   the same head; its buffers go through shared memory (`tidemill.lanes.arena`) and are read where they lie

Dicts of arrays and batches have a codec of their own (`column_codec`); of all else pickle finds the buffers: arrays
inside of tuples and objects, Arrow tables (`beside` helps it), and bytes and bytearrays that are an argument or a result, or
in a small list, tuple or dict that is an argument. Nothing here is read that was not written by our own processes.
"""

from __future__ import annotations

import copyreg
import datetime
import io
import pickle
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from tidemill.batch import Batch
from tidemill.by_value import PicklerByValue, importing_nothing, names_what_stays_here
from tidemill.lanes.beside import LARGE, Buffer, StandIn, bytes_of, has_gaps, reducers
from tidemill.lanes.column_codec import ColumnReader, columns_of
from tidemill.lanes.memory import ALIGN, PADS, aligned

__all__ = ["LARGE", "Parcel", "pack", "pack_arguments", "room_of", "unpack"]

_COLUMNAR: Final = frozenset((dict, Batch))
_BYTES: Final = frozenset((bytes, bytearray))
_CONTAINERS: Final = frozenset((tuple, list, dict))
_LOOKED_AT: Final = _BYTES | _CONTAINERS
_PLAIN: Final = frozenset(
    (
        int,
        float,
        bool,
        str,
        type(None),
        complex,
        datetime.datetime,
        np.float64,
        np.float32,
        np.int64,
        np.int32,
        np.bool_,
    )
)
"""Of which there is nothing that could travel beside a pickle."""
_FEW: Final = 64
"""Members of a container that is looked into."""
_FEWER: Final = 4
"""The same for what needs `reducers`: they cost as much as to look into so many."""
_HEAD: Final = struct.Struct("<BBI")
"""Codec, how it is wrapped, and the length of the head, this included."""
_COLUMNS: Final = 1
_PICKLE: Final = 2
_BARE: Final = 0
_ALONE: Final = 1
"""Wrapped as ``((value,), {})``: the arguments of most calls."""
_COUNT: Final = struct.Struct("<I")

_reader: Final = ColumnReader()


class Parcel:
    """A value, packed. With ``buffers`` it is large: they are the value's own memory, to be copied when it is sent."""

    __slots__ = ("buffers", "head", "size")

    def __init__(self, head: bytes, buffers: Sequence[Buffer] = ()) -> None:
        self.head = head
        self.buffers = buffers
        self.size = len(head) + (sum(map(room_of, buffers)) if buffers else 0)
        """Bytes."""

    @property
    def room(self) -> int:
        """Bytes that the buffers take in shared memory."""
        return self.size - len(self.head)

    @property
    def data(self) -> bytes:
        """All of it in one piece."""
        return b"".join(self.parts) if self.buffers else self.head

    @property
    def parts(self) -> list[Buffer]:
        """All of it in the pieces in which it lies; what has gaps is copied."""
        return _parts(self.head, map(bytes_of, self.buffers))[0]


def room_of(buffer: Buffer) -> int:
    """Bytes that a buffer takes among others."""
    return aligned(buffer.nbytes if type(buffer) is np.ndarray else memoryview(buffer).nbytes)


def _parts(head: bytes, buffers: Iterable[Buffer]) -> tuple[list[Buffer], int]:
    """What goes one behind the other, and how many bytes of that are the buffers'."""
    parts: list[Buffer] = [head, PADS[len(head) % ALIGN]]
    total = 0
    for buffer in buffers:
        parts.append(buffer)
        size = buffer.nbytes if type(buffer) is np.ndarray else len(buffer)
        if size % ALIGN:
            parts.append(PADS[size % ALIGN])
        total += size
    return parts, total


# -- packing ---------------------------------------------------------------------------------------------


def pack_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Parcel:
    """Pack ``(args, kwargs)``; raises whatever their own methods raise."""
    if len(args) == 1 and not kwargs and type(args[0]) in _COLUMNAR:
        packed = _columns(args[0], _ALONE)
        if packed is not None:
            return packed
    large: dict[int, bytes | bytearray] = {}
    plain = _PLAIN.issuperset(map(type, args)) or _look_at_all(args, large, 1)
    if kwargs:
        plain &= _look_at(kwargs, large, 2)
    return _pickled((args, kwargs), large, plain=plain)


def pack(value: Any, depth: int = 0) -> Parcel:
    """Pack a value, in which bytes may lie so deep; raises whatever its own methods raise."""
    if type(value) in _COLUMNAR:
        packed = _columns(value, _BARE)
        if packed is not None:
            return packed
    large: dict[int, bytes | bytearray] = {}
    return _pickled(value, large, plain=_look_at(value, large, depth))


def _look_at(value: Any, found: dict[int, bytes | bytearray], depth: int) -> bool:
    """Find bytes that are worth a place of their own, by their ids; those that are not found are pickled like all else.

    Whether it is certain that nothing in the value needs `reducers`.
    """
    kind = type(value)
    if kind in _CONTAINERS:
        if len(value) > _FEW:
            return False
        members = value.values() if kind is dict else value
        if _PLAIN.issuperset(map(type, members)):
            return True
        if depth < 0:
            return False
        if len(value) > _FEWER and (not depth or (_BYTES if depth == 1 else _LOOKED_AT).isdisjoint(map(type, members))):
            return False
        return _look_at_all(members, found, depth - 1)
    if kind in _BYTES:
        if depth >= 0 and len(value) >= LARGE:
            found[id(value)] = value
        return True
    return kind in _PLAIN


def _look_at_all(values: Iterable[Any], found: dict[int, bytes | bytearray], depth: int) -> bool:
    plain = True
    for value in values:
        if type(value) not in _PLAIN and not _look_at(value, found, depth):
            plain = False
    return plain


def _columns(value: Any, wrapped: int) -> Parcel | None:
    columns = columns_of(value)
    if columns is None:
        return None
    head, buffers = columns
    head = _HEAD.pack(_COLUMNS, wrapped, _HEAD.size + len(head)) + head
    parts, size = _parts(head, buffers)
    if size >= LARGE:
        return Parcel(head, [_memory_of(buffer) for buffer in buffers if len(buffer)])
    try:
        return Parcel(b"".join(parts))
    except (BufferError, ValueError, TypeError):  # with gaps between the items of one
        return Parcel(b"".join(map(bytes_of, parts)))


def _memory_of(buffer: Buffer) -> Buffer:
    return buffer if has_gaps(buffer) else memoryview(buffer).cast("B")


def _pickled(value: Any, large: dict[int, bytes | bytearray], *, plain: bool) -> Parcel:
    buffers: list[Buffer] = []

    def inside(buffer: pickle.PickleBuffer) -> bool:
        """Whether pickle keeps it among its own bytes."""
        view = buffer.raw()
        if type(view.obj) is StandIn:
            buffers.append(view.obj.buffer)
            return False
        if view.nbytes < LARGE:
            return True
        buffers.append(view)
        return False

    try:
        with importing_nothing():
            if large or not plain:
                data = _dumped(_pickler, value, large, inside)
            else:
                data = pickle.dumps(value, 5, buffer_callback=inside)
        by_value = names_what_stays_here(data)
    except Exception:  # noqa: BLE001 - whatever a __reduce__ raises; the second way has the last word
        by_value = True
    if by_value:
        buffers.clear()
        data = _dumped(_PicklerByValue, value, large, inside)
    if not buffers:
        return Parcel(data)
    sizes = struct.pack(f"<{len(buffers)}q", *(buffer.nbytes for buffer in buffers))
    head = _COUNT.pack(len(buffers)) + sizes + data
    return Parcel(_HEAD.pack(_PICKLE, _BARE, _HEAD.size + len(head)) + head, buffers)


def _pickler(
    file: io.BytesIO, protocol: int, *, buffer_callback: Callable[[pickle.PickleBuffer], bool]
) -> pickle.Pickler:
    pickler = pickle.Pickler(file, protocol, buffer_callback=buffer_callback)
    pickler.dispatch_table = {**copyreg.dispatch_table, **reducers()}
    return pickler


class _PicklerByValue(PicklerByValue):
    def reducer_override(self, obj: Any) -> Any:
        reducer = reducers().get(type(obj))
        return super().reducer_override(obj) if reducer is None else reducer(obj)


def _dumped(
    made: Callable[..., pickle.Pickler],
    value: Any,
    large: dict[int, bytes | bytearray],
    inside: Callable[[pickle.PickleBuffer], bool],
) -> bytes:
    """The large bytes come first, as buffers, and the value refers to them, wherever it has them."""
    file = io.BytesIO()
    pickler = made(file, 5, buffer_callback=inside)
    if large:
        stand_ins = {place: _Bytes(data) for place, data in large.items()}
        pickler.dump(list(stand_ins.values()))
        memo = dict(pickler.memo.copy())
        for place, stand_in in stand_ins.items():
            memo[place] = memo.pop(id(stand_in))[0], large[place]
        pickler.memo = memo
        file.seek(-1, io.SEEK_CUR)
        file.write(pickle.POP)  # where the pickle of the stand-ins would stop
    pickler.dump(value)
    return file.getvalue()


class _Bytes:
    """Stands for large bytes, which pickle would keep among its own."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._kind = type(data)
        self._data = bytes(
            data
        )  # of a bytearray a copy, as pickle makes one: who fills it anew does not wait for the call

    def __reduce__(self) -> tuple[Any, ...]:
        return self._kind, (pickle.PickleBuffer(self._data),)


# -- unpacking -------------------------------------------------------------------------------------------


def unpack(data: bytes | bytearray | memoryview, block: memoryview | None = None) -> Any:
    """The value; its large buffers are views of ``block``, or of ``data`` when they are in it.

    Raises whatever the value's own methods raise.
    """
    if data[0] not in (_COLUMNS, _PICKLE):
        return pickle.loads(data)  # noqa: S301 - our own process's bytes
    codec, wrapped, size = _HEAD.unpack_from(data)
    memory, at = (data, aligned(size)) if block is None else (block, 0)
    if codec == _COLUMNS:
        value = _reader.read(data, _HEAD.size, memory, at)
    else:
        head = memoryview(data)[_HEAD.size : size]
        (number,) = _COUNT.unpack_from(head)
        sizes = struct.unpack_from(f"<{number}q", head, _COUNT.size)
        places = _places(memoryview(memory), at, sizes)
        value = pickle.loads(head[_COUNT.size + 8 * number :], buffers=places)  # noqa: S301 - our own process's bytes
    return ((value,), {}) if wrapped == _ALONE else value


def _places(memory: memoryview, at: int, sizes: Sequence[int]) -> Iterator[memoryview]:
    """Buffers one after another in a piece of memory."""
    for size in sizes:
        yield memory[at : at + size]
        at += aligned(size)
