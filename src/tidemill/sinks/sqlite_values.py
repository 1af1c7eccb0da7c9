"""Columns and names as SQLite can take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.column import ABSENT_TAG, INTEGER_TAG, NAT, NULL_TAG, VALUE_TAG, Column
from tidemill.schema import Kind
from tidemill.sinks.text import cell_text, clean_text

__all__ = ["ColumnNames", "bindable", "declared_type", "fits", "folded", "quoted", "rounded"]

_INT64: Final = range(-(2**63), 2**63)
_MISSING: Final = (NULL_TAG, ABSENT_TAG)


def declared_type(column: Column) -> str:
    """The type a table column is declared with, from the first row that has the field: what else came with it is chance.

    A FLOAT column that begins with an int gets no type: REAL would read each ``5`` back as ``5.0``. One that begins with null gets
    none either, nor one with nothing but nulls, since its kind is not known.
    """
    match column.kind:
        case Kind.FLOAT:
            own = column.tags if column.tags is None else column.tags[column.tags != ABSENT_TAG]
            return "REAL" if own is None or (len(own) and own[0] == VALUE_TAG) else ""
        case Kind.TEXT:
            return "TEXT"
        case Kind.OBJECT:
            return "" if all(item is None for item in column.values) else "TEXT"
        case _:
            return "INTEGER"


def fits(declared: str, kind: Kind) -> bool:
    """Whether a column declared so gives back what is written; SQLite's own rules of affinity."""
    declared = declared.upper()
    textual = kind in (Kind.TEXT, Kind.OBJECT)
    if "INT" in declared:
        return not textual
    if any(word in declared for word in ("CHAR", "CLOB", "TEXT")):
        return textual
    return not declared or "BLOB" in declared or not textual


def rounded(column: Column, declared: str) -> int:
    """How many ints SQLite rounds as it stores them in a column that is declared so."""
    integers = [value for value in (column.exact or {}).values() if isinstance(value, int)]
    declared = declared.upper()
    if not declared or "BLOB" in declared:
        return 0  # each is stored as it is bound
    if "INT" not in declared and any(word in declared for word in ("REAL", "FLOA", "DOUB")):
        return sum(not _is_float(value) for value in integers)
    return sum(value not in _INT64 for value in integers)


def _is_float(value: int) -> bool:
    try:
        return float(value) == value
    except OverflowError:
        return False


def quoted(name: str) -> str:
    """A name as an SQL identifier, whatever it holds.

    >>> quoted('rate "raw"; --')
    '"rate ""raw""; --"'
    """
    return '"' + name.replace('"', '""') + '"'


class ColumnNames:
    """Field names → names of table columns.

    SQLite does not tell ``a`` from ``A``, nor can a name hold NUL; a field whose name is taken by another one gets
    ``_2``, ``_3``, ... after its own.

    >>> names = ColumnNames()
    >>> [names.of(name) for name in ("value", "Value", "value")]
    ['value', 'Value_2', 'value']
    """

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        self.known: dict[str, str] = dict(known or {})
        self._taken: set[str] = set(map(folded, self.known.values()))

    def of(self, name: str) -> str:
        """The column for the field ``name``: always the same one."""
        if name not in self.known:
            self.known[name] = self.next(name)
            self._taken.add(folded(self.known[name]))
        return self.known[name]

    def next(self, name: str) -> str:
        """The column that a field which has none would get now."""
        base = column = clean_text(name.replace("\0", "\u2400"))
        number = 2
        while folded(column) in self._taken:
            column = f"{base}_{number}"
            number += 1
        return column


def folded(name: str) -> str:
    """Case folded as SQLite does it: ASCII only."""
    return "".join(letter.lower() if letter.isascii() else letter for letter in name)


def bindable(column: Column, *, clean: bool = False) -> list[Any]:
    """One Python value per row, as sqlite3 binds it: None where there is no value.

    NaN needs no care: SQLite itself stores it as NULL. Integers beyond 64 bits become their digits.
    ``clean`` replaces what UTF-8 cannot hold; without it sqlite3 raises UnicodeEncodeError on such text.
    """
    match column.kind:
        case Kind.FLOAT:
            return _numbers(column)
        case Kind.TEXT:
            items = column.array.tolist()
            return [item if item is None else clean_text(item) for item in items] if clean else items
        case Kind.OBJECT:
            items = [None if item is None else cell_text(item) for item in column.values]
        case Kind.BOOL:
            items = column.values.view(np.uint8).tolist()
        case Kind.TIME if (column.values == NAT).any():
            items = [None if item == NAT else item for item in column.values.tolist()]
        case _:
            items = column.values.tolist()
    return _without_missing(items, column)


def _numbers(column: Column) -> list[Any]:
    tags = column.tags
    items: list[Any]
    if tags is None:
        items = column.values.tolist()
        return items
    integers = tags == INTEGER_TAG
    if not integers.any():
        items = np.where(tags == 0, column.values, np.nan).tolist()
    elif column.exact is None and integers.all():
        items = column.values.astype(np.int64).tolist()
    else:
        items = _mixed_numbers(column, tags, integers)
    return items


def _mixed_numbers(column: Column, tags: NDArray[np.uint8], integers: NDArray[np.bool_]) -> list[Any]:
    mixed = column.values.astype(object)
    mixed[(tags == NULL_TAG) | (tags == ABSENT_TAG)] = None
    for row in column.exact or ():
        integers[row] = False
    mixed[integers] = column.values[integers].astype(np.int64).astype(object)
    for row, value in (column.exact or {}).items():
        mixed[row] = _integer(value)
    items: list[Any] = mixed.tolist()
    return items


def _without_missing(items: list[Any], column: Column) -> list[Any]:
    for row, value in (column.exact or {}).items():
        items[row] = _integer(value)
    if column.tags is not None:
        for row in np.flatnonzero(np.isin(column.tags, _MISSING)).tolist():
            items[row] = None
    return items


def _integer(value: Any) -> Any:
    return value if not isinstance(value, int) or value in _INT64 else str(value)
