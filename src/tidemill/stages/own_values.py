"""Values that a user's code holds as well, as they are now: what it changes later is no longer what a record holds."""

from __future__ import annotations

import copy
import datetime
import decimal
import uuid
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from threading import RLock
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import ABSENT, Column, object_array
from tidemill.schema import Kind

__all__ = [
    "FIXED",
    "Lent",
    "fields_as_now",
    "lent",
    "own_column",
    "own_items",
    "own_value",
    "own_values",
    "row_as_now",
    "taken",
]

FIXED: Final = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes),
        *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID),
        *(set(np.sctypeDict.values()) - {np.void, np.object_}),
        type(ABSENT),
    }
)
"""Types whose values nobody can change; no subclasses, which may have attributes."""


def own_value(item: Any) -> Any:
    """The value as it is now; it is copied where its type lets it be changed, as deep as it goes. A part of it that is there
    several times is copied once.

    >>> held = [1.0, 2.0]
    >>> kept = own_value(held)
    >>> held.append(3.0)
    >>> kept
    [1.0, 2.0]
    """
    kind = type(item)
    if kind in FIXED:
        return item
    if kind is np.ndarray and not item.dtype.hasobject:
        return item.copy()
    if (kind is list and FIXED.issuperset(map(type, item))) or (
        kind is dict and FIXED.issuperset(map(type, item.values())) and FIXED.issuperset(map(type, item))
    ):
        return item.copy()
    try:
        return _copied(item, {}, _DEEPEST)
    except Exception:  # noqa: BLE001 - any class may refuse, each in its own way
        return item


_DEEPEST: Final = 32
"""Levels of lists and dicts that are copied here; what is nested deeper goes to `copy.deepcopy`."""


def _copied(item: Any, memo: dict[int, Any], levels: int) -> Any:
    """As `copy.deepcopy`, whose ``memo`` it goes on with, in half the time for what JSON can hold. A list, dict or array that is
    there many times is copied once, and may lead back to itself."""
    kind = type(item)
    if kind in FIXED:
        return item
    known = id(item)
    if known in memo:
        return memo[known]
    if kind is list:
        if FIXED.issuperset(map(type, item)):
            memo[known] = own = item.copy()
            return own
        if levels:
            memo[known] = own = []
            own.extend([_copied(each, memo, levels - 1) for each in item])
            return own
    elif kind is dict:
        if levels and FIXED.issuperset(map(type, item)):
            memo[known] = own = item.copy()
            for name, each in own.items():
                if type(each) not in FIXED:
                    own[name] = _copied(each, memo, levels - 1)
            return own
    elif kind is np.ndarray:
        if not item.dtype.hasobject:
            memo[known] = own = item.copy()
            return own
    elif kind is tuple and FIXED.issuperset(map(type, item)):
        return item
    return copy.deepcopy(item, memo)


def fields_as_now(fields: Mapping[Any, Any]) -> dict[Any, Any]:
    """A dict of one's own, of values as they are now."""
    return {name: own_value(item) for name, item in fields.items()}


def row_as_now(row: Any) -> Any:
    """A dict as it is now; what is no dict is given back.

    >>> row = {"value": 1.0}
    >>> kept = row_as_now(row)
    >>> row["value"] = 2.0
    >>> kept
    {'value': 1.0}
    """
    if type(row) is not dict:
        return _as_now(row) if isinstance(row, dict) else row
    kept = row.copy()
    for item in kept.values():
        if type(item) not in FIXED:
            return fields_as_now(kept)
    return kept


def _as_now(row: Mapping[Any, Any]) -> Any:
    try:
        return fields_as_now(row)
    except Exception:  # noqa: BLE001 - a dict of a class of the user's; whoever reads it says what is wrong with it
        return row


def own_values(items: Iterable[Any]) -> list[Any]:
    """The values as they are now; one that stands for several records is copied once."""
    items, copied = list(items), dict[int, tuple[Any, Any]]()
    for place, item in enumerate(items):
        if type(item) not in FIXED:
            if id(item) not in copied:
                copied[id(item)] = item, own_value(item)  # while it is held here, no other has its id
            items[place] = copied[id(item)][1]
    return items


def own_items(column: Column) -> list[Any]:
    """The column's values; nested ones are copied, since a function may change them and be called again."""
    items = column.to_list()
    return list(map(own_value, items)) if column.kind is Kind.OBJECT else items


def own_column(column: Column) -> Column:
    """The column in memory of its own, with values as they are now; what was lent and not looked at is what it was."""
    if isinstance(column, Lent) and column.is_untouched:
        return column.original
    tags = None if column.tags is None else column.tags.copy()
    values = column.values.copy()
    if column.kind is Kind.OBJECT:
        values = object_array(own_values(values.tolist()))
    return Column(column.kind, values, tags=tags, texts=column.texts, exact=column.exact)


class Lent(Column):
    """Nested values for a user's function, copied when it looks at them: most functions look at few columns.

    They are copied once, whatever thread of the function looks first: all of them change the same copies.
    """

    __slots__ = ("_copies", "_looking", "_shown", "_whole", "original")

    def __init__(self, original: Column, copies: Callable[[], NDArray[Any]], whole: Lent | None = None) -> None:
        self.kind, self.tags, self.texts, self.exact = original.kind, original.tags, original.texts, original.exact
        self.original = original
        """What no function has seen."""
        self._copies, self._whole = copies, whole
        self._shown: NDArray[Any] | None = None
        self._looking: RLock = RLock() if whole is None else whole._looking
        """Of one thread, as often as it likes: a value's own code, which copies it, may look at the column too."""

    def __len__(self) -> int:
        return len(self.original)

    @property
    def values(self) -> NDArray[Any]:  # type: ignore[override] # copied at the first look
        if self._shown is None:
            with self._looking:
                self._look()
        assert self._shown is not None
        return self._shown

    def _look(self) -> None:
        if self._shown is None:
            copies = self._copies()
            if self._shown is None:  # no value's own code has looked meanwhile
                self._shown = copies

    @property
    def is_untouched(self) -> bool:
        """Nobody can have changed a value: none was looked at, or all are of types that cannot be changed."""
        if self._whole is not None:
            return self._whole.is_untouched
        return self._shown is None or self._shown is self.original.values

    def take(self, rows: NDArray[Any]) -> Column:
        rows = own_value(rows)  # by the first look, the function may have written others to its array
        return Lent(self.original.take(rows), lambda: self.values.take(rows), self)

    def slice(self, start: int, stop: int) -> Column:
        return Lent(self.original.slice(start, stop), lambda: self.values[start:stop], self)

    def __reduce__(self) -> tuple[Any, ...]:
        made = partial(Column, tags=self.tags, texts=self.texts, exact=self.exact)
        return made, (self.kind, self.values)


def lent(batch: Batch) -> Batch:
    """The batch for a user's function: nested values are copied at its first look, since it may change them and be called
    again."""
    nested = {
        name: Lent(column, partial(_copies, column.values))
        for name, column in batch.columns.items()
        if column.kind is Kind.OBJECT and not column.is_missing
    }
    return batch.with_columns(nested) if nested else batch


def taken(columns: Mapping[str, Column]) -> dict[str, Column]:
    """Columns that a function returned, those that it was lent as they are now: it may change them in its next call."""
    return {name: own_column(column) if isinstance(column, Lent) else column for name, column in columns.items()}


def _copies(values: NDArray[Any]) -> NDArray[Any]:
    """Each record's own; the very array where none of its values can be changed."""
    items = values.tolist()
    return values if FIXED.issuperset(map(type, items)) else object_array(list(map(own_value, items)))
