"""How much records hold in lists and dicts: a turn of the loop is over after so much of it, however few the records are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from tidemill.column import Column
from tidemill.kinds import Kinds
from tidemill.rows import Fields
from tidemill.schema import Kind
from tidemill.stages.own_values import FIXED

__all__ = ["light_runs", "nested_in"]

_MOST: Final = 1 << 16
"""Values within values that are looked at in one turn: each is written some times on its way to a lane."""
_LETTERS: Final = 8
"""Of a text, or bytes of an array, that are as much as one value."""
_SIZED: Final = frozenset({str, bytes, bytearray, np.str_, np.bytes_})
_LIGHT: Final = FIXED - _SIZED
"""Types of values in which nothing lies."""


def light_runs(rows: Sequence[Any], fields: Fields | None, kinds: Kinds) -> Iterator[slice]:
    """The rows in runs that hold no more than one turn may take, each of at least one row. Where ``fields`` has them on their side,
    columns of numbers and texts are not looked into: what is nested in one of them is refused."""
    weighed: Sequence[Sequence[Any]]
    if fields is None:
        weighed = [list(map(_values_of, rows))]
    else:
        weighed = [
            values
            for name, values in zip(fields[0], fields[1], strict=True)
            if kinds.get(name) in (None, Kind.OBJECT)
            and not isinstance(values, Column)  # which a format has made, of what it has read
            and not FIXED.issuperset(map(type, values))
        ]
    start = weight = 0
    for place in range(len(rows) if weighed else 0):
        own = sum(nested_in(values[place], _MOST) for values in weighed)
        if weight + own > _MOST and place > start:
            yield slice(start, place)
            start, weight = place, 0
        weight += own
    yield slice(start, len(rows))


def _values_of(row: Any) -> Any:
    try:
        return list(row.values()) if isinstance(row, Mapping) else None
    except Exception:  # noqa: BLE001 - a class of the user's may raise anything; who reads it says so
        return None


def nested_in(item: Any, most: int) -> int:
    """How many values lie in a value, as far as lists, dicts, tuples and sets go; no more of them than ``most`` are looked for.

    >>> nested_in({"a": [1, 2], "b": "text"}, 100), nested_in(7, 100), nested_in([[0] * 1_000] * 1_000, 100)
    (4, 0, 1000)
    """
    found = 0
    left = [item]
    while left and found <= most:
        one = left.pop()
        kind = type(one)
        if kind is np.ndarray:
            found += one.nbytes // _LETTERS
        elif kind in _SIZED:
            found += len(one) // _LETTERS
        elif kind in (list, tuple, set, frozenset, dict):
            found += len(one)
            inner = one.values() if kind is dict else one
            if found <= most and not _LIGHT.issuperset(map(type, inner)):
                left.extend(each for each in inner if type(each) not in _LIGHT)
    return found
