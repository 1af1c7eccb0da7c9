"""The order of each record's fields, where records differ in it.

A record keeps the order its fields came in, and what is added to it follows in the order of the columns. So most
batches need no more than their columns' own order; ``orders`` holds the others, each distinct one once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Orders", "Part", "first_repeated", "follows", "joined", "placed"]

Orders = tuple[NDArray[np.int32], tuple[tuple[str, ...], ...]]
"""Per record the number of its order, and the orders. Columns that an order does not name come after it."""


@dataclass(frozen=True)
class Part:
    """Some of the records that are put together."""

    names: Collection[str]
    """Its columns, in order."""
    orders: Orders | None
    rows: int


def follows(names: Iterable[str], order: Iterable[str]) -> bool:
    """Whether ``names`` are all in ``order``, and come as they do there.

    >>> follows("ac", "abc"), follows("ca", "abc")
    (True, False)
    """
    rest = iter(order)
    return all(name in rest for name in names)


def first_repeated(names: Iterable[str]) -> str | None:
    """The first name that was there before.

    >>> first_repeated(["a", "b", "a", "b"])
    'a'
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def placed(own: Iterable[str], parts: Sequence[Collection[str]]) -> list[str]:
    """The columns of all parts: the records' ``own`` and then those added, if the parts have them so; else as first seen.

    >>> placed("abc", ["acx", "abcy"])
    ['a', 'b', 'c', 'x', 'y']
    """
    seen = dict.fromkeys(name for part in parts for name in part)
    kept = dict.fromkeys(name for name in own if name in seen)  # there may be thousands of columns
    names = [*kept, *(name for name in seen if name not in kept)]
    return names if all(follows(part, names) for part in parts) else list(seen)


def joined(parts: Sequence[Part], names: Sequence[str]) -> Orders | None:
    """The orders of the parts' records one after another, in a batch whose columns are ``names``.

    A table of orders that all parts share is kept, so that it can be known again.
    """
    first = parts[0].orders
    if all(follows(part.names, names) for part in parts):
        if all(part.orders is None for part in parts):
            return None
        own = [part.orders[0] for part in parts if part.orders is not None and first and part.orders[1] is first[1]]
        if first is not None and len(own) == len(parts):
            return np.concatenate(own), first[1]
    table: dict[tuple[str, ...], int] = {}
    ids = []
    for part in parts:
        rows, orders = part.orders or (np.zeros(part.rows, np.int32), ((),))
        whole = [tuple(dict.fromkeys((*order, *part.names))) for order in orders]
        codes = np.array([table.setdefault(order, len(table)) for order in whole], np.int32)
        ids.append(codes[rows])
    return np.concatenate(ids), tuple(table)
