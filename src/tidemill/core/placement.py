"""The device that a sensor sits on, by which it is placed where stages work on what the sensors of a device share."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import ABSENT, INTEGER_TAG, Column, object_array
from tidemill.schema import Kind

__all__ = ["devices_of", "lacking"]

_NUMBERS: Final = (Kind.FLOAT, Kind.INT, Kind.BOOL)
_NONE: Final = -1


def devices_of(batch: Batch, by: str) -> Column:
    """The name of each record's device, a TEXT column: what column ``by`` says, as text; -1 where it says nothing.

    Numbers are read as they are for a sensor's name: 7 and 7.0 are two devices.

    >>> column = devices_of(Batch.from_rows([{"pump": 7}, {"pump": 8}, {"pump": None}, {"pump": 7}]), "pump")
    >>> column.texts.tolist(), column.values.tolist()
    (['7', '8'], [0, 1, -1, 0])
    """
    column = batch.columns.get(by)
    if column is None:
        return Column.missing(Kind.TEXT, len(batch))
    if column.kind is Kind.TEXT:
        return column
    if column.kind in _NUMBERS and not column.exact and (column.tags is None or (column.tags == INTEGER_TAG).all()):
        return _of_numbers(column)
    items = [item if _names(item) else None for item in column.to_list()]
    codes = {text: code for code, text in enumerate(dict.fromkeys(str(item) for item in items if item is not None))}
    values = [_NONE if item is None else codes[str(item)] for item in items]
    return Column(Kind.TEXT, np.array(values, np.int32), texts=object_array(list(codes)))


def lacking(by: str) -> str:
    """Why a record cannot be placed."""
    return f"the record has nothing in field {by!r}, which names its device"


def _of_numbers(column: Column) -> Column:
    used, codes = np.unique(column.values, return_inverse=True)
    numbers = used[~np.isnan(used)]  # NaN names nothing, and sorts last
    values: NDArray[np.int32] = np.where(codes < len(numbers), codes, _NONE).astype(np.int32)
    items = numbers.astype(np.int64) if column.tags is not None else numbers
    return Column(Kind.TEXT, values, texts=object_array([str(item) for item in items.tolist()]))


def _names(item: object) -> bool:
    return item is not None and item is not ABSENT and item == item and not isinstance(item, (dict, list, tuple, set))  # noqa: PLR0124
