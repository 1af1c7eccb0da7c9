"""The bytes of the ingest log: a segment is a head, a mark, and frames one behind the other; zeros after the last.

    head    magic, version, identity of the log, first entry of this segment, of the one before, check sum
    mark    what this segment holds for certain, written when that is known: at the end of a run, and when the next begins
    frame   magic, check sum, length, behind, number; then the entry

All numbers are little-endian. The check sum of a frame covers its header and its entry, and begins with that of the segment's
head, so that a frame of another segment or log, left in old blocks of a disk, is none here. ``behind`` says how many of
the entries before this one were not yet on disk when it was written. So a damaged frame can be told from one that a
power failure left half written: a later frame knows whether it was on disk.

The check sum is CRC-32 of zlib, not CRC-32C: it comes with Python, runs at 3.6 GB/s (`docs/decisions/0039`), lets other
threads run meanwhile, and finds the same: every burst of up to 32 bits, and all but one in 2^32 of other damages.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

__all__ = [
    "FRAMES_AT",
    "FRAME_BYTES",
    "MAX_ENTRY",
    "NONE_BEFORE",
    "SUFFIX",
    "VERSION",
    "Frame",
    "Head",
    "Mark",
    "entry_name",
    "find_frame",
    "first_of",
    "frame_head",
    "length_of",
    "number_of",
    "read_frame",
    "read_head",
    "read_mark",
]

VERSION: Final = 1
SUFFIX: Final = ".log"
MAX_ENTRY: Final = 1 << 28
"""Bytes of an entry; a longer length is damage, refused before anything is allocated."""
NONE_BEFORE: Final = (1 << 64) - 1
"""In place of the first entry of the segment before: there was none when this one was begun."""

_MAGIC: Final = b"tidelog\n"
_HEAD: Final = struct.Struct("<8sI16sQQI")
_MARK_MAGIC: Final = b"mark"
_MARK: Final = struct.Struct("<4s?QQI")
_MARK_AT: Final = 64
FRAMES_AT: Final = 128
"""Where the first frame begins; head and mark lie in one sector, which a disk writes as one."""

_FRAME_MAGIC: Final = b"TmE\x01"
_FRAME: Final = struct.Struct("<4sIIIQ")
_COVERED: Final = struct.Struct("<IIQ")
FRAME_BYTES: Final = _FRAME.size
"""Bytes of a frame beside the entry's own."""


def entry_name(first: int) -> str:
    """The name of the segment that begins with this entry.

    >>> entry_name(70_000), first_of(entry_name(70_000)), first_of("notes.txt")
    ('00000000000000070000.log', 70000, None)
    """
    return f"{first:020d}{SUFFIX}"


def first_of(name: str) -> int | None:
    """The entry that the segment of this name begins with; None for the name of something else."""
    digits = name.removesuffix(SUFFIX)
    is_ours = name.endswith(SUFFIX) and len(digits) == 20 and digits.isascii() and digits.isdigit()
    return int(digits) if is_ours else None


@dataclass(frozen=True)
class Head:
    """The beginning of a segment."""

    log: bytes
    """16 bytes that no other log has."""
    first: int
    """Number of its first entry."""
    before: int
    """First entry of the segment before, or `NONE_BEFORE`."""
    version: int = VERSION

    def pack(self) -> bytes:
        """The bytes, from the beginning of the file up to `FRAMES_AT`, with no mark yet."""
        told = _HEAD.pack(_MAGIC, self.version, self.log, self.first, self.before, 0)[:-4]
        return (told + zlib.crc32(told).to_bytes(4, "little")).ljust(FRAMES_AT, b"\0")

    @property
    def seed(self) -> int:
        """What the check sums of its frames begin with."""
        return zlib.crc32(self.pack())


def read_head(data: bytes) -> Head:
    """The head that a segment begins with, of whatever version. Raises ValueError with what is wrong."""
    if len(data) < FRAMES_AT:
        raise ValueError("it is cut short")
    magic, version, log, first, before, check = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise ValueError("it does not begin as a segment of a log does")
    if check != zlib.crc32(data[: _HEAD.size - 4]):
        raise ValueError("the check sum of its head is wrong")
    return Head(log, first, before, version)


@dataclass(frozen=True)
class Mark:
    """What a segment holds for certain."""

    end: int
    """Entries below this number are in it, or before it."""
    place: int
    """They take the file up to here."""
    followed: bool
    """There is a segment after this one."""

    def pack(self) -> tuple[int, bytes]:
        """Where it is written, and what."""
        told = _MARK.pack(_MARK_MAGIC, self.followed, self.end, self.place, 0)[:-4]
        return _MARK_AT, told + zlib.crc32(told).to_bytes(4, "little")


def read_mark(data: bytes) -> Mark | None:
    """The mark of a segment, from its first `FRAMES_AT` bytes; None when there is none that can be trusted."""
    if len(data) < _MARK_AT + _MARK.size:
        return None
    magic, followed, end, place, check = _MARK.unpack_from(data, _MARK_AT)
    if magic != _MARK_MAGIC or check != zlib.crc32(data[_MARK_AT : _MARK_AT + _MARK.size - 4]):
        return None
    return Mark(end, place, followed)


@dataclass(frozen=True, slots=True)
class Frame:
    """An entry as it lies in a segment."""

    number: int
    on_disk: int
    """Entries below this number were on disk when it was written."""
    entry: bytes
    place: int
    """Where in the file it begins."""

    @property
    def end(self) -> int:
        """Where in the file the next one begins."""
        return self.place + FRAME_BYTES + len(self.entry)


def frame_head(number: int, on_disk: int, parts: list[bytes], seed: int) -> bytes:
    """What stands before an entry that consists of ``parts``."""
    length, behind = sum(map(len, parts)), number - on_disk
    check = zlib.crc32(_COVERED.pack(length, behind, number), seed)
    for part in parts:
        check = zlib.crc32(part, check)
    return _FRAME.pack(_FRAME_MAGIC, check, length, behind, number)


def length_of(data: bytes | memoryview, at: int = 0) -> int | None:
    """Bytes of the frame that seems to begin there, `FRAME_BYTES` of which must be in ``data``; None if none does."""
    magic, _, length, _, _ = _FRAME.unpack_from(data, at)
    return FRAME_BYTES + length if magic == _FRAME_MAGIC and length <= MAX_ENTRY else None


def number_of(data: bytes | memoryview, at: int = 0) -> int:
    """The entry's number in the frame that seems to begin there."""
    return int(_FRAME.unpack_from(data, at)[4])


def read_frame(data: bytes | memoryview, at: int, seed: int, place: int = 0) -> Frame | None:
    """The frame that lies there, whole and undamaged, or None. ``place`` is where in the file ``data`` begins.

    >>> data = frame_head(7, 5, [b"51.3", b" C"], 0) + b"51.3 C"
    >>> read_frame(data, 0, 0)
    Frame(number=7, on_disk=5, entry=b'51.3 C', place=0)
    >>> print(read_frame(data.replace(b"3", b"2"), 0, 0), read_frame(data, 0, 1), read_frame(data[:-1], 0, 0))
    None None None
    """
    if len(data) - at < FRAME_BYTES:
        return None
    magic, check, length, behind, number = _FRAME.unpack_from(data, at)
    start = at + FRAME_BYTES
    if magic != _FRAME_MAGIC or length > len(data) - start:
        return None
    entry = bytes(data[start : start + length])
    if check != zlib.crc32(entry, zlib.crc32(data[at + 8 : start], seed)):
        return None
    return Frame(number, number - behind, entry, place + at)


def find_frame(data: bytes, at: int) -> int:
    """Where from ``at`` on a frame may begin; -1 if nowhere."""
    return data.find(_FRAME_MAGIC, at)
