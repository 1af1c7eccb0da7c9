"""Where two batches first differ: to the last bit, or by more than a tolerance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import ABSENT, INTEGER_TAG, Column
from tidemill.formats.json_lines import time_texts
from tidemill.schema import Kind

__all__ = ["Difference", "first_difference", "first_that_is_no_rounding"]

_NUMBERS: Final = frozenset({Kind.FLOAT, Kind.INT, Kind.BOOL})


@dataclass(frozen=True)
class Difference:
    """One cell that differs, the first in order of rows, then of columns."""

    row: int
    column: str
    got: Any
    expected: Any
    """As `Column.to_list` gives values: None is a null, `ABSENT` a field that the record does not have. A time is a
    ``numpy.datetime64``."""

    def __str__(self) -> str:
        return f"column {self.column!r} is {shown(self.got)} instead of {shown(self.expected)}"

    @property
    def gap(self) -> float:
        """How far two numbers are apart, relative to the expected one where that is above 1; infinity for others."""
        try:
            gap = abs(float(self.got) - float(self.expected)) / max(1.0, abs(float(self.expected)))
        except (TypeError, ValueError, OverflowError):
            return np.inf
        return np.inf if np.isnan(gap) else gap


def shown(value: Any) -> str:
    """A value for a sentence.

    >>> shown(0.1), shown(None), shown(ABSENT), shown("C"), shown(np.datetime64(1_500_000_000, "ns"))
    ('0.1', 'null', 'not there', "'C'", '1970-01-01T00:00:01.5Z')
    """
    if value is None:
        return "null"
    if isinstance(value, np.datetime64):
        return str(time_texts(Column.of_array(value.reshape(1)))[0])
    return "not there" if value is ABSENT else repr(value)


def first_difference(got: Batch, expected: Batch, *, tolerance: float | None = None) -> Difference | None:
    """The first cell in which two batches of as many rows differ; None when they do not.

    Without a tolerance, values are the same to the last bit and of one type (5 is not 5.0), every NaN is the same NaN,
    and a column that one of them lacks is absent in all its rows. With one, only the columns of ``expected`` count;
    NaN, null and absent are the same; and two numbers are, when ``abs(got - expected) <= tolerance * max(1, abs(expected))``
    and not both are integers. Times are the same to the nanosecond.

    >>> one, two = (Batch.from_rows([{"value": 1.0}, {"value": value}]) for value in (2.0, 2.5))
    >>> print(first_difference(one, two))
    column 'value' is 2.0 instead of 2.5
    >>> first_difference(one, two, tolerance=0.5)
    """
    assert len(got) == len(expected), "rows are counted before cells are compared"
    names = expected.names if tolerance is not None else dict.fromkeys((*expected.names, *got.names))
    first: tuple[int, str, Column, Column] | None = None
    for name in names:
        pair = _column(got, name), _column(expected, name)
        same = _same(*pair) if tolerance is None else _near(*pair, tolerance)
        row = len(got) if same is None or bool(same.all()) else int(np.argmin(same))
        if row < (len(got) if first is None else first[0]):
            first = (row, name, *pair)
    return None if first is None else _at(*first)


def first_that_is_no_rounding(got: Batch, expected: Batch, *, gap: float) -> Difference | None:
    """The first cell that differs by more than two floats, which were rounded in another order, may: by more than ``gap``,
    relative or absolute below 1, or otherwise than by a number. None when all that differs to the last bit is less.

    >>> one, two = (Batch.from_rows([{"a": 1.0, "b": 2.0}, {"a": value, "b": 2.0}]) for value in (2.0, 2.5))
    >>> print(first_that_is_no_rounding(one, two, gap=0.1))
    column 'a' is 2.0 instead of 2.5
    >>> first_that_is_no_rounding(one, two, gap=0.5)
    """
    found = []
    for name in dict.fromkeys((*expected.names, *got.names)):
        pair = _column(got, name), _column(expected, name)
        same = _same(*pair)
        rows = np.flatnonzero(~same).tolist() if same is not None else []
        cells = (_at(row, name, *pair) for row in rows)
        found.extend([cell for cell in cells if not _is_rounding(cell, gap)][:1])
    return min(found, key=lambda cell: cell.row, default=None)


def _is_rounding(cell: Difference, gap: float) -> bool:
    return isinstance(cell.got, float) and isinstance(cell.expected, float) and cell.gap <= gap


def _at(row: int, name: str, *both: Column) -> Difference:
    return Difference(row, name, *(_item(column.slice(row, row + 1)) for column in both))


def _item(cell: Column) -> Any:
    item = cell.to_list()[0]
    return np.datetime64(item, "ns") if cell.kind is Kind.TIME and isinstance(item, int) else item


def _column(batch: Batch, name: str) -> Column:
    found = batch.columns.get(name)
    return Column.missing(Kind.OBJECT, len(batch)) if found is None else found


def _same(got: Column, expected: Column) -> NDArray[np.bool_] | None:
    """Which rows are the same to the last bit; None for all of them."""
    if got is expected:
        return None
    if got.kind is not expected.kind or got.kind in (Kind.TEXT, Kind.OBJECT) or got.exact or expected.exact:
        return _each(got.to_list(), expected.to_list())
    same = got.values == expected.values
    if got.kind is Kind.FLOAT:
        same = got.values.view(np.int64) == expected.values.view(np.int64)  # 0.0 is not -0.0
        same |= np.isnan(got.values) & np.isnan(expected.values)
    whole: NDArray[np.bool_] = same & (_tags(got) == _tags(expected))
    return whole


def _near(got: Column, expected: Column, tolerance: float) -> NDArray[np.bool_] | None:
    if got is expected:
        return None
    gone, none = _is_missing(got), _is_missing(expected)
    if {got.kind, expected.kind} <= _NUMBERS and not got.exact and not expected.exact:
        one, other = got.values.astype(np.float64), expected.values.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):  # of two infinities, of two ends of all numbers
            close = np.abs(one - other) <= tolerance * np.maximum(1.0, np.abs(other))
        whole = _is_whole(got) & _is_whole(expected)
        same = (close & np.isfinite(other) & ~whole) | (one == other)
    elif got.kind is expected.kind is Kind.TIME:
        same = got.values == expected.values
    else:
        pairs = zip(got.to_list(), expected.to_list(), strict=True)
        same = np.fromiter((_is_near(one, other, tolerance) for one, other in pairs), np.bool_, len(got))
    alike: NDArray[np.bool_] = (same & ~gone & ~none) | (gone & none)
    return alike


def _is_whole(column: Column) -> NDArray[np.bool_]:
    """Where there is an integer, which counts or names something."""
    whole: NDArray[np.bool_] = _tags(column) == INTEGER_TAG
    return whole | (column.kind is Kind.INT)


def _is_near(one: Any, other: Any, tolerance: float) -> bool:
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other)]
    if all(numbers) and not (isinstance(one, int) and isinstance(other, int)):
        return bool(one == other or abs(one - other) <= tolerance * max(1.0, abs(other)) < np.inf)
    return _is_same(one, other)


def _each(got: list[Any], expected: list[Any]) -> NDArray[np.bool_]:
    pairs = zip(got, expected, strict=True)
    return np.fromiter((_is_same(one, other) for one, other in pairs), np.bool_, len(got))


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, float | list | dict):  # whose == takes 0.0 for -0.0 and 5 for 5.0, and no NaN for another
        return repr(one) == repr(other)
    try:
        return bool(one == other) or repr(one) == repr(other)
    except Exception:  # noqa: BLE001 - objects of any class, whose comparison may be an array, or fail
        return repr(one) == repr(other)


def _tags(column: Column) -> NDArray[np.uint8]:
    return np.zeros(len(column), np.uint8) if column.tags is None else column.tags


def _is_missing(column: Column) -> NDArray[np.bool_]:
    missing = column.missing_rows()
    if column.kind is Kind.FLOAT:
        missing |= np.isnan(column.values)
    elif column.kind is Kind.TEXT:
        missing |= column.values < 0
    elif column.kind is Kind.OBJECT:
        missing |= np.fromiter(map(_is_nothing, column.values), np.bool_, len(column))
    elif column.kind is Kind.TIME:
        missing |= column.values == np.iinfo(np.int64).min
    return missing


def _is_nothing(item: Any) -> bool:
    return item is None or (isinstance(item, float) and np.isnan(item))
