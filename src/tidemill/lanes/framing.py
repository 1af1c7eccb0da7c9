"""Messages as frames on a socket.

A frame is ``<header length, payload length>`` (two little-endian uint32), the header (msgpack of one message of
`tidemill.lanes.wire`) and the payload (raw bytes, described by the header).
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np

from tidemill.errors import EngineError
from tidemill.lanes.memory import ALIGN, PADS, aligned
from tidemill.lanes.wire import FromLane, Message, ToLane

__all__ = ["MAX_FRAME", "Discarded", "FrameReader", "Part", "Payload", "frame", "joined", "joined_size", "pieces"]

Part = bytes | bytearray | memoryview
Payload = bytearray | memoryview
"""What came with a message: memory of the receiver's own, to be written to as it likes."""


class Discarded(bytearray):
    """A payload that was read and thrown away, since there was no memory for it: what is left of it is its length."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def __len__(self) -> int:
        return self._size


_HEAD: Final = struct.Struct("<II")
MAX_FRAME: Final = 1 << 31
"""A length beyond this is a broken stream, refused before anything is allocated."""
_JOINED: Final = 16_384
"""Bytes of a payload that are copied to make one piece of a frame: quicker than to write two."""
READ_BYTES: Final = 256 * 1024
"""Taken by one read. The memory is kept: to allocate that much for each read takes as long as four reads."""

_encoder = msgspec.msgpack.Encoder()
_to_lane = msgspec.msgpack.Decoder(ToLane)
_from_lane = msgspec.msgpack.Decoder(FromLane)


def frame(message: Message, payload: Part = b"", *more: Part) -> list[Part]:
    """The parts to send, for ``sendmsg``; the payload may be in several too."""
    header = _encoder.encode(message)
    size = len(payload) + sum(map(len, more)) if more else len(payload)
    if len(header) + size > MAX_FRAME:
        raise EngineError(f"a message of {len(header) + size} bytes cannot be sent to another process")
    head = _HEAD.pack(len(header), size)
    if size <= _JOINED:
        return [b"".join((head, header, payload, *more))]
    return [head + header, payload, *more]


def joined(parts: Sequence[Part]) -> bytes:
    """A payload of several parts; each begins at a multiple of `ALIGN`, since arrays may lie in it.

    >>> [bytes(part) for part in pieces(bytearray(joined([b"one", b"three"])), [3, 5])]
    [b'one', b'three']
    """
    padded: list[Part] = []
    for part in parts:
        padded += part, PADS[len(part) % ALIGN]
    return b"".join(padded[:-1])


def joined_size(sizes: Sequence[int]) -> int:
    """Bytes of a payload of parts of these sizes, of which there is one at least."""
    last = sizes[-1]
    return last if len(sizes) == 1 else sum(map(aligned, sizes[:-1])) + last


def pieces(payload: Payload, sizes: Sequence[int]) -> list[memoryview]:
    """A payload of several parts, as these parts."""
    view, start, parts = memoryview(payload), 0, []
    for size in sizes:
        parts.append(view[start : start + size])
        start += aligned(size)
    return parts


class FrameReader:
    """Bytes in, messages out; a frame may arrive in any number of pieces.

    Each read goes to ``room()``, and ``came`` says how much of it was filled. A frame that the kept memory cannot hold
    gets its own, and is read straight into it. From a lane, one for which there is no memory is `Discarded`, all but its
    message; a lane refuses it.

    >>> from tidemill.lanes.wire import Stop
    >>> reader = FrameReader(to_lane=True)
    >>> data = b"".join(frame(Stop()))
    >>> reader.feed(data[:3]); list(reader.messages())
    []
    >>> reader.feed(data[3:]); list(reader.messages())
    [(Stop(), bytearray(b''))]
    """

    def __init__(self, *, to_lane: bool) -> None:
        self._decode = _to_lane.decode if to_lane else _from_lane.decode
        self._discards = not to_lane
        self._unwanted = 0  # bytes still to come of what is discarded
        self._kept = memoryview(bytearray(READ_BYTES))
        self._data = self._kept  # where bytes are read to: the kept memory, or that of one large frame
        self._start = self._end = 0  # what has come and was not given yet

    def room(self) -> memoryview:
        """Where the next read goes, `READ_BYTES` at most; never empty once `messages` was read to its end."""
        return self._data[self._end : self._end + READ_BYTES]

    def came(self, count: int) -> None:
        """A read has put ``count`` bytes there."""
        self._end += count
        if self._unwanted:  # nothing else is held
            gone = min(count, self._unwanted)
            self._unwanted -= gone
            self._start += gone
            if self._start == self._end:
                self._start = self._end = 0

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes that were read elsewhere, as many as there is room for."""
        self._data[self._end : self._end + len(data)] = data
        self.came(len(data))

    @property
    def pending(self) -> bool:
        """Whether there are bytes of messages that were not yet given."""
        return self._end > self._start

    def messages(self) -> Iterator[tuple[ToLane | FromLane, Payload]]:
        """The complete messages so far, in order, each with its payload, which is the receiver's own.

        Raises `ValueError` (`msgspec.DecodeError` is one) for bytes that `frame` cannot have made.
        """
        while (held := self._end - self._start) >= _HEAD.size:
            header, payload = _HEAD.unpack_from(self._data, self._start)
            if header + payload > MAX_FRAME:
                raise ValueError(f"a frame announces {header + payload} bytes")
            size = _HEAD.size + header + payload
            if held < size:
                if self._make_room(size, -(_HEAD.size + header) % ALIGN):  # arrays may lie in the payload
                    return
                if not self._discards or _HEAD.size + header > READ_BYTES:
                    raise ValueError(f"a frame of {size} bytes, for which there is no memory")
                if held < _HEAD.size + header:
                    return
                message = self._decode(self._data[_HEAD.size : _HEAD.size + header])
                self._unwanted = size - held
                self._start = self._end = 0
                yield message, Discarded(payload)
                continue
            body = self._start + _HEAD.size + header
            message = self._decode(self._data[body - header : body])
            data: Payload = self._data[body : body + payload]
            if self._data is self._kept:
                data = bytearray(data)
            self._start += size
            if self._start == self._end:
                self._data = self._kept
                self._start = self._end = 0
            yield message, data
        self._make_room(_HEAD.size, 0)

    def _make_room(self, size: int, start: int) -> bool:
        """For the rest of a frame of ``size`` bytes; in memory of its own it begins at ``start``. False when there is none: then
        it begins the kept memory.

        That memory is not touched before bytes come for it: a length that lies takes nothing, and what has come is not
        copied again.
        """
        if self._start + size <= len(self._data):
            return True
        held = self._end - self._start
        data, has_room = self._kept, size <= READ_BYTES
        if not has_room:
            with contextlib.suppress(MemoryError):
                data = memoryview(np.empty(start + size, np.uint8))  # type: ignore[arg-type] # it is a buffer
                has_room = True
        if data is self._kept:
            start = 0
        data[start : start + held] = bytes(self._data[self._start : self._end])  # may overlap with where it was
        self._data, self._start, self._end = data, start, start + held
        return has_room
