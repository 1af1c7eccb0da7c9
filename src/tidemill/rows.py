"""Dicts ↔ columns, exact in names, order, types and values.

This is the codec of the classic bridge's ``list[dict]``: each field becomes one array of its kind, so that what
crosses the process boundary is a few buffers instead of a pickle of every value.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain, repeat
from operator import setitem
from typing import Any, Final, cast, overload

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import ABSENT, ABSENT_TAG, Column
from tidemill.kinds import Kinds
from tidemill.letters import Reject

__all__ = [
    "Fields",
    "RowsByField",
    "are_joined_by_field",
    "batch_of_rows",
    "fields_of_rows",
    "joined",
    "lists_of_rows",
    "rows_of_batch",
    "rows_of_lists",
    "runs_of_rows",
]

_MOST_CELLS: Final = 1 << 16
"""Of columns that are made of dicts in one turn of the loop."""
Values = Sequence[Any] | Column
"""Of one field."""
_Orders = tuple[NDArray[np.int32], tuple[tuple[str, ...], ...]] | None
Fields = tuple[tuple[str, ...], Sequence[Values], _Orders]
"""Names, the values per name (`ABSENT` where a row lacks it), and the field orders where they differ."""


class RowsByField(Sequence[dict[str, Any]]):
    """Rows that all have the same fields in the same order, kept field by field: a list of values or a column for each name.

    A row is made for whoever asks for it, so that rows which nobody looks at singly cost no dict.

    >>> rows = RowsByField(("sensor", "value"), [["S1", "S2"], [20.5, 21.0]])
    >>> len(rows), rows[1]
    (2, {'sensor': 'S2', 'value': 21.0})
    """

    def __init__(self, names: tuple[str, ...], values: Sequence[Values]) -> None:
        self.names = names
        self.values = values
        self._lists: list[Sequence[Any]] | None = None

    def __len__(self) -> int:
        return len(self.values[0])

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> RowsByField: ...
    def __getitem__(self, place: int | slice) -> dict[str, Any] | RowsByField:
        if isinstance(place, slice):
            start, stop, _ = place.indices(len(self))
            return RowsByField(
                self.names,
                [
                    items.slice(start, max(start, stop)) if isinstance(items, Column) else items[start:stop]
                    for items in self.values
                ],
            )
        return {name: items[place] for name, items in zip(self.names, self._all_listed(), strict=True)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(_dicts(self.names, self._all_listed()))

    def _all_listed(self) -> list[Sequence[Any]]:
        if self._lists is None:
            self._lists = [_listed(items) for items in self.values]
        return self._lists


def _listed(items: Values) -> Sequence[Any]:
    return items.to_list() if isinstance(items, Column) else items


def joined(parts: Sequence[Sequence[dict[str, Any]]]) -> Sequence[dict[str, Any]]:
    """Rows of several, one after another; by field where all of them are, with the same fields."""
    if len(parts) == 1:
        return parts[0]
    if not are_joined_by_field(parts):
        return list(chain.from_iterable(parts))
    by_field = cast("Sequence[RowsByField]", parts)
    return RowsByField(
        by_field[0].names, [_chained(each) for each in zip(*(part.values for part in by_field), strict=True)]
    )


def are_joined_by_field(parts: Sequence[Sequence[dict[str, Any]]]) -> bool:
    """Whether none of them becomes dicts when they are `joined`."""
    by_field = [part for part in parts if isinstance(part, RowsByField)]
    return len(by_field) == len(parts) > 0 and all(part.names == by_field[0].names for part in by_field)


def _chained(parts: Sequence[Values]) -> Values:
    columns = [part for part in parts if isinstance(part, Column)]
    if len(columns) == len(parts) and len({column.kind for column in columns}) == 1:
        return Column.concat(columns)
    return list(chain(*map(_listed, parts)))


def runs_of_rows(rows: Sequence[dict[str, Any]]) -> Iterator[slice]:
    """Where to part rows so that each part becomes columns in some 20 ms: a cell takes 0.3 us, and rows that have nothing in
    common have as many columns as they have fields together.

    >>> list(runs_of_rows([{"a": 1}, {"b": 2}])), len(list(runs_of_rows([{str(place): 1} for place in range(1_000)])))
    ([slice(0, 2, None)], 4)
    """
    if isinstance(rows, RowsByField) or len(rows) * len(set().union(*rows)) <= _MOST_CELLS:
        yield slice(0, len(rows))
        return
    names: set[str] = set()
    start = 0
    for place, row in enumerate(rows):
        names |= row.keys()
        if len(names) * (place + 1 - start) > _MOST_CELLS and place > start:
            yield slice(start, place)
            names, start = set(row), place
    yield slice(start, len(rows))


def fields_of_rows(rows: Sequence[dict[str, Any]]) -> Fields:
    """Rows turned on their side."""
    return (rows.names, rows.values, None) if isinstance(rows, RowsByField) else lists_of_rows(rows)


def lists_of_rows(rows: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], list[Sequence[Any]], _Orders]:
    """The same of dicts; quick when all have the same fields in the same order."""
    names = tuple(rows[0]) if rows else ()
    # Each row's fields are distinct, so the fields of all rows in one line can only equal the first row's, repeated,
    # when every row has exactly those.
    if list(chain.from_iterable(rows)) == list(names) * len(rows):
        flat = list(chain.from_iterable(map(dict.values, rows)))
        return names, [flat[place :: len(names)] for place in range(len(names))], None
    table: dict[tuple[str, ...], int] = {}
    orders = np.fromiter((table.setdefault(order, len(table)) for order in map(tuple, rows)), np.int32, len(rows))
    names = tuple(dict.fromkeys(chain.from_iterable(table)))
    return names, [[row.get(name, ABSENT) for row in rows] for name in names], (orders, tuple(table))


def batch_of_rows(
    rows: Sequence[dict[str, Any]], kinds: Kinds, fields_of: Fields | None = None
) -> tuple[Batch, list[Reject]]:
    """Records as a batch, and the records that do not fit their columns' kinds (they stay in the batch, as null).

    ``fields_of`` is what `fields_of_rows` gave for them, if it is known already.
    """
    if not rows:
        return Batch({}, rows=0), []
    names, fields, orders = fields_of or fields_of_rows(rows)
    batch = Batch({}, rows=len(rows))
    batch.orders = orders
    rejects: dict[int, Reject] = {}
    for name, items in zip(names, fields, strict=True):
        batch.columns[name], wrong = kinds.column(name, items)
        for (
            reject
        ) in wrong:  # of several reasons one that the order of columns, which other records decide, does not choose
            if (other := rejects.get(reject.row)) is None or reject.reason < other.reason:
                rejects[reject.row] = reject
    if not isinstance(rows, RowsByField):  # whose dicts would only be made for it
        batch.origin = rows
        batch.origin_names = frozenset(name for name in names if not kinds.reads_times(name))
    return batch, [rejects[row] for row in sorted(rejects)]


def rows_of_batch(batch: Batch) -> list[dict[str, Any]]:
    """One dict per record; fields that came with the record are given back as they came."""
    if not len(batch):
        return []
    if batch.origin is not None:
        return _rows_over_origin(batch, batch.origin)
    return rows_of_lists(batch, {name: column.to_list() for name, column in batch.columns.items()})


def rows_of_lists(batch: Batch, lists: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """One dict per record of ``batch``, holding these very values, one list per column."""
    if not lists:
        return [{} for _ in range(len(batch))]
    with _collector_paused():
        rows = _dicts(tuple(lists), list(lists.values()))
    if batch.orders is not None:
        known = batch.orders[1]
        return [_ordered(row, known[order]) for row, order in zip(rows, batch.orders[0].tolist(), strict=True)]
    if any(column.tags is not None and ABSENT_TAG in column.tags for column in batch.columns.values()):
        return [{name: item for name, item in row.items() if item is not ABSENT} for row in rows]
    return rows


def _dicts(names: tuple[str, ...], lists: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    if len(names) <= _MOST_WRITTEN_OUT:
        return _writer(len(names))(names, lists)
    return [dict(zip(names, items, strict=True)) for items in zip(*lists, strict=True)]


_MOST_WRITTEN_OUT: Final = 100  # fields


@lru_cache(256)
def _writer(fields: int) -> Callable[..., list[dict[str, Any]]]:
    """A function that builds rows of so many fields, in a third of the time ``dict(zip())`` takes.

    Its source follows from the number alone: names and values are arguments, never text to be evaluated.
    """
    names = [f"n{place}" for place in range(fields)]
    values = [f"v{place}" for place in range(fields)]
    pairs = ", ".join(f"{name}: {value}" for name, value in zip(names, values, strict=True))
    rows = f"[{{{pairs}}} for {', '.join(values)}, in zip(*lists, strict=True)]"
    written = f"lambda names, lists: (lambda {', '.join(names)}: {rows})(*names)"
    made: Callable[..., list[dict[str, Any]]] = eval(written, {"zip": zip})  # noqa: S307 - see above
    return made


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Many dicts are made at once, none of them garbage: looking for it among them takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _rows_over_origin(batch: Batch, origin: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    with _collector_paused():
        rows = list(map(dict, origin))
    for name, column in batch.columns.items():
        if name in batch.origin_names:
            continue
        if column.tags is not None and ABSENT_TAG in column.tags:
            for row, item in zip(rows, column.to_list(), strict=True):
                if item is ABSENT:
                    row.pop(name, None)
                else:
                    row[name] = item
        else:
            deque(map(setitem, rows, repeat(name), column.to_list()), maxlen=0)
    return rows


def _ordered(row: dict[str, Any], order: tuple[str, ...]) -> dict[str, Any]:
    """The record's own fields in its own order, then those added to it."""
    ordered = {name: item for name in order if (item := row.pop(name, ABSENT)) is not ABSENT}
    ordered.update((name, item) for name, item in row.items() if item is not ABSENT)
    return ordered
