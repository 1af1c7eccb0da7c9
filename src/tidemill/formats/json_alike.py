"""NDJSON whose lines differ from the first in their values alone, read into columns by machine code.

msgspec reads the first line of a kind, and so says what a line is: everything between its values is kept as it stands. Any line
that is the same but for values of the same sort is a record as well, and a comparison is all that it takes to know. A text in it
has no escape, a number is one that JSON allows; what has more to it is left to msgspec.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemill.column import INTEGER_TAG, NULL_TAG, Column, object_array
from tidemill.formats import alike_kernel as kernel
from tidemill.formats.json_limits import may_have_long_number
from tidemill.formats.lines import line_ends
from tidemill.rows import RowsByField
from tidemill.schema import Kind

__all__ = ["SMALLEST", "JsonAlike"]

SMALLEST: Final = 1 << 13
"""Bytes below which dicts take no longer."""
_MOST_FIELDS: Final = 64
_LONGEST: Final = 1 << 14
"""Bytes of a first line."""
_MOST_SHAPES: Final = 64
_MOST_TABLES: Final = 128
"""Of texts, over all shapes that are remembered."""
_MOST_TRIES: Final = 4
"""To read one block, when it brings fields that were null so far, or more texts than a table has room for."""
_MOST_PASSED: Final = 63
"""Blocks left alone, at most, after some that were not alike."""
_SEED: Final = secrets.randbits(32)
_TOKEN: Final = re.compile(rb'"[^"]*"|[^\s{}\[\]:,"]+')
"""Of a line without a backslash: a name, a value, a name, ..."""
_POWERS: Final = 10.0 ** np.arange(23)
_NUMBERS: Final = msgspec.json.Decoder(list[int | float])
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
        self._shapes: dict[tuple[bytes, ...], _Shape] = {}
        """By what stands between the values; the one that was met last is last."""
        self._tables = 0
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
        tokens = [match.span() for match in _TOKEN.finditer(first)]
        literals = _literals(first, tokens[1::2])
        shape = self._taken_out(literals) or _learned(first, tokens, literals)
        try:
            made = None if shape is None else shape.rows(block, read)
        except (UnicodeDecodeError, msgspec.MsgspecError):  # a text, or a number, that is none
            return None
        if shape is not None and made is not None:  # else its values are perhaps of other sorts than the first were
            self._remember(literals, shape)
        return made

    def _remember(self, literals: tuple[bytes, ...], shape: _Shape) -> None:
        self._shapes[literals] = shape
        self._tables += shape.tables
        while len(self._shapes) > _MOST_SHAPES or (self._tables > _MOST_TABLES and len(self._shapes) > 1):
            self._taken_out(next(iter(self._shapes)))

    def _taken_out(self, literals: tuple[bytes, ...]) -> _Shape | None:
        shape = self._shapes.pop(literals, None)
        self._tables -= 0 if shape is None else shape.tables
        return shape


def _learned(first: bytes, tokens: Sequence[tuple[int, int]], literals: tuple[bytes, ...]) -> _Shape | None:
    """The shape of a flat object; None for anything else."""
    if may_have_long_number(first):
        return None
    try:
        row = msgspec.json.decode(first)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if (
        type(row) is not dict
        or not 0 < len(row) <= _MOST_FIELDS
        or not all(type(item) in _FLAT for item in row.values())
    ):
        return None
    if [first[start + 1 : end - 1] for start, end in tokens[::2]] != [name.encode() for name in row]:
        return None  # a name that comes twice, of which the last counts
    return _Shape(tuple(row), _kinds(first, tokens), literals)


def _kinds(line: bytes, tokens: Sequence[tuple[int, int]]) -> list[int]:
    return [_KIND_OF_FIRST.get(line[start], kernel.NOTHING) for start, _ in tokens[1::2]]


def _literals(first: bytes, spans: Sequence[tuple[int, int]]) -> tuple[bytes, ...]:
    """What stands before, between and behind the values."""
    begins, ends = [0, *(end for _, end in spans)], [*(start for start, _ in spans), len(first)]
    return tuple(first[begin:end] for begin, end in zip(begins, ends, strict=True))


class _Shape:
    """Lines with one set of literals, and the texts that were found between them."""

    def __init__(self, names: tuple[str, ...], kinds: Sequence[int], literals: Sequence[bytes]) -> None:
        self._names = names
        self._kinds = np.array(kinds, np.int32)
        self._literals = np.frombuffer(b"".join(literals), np.uint8).copy()
        self._literal_ends = np.cumsum([len(literal) for literal in literals])
        self._shortest = len(self._literals) + len(names)
        self._texts = _Texts(len(names))

    @property
    def tables(self) -> int:
        """How many of its fields have texts."""
        return int(np.count_nonzero(self._kinds == kernel.TEXT))

    def rows(self, block: bytes, read: Read) -> RowsByField | None:
        """None where a line is another. Raises `UnicodeDecodeError` where a text is none, `msgspec.MsgspecError` where a number
        is."""
        lines, kinds = line_ends(block), self._kinds.copy()
        if lines * self._shortest > len(block):  # before there is room made for values that cannot all be there
            return None
        for _ in range(_MOST_TRIES):
            found = _Found(block, lines, kinds)
            read(
                len(block), np.frombuffer(block, np.uint8), len(kinds), kinds, self._literals, self._literal_ends, _POWERS,
                *found.room, _SEED, *self._texts.arrays, *found.rest,
            )  # fmt: skip
            outcome, where, field = found.told.tolist()
            if outcome == lines:
                self._kinds = kinds
                self._texts.take_in(lines)
                found.read_rest(where, field)
                return RowsByField(self._names, [found.values(at, text) for at, text in enumerate(self._texts.tables)])
            if outcome == kernel.FULL and self._texts.begin_anew(field):
                kinds[field] = kernel.TEXT_APART
            elif outcome == kernel.NEW:
                line = block[block.rfind(b"\n", 0, where) + 1 : block.find(b"\n", where)]
                there = _kinds(line, [match.span() for match in _TOKEN.finditer(line)])
                if len(there) != len(kinds):
                    return None
                kinds = np.where(kinds == kernel.NOTHING, np.array(there, np.int32), kinds)
            elif outcome == kernel.UNLIKE:
                return None
        return None


class _Found:
    """What is read of a block."""

    def __init__(self, block: bytes, lines: int, kinds: NDArray[np.int32]) -> None:
        self._block, self._lines, self._kinds = block, lines, kinds
        cells = lines * len(kinds)
        self._numbers, self._codes, self._tags = np.empty(cells), np.empty(cells, np.int32), np.empty(cells, np.uint8)
        self._spans = np.empty(2 * cells if (kinds == kernel.TEXT_APART).any() else 1, np.int64)
        self._left, self._left_texts = np.empty(cells, np.int64), np.empty(len(block), np.uint8)
        self._exact: dict[int, dict[int, int]] = {}
        self.told = np.zeros(3, np.int64)

    @property
    def room(self) -> tuple[Any, ...]:
        return self._lines, self._numbers, self._codes, self._spans, self._tags

    @property
    def rest(self) -> tuple[Any, ...]:
        return self._left, self._left_texts, self.told

    def read_rest(self, count: int, size: int) -> None:
        """Have msgspec read the numbers that take more than a division. Raises `msgspec.MsgspecError` where one is none."""
        if not count:
            return
        items = _NUMBERS.decode(b"[%b]" % self._left_texts[: size - 1].tobytes())
        cells = self._left[:count]
        self._numbers[cells] = items
        for place in np.flatnonzero(
            (self._tags[cells] == INTEGER_TAG) & (np.abs(self._numbers[cells]) >= 2.0**53)
        ).tolist():
            field, row = divmod(int(cells[place]), self._lines)
            if abs(items[place]) > 2**53:
                self._exact.setdefault(field, {})[row] = int(items[place])

    def values(self, field: int, texts: NDArray[np.object_]) -> Sequence[Any] | Column:
        """Of one field. Raises `UnicodeDecodeError` where a text is none."""
        part = slice(field * self._lines, (field + 1) * self._lines)
        tags = self._tags[part] if self._tags[part].any() else None
        if tags is not None and (tags == NULL_TAG).all():  # which says of no kind that it is the field's
            return [None] * self._lines
        match int(self._kinds[field]):
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
        self._hashes = np.zeros((fields, kernel.TEXTS), np.int64)
        self._ends = np.zeros((fields, kernel.TEXTS + 1), np.int64)
        self._letters = np.zeros((fields, kernel.LETTERS), np.uint8)
        self._counts = np.zeros(fields, np.int64)
        self.tables: list[NDArray[np.object_]] = [object_array([]) for _ in range(fields)]
        self._room = list(self.tables)
        """What they are the beginnings of."""
        self._coded = [0] * fields
        """Lines that were read with each table."""

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        return self._places, self._hashes, self._ends, self._letters, self._counts

    def take_in(self, lines: int) -> None:
        """So many lines were read: make texts of the bytes that are new. Raises `UnicodeDecodeError` when some are not UTF-8; these
        tables are of no use then."""
        for field, count in enumerate(self._counts.tolist()):
            self._coded[field] += lines
            known = len(self.tables[field])
            if count == known:
                continue
            ends = self._ends[field, known : count + 1].tolist()
            letters = self._letters[field, : ends[-1]].tobytes()
            self.tables[field] = self._longer(field, [letters[start:end].decode() for start, end in pairwise(ends)])

    def _longer(self, field: int, new: list[str]) -> NDArray[np.object_]:
        """The field's table and these, as another: what has the old one goes on with it, and no text is copied each time."""
        known, room = len(self.tables[field]), self._room[field]
        if known + len(new) > len(room):
            room = self._room[field] = np.empty(2 * (known + len(new)), object)
            room[:known] = self.tables[field]
        room[known : known + len(new)] = new
        return room[: known + len(new)]

    def begin_anew(self, field: int) -> bool:
        """Forget a field's texts; True when they did not come again."""
        in_vain = self._coded[field] <= 2 * int(self._counts[field])
        self._places[field] = 0
        self._counts[field] = 0
        self.tables[field] = self._room[field] = object_array([])
        self._coded[field] = 0
        return in_vain
