"""One column: values of one kind, and for each row whether there is a value at all.

Value, null and absent are three different things, and so are ``5`` and ``5.0`` to the user who gets the
record back; `Column.tags` keeps them apart without a second array of objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import is_
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.errors import EngineError
from tidemill.schema import Kind

__all__ = [
    "ABSENT",
    "ABSENT_TAG",
    "DTYPES",
    "FARTHEST",
    "INTEGER_TAG",
    "NAT",
    "NULL_TAG",
    "VALUE_TAG",
    "Column",
    "is_null",
    "nanoseconds",
]

VALUE_TAG: Final = 0
NULL_TAG: Final = 1
"""The record has the field, and it holds None."""
ABSENT_TAG: Final = 2
"""The record does not have the field."""
INTEGER_TAG: Final = 3
"""Only in FLOAT columns: the record held an int. ``exact`` has it where float64 cannot."""

NAT: Final = np.iinfo(np.int64).min
"""The nanosecond count that NumPy reads as "not a time"."""

FARTHEST: Final = (1 << 62) - 1
"""Nanoseconds either side of 1970 (the years 1823 to 2116) at which an event time may be at most, so that no difference of two
of them, and no sum of one and a duration, is too large."""

DTYPES: Final[dict[Kind, np.dtype[Any]]] = {
    Kind.FLOAT: np.dtype(np.float64),
    Kind.INT: np.dtype(np.int64),
    Kind.BOOL: np.dtype(np.bool_),
    Kind.TEXT: np.dtype(np.int32),
    Kind.TIME: np.dtype(np.int64),
    Kind.OBJECT: np.dtype(object),
}
"""How each kind is stored. TEXT stores codes into ``texts``; -1 is "no text"."""

_FILL: Final[dict[Kind, Any]] = {
    Kind.FLOAT: np.nan,
    Kind.INT: 0,
    Kind.BOOL: False,
    Kind.TEXT: -1,
    Kind.TIME: NAT,
    Kind.OBJECT: None,
}


class _Absent:
    """The type of `ABSENT`."""

    def __repr__(self) -> str:
        return "ABSENT"

    def __reduce__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()
"""What `Column.to_list` gives where the record does not have the field."""


class Column:
    """``values`` (1-D, dtype by ``kind``) with optional tags, texts and exact values.

    ``tags``    uint8 per row, or None when every row holds a plain value.
    ``texts``   object array of str that TEXT codes point into; shared between slices.
    ``exact``   row -> the original Python value, where ``values`` cannot give it back (an int beyond 2**53); it comes
                before what the row's tag says.

    A column is never changed after it was made; ``take`` and ``slice`` share what they can.
    """

    __slots__ = ("exact", "kind", "tags", "texts", "values")

    def __init__(
        self,
        kind: Kind,
        values: NDArray[Any],
        *,
        tags: NDArray[np.uint8] | None = None,
        texts: NDArray[np.object_] | None = None,
        exact: dict[int, Any] | None = None,
    ) -> None:
        self.kind = kind
        self.values = values
        self.tags = tags
        self.texts = texts
        self.exact = exact

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"Column({self.kind.value}, {len(self)} rows)"

    # -- making ------------------------------------------------------------------------------------

    @classmethod
    def missing(cls, kind: Kind, rows: int, tag: int = ABSENT_TAG) -> Column:
        """A column in which no row has a value."""
        values = np.full(rows, _FILL[kind], DTYPES[kind])
        texts = np.empty(0, object) if kind is Kind.TEXT else None
        return cls(kind, values, tags=np.full(rows, tag, np.uint8), texts=texts)

    @classmethod
    def of_texts(cls, texts: Sequence[str]) -> Column:
        """A TEXT column from one str per row, each distinct text stored once."""
        codes = {text: code for code, text in enumerate(dict.fromkeys(texts))}
        values = np.fromiter(map(codes.__getitem__, texts), np.int32, len(texts))
        return cls(Kind.TEXT, values, texts=object_array(list(codes)))

    @classmethod
    def of_array(cls, array: Any) -> Column:
        """A column from a NumPy array: every number a float, datetime64 a time (NaT is null), strings text, else objects.

        Integer arrays become FLOAT columns that remember they were integers, as ``5`` in a record does. Raises
        `OverflowError` for times beyond the years that nanoseconds reach.
        """
        array = np.asarray(array)
        if array.ndim != 1:
            raise ValueError(f"a column has one dimension; this array has shape {array.shape}")
        match array.dtype.kind:
            case "f":
                return cls(Kind.FLOAT, np.ascontiguousarray(array, np.float64))
            case "b":
                return cls(Kind.BOOL, np.ascontiguousarray(array))
            case "i" | "u":
                return cls.of_integers(array)
            case "M":
                unknown = np.isnat(array)
                tags = np.where(unknown, NULL_TAG, VALUE_TAG).astype(np.uint8) if unknown.any() else None
                return cls(Kind.TIME, nanoseconds(array), tags=tags)
            case "U" | "T":
                return cls.of_texts(array.tolist())
            case _:
                return cls._of_objects(array)

    @classmethod
    def of_integers(cls, array: NDArray[Any]) -> Column:
        """Integers as the FLOAT column they are until declared, exact values kept where float64 cannot hold them."""
        values = array.astype(np.float64)
        exact = None
        if len(array) and max(int(array.max()), -int(array.min())) > 2**53:
            exact = {int(row): int(array[row]) for row in np.flatnonzero(np.abs(values) >= 2**53)}
        return cls(Kind.FLOAT, values, tags=np.full(len(array), INTEGER_TAG, np.uint8), exact=exact)

    @classmethod
    def _of_objects(cls, array: NDArray[Any]) -> Column:
        items = array.tolist()
        if items and all(isinstance(item, str) for item in items):
            return cls.of_texts(items)
        return cls(Kind.OBJECT, object_array(items))

    @property
    def is_missing(self) -> bool:
        """No row has a value: until one has, the column could be of any kind."""
        if not len(self.values):
            return True
        return self.kind is Kind.OBJECT and self.tags is not None and bool(self.tags.all())

    def missing_rows(self) -> NDArray[np.bool_]:
        """Which rows have no value, shape ``(n,)``."""
        if self.tags is None:
            return np.zeros(len(self), np.bool_)
        missing: NDArray[np.bool_] = (self.tags == NULL_TAG) | (self.tags == ABSENT_TAG)
        return missing

    @property
    def has_values(self) -> bool:
        """Some row has a value."""
        return bool(len(self.values)) if self.tags is None else not bool(self.missing_rows().all())

    @property
    def is_absent(self) -> bool:
        """No row has the field."""
        return not len(self.values) or (self.tags is not None and bool((self.tags == ABSENT_TAG).all()))

    def is_copy_of(self, other: Column) -> bool:
        """Whether both hold the same, bit for bit; of objects and text, the same objects and the same table."""
        if self.kind is not other.kind or self.texts is not other.texts or self.exact != other.exact:
            return False
        if (self.tags is None) != (other.tags is None):
            return False
        if self.tags is not None and not np.array_equal(self.tags, other.tags):  # type: ignore[arg-type]
            return False
        if self.kind is Kind.OBJECT:
            return len(self) == len(other) and all(map(is_, self.values.tolist(), other.values.tolist()))
        bits = np.dtype(f"u{self.values.itemsize}")
        return np.array_equal(self.values.view(bits), other.values.view(bits))

    # -- reading -----------------------------------------------------------------------------------

    @property
    def array(self) -> NDArray[Any]:
        """What user code sees: read-only, 1-D; text as objects (None where missing), times as datetime64[ns]."""
        if self.kind is Kind.TEXT:
            shown = self._text_objects()
        elif self.kind is Kind.TIME:
            shown = self.values.view("datetime64[ns]")
        else:
            shown = self.values.view()
        shown.flags.writeable = False
        return shown

    def _text_objects(self) -> NDArray[np.object_]:
        assert self.texts is not None
        if len(self.texts) > len(
            self.values
        ):  # a slice shares the table of the whole, which is not to be copied for it
            objects = self.texts.take(self.values, mode="wrap")
            objects[self.values < 0] = None
            return objects
        table = np.append(self.texts, [None])  # code -1 reads the last entry
        return table[self.values]  # type: ignore[no-any-return]

    def to_list(self, *, absent: Any = ABSENT) -> list[Any]:
        """Python values as the records held them; None for null, ``absent`` where the field is missing.

        Times come back as int nanoseconds: a datetime would lose the last three digits.
        """
        values = self._text_objects() if self.kind is Kind.TEXT else self.values
        items: list[Any] = values.tolist() if self.tags is None else self._restored(values, self.tags, absent)
        for row, value in (self.exact or {}).items():
            items[row] = value
        return items

    def _restored(self, values: NDArray[Any], tags: NDArray[np.uint8], absent: Any) -> list[Any]:
        """The values as their tags say; what is in ``exact`` is still to be put in."""
        integers = tags == INTEGER_TAG
        if self.exact:
            integers[list(self.exact)] = False  # beyond what int64 or float64 can hold
        if integers.all():
            return list(values.astype(np.int64).tolist())
        items = values.astype(object)
        if integers.any():
            items[integers] = values[integers].astype(np.int64)
        items[tags == NULL_TAG] = None
        items[tags == ABSENT_TAG] = absent
        return list(items.tolist())

    def as_objects(self) -> Column:
        """The same values in a column of any values, as they are: an int needs no tag there."""
        tags = None if self.tags is None else np.where(self.tags == INTEGER_TAG, VALUE_TAG, self.tags).astype(np.uint8)
        return Column(Kind.OBJECT, object_array(self.to_list(absent=None)), tags=tags)

    # -- shaping -----------------------------------------------------------------------------------

    def take(self, rows: NDArray[Any]) -> Column:
        """The rows at these positions, in this order."""
        exact = exact_at(self.exact, rows) if self.exact else None
        tags = None if self.tags is None else self.tags.take(rows)
        return Column(self.kind, self.values.take(rows), tags=tags, texts=self.texts, exact=exact)

    def slice(self, start: int, stop: int) -> Column:
        """Rows ``start`` (0 or more) to ``stop``, sharing memory."""
        exact = None
        if self.exact:
            among = self.exact if len(self.exact) < stop - start else range(start, stop)
            exact = {row - start: self.exact[row] for row in among if start <= row < stop and row in self.exact} or None
        tags = None if self.tags is None else self.tags[start:stop]
        return Column(self.kind, self.values[start:stop], tags=tags, texts=self.texts, exact=exact)

    def without_unused_texts(self) -> Column:
        """The same rows; of a table of texts that is larger than they are, only what they use."""
        if self.texts is None or len(self.texts) <= len(self.values):
            return self
        values, texts = _in_use(self)
        return Column(self.kind, values.astype(np.int32), tags=self.tags, texts=texts, exact=self.exact)

    @classmethod
    def concat(cls, parts: Sequence[Column]) -> Column:
        """The parts one after another; all of one kind."""
        first = parts[0]
        if len(parts) == 1:
            return first
        kind = first.kind
        if any(part.kind is not kind for part in parts):
            raise EngineError(f"columns of different kinds were joined: {sorted({part.kind.value for part in parts})}")
        texts = first.texts
        if kind is Kind.TEXT and any(part.texts is not texts for part in parts):
            values, texts = _concat_texts(parts)
        else:
            values = np.concatenate([part.values for part in parts])
        tags = None
        if any(part.tags is not None for part in parts):
            tags = np.concatenate([np.zeros(len(p), np.uint8) if p.tags is None else p.tags for p in parts])
        exact: dict[int, Any] = {}
        if any(part.exact for part in parts):
            start = 0
            for part in parts:
                exact.update({start + row: value for row, value in (part.exact or {}).items()})
                start += len(part)
        return cls(kind, values, tags=tags, texts=texts, exact=exact or None)


def is_null(item: Any) -> bool:
    """None, pandas' NA and NaT, and what NumPy masks; NaN is a float."""
    return item is None or type(item).__name__ in ("NAType", "NaTType", "MaskedConstant")


def nanoseconds(moments: NDArray[Any]) -> NDArray[np.int64]:
    """datetime64 of any unit as int64 nanoseconds; raises `OverflowError` for times beyond 1677 to 2262.

    >>> nanoseconds(np.array(["2024-03-01T00:00:00"], "datetime64[us]")).tolist()
    [1709251200000000000]
    """
    try:
        made = moments.astype("datetime64[ns]")
    except OverflowError:  # as NumPy says from 2.5 on, of no moment by name
        raise _beyond(next(moment for moment in moments if not _fits(moment))) from None
    if np.datetime_data(moments.dtype)[0] in ("ps", "fs", "as"):  # days or months around 1970
        return made.view(np.int64)
    beyond = np.flatnonzero(made.astype(moments.dtype) != moments)  # NaT differs from itself
    beyond = beyond[~np.isnat(moments[beyond])]
    if len(beyond):
        raise _beyond(moments[beyond[0]])
    return made.view(np.int64)


def _fits(moment: Any) -> bool:
    try:
        moment.astype("datetime64[ns]")
    except OverflowError:
        return False
    return True


def _beyond(moment: Any) -> OverflowError:
    return OverflowError(f"the time {moment}, which is beyond the years 1677 to 2262 that nanoseconds reach")


def object_array(items: Sequence[Any]) -> NDArray[np.object_]:
    """A 1-D object array, whatever the items are (``np.array`` would unpack lists)."""
    return np.fromiter(items, object, len(items))


def exact_at(exact: dict[int, Any], rows: NDArray[Any]) -> dict[int, Any] | None:
    """The exact values at ``rows``, by their new places; None when there are none."""
    places = np.flatnonzero(np.isin(rows, np.fromiter(exact, np.int64, len(exact))))
    return {place: exact[row] for place, row in zip(places.tolist(), rows[places].tolist(), strict=True)} or None


def _concat_texts(parts: Sequence[Column]) -> tuple[NDArray[np.int32], NDArray[np.object_]]:
    table: dict[str, int] = {}
    recoded = []
    # A table has grown a few times, among thousands of parts.
    for _, run in groupby(parts, lambda part: id(part.texts)):
        values, texts = _in_use(*run)
        codes = np.fromiter((table.setdefault(text, len(table)) for text in texts), np.int32, len(texts))
        recoded.append(np.append(codes, np.int32(-1))[values])
    return np.concatenate(recoded), object_array(list(table))


def _in_use(*parts: Column) -> tuple[NDArray[Any], NDArray[np.object_]]:
    """The codes and texts of columns that share a table; where that is larger than they are, only what they use of it."""
    texts = parts[0].texts
    assert texts is not None
    values = parts[0].values if len(parts) == 1 else np.concatenate([part.values for part in parts])
    if len(texts) <= len(values):
        return values, texts
    used, codes = np.unique(values, return_inverse=True)
    missing = int(np.count_nonzero(used < 0))
    return codes - missing, texts[used[missing:]]
