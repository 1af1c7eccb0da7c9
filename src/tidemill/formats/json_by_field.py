"""NDJSON whose lines are all of one shape, field by field: what a program writes, again and again.

Such lines need no dict each. That they are of one shape is proven from where their quotation marks stand, without a look at
each line; what their values are, msgspec reads, as it does for all others. So nothing here is read in another way than in
`json_lines`: what is of no one shape is left to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemill.formats import alike_kernel
from tidemill.formats.json_alike import MOST_FIELDS, JsonAlike
from tidemill.formats.json_limits import may_have_long_number
from tidemill.rows import RowsByField

__all__ = ["SMALLEST", "JsonByField"]

SMALLEST: Final = 1 << 14
"""Bytes below which looking for a shape takes longer than the dicts would."""
_SMALLEST_ALIKE: Final = 1 << 10
"""The same of lines that are all like the first."""
_MOST_PASSED: Final = 63
"""Blocks left alone, at most, after some that were of no one shape."""
_QUOTE, _COLON, _BRACE, _END = b'":{\n'

_Value = str | float | int | bool | None
"""Of a field, so that what is nested is refused."""


class JsonByField:
    """Reads blocks of one input. Where machine code for it is loaded, blocks of lines that are all like the first are read by
    `json_alike`; blocks of ``smallest`` bytes at least whose lines have but their fields in common are looked at here."""

    def __init__(self, smallest: int = SMALLEST) -> None:
        self._smallest = smallest
        self._alike = JsonAlike()
        self._alike_tries, self._tries = _Tries(), _Tries()

    def rows(self, block: bytes) -> RowsByField | None:
        """The rows of whole lines, one for each, when all have the same fields in the same order, none of them nested; else
        None. Never raises.

        >>> lines = b'{"sensor": "S1", "value": 20}\\n' * 100
        >>> JsonByField(smallest=0).rows(lines)[99]
        {'sensor': 'S1', 'value': 20}
        """
        read = alike_kernel.compiled()
        if read is not None and len(block) >= _SMALLEST_ALIKE and self._alike_tries.is_due():
            alike = self._alike_tries.told(self._alike.rows(block, read))
            if alike is not None:
                return alike
        if len(block) < self._smallest or not self._tries.is_due():
            return None
        return self._tries.told(_rows(block))


class _Tries:
    """After some in vain, not each block is tried."""

    def __init__(self) -> None:
        self._in_vain = 0
        self._pass = 0

    def is_due(self) -> bool:
        self._pass -= 1
        return self._pass < 0

    def told(self, made: RowsByField | None) -> RowsByField | None:
        """What a try has come to."""
        self._in_vain = 0 if made is not None else min(2 * self._in_vain + 1, _MOST_PASSED)
        self._pass = self._in_vain
        return made


def _rows(block: bytes) -> RowsByField | None:
    if b"\\" in block or may_have_long_number(block):
        return None
    data = np.frombuffer(block, np.uint8)
    lines = int(np.count_nonzero(data == _END))
    names = _names(block, data, lines)
    if names is None or (decode := _decoder(names)) is None:
        return None
    try:
        rows = decode(block)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return RowsByField(names, _turner(len(names))(rows)) if len(rows) == lines else None


def _names(block: bytes, data: NDArray[np.uint8], lines: int) -> tuple[str, ...] | None:
    """The names of the fields, if every line that is a flat object has just these, in this order; None if not.

    With no backslash in the block, quotation marks stand in pairs around texts, and a text before a colon is a name. So lines
    have the same names in the same order when they have as many texts each, the same of these before a colon, and in those
    places the same. As every line begins with an object, and no flat object has another within, none reaches over its line.
    """
    in_line = block.count(b'"', 0, block.find(b"\n") + 1)
    marks = np.flatnonzero(data == _QUOTE)
    if not in_line or in_line % 2 or len(marks) != lines * in_line or not block.endswith(b"\n") or block[:2] != b'{"':
        return None
    grid = marks.reshape(lines, in_line)
    opening, closing = grid[:, ::2], grid[:, 1::2]
    begins = opening[1:, 0]
    if not ((data[begins - 1] == _BRACE).all() and (data[begins - 2] == _END).all()):
        return None
    colons = data[closing + 1] == _COLON
    if not (colons == colons[0]).all():
        return None
    places = np.flatnonzero(colons[0])
    if not len(places) or len(places) > MOST_FIELDS:
        return None
    opening, closing = opening[:, places] + 1, closing[:, places]
    if not _alike(data, opening, closing):
        return None
    try:
        names = tuple(block[start:end].decode() for start, end in zip(opening[0], closing[0], strict=True))
    except UnicodeDecodeError:
        return None
    return names if len(set(names)) == len(names) else None


def _alike(data: NDArray[np.uint8], opening: NDArray[np.intp], closing: NDArray[np.intp]) -> bool:
    """Whether each column of texts holds the same text in all rows, provided that every row holds the first row's texts in some
    order, as whoever reads the fields by name finds out: then only what tells these apart must be looked at.
    """
    lengths = closing - opening
    if not (lengths == lengths[0]).all():
        return False
    texts = [data[start:end].tobytes() for start, end in zip(opening[0], closing[0], strict=True)]
    return all(bool((data[opening[:, place] + at] == texts[place][at]).all()) for place, at in _telling(tuple(texts)))


@lru_cache(maxsize=64)
def _telling(texts: tuple[bytes, ...]) -> list[tuple[int, int]]:
    """Which bytes of which texts tell those of one length apart: pairs of a text's place and the byte's in it."""
    found = []
    for length in set(map(len, texts)):
        places = [place for place, text in enumerate(texts) if len(text) == length]
        left = {texts[place] for place in places}
        for at in range(length):
            if len(left) < 2:
                break
            if len({text[at] for text in left}) > 1:
                found += [(place, at) for place in places]
                left = set(_not_alone(left, at))
    return found


def _not_alone(texts: set[bytes], at: int) -> Iterator[bytes]:
    """Those that share their byte with another."""
    bytes_there = [text[at] for text in texts]
    return (text for text in texts if bytes_there.count(text[at]) > 1)


@lru_cache(maxsize=64)
def _turner(fields: int) -> Callable[[Sequence[Any]], list[Sequence[Any]]]:
    """A function that gives the values of each of so many fields of Structs, in half the time that `astuple` takes.

    Its source follows from the number alone.
    """
    lists = ", ".join(f"[row.f{place} for row in rows]" for place in range(fields))
    made: Callable[[Sequence[Any]], list[Sequence[Any]]] = eval(f"lambda rows: [{lists}]", {})  # noqa: S307 - see above
    return made


@lru_cache(maxsize=64)
def _decoder(names: tuple[str, ...]) -> Callable[[bytes], Sequence[Any]] | None:
    """Reads lines that have all of these fields and no others; None for names that a Struct cannot carry."""
    places = [f"f{place}" for place in range(len(names))]
    try:
        shape = msgspec.defstruct(
            "Row",
            [(place, _Value) for place in places],
            rename=dict(zip(places, names, strict=True)),
            forbid_unknown_fields=True,
            gc=False,
        )
    except (ValueError, TypeError):
        return None
    return msgspec.json.Decoder(shape).decode_lines
