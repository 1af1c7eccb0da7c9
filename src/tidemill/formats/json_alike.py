"""NDJSON whose lines differ from the first in their values alone, read into columns by machine code.

msgspec reads the first line of a kind, and so says what a line is: everything between its values is kept as it stands. Any line
that is the same but for values of the same sort is a record as well, and a comparison is all that it takes to know. A text in it
has no escape, a number is one that JSON allows; what has more to it is left to msgspec.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemill.column import NULL_TAG, Column, object_array
from tidemill.formats import alike_kernel as kernel
from tidemill.formats.json_limits import may_have_long_number
from tidemill.rows import RowsByField
from tidemill.schema import Kind

__all__ = ["MOST_FIELDS", "JsonAlike"]

MOST_FIELDS: Final = 64
_MOST_SHAPES: Final = 16
"""That are remembered: each has tables of its texts."""
_TOKEN: Final = re.compile(rb'"[^"]*"|[^\s{}\[\]:,"]+')
"""Of a line without a backslash: a name, a value, a name, ..."""
_POWERS: Final = 10.0 ** np.arange(23)
_KINDS: Final = {str: kernel.TEXT, int: kernel.NUMBER, float: kernel.NUMBER, bool: kernel.BOOL}
Read = Callable[..., Any]


class JsonAlike:
    """Reads blocks of one input."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[bytes, ...], _Shape] = {}

    def rows(self, block: bytes, read: Read) -> RowsByField | None:
        """The rows of a block of whole lines, when all are like the first; else None. Never raises.

        ``read`` is `alike_kernel.read_alike`, compiled or not.
        """
        first = block[: block.find(b"\n") + 1]
        if b"\\" in first or not block.endswith(b"\n"):
            return None
        spans = [match.span() for match in _TOKEN.finditer(first)][1::2]
        if not 0 < len(spans) <= MOST_FIELDS:
            return None
        shape = self._shapes.get(_known_by(first, spans)) or self._learned(first, spans)
        return None if shape is None else shape.rows(block, read)

    def _learned(self, first: bytes, spans: Sequence[tuple[int, int]]) -> _Shape | None:
        """None for a line that is no flat object, with values that say what they are."""
        if may_have_long_number(first):
            return None
        try:
            row = msgspec.json.decode(first)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        if type(row) is not dict or len(row) != len(spans) or not all(type(item) in _KINDS for item in row.values()):
            return None
        if len(self._shapes) >= _MOST_SHAPES:
            self._shapes.clear()
        kinds = [_KINDS[type(item)] for item in row.values()]
        made = self._shapes[_known_by(first, spans)] = _Shape(tuple(row), kinds, _literals(first, spans))
        return made


def _literals(first: bytes, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """What stands before, between and behind the values."""
    begins, ends = [0, *(end for _, end in spans)], [*(start for start, _ in spans), len(first)]
    return [first[begin:end] for begin, end in zip(begins, ends, strict=True)]


def _known_by(first: bytes, spans: Sequence[tuple[int, int]]) -> tuple[bytes, ...]:
    """What makes a shape: its literals, and of each value what it begins with."""
    return (*_literals(first, spans), *(_sort(first[start]) for start, _ in spans))


def _sort(byte: int) -> bytes:
    return b"0" if byte == 45 or 48 <= byte <= 57 else b"t" if byte == 102 else bytes([byte])


class _Shape:
    """Lines with one set of literals, and the texts that were found between them."""

    def __init__(self, names: tuple[str, ...], kinds: Sequence[int], literals: Sequence[bytes]) -> None:
        self._names = names
        self._kinds = np.array(kinds, np.int32)
        self._literals = np.frombuffer(b"".join(literals), np.uint8).copy()
        self._literal_ends = np.cumsum([len(literal) for literal in literals])
        self._texts = _Texts(len(names))

    def rows(self, block: bytes, read: Read) -> RowsByField | None:
        try:
            return self._rows(block, read)
        except UnicodeDecodeError:
            return None

    def _rows(self, block: bytes, read: Read) -> RowsByField | None:
        lines, fields = block.count(b"\n"), len(self._names)
        cells = lines * fields
        numbers, codes, tags = np.empty(cells), np.empty(cells, np.int32), np.empty(cells, np.uint8)
        apart = bool((self._kinds == kernel.TEXT_APART).any())
        spans = np.empty(2 * cells if apart else 1, np.int64)
        left, told = np.empty(4 * cells, np.int64), np.zeros(3, np.int64)
        read(
            len(block), np.frombuffer(block, np.uint8), fields, self._kinds, self._literals, self._literal_ends, _POWERS, lines,
            numbers, codes, spans, tags, *self._texts.arrays, left, told,
        )  # fmt: skip
        if told[0] == kernel.FULL:
            if self._texts.begin_anew(int(told[2])):
                self._kinds[told[2]] = kernel.TEXT_APART
            return self._rows(block, read)
        if told[0] != lines:
            return None
        self._texts.take_in()
        exact = _read_rest(block, numbers, left[: 4 * told[1]].reshape(-1, 4), lines)
        if exact is None:
            return None
        made: list[Sequence[Any] | Column] = []
        for field, kind in enumerate(self._kinds.tolist()):
            part = slice(field * lines, (field + 1) * lines)
            if kind == kernel.TEXT_APART:
                made.append(_texts_at(block, spans[2 * part.start : 2 * part.stop].reshape(-1, 2), tags[part]))
                continue
            tagged = tags[part] if tags[part].any() else None
            if kind == kernel.NUMBER:
                if tagged is not None:
                    numbers[part][tagged == NULL_TAG] = np.nan
                made.append(Column(Kind.FLOAT, numbers[part], tags=tagged, exact=exact.get(field)))
            elif kind == kernel.BOOL:
                made.append(Column(Kind.BOOL, codes[part].astype(np.bool_), tags=tagged))
            else:
                self._texts.coded[field] += lines
                made.append(Column(Kind.TEXT, codes[part], tags=tagged, texts=self._texts.tables[field]))
        return RowsByField(self._names, made)


class _Texts:
    """The texts of a shape's fields, coded alike from block to block: who sees the same table again need not look at it again."""

    def __init__(self, fields: int) -> None:
        self._places = np.zeros((fields, kernel.PLACES), np.int32)
        self._ends = np.zeros((fields, kernel.TEXTS + 1), np.int64)
        self._letters = np.zeros((fields, kernel.LETTERS), np.uint8)
        self._counts = np.zeros(fields, np.int64)
        self.tables: list[NDArray[np.object_]] = [object_array([]) for _ in range(fields)]
        self.coded = [0] * fields
        """Values that were coded with each table."""

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        return self._places, self._ends, self._letters, self._counts

    def take_in(self) -> None:
        """Make texts of the bytes that are new. Raises `UnicodeDecodeError` when some are not UTF-8, and keeps none then."""
        for field, count in enumerate(self._counts.tolist()):
            known = len(self.tables[field])
            if count == known:
                continue
            ends = self._ends[field, known : count + 1].tolist()
            letters = self._letters[field, : ends[-1]].tobytes()
            try:
                new = [letters[start:end].decode() for start, end in pairwise(ends)]
            except UnicodeDecodeError:
                self.begin_anew(field)
                raise
            self.tables[field] = object_array([*self.tables[field].tolist(), *new])

    def begin_anew(self, field: int) -> bool:
        """Forget a field's texts; True when they did not come again."""
        in_vain = self.coded[field] <= 2 * int(self._counts[field])
        self._places[field] = 0
        self._counts[field] = 0
        self.tables[field] = object_array([])
        self.coded[field] = 0
        return in_vain


def _read_rest(
    block: bytes, numbers: NDArray[np.float64], left: NDArray[np.int64], lines: int
) -> dict[int, dict[int, int]] | None:
    """Read what takes more than a division, and give, by field and row, the integers that no float holds; None where a number is
    beyond any float."""
    exact: dict[int, dict[int, int]] = {}
    for cell, start, end, is_integer in left.tolist():
        text = block[start:end]
        if not is_integer:
            numbers[cell] = float(text)
            if math.isinf(numbers[cell]):
                return None
            continue
        item = int(text)
        numbers[cell] = float(item)
        if not -(2**53) <= item <= 2**53:
            exact.setdefault(cell // lines, {})[cell % lines] = item
    return exact


def _texts_at(block: bytes, spans: NDArray[np.int64], tags: NDArray[np.uint8]) -> list[str | None]:
    missing = tags == NULL_TAG
    if missing.any():
        spans[missing] = 0
        texts: list[str | None] = _texts_at(block, spans, np.zeros_like(tags))
        return [None if none else text for none, text in zip(missing.tolist(), texts, strict=True)]
    if block.isascii():
        whole = block.decode("ascii")
        return [whole[start:end] for start, end in spans.tolist()]
    return [block[start:end].decode() for start, end in spans.tolist()]
