"""A value on its way between processes: its bytes, and beside them the large buffers that need not be copied twice.

    small   pickle (first byte 0x80), or a head with its arrays behind it, each at a multiple of 16 bytes
    large   the same head; its buffers go through shared memory (`tidemill.lanes.arena`) and are read where they lie

Dicts of arrays and batches have a codec of their own (`column_codec`); of all else pickle finds the buffers: arrays
inside of tuples and objects, Arrow tables, and bytes and bytearrays that are an argument or a result, or in a small list,
tuple or dict that is an argument. Nothing here is read that was not written by our own processes.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

import numpy as np

from tidemill.batch import Batch
from tidemill.lanes.by_value import PicklerByValue
from tidemill.lanes.column_codec import ColumnReader, columns_of
from tidemill.lanes.memory import ALIGN, PADS, aligned

__all__ = ["LARGE", "Parcel", "pack", "pack_arguments", "room_of", "unpack"]

LARGE: Final = 131_072
"""Bytes from which a buffer, or the buffers of a value together, are worth a place in shared memory."""
_COLUMNAR: Final = frozenset((dict, Batch))
_BYTES: Final = frozenset((bytes, bytearray))
_LOOKED_AT: Final = _BYTES | {tuple, list, dict}
_FEW: Final = 64
"""Members of a container that is looked into for large bytes."""
_HEAD: Final = struct.Struct("<BBI")
"""Codec, how it is wrapped, and the length of the head, this included."""
_COLUMNS: Final = 1
_PICKLE: Final = 2
_BARE: Final = 0
_ALONE: Final = 1
"""Wrapped as ``((value,), {})``: the arguments of most calls."""
_COUNT: Final = struct.Struct("<I")
Buffer = Any
"""What ``bytes.join`` and ``memoryview`` take: contiguous memory."""

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
        return _joined(self.head, self.buffers) if self.buffers else self.head

    @property
    def parts(self) -> list[Buffer]:
        """All of it in the pieces in which it lies."""
        return _parts(self.head, self.buffers)


def room_of(buffer: Buffer) -> int:
    """Bytes that a buffer takes among others."""
    return aligned(memoryview(buffer).nbytes)


def _joined(head: bytes, buffers: Sequence[Buffer]) -> bytes:
    return b"".join(_parts(head, buffers))


def _parts(head: bytes, buffers: Sequence[Buffer]) -> list[Buffer]:
    parts: list[Buffer] = [head, PADS[len(head) % ALIGN]]
    for buffer in buffers:
        parts.append(buffer)
        size = buffer.nbytes if type(buffer) is np.ndarray else len(buffer)
        if size % ALIGN:
            parts.append(PADS[size % ALIGN])
    return parts


# -- packing ---------------------------------------------------------------------------------------------


def pack_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Parcel:
    """Pack ``(args, kwargs)``; raises whatever their own methods raise."""
    if len(args) == 1 and not kwargs and type(args[0]) in _COLUMNAR:
        packed = _columns(args[0], _ALONE)
        if packed is not None:
            return packed
    large: dict[int, bytes | bytearray] = {}
    for value in args:
        if type(value) in _LOOKED_AT:
            _find_large(value, large, 1)
    if kwargs:
        _find_large(kwargs, large, 2)
    return _pickled((args, kwargs), large)


def pack(value: Any, depth: int = 0) -> Parcel:
    """Pack a value, in which bytes may lie so deep; raises whatever its own methods raise."""
    if type(value) in _COLUMNAR:
        packed = _columns(value, _BARE)
        if packed is not None:
            return packed
    large: dict[int, bytes | bytearray] = {}
    if type(value) in _LOOKED_AT:
        _find_large(value, large, depth)
    return _pickled(value, large)


def _find_large(value: Any, found: dict[int, bytes | bytearray], depth: int) -> None:
    """Bytes that are worth a place of their own, by their ids. What is not found is pickled like all else."""
    if type(value) in _BYTES:
        if len(value) >= LARGE:
            found[id(value)] = value
    elif depth and len(value) <= _FEW:
        members = value.values() if type(value) is dict else value
        if not _LOOKED_AT.isdisjoint(map(type, members)):
            for member in members:
                if type(member) in _LOOKED_AT:
                    _find_large(member, found, depth - 1)


def _columns(value: Any, wrapped: int) -> Parcel | None:
    columns = columns_of(value)
    if columns is None:
        return None
    head, buffers = columns
    head = _HEAD.pack(_COLUMNS, wrapped, _HEAD.size + len(head)) + head
    size = 0
    for buffer in buffers:
        size += buffer.nbytes if type(buffer) is np.ndarray else len(buffer)
    try:
        if size < LARGE:
            return Parcel(_joined(head, buffers))
        large = [memoryview(cast("bytes", buffer)).cast("B") for buffer in buffers if len(buffer)]
    except (BufferError, ValueError, TypeError):  # with gaps between its items
        return None
    return Parcel(head, large)


def _pickled(value: Any, large: dict[int, bytes | bytearray]) -> Parcel:
    buffers: list[memoryview] = []

    def inside(buffer: pickle.PickleBuffer) -> bool:
        """Whether pickle keeps it among its own bytes."""
        view = buffer.raw()
        if view.nbytes < LARGE:
            return True
        buffers.append(view)
        return False

    try:
        if large:
            data = _dumped(pickle.Pickler, value, large, inside)
        else:
            data = pickle.dumps(value, 5, buffer_callback=inside)
        by_value = b"__main__" in data  # by name, and the other side has another main module
    except Exception:  # noqa: BLE001 - whatever a __reduce__ raises; the second way has the last word
        by_value = True
    if by_value:
        buffers.clear()
        data = _dumped(PicklerByValue, value, large, inside)
    if not buffers:
        return Parcel(data)
    sizes = struct.pack(f"<{len(buffers)}q", *(view.nbytes for view in buffers))
    head = _COUNT.pack(len(buffers)) + sizes + data
    return Parcel(_HEAD.pack(_PICKLE, _BARE, _HEAD.size + len(head)) + head, buffers)


def _dumped(
    kind: type[pickle.Pickler],
    value: Any,
    large: dict[int, bytes | bytearray],
    inside: Callable[[pickle.PickleBuffer], bool],
) -> bytes:
    """The large bytes come first, as buffers, and the value refers to them, wherever it has them."""
    file = io.BytesIO()
    pickler = kind(file, 5, buffer_callback=inside)
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
