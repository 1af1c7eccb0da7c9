"""Cells of CSV, which are texts, as columns of a kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.column import INTEGER_TAG, NULL_TAG, Column, object_array
from tidemill.formats.json_limits import DIGITS
from tidemill.formats.times import TimeReader
from tidemill.letters import INFINITE, MALFORMED, WRONG_TYPE, Reject
from tidemill.schema import Kind

__all__ = ["column_of_cells", "keep_their_digits", "learn_kind"]

_NOT_A_NUMBER: Final = frozenset({"nan", "+nan", "-nan"})
_INFINITIES: Final = frozenset({"inf", "+inf", "-inf", "infinity", "+infinity", "-infinity"})
_TRUE: Final = frozenset({"true", "1", "yes"})
_FALSE: Final = frozenset({"false", "0", "no"})
_LOOK: Final = 4_000
"""Cells that hold something from which a column's kind is learned."""


def learn_kind(cells: Sequence[str], *, of_times: bool = False) -> Kind | None:
    """FLOAT when more than half of the cells that hold something are numbers, else TEXT; None when none does.

    Digits that are padded with zeros to one width, such as ``007`` and ``012``, are names, and text, but for times.
    """
    missing = {cell for cell in set(cells) if not cell.strip() or cell.strip().lower() in _NOT_A_NUMBER}
    filled = [cell for cell in cells if cell not in missing][:_LOOK]
    if not filled:
        return None
    numbers = [cell for cell in filled if _number(cell) is not None]
    return Kind.FLOAT if 2 * len(numbers) > len(filled) and (of_times or not _are_padded(numbers)) else Kind.TEXT


def _are_padded(cells: Sequence[str]) -> bool:
    width = len(cells[0])
    return (
        width > 1
        and all(len(cell) == width and cell.isdecimal() for cell in cells)
        and any(cell.startswith("0") for cell in cells)
    )


def keep_their_digits(cells: Sequence[str]) -> bool:
    """Whether cells that are integers come back as they are written, from floats: none is padded with zeros, and none has more
    digits than a float holds.

    A table that is read as a whole may ask this of every cell, where `learn_kind` sees the first of many.

    >>> keep_their_digits(["7", "-12", "1.50"]), keep_their_digits(["7", "012"]), keep_their_digits(["9007199254740993"])
    (True, False, False)
    """
    return all(_keeps_its_digits(cell.strip().lstrip("+-")) for cell in cells)


def _keeps_its_digits(digits: str) -> bool:
    if not digits.isdecimal():
        return True
    return (digits == "0" or not digits.startswith("0")) and len(digits) <= DIGITS and _is_float(int(digits))


def _is_float(number: int) -> bool:
    try:
        return int(float(number)) == number
    except OverflowError:
        return False


def column_of_cells(
    name: str, cells: Sequence[str], kind: Kind | None, times: TimeReader
) -> tuple[Column, list[Reject]]:
    """Cells as a column of ``kind``: an empty cell is null, and so is ``nan`` among numbers; misfits are rejected.

    Of no kind are cells that hold nothing: all of them are null.
    """
    match kind:
        case None:
            return Column.missing(Kind.OBJECT, len(cells), NULL_TAG), []
        case Kind.FLOAT:
            return _floats(name, cells)
        case Kind.TEXT:
            return _texts(cells), []
        case Kind.OBJECT:
            column = Column(Kind.OBJECT, object_array([cell or None for cell in cells]))
            column.tags = _nulls(cells)
            return column, []
        case Kind.TIME:
            ns, bad = times.column(_texts(cells))
            return _misfits(name, cells, Column(Kind.TIME, ns, tags=_nulls(cells)), bad)
        case Kind.INT:
            return _parsed(name, cells, Kind.INT, _integer, 0)
        case Kind.BOOL:
            return _parsed(name, cells, Kind.BOOL, _truth, False)


def _texts(cells: Sequence[str]) -> Column:
    column = Column.of_texts(cells)
    tags = _nulls(cells)
    if tags is not None:
        column = Column(
            Kind.TEXT, np.where(tags == NULL_TAG, np.int32(-1), column.values), tags=tags, texts=column.texts
        )
    return column


def _nulls(cells: Sequence[str]) -> NDArray[np.uint8] | None:
    if "" not in cells:
        return None
    return np.fromiter((NULL_TAG if not cell else 0 for cell in cells), np.uint8, len(cells))


def _misfits(name: str, cells: Sequence[str], column: Column, bad: NDArray[np.bool_]) -> tuple[Column, list[Reject]]:
    rejects = []
    for row in np.flatnonzero(bad).tolist():
        if cells[row]:
            reason = f"field {name!r} is {column.kind.value} and this record has the text {_short(cells[row])}"
            rejects.append(Reject(row, WRONG_TYPE, reason))
    return column, rejects


def _floats(name: str, cells: Sequence[str]) -> tuple[Column, list[Reject]]:
    try:
        values = np.array(list(map(float, cells)))
    except ValueError:
        return _float_by_float(name, cells)
    if not np.isfinite(values).all() or "_" in ",".join(cells):
        return _float_by_float(name, cells)
    return _with_integers(name, values, cells, None)


def _float_by_float(name: str, cells: Sequence[str]) -> tuple[Column, list[Reject]]:
    values = np.full(len(cells), np.nan)
    tags = np.zeros(len(cells), np.uint8)
    rejects = []
    for row, cell in enumerate(cells):
        number = _number(cell)
        plain = cell.strip().lower()
        if number is not None and np.isfinite(number):
            values[row] = number
        elif not plain or plain in _NOT_A_NUMBER:
            tags[row] = NULL_TAG
        elif number is not None:
            tags[row] = NULL_TAG
            rejects.append(Reject(row, INFINITE, f"field {name!r} holds an infinite number, {_short(cell)}"))
        else:
            tags[row] = NULL_TAG
            reason = f"field {name!r} is float and this record has the text {_short(cell)}"
            rejects.append(Reject(row, WRONG_TYPE, reason))
    column, too_long = _with_integers(name, values, cells, tags)
    return column, rejects + too_long


def _with_integers(
    name: str, values: NDArray[np.float64], cells: Sequence[str], tags: NDArray[np.uint8] | None
) -> tuple[Column, list[Reject]]:
    """The numbers, remembering which cells were written as integers, and the exact ones that a float cannot hold; of
    these, those of too many digits are rejected."""
    whole = np.flatnonzero(values == np.rint(values))
    integers = [row for row in whole.tolist() if cells[row].strip().lstrip("+-").isdecimal()]
    exact: dict[int, int] = {}
    rejects = []
    if integers:
        if tags is None:
            tags = np.zeros(len(values), np.uint8)
        tags[integers] = INTEGER_TAG
        large = np.flatnonzero((np.abs(values) >= 2.0**53) & (tags == INTEGER_TAG))
        for row in large.tolist():
            if len(cells[row].strip().lstrip("+-")) <= DIGITS:
                exact[row] = int(cells[row])
            else:
                values[row], tags[row] = np.nan, NULL_TAG
                rejects.append(Reject(row, MALFORMED, f"field {name!r} holds a number of more than {DIGITS} digits"))
    tags = tags if tags is not None and tags.any() else None
    return Column(Kind.FLOAT, values, tags=tags, exact=exact or None), rejects


def _parsed(name: str, cells: Sequence[str], kind: Kind, parse: Any, fill: Any) -> tuple[Column, list[Reject]]:
    items = [parse(cell) for cell in cells]
    bad = np.fromiter((item is None for item in items), np.bool_, len(items))
    values = np.array([fill if item is None else item for item in items], np.int64 if kind is Kind.INT else np.bool_)
    tags = np.where(bad, np.uint8(NULL_TAG), np.uint8(0)) if bad.any() else None
    return _misfits(name, cells, Column(kind, values, tags=tags), bad)


def _number(cell: str) -> float | None:
    try:
        return float(cell) if "_" not in cell else None
    except ValueError:
        return None


def _integer(cell: str) -> int | None:
    try:
        number = int(cell) if "_" not in cell else None
    except ValueError:
        return None
    return number if number is not None and -(2**63) <= number < 2**63 else None


def _truth(cell: str) -> bool | None:
    word = cell.strip().lower()
    return True if word in _TRUE else False if word in _FALSE else None


def _short(cell: str) -> str:
    return repr(cell) if len(cell) <= 60 else f"{cell[:57]!r}..."
