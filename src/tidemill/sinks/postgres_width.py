"""How wide a row of PostgreSQL may be: what of it does not fit is left out before the server refuses the row."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tidemill.column import ABSENT_TAG, NULL_TAG, VALUE_TAG, Column
from tidemill.schema import Kind

__all__ = ["MOST_BYTES", "widest", "within_row"]

MOST_BYTES: Final = 7_800
"""A row lies in one page, of 8,192 bytes: 8,160 without the page's own, less up to 224 for the row's head with a bit for each of
1,600 columns. The rest is for columns that a table of the user's fills in by itself."""
_FIXED: Final = 8
"""A number or a time, and a bool with what aligns the next value."""
_VARYING: Final = 24
"""The longest text or JSON that stays in the row whatever is beside it; of a longer one, what lies elsewhere is named in 18."""


def widest(kinds: Iterable[Kind]) -> int:
    """Bytes that a row of these kinds may need within the page."""
    return sum(_VARYING if kind in (Kind.TEXT, Kind.OBJECT) else _FIXED for kind in kinds)


def within_row(columns: Mapping[str, Column], first: Collection[str]) -> tuple[dict[str, Column], dict[str, int]]:
    """The columns without the values for which their row has no room, and how many these are, by field.

    A row keeps its values by their fields' names, ``first`` of all those that come first, which it keeps in any case. So what
    is left out depends on the row alone.
    """
    fitting, left_out = dict(columns), {}
    used: NDArray[np.int64] | int = 0
    for name in sorted(columns, key=lambda name: (name not in first, name)):
        sizes = _sizes(columns[name])
        used = used + sizes
        if name not in first and (over := (used > MOST_BYTES) & (sizes > 0)).any():
            used[over] -= sizes[over]
            fitting[name] = _without(columns[name], over)
            left_out[name] = int(over.sum())
    return fitting, left_out


def _sizes(column: Column) -> NDArray[np.int64]:
    """The bytes of each row's value, with what aligns the next one; 0 for NULL, which is a bit of the row's head."""
    if column.kind is Kind.TEXT:
        assert column.texts is not None
        codes, places = np.unique(column.values, return_inverse=True)
        sizes = np.array([_of_text(column.texts[code]) if code >= 0 else 0 for code in codes.tolist()], np.int64)[
            places
        ]
    else:
        sizes = np.full(len(column), widest([column.kind]), np.int64)
    if column.tags is not None:
        sizes[(column.tags == NULL_TAG) | (column.tags == ABSENT_TAG)] = 0
    return sizes


def _of_text(text: str) -> int:
    """A short text is one byte and its own; NUL becomes three."""
    size = 1 + len(text.encode("utf-8", "replace")) + 2 * text.count("\0")
    return min(-(-size // 8) * 8, _VARYING)


def _without(column: Column, rows: NDArray[np.bool_]) -> Column:
    tags = np.full(len(column), VALUE_TAG, np.uint8) if column.tags is None else column.tags.copy()
    tags[rows] = NULL_TAG
    exact = {row: value for row, value in (column.exact or {}).items() if not rows[row]} or None
    return Column(column.kind, column.values, tags=tags, texts=column.texts, exact=exact)
