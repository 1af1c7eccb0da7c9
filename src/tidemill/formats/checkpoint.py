"""A checkpoint ↔ bytes: facts and arrays in one file, every byte of which is under a checksum.

    start     64 bytes: magic, version, number, time of writing, length and CRC of the facts, CRC of the start
    facts     `tidemill.formats.values`, to a multiple of 64 bytes
    sections  the arrays and blobs, one behind the other, each to a multiple of 64 bytes
    contents  msgpack: of each section its name, type, shape, place, length and CRC
    end       32 bytes: place, length and CRC of the contents, CRC of the end, magic

Numbers are little-endian. A writer streams, so the contents come last; a file without its end is not whole. The start
keeps this form in every version, so that an old tidemill can say that a file is too new for it. Arrays are bytes of plain
numeric types; nothing is ever unpickled.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemill.errors import EngineError, InputError
from tidemill.formats.values import decode_value, encode_value

__all__ = [
    "END_BYTES",
    "START_BYTES",
    "VERSION",
    "Damaged",
    "End",
    "Newer",
    "Section",
    "Start",
    "contents_of",
    "end_of",
    "ending",
    "facts_of",
    "padding",
    "section_of",
    "start_of",
    "starting",
    "value_of",
]

VERSION: Final = 2
"""2: lanes had their sensors by turns (decision 55). The bytes are as of version 1."""
START_BYTES: Final = 64
END_BYTES: Final = 32

_ALIGN: Final = 64
_MAGIC: Final = b"tm-check"
_END_MAGIC: Final = b"kcehc-mt"
_START: Final = struct.Struct("<8sIIQqQ20s")  # and the CRC of these
_END: Final = struct.Struct("<8sQQI")  # and the CRC of these
_CRC: Final = struct.Struct("<I")
_BLOB: Final = ""
_DTYPE: Final = re.compile(r"[<|](?:b1|[iu][1248]|f[248]|c(?:8|16)|[mM]8\[(?:ns|us|ms|s|m|h|D)\])")


class Damaged(InputError):
    """The bytes are not what was written; the message is a part of a sentence."""


class Newer(InputError):
    """The file is of a format that is not known yet; the message is a part of a sentence."""


class Start(msgspec.Struct, frozen=True):
    """What the first bytes of a file say."""

    number: int
    written_ns: int
    """When, by the wall clock."""
    facts_bytes: int
    facts_crc: int

    @property
    def facts_end(self) -> int:
        """Where the sections begin."""
        return START_BYTES + _padded(self.facts_bytes)


class End(msgspec.Struct, frozen=True):
    """What the last bytes of a file say."""

    contents_at: int
    contents_bytes: int
    contents_crc: int


class Section(msgspec.Struct, array_like=True, frozen=True):
    """Where an array or a blob lies."""

    name: str
    dtype: str
    """As NumPy writes it; empty for a blob."""
    shape: tuple[int, ...]
    at: int
    bytes: int
    crc: int
    """With the padding behind it."""

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.at + _padded(self.bytes)


# -- writing -------------------------------------------------------------------------------------------


def starting(number: int, written_ns: int, facts: Mapping[str, Any]) -> bytes:
    """The start and the facts. Raises `InputError` for a fact that has no form in a file.

    >>> head = starting(12, 0, {"position": 5})
    >>> len(head) % 64, facts_of(start_of(head), head[64:])
    (0, {'position': 5})
    """
    data = encode_value(dict(facts))
    padded = data + padding(len(data))
    start = _START.pack(_MAGIC, VERSION, zlib.crc32(padded), number, written_ns, len(data), bytes(20))
    return start + _CRC.pack(zlib.crc32(start)) + padded


def section_of(name: str, value: NDArray[Any] | bytes, at: int) -> tuple[Section, memoryview]:
    """How an array or a blob is written at ``at``, and its bytes, without a copy where they lie in one piece.

    `padding` comes behind them. Raises `EngineError` for an array of objects or another type that is not plain numbers.
    """
    if isinstance(value, bytes):
        dtype, shape, data = _BLOB, (len(value),), memoryview(value)
    else:
        stored = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        dtype, shape = stored.dtype.str, value.shape
        if _DTYPE.fullmatch(dtype) is None or stored.dtype.names is not None:
            raise EngineError(f"array {name!r} of type {value.dtype} has no form in a checkpoint")
        data = stored.reshape(-1).view(np.uint8).data if stored.size else memoryview(b"")
    crc = zlib.crc32(padding(len(data)), zlib.crc32(data))
    return Section(name, dtype, shape, at, len(data), crc), data


def padding(size: int) -> bytes:
    """The zeros behind so many bytes."""
    return bytes(-size % _ALIGN)


def ending(sections: Sequence[Section], at: int) -> bytes:
    """The contents, which lie at ``at``, and the end."""
    contents = msgspec.msgpack.encode(sections)
    end = _END.pack(_END_MAGIC, at, len(contents), zlib.crc32(contents))
    return contents + end + _CRC.pack(zlib.crc32(end))


# -- reading -------------------------------------------------------------------------------------------


def start_of(data: bytes) -> Start:
    """What the first `START_BYTES` say. Raises `Damaged`, and `Newer` for a version that is not known here."""
    if len(data) < START_BYTES:
        raise Damaged("it is cut short within its start")
    magic, version, facts_crc, number, written_ns, facts_bytes, _ = _START.unpack_from(data)
    if magic != _MAGIC or _CRC.unpack_from(data, _START.size)[0] != zlib.crc32(data[: _START.size]):
        raise Damaged("its start is not that of a checkpoint")
    if version > VERSION:
        raise Newer(f"it has format version {version}, and this tidemill reads up to {VERSION}")
    if version < 1:
        raise Damaged(f"there is no format version {version}")
    return Start(number, written_ns, facts_bytes, facts_crc)


def facts_of(start: Start, data: bytes) -> dict[str, Any]:
    """The facts, from the bytes between the start and the sections. Raises `Damaged`."""
    if len(data) < _padded(start.facts_bytes) or zlib.crc32(data[: _padded(start.facts_bytes)]) != start.facts_crc:
        raise Damaged("its facts do not match their checksum")
    try:
        facts = decode_value(data[: start.facts_bytes])
    except InputError as error:
        raise Damaged(f"its facts cannot be read ({error})") from error
    if type(facts) is not dict:
        raise Damaged("its facts are none")
    return facts


def end_of(data: bytes, size: int, start: Start) -> End:
    """What the last `END_BYTES` of a file of ``size`` bytes say. Raises `Damaged`."""
    if len(data) != END_BYTES or size < start.facts_end + END_BYTES:
        raise Damaged("it is cut short")
    magic, contents_at, contents_bytes, contents_crc = _END.unpack_from(data)
    if magic != _END_MAGIC or _CRC.unpack_from(data, _END.size)[0] != zlib.crc32(data[: _END.size]):
        raise Damaged("it has no end: it was cut short, or not written to the end")
    if contents_at < start.facts_end or contents_at + contents_bytes + END_BYTES != size:
        raise Damaged("its contents are not where its end says")
    return End(contents_at, contents_bytes, contents_crc)


def contents_of(data: bytes, start: Start, end: End) -> tuple[Section, ...]:
    """The sections. Raises `Damaged` unless they fill the file from the facts to the contents."""
    if zlib.crc32(data) != end.contents_crc:
        raise Damaged("its contents do not match their checksum")
    try:
        sections = msgspec.msgpack.decode(data, type=tuple[Section, ...])
    except msgspec.MsgspecError as error:
        raise Damaged(f"its contents cannot be read ({error})") from error
    at = start.facts_end
    for section in sections:
        if section.at != at or section.bytes < 0 or section.end > end.contents_at:
            raise Damaged(f"{section.name!r} is not where it should be")
        if section.dtype != _BLOB and _DTYPE.fullmatch(section.dtype) is None:
            raise Damaged(f"{section.name!r} is of a type that is none")
        itemsize = np.dtype(section.dtype).itemsize if section.dtype != _BLOB else 1
        if min(section.shape, default=0) < 0 or math.prod(section.shape) * itemsize != section.bytes:
            raise Damaged(f"{section.name!r} has another size than its shape")
        at = section.end
    if at != end.contents_at:
        raise Damaged("something lies between its parts")
    if len({section.name for section in sections}) < len(sections):
        raise Damaged("two of its parts have one name")
    return sections


def value_of(section: Section, data: bytes) -> NDArray[Any] | bytes:
    """The array, a read-only view of ``data``, or the blob; ``data`` reaches to the next section. Raises `Damaged`."""
    if len(data) != section.end - section.at or zlib.crc32(data) != section.crc:
        raise Damaged(f"{section.name!r} does not match its checksum")
    if section.dtype == _BLOB:
        return data[: section.bytes]
    dtype = np.dtype(section.dtype)
    return np.frombuffer(data, dtype, section.bytes // dtype.itemsize).reshape(section.shape)


def _padded(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
