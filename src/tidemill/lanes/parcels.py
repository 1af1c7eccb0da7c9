"""A value on its way between processes: its bytes, and beside them the large buffers that need not be copied twice.

    small   pickle (first byte 0x80), or a head with its arrays behind it, each at a multiple of 16 bytes
    large   the same head; its buffers go through shared memory (`tidemill.lanes.arena`) and are read where they lie

Dicts of arrays and batches have a codec of their own (`column_codec`); of all else pickle finds the buffers: arrays
inside of tuples and objects, Arrow tables, and bytes that are an argument or a result themselves. Nothing here is read
that was not written by our own processes.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import numpy as np

from tidemill.batch import Batch
from tidemill.lanes.by_value import dumps_by_value
from tidemill.lanes.column_codec import ColumnReader, columns_of
from tidemill.lanes.memory import ALIGN, PADS, aligned

__all__ = ["LARGE", "Parcel", "pack", "pack_arguments", "room_of", "unpack"]

LARGE: Final = 131_072
"""Bytes from which a buffer, or the buffers of a value together, are worth a place in shared memory."""
_COLUMNAR: Final = frozenset((dict, Batch))
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


def room_of(buffer: Buffer) -> int:
    """Bytes that a buffer takes among others."""
    return aligned(memoryview(buffer).nbytes)


def _joined(head: bytes, buffers: Sequence[Buffer]) -> bytes:
    parts: list[Buffer] = [head, PADS[len(head) % ALIGN]]
    for buffer in buffers:
        parts.append(buffer)
        size = buffer.nbytes if type(buffer) is np.ndarray else len(buffer)
        if size % ALIGN:
            parts.append(PADS[size % ALIGN])
    return b"".join(parts)


# -- packing ---------------------------------------------------------------------------------------------


def pack_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Parcel:
    """Pack ``(args, kwargs)``; raises whatever their own methods raise."""
    if len(args) == 1 and not kwargs and type(args[0]) in _COLUMNAR:
        packed = _columns(args[0], _ALONE)
        if packed is not None:
            return packed
    if any(type(value) is bytes for value in args):
        args = tuple(map(_marked, args))
    return _pickled((args, kwargs))


def pack(value: Any) -> Parcel:
    """Pack a value; raises whatever its own methods raise."""
    if type(value) in _COLUMNAR:
        packed = _columns(value, _BARE)
        if packed is not None:
            return packed
    return _pickled(_marked(value))


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


def _pickled(value: Any) -> Parcel:
    buffers: list[memoryview] = []

    def inside(buffer: pickle.PickleBuffer) -> bool:
        """Whether pickle keeps it among its own bytes."""
        view = buffer.raw()
        if view.nbytes < LARGE:
            return True
        buffers.append(view)
        return False

    try:
        data = pickle.dumps(value, 5, buffer_callback=inside)
        by_value = b"__main__" in data  # by name, and the other side has another main module
    except Exception:  # noqa: BLE001 - whatever a __reduce__ raises; the second way has the last word
        by_value = True
    if by_value:
        buffers.clear()
        data = dumps_by_value(value, inside)
    if not buffers:
        return Parcel(data)
    sizes = struct.pack(f"<{len(buffers)}q", *(view.nbytes for view in buffers))
    head = _COUNT.pack(len(buffers)) + sizes + data
    return Parcel(_HEAD.pack(_PICKLE, _BARE, _HEAD.size + len(head)) + head, buffers)


class _Bytes:
    """Stands for large ``bytes``, which pickle would keep among its own."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (pickle.PickleBuffer(self._data),)


def _marked(value: Any) -> Any:
    return _Bytes(value) if type(value) is bytes and len(value) >= LARGE else value


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
