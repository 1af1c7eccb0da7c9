"""Bytes as they come → blocks of whole lines, within a bound."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Final

import numpy as np

__all__ = [
    "BYTE_ORDER_MARK",
    "LINE_LIMIT",
    "MESSAGE_LIMIT",
    "LineSplitter",
    "Oversize",
    "line_ends",
    "shown",
    "text_of",
]

LINE_LIMIT: Final = 1 << 20
"""Bytes of one line, without its end; a longer one is rejected."""
MESSAGE_LIMIT: Final = 256 << 10
"""The same of one record that comes over a network, where anybody may send."""
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
"""What some programs write before a text, and is no part of it."""
_SHOWN: Final = 2_000
"""Bytes that are kept of a line beyond the limit."""
_NEWLINE: Final = 10
_LONG: Final = 1 << 13
_ESCAPED: Final = 0xDC00
"""What stands for a byte that is none of UTF-8, less the byte."""
_BACKSLASH_X: Final = b"\\x"
_HEX: Final = np.frombuffer(b"0123456789abcdef", np.uint8)


def line_ends(block: bytes) -> int:
    """How many there are: NumPy counts a long block in a fifth of the time of ``bytes.count``.

    >>> line_ends(b"a\\nb\\n")
    2
    """
    if len(block) < _LONG:
        return block.count(b"\n")
    return int(np.count_nonzero(np.frombuffer(block, np.uint8) == _NEWLINE))


def text_of(raw: bytes) -> str:
    """A rejected line as text, whole, so that it can be repaired; bytes that are not UTF-8 appear as ``\\xff``.

    >>> text_of(b'{"value": \\xff}')
    '{"value": \\\\xff}'
    """
    return (raw.decode("utf-8", "backslashreplace") if len(raw) < _LONG else _long_text(raw)).rstrip("\r\n")


def _long_text(raw: bytes) -> str:
    """What the error handler "backslashreplace" makes, which is called for each byte: 0.3 s for a megabyte of noise."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        pass
    letters = np.array([raw.decode("utf-8", "surrogateescape")]).view(np.uint32)
    escaped = (letters >= _ESCAPED) & (letters < _ESCAPED + 256)
    places = np.flatnonzero(escaped)
    first = places + 3 * np.arange(len(places))
    made = np.repeat(letters, np.where(escaped, 4, 1))
    byte = letters[places] - _ESCAPED
    made[first], made[first + 1] = _BACKSLASH_X
    made[first + 2], made[first + 3] = _HEX[byte >> 4], _HEX[byte & 15]
    return made.tobytes().decode(f"utf-32-{sys.byteorder[0]}e")


def shown(raw: bytes) -> str:
    """A line for a person, cut where it is long."""
    text = text_of(raw[:_SHOWN])
    return text if len(raw) <= _SHOWN else f"{text}... ({len(raw)} bytes)"


@dataclass(frozen=True)
class Oversize:
    """A line longer than the limit, of which only the beginning was kept."""

    head: bytes


class LineSplitter:
    """Incremental lines: feed bytes, take blocks that end where a line ends.

    Never holds more than ``limit`` bytes of an unfinished line. A byte order mark at the very start is dropped.
    However the bytes are cut, the same lines come out. ``begun`` says that what comes is not the input's start.

    >>> splitter = LineSplitter()
    >>> splitter.feed(b'{"a": 1}\\n{"a"'), splitter.feed(b': 2}'), splitter.finish()
    (b'{"a": 1}\\n', b'', b'{"a": 2}')
    """

    __slots__ = ("_held", "_parts", "_skipping", "_start", "limit", "oversize")

    def __init__(self, limit: int = LINE_LIMIT, *, begun: bool = False) -> None:
        self.limit = limit
        self.oversize: list[Oversize] = []
        """Lines set aside since the caller last emptied this list."""
        self._parts: list[bytes] = []
        self._held = 0
        self._skipping = False
        self._start: bytes | None = None if begun else b""

    @property
    def held(self) -> int:
        """Bytes of the unfinished line."""
        return self._held

    @property
    def skipping(self) -> bool:
        """Whether an oversize line is being read over."""
        return self._skipping

    def feed(self, data: bytes) -> bytes:
        """The whole lines that ``data`` completes, each with its end; empty when there is none yet."""
        if self._start is not None:
            data = self._after_mark(data)
        end = data.rfind(b"\n") + 1
        if not end:
            self._hold(data)
            return b""
        block = data[:end]
        if self._parts or self._skipping:
            block = self._completed(block)
        if len(block) > self.limit:
            block = self._within_limit(block)
        self._hold(data[end:])
        return block

    def give_up(self) -> None:
        """Reject the unfinished line: somebody else needs the memory."""
        if self._held:
            self._set_aside(b"".join(self._parts))
            self._skipping = True

    def finish(self) -> bytes:
        """The last line, when the input ended without a line's end; empty when there is none."""
        if self._start:  # one or two bytes that could have become a byte order mark
            self._hold(self._start)
            self._start = None
        rest = b"".join(self._parts)
        self._parts.clear()
        self._held = 0
        self._skipping = False
        return rest

    def _after_mark(self, data: bytes) -> bytes:
        assert self._start is not None
        data = self._start + data
        if len(data) < len(BYTE_ORDER_MARK) and BYTE_ORDER_MARK.startswith(data):
            self._start = data
            return b""
        self._start = None
        return data.removeprefix(BYTE_ORDER_MARK)

    def _hold(self, rest: bytes) -> None:
        if not rest or self._skipping:
            return
        self._parts.append(rest)
        self._held += len(rest)
        if self._held > self.limit + 1 or (self._held > self.limit and not rest.endswith(b"\r")):
            self._set_aside(b"".join(self._parts))
            self._skipping = True

    def _completed(self, block: bytes) -> bytes:
        if self._skipping:
            self._skipping = False
            return block[block.index(b"\n") + 1 :]
        block = b"".join((*self._parts, block))
        self._parts.clear()
        self._held = 0
        return block

    def _within_limit(self, block: bytes) -> bytes:
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == _NEWLINE)
        if np.diff(ends, prepend=-1).max() - 1 <= self.limit:
            return block
        kept = []
        start = 0
        for end in (ends + 1).tolist():
            line = block[start:end]
            start = end
            if len(line.removesuffix(b"\n").removesuffix(b"\r")) > self.limit:
                self._set_aside(line)
            else:
                kept.append(line)
        return b"".join(kept)

    def _set_aside(self, line: bytes) -> None:
        self.oversize.append(Oversize(line[:_SHOWN]))
        self._parts.clear()
        self._held = 0
