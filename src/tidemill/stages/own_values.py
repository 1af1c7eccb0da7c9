"""Values that a user's code holds as well, as they are now: what it changes later is no longer what a record holds."""

from __future__ import annotations

import copy
import datetime
import decimal
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from tidemill.batch import Batch
from tidemill.column import Column, object_array
from tidemill.schema import Kind

__all__ = ["FIXED", "fields_as_now", "lent", "own_column", "own_items", "own_value", "own_values", "row_as_now"]

FIXED: Final = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes),
        *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID),
        *(set(np.sctypeDict.values()) - {np.void, np.object_}),
    }
)
"""Types whose values nobody can change; no subclasses, which may have attributes."""


def own_value(item: Any) -> Any:
    """The value as it is now; it is copied where its type lets it be changed, as deep as it goes.

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
        return copy.deepcopy(item)
    except Exception:  # noqa: BLE001 - any class may refuse, each in its own way
        return item


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
        return fields_as_now(row) if isinstance(row, dict) else row
    kept = row.copy()
    for item in kept.values():
        if type(item) not in FIXED:
            return fields_as_now(kept)
    return kept


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
    """The column in memory of its own, with values as they are now."""
    tags = None if column.tags is None else column.tags.copy()
    values = column.values.copy()
    if column.kind is Kind.OBJECT:
        values = object_array(own_values(values.tolist()))
    return Column(column.kind, values, tags=tags, texts=column.texts, exact=column.exact)


def lent(batch: Batch) -> Batch:
    """The batch for a user's function: nested values are copied, since it may change them and be called again."""
    own = {}
    for name, column in batch.columns.items():
        if column.kind is Kind.OBJECT and not FIXED.issuperset(map(type, items := column.values.tolist())):
            values = object_array(list(map(own_value, items)))
            own[name] = Column(Kind.OBJECT, values, tags=column.tags, exact=column.exact)
    return batch.with_columns(own) if own else batch
