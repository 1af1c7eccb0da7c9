"""Names and types of columns as PostgreSQL can take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tidemill.schema import Kind
from tidemill.sinks.text import clean_text

__all__ = ["DECLARED", "NUL_SHOWN", "STORED", "ColumnNames", "note_of", "noted", "quoted"]

DECLARED: Final[dict[Kind, str]] = {
    Kind.FLOAT: "double precision",
    Kind.INT: "bigint",
    Kind.BOOL: "boolean",
    Kind.TEXT: "text",
    Kind.TIME: "timestamp with time zone",
    Kind.OBJECT: "jsonb",
}
"""What a column is declared as in a table that we make."""

STORED: Final[dict[Kind, tuple[str, ...]]] = {
    Kind.FLOAT: ("float8",),
    Kind.INT: ("int8",),
    Kind.BOOL: ("bool",),
    Kind.TEXT: ("text", "varchar", "bpchar"),
    Kind.TIME: ("timestamptz", "timestamp"),
    Kind.OBJECT: ("jsonb", "json", "text"),
}
"""The types, by PostgreSQL's own short names, of a table that was there whose bytes we know how to send; the first is
that of `DECLARED`. A type that would round or cut (real, integer) is refused instead."""

NUL_SHOWN: Final = "\u2400"
"""Stands where a text had NUL, the one character that PostgreSQL cannot store."""

MOST_BYTES: Final = 63
"""The longest name, in UTF-8; PostgreSQL would cut a longer one by itself, and two of them might become one."""
_SYSTEM: Final = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"})
_NOTE: Final = "tidemill field: "


def quoted(name: str) -> str:
    """A name as an SQL identifier, whatever it holds.

    >>> quoted('rate "raw"; --')
    '"rate ""raw""; --"'
    """
    return '"' + name.replace('"', '""') + '"'


class ColumnNames:
    """Field names → names of table columns.

    A name holds up to 63 bytes and no NUL, is not empty, and six are the system's own; a field that cannot have its own
    name gets the nearest one, with ``_2``, ``_3``, ... where that is taken. ``known`` are those of earlier runs.

    >>> names = ColumnNames()
    >>> [names.of(name) for name in ("value", "Value", "xmin", "", "value")]
    ['value', 'Value', 'xmin_2', '_', 'value']
    """

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        self.known: dict[str, str] = dict(known or {})
        self._taken = {*_SYSTEM, *self.known.values()}

    def of(self, field: str) -> str:
        """The column for a field: always the same one."""
        if field not in self.known:
            self.known[field] = self.next(field)
            self._taken.add(self.known[field])
        return self.known[field]

    def next(self, field: str) -> str:
        """The column that a field which has none would get now."""
        base = clean_text(field.replace("\0", NUL_SHOWN)) or "_"
        column, number = _cut(base, MOST_BYTES), 2
        while column in self._taken:
            suffix = f"_{number}"
            column = _cut(base, MOST_BYTES - len(suffix)) + suffix
            number += 1
        return column


def _cut(text: str, most: int) -> str:
    return text.encode()[:most].decode("utf-8", "ignore")


def note_of(field: str, column: str) -> str | None:
    """The comment that tells later runs whose column this is; None for one that bears its field's name."""
    return None if column == field else _NOTE + clean_text(field.replace("\0", NUL_SHOWN))


def noted(note: str | None) -> str | None:
    """The field that such a comment names."""
    return note.removeprefix(_NOTE) if note is not None and note.startswith(_NOTE) else None
