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
from tidemill.formats.lines import line_ends
from tidemill.rows import RowsByField
from tidemill.schema import Kind

__all__ = ["SMALLEST", "JsonAlike"]

SMALLEST: Final = 1 << 12
"""Bytes below which dicts take no longer."""
_MOST_FIELDS: Final = 64
_LONGEST: Final = 1 << 14
"""Bytes of a first line."""
_MOST_SHAPES: Final = 16
"""That are remembered: each has tables of its texts."""
_MOST_PASSED: Final = 63
"""Blocks left alone, at most, after some that were not alike."""
_TOKEN: Final = re.compile(rb'"[^"]*"|[^\s{}\[\]:,"]+')
"""Of a line without a backslash: a name, a value, a name, ..."""
_POWERS: Final = 10.0 ** np.arange(23)
_KIND_OF_FIRST: Final = {
    **dict.fromkeys(b"-0123456789", kernel.NUMBER),
    **dict.fromkeys(b"tf", kernel.BOOL),
    ord('"'): kernel.TEXT,
    ord("n"): kernel.NOTHING,
}
"""By the byte that a value begins with."""
_FLAT: Final = (str, int, float, bool, type(None))
Read = Callable[..., Any]


class JsonAlike:
    """Reads blocks of one input. It remembers the kinds of lines that it has met, their texts, and how often it was in vain, so as
    not to try each block then."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[bytes | int, ...], _Shape] = {}
        self._in_vain = 0
        self._pass = 0

    def rows(self, block: bytes) -> RowsByField | None:
        """The rows of a block of whole lines, one for each, where all are like the first, and the kernels are loaded; else None.
        Never raises.

        >>> JsonAlike().rows(b'{"sensor": "S1", "value": 20}\\n') is None  # so few are not worth it
        True
        """
        read = kernel.compiled()
        if read is None or len(block) < SMALLEST:
            return None
        if self._pass:
            self._pass -= 1
            return None
        made = self.read(block, read)
        self._in_vain = 0 if made is not None else min(2 * self._in_vain + 1, _MOST_PASSED)
        self._pass = self._in_vain
        return made

    def read(self, block: bytes, read: Read) -> RowsByField | None:
        """The same of any block, by ``read``, which is `alike_kernel.read_alike`."""
        first = block[: block.find(b"\n") + 1]
        if len(first) > _LONGEST or b"\\" in first or not block.endswith(b"\n"):
            return None
        spans = [match.span() for match in _TOKEN.finditer(first)][1::2]
        literals = _literals(first, spans)
        kinds = [_KIND_OF_FIRST.get(first[start], kernel.NOTHING) for start, _ in spans]
        known_by: tuple[bytes | int, ...] = (*literals, *kinds)
        shape = self._shapes.get(known_by)
        if shape is None:
            names = _names(first)
            if not 0 < len(names) == len(spans) <= _MOST_FIELDS:
                return None
            if len(self._shapes) >= _MOST_SHAPES:
                self._shapes.clear()
            shape = self._shapes[known_by] = _Shape(names, kinds, literals)
        try:
            return shape.rows(block, read)
        except UnicodeDecodeError:
            return None


def _names(line: bytes) -> tuple[str, ...]:
    """Of a flat object; of anything else none."""
    if may_have_long_number(line):
        return ()
    try:
        row = msgspec.json.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ()
    flat = type(row) is dict and all(type(item) in _FLAT for item in row.values())
    return tuple(row) if flat else ()


def _literals(first: bytes, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """What stands before, between and behind the values."""
    begins, ends = [0, *(end for _, end in spans)], [*(start for start, _ in spans), len(first)]
    return [first[begin:end] for begin, end in zip(begins, ends, strict=True)]


class _Shape:
    """Lines with one set of literals, and the texts that were found between them."""

    def __init__(self, names: tuple[str, ...], kinds: Sequence[int], literals: Sequence[bytes]) -> None:
        self._names = names
        self._kinds = np.array(kinds, np.int32)
        self._literals = np.frombuffer(b"".join(literals), np.uint8).copy()
        self._literal_ends = np.cumsum([len(literal) for literal in literals])
        self._texts = _Texts(len(names))

    def rows(self, block: bytes, read: Read) -> RowsByField | None:
        """None where a line is another. Raises `UnicodeDecodeError` where a text is none."""
        found = _Found(block, len(self._names))
        apart = bool((self._kinds == kernel.TEXT_APART).any())
        read(
            len(block), np.frombuffer(block, np.uint8), len(self._names), self._kinds, self._literals, self._literal_ends, _POWERS,
            *found.room(apart=apart), *self._texts.arrays, found.left, found.told,
        )  # fmt: skip
        outcome, where, field = found.told.tolist()
        if outcome == kernel.FULL and self._texts.begin_anew(field):
            self._kinds[field] = kernel.TEXT_APART
        elif outcome == kernel.NEW:
            self._kinds[field] = _KIND_OF_FIRST.get(block[where], kernel.NOTHING)
            if self._kinds[field] == kernel.NOTHING:
                return None
        if outcome in (kernel.FULL, kernel.NEW):
            return self.rows(block, read)
        if outcome != found.lines or not found.read_rest(where):
            return None
        self._texts.take_in(found.lines)
        kinds = enumerate(self._kinds.tolist())
        return RowsByField(self._names, [found.values(field, kind, self._texts.tables[field]) for field, kind in kinds])


class _Found:
    """What was read of a block."""

    def __init__(self, block: bytes, fields: int) -> None:
        self.lines = line_ends(block)
        self.told = np.zeros(3, np.int64)
        self._block = block
        self._cells = cells = self.lines * fields
        self._numbers, self._codes, self._tags = np.empty(cells), np.empty(cells, np.int32), np.empty(cells, np.uint8)
        self._spans = np.empty(0, np.int64)
        self.left = np.empty(4 * cells, np.int64)
        self._exact: dict[int, dict[int, int]] = {}

    def room(self, *, apart: bool) -> tuple[Any, ...]:
        self._spans = np.empty(2 * self._cells if apart else 1, np.int64)
        return self.lines, self._numbers, self._codes, self._spans, self._tags

    def read_rest(self, waiting: int) -> bool:
        """Read the numbers that take more than a division; False where one is beyond any float."""
        for cell, start, end, is_integer in self.left[: 4 * waiting].reshape(-1, 4).tolist():
            text = self._block[start:end]
            number = int(text) if is_integer else float(text)
            self._numbers[cell] = number
            if math.isinf(self._numbers[cell]):
                return False
            if is_integer and not -(2**53) <= number <= 2**53:
                self._exact.setdefault(cell // self.lines, {})[cell % self.lines] = int(number)
        return True

    def values(self, field: int, kind: int, texts: NDArray[np.object_]) -> Sequence[Any] | Column:
        """Of one field. Raises `UnicodeDecodeError` where a text is none."""
        part = slice(field * self.lines, (field + 1) * self.lines)
        tags = self._tags[part] if self._tags[part].any() else None
        match kind:
            case kernel.NOTHING:
                return [None] * self.lines
            case kernel.TEXT_APART:
                return self._texts_apart(self._spans[2 * part.start : 2 * part.stop].reshape(-1, 2), tags)
            case kernel.TEXT:
                return Column(Kind.TEXT, self._codes[part], tags=tags, texts=texts)
            case kernel.BOOL:
                return Column(Kind.BOOL, self._codes[part].astype(np.bool_), tags=tags)
        numbers = self._numbers[part]
        if tags is not None:
            numbers[tags == NULL_TAG] = np.nan
        return Column(Kind.FLOAT, numbers, tags=tags, exact=self._exact.get(field))

    def _texts_apart(self, spans: NDArray[np.int64], tags: NDArray[np.uint8] | None) -> list[str | None]:
        if tags is not None:
            spans[tags == NULL_TAG] = 0
        ascii_ = self._block.decode("ascii") if self._block.isascii() else None
        texts: list[str | None] = [
            self._block[start:end].decode() if ascii_ is None else ascii_[start:end] for start, end in spans.tolist()
        ]
        for row in () if tags is None else np.flatnonzero(tags == NULL_TAG).tolist():
            texts[row] = None
        return texts


class _Texts:
    """The texts of a shape's fields, coded alike from block to block: who sees the same table again need not look at it again."""

    def __init__(self, fields: int) -> None:
        self._places = np.zeros((fields, kernel.PLACES), np.int32)
        self._ends = np.zeros((fields, kernel.TEXTS + 1), np.int64)
        self._letters = np.zeros((fields, kernel.LETTERS), np.uint8)
        self._counts = np.zeros(fields, np.int64)
        self.tables: list[NDArray[np.object_]] = [object_array([]) for _ in range(fields)]
        self._coded = [0] * fields
        """Lines that were read with each table."""

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        return self._places, self._ends, self._letters, self._counts

    def take_in(self, lines: int) -> None:
        """So many lines were read: make texts of the bytes that are new. Raises `UnicodeDecodeError` when some are not UTF-8, and
        keeps none of the field then."""
        for field, count in enumerate(self._counts.tolist()):
            self._coded[field] += lines
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
        in_vain = self._coded[field] <= 2 * int(self._counts[field])
        self._places[field] = 0
        self._counts[field] = 0
        self.tables[field] = object_array([])
        self._coded[field] = 0
        return in_vain
